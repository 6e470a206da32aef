"""One Foreword server of the built-in model, a process of its own, for the clients of this environment.

``$FOREWORD`` names the program; the clients' environment has neither Foreword nor PyTorch.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# LiteLLM asks the network for prices as it is imported.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

MODEL = "smollm2-135m"
TASK = "clerk"
"""A system turn, published."""


def foreword() -> str:
    program = os.environ.get("FOREWORD")
    if program is None:
        pytest.skip("needs the clients and $FOREWORD: make test-clients")
    return program


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of the API, with the task `TASK` in the bank."""
    bank = str(tmp_path_factory.mktemp("bank"))
    publish = [foreword(), "publish", TASK, "--system", "-", "--bank", bank]
    subprocess.run(publish, input="You are a clerk who answers in few words.", text=True, check=True, timeout=300)
    log = Path(tmp_path_factory.mktemp("log")) / "serve.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [foreword(), "serve", "--port", "0", "--bank", bank, "--no-ui"], stdout=file, stderr=subprocess.STDOUT
        )
    try:
        yield f"{_address(process, log)}/v1"
    finally:
        process.terminate()
        process.wait(30)


def _address(process: subprocess.Popen[bytes], log: Path, seconds: float = 300) -> str:
    deadline = time.monotonic() + seconds
    while (found := re.search(r"at (http://[\d.:]+)", log.read_text())) is None:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    return found[1]


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    monkeypatch.setenv("OPENAI_BASE_URL", url)
