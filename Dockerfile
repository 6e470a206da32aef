# syntax=docker/dockerfile:1
FROM python:3.11-slim-bookworm AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY src src
# PyTorch for CPUs alone; for GPUs, leave the second index out and start from an image with CUDA.
RUN python -m venv /opt/foreword \
    && /opt/foreword/bin/pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu .

FROM python:3.11-slim-bookworm
# Not root, and nothing to write but /data: the bank, the models and the quotas.
RUN useradd --uid 10001 --create-home --home-dir /data foreword
COPY --from=build /opt/foreword /opt/foreword
ENV PATH=/opt/foreword/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FOREWORD_HOME=/data \
    HF_HOME=/data/huggingface
USER 10001
WORKDIR /data
VOLUME ["/data"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
ENTRYPOINT ["foreword"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000"]
