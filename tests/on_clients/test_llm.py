"""The command ``llm`` with a tool, and with a schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llm", reason="needs the clients: make test-clients")

from on_clients.conftest import MODEL

SETTINGS = """\
- model_id: foreword
  model_name: {model}
  api_base: {url}
  supports_tools: true
  supports_schema: true
"""
# The small model calls no tool unasked, but goes on with calls that it reads.
CALLS = '<tool_call>\n{"name": "llm_time", "arguments": {}}\n</tool_call>\n' * 9


@pytest.fixture
def run(url: str, tmp_path: Path):
    (tmp_path / "extra-openai-models.yaml").write_text(SETTINGS.format(model=MODEL, url=url))

    def llm(*arguments: str) -> subprocess.CompletedProcess[str]:
        options = ["-m", "foreword", "-o", "temperature", "0", "-o", "max_tokens", "60"]
        return subprocess.run(
            [str(Path(sys.executable).parent / "llm"), *options, *arguments],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=200,
            stdin=subprocess.DEVNULL,
        )

    return llm


@pytest.mark.parametrize("stream", [[], ["--no-stream"]], ids=["streamed", "whole"])
def test_a_tool(run, stream: list[str]) -> None:
    done = run("-T", "llm_time", "--td", "--chain-limit", "2", *stream, CALLS)
    assert "Tool call: llm_time({})" in done.stderr
    assert "utc_time" in done.stderr


def test_a_question_beside_a_tool(run) -> None:
    done = run("-T", "llm_time", "Hello!")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


def test_a_schema(run) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 9}},
        "required": ["name"],
        "additionalProperties": False,
    }
    assert json.loads(run("--schema", json.dumps(schema), "A dog").stdout).keys() == {"name"}
