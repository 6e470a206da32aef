"""What the shell completes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.processes import environment

# What is loaded is said once all is done.
CODE = """
import atexit, sys
atexit.register(lambda: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)), file=sys.stderr))
sys.argv = ['foreword']
from foreword.cli import main
main()
"""


def completed(words: str, folder: Path, home: Path, shell: str = "bash") -> list[str]:
    """What is offered for the last word; without torch."""
    line = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1), "_TYPER_COMPLETE_ARGS": words}
    more = {**line, "_FOREWORD_COMPLETE": f"complete_{shell}"}
    found = subprocess.run(
        [sys.executable, "-c", CODE], env=environment(folder, home, **more), capture_output=True, text=True, timeout=60
    )
    assert found.stderr.strip() == "[]"
    return found.stdout.split()


@pytest.fixture
def home(run, tmp_path) -> Path:
    (tmp_path / "text.txt").write_text("Be kind.")
    for name in ("support", "story", "other"):
        run("publish", name, "--text", "text.txt")
    return tmp_path / "home"


@pytest.mark.parametrize(
    "command",
    [
        "chat",
        "chat --task",
        "generate",
        "classify",
        "eval",
        "eval other --compare",
        "bank show",
        "bank verify",
        "bank rollback",
        "bank remove",
        "bank compose other",
        "bank ensemble other",
        "export peft",
        "publish",
    ],
)
def test_names_of_tasks(command, folder, home):
    assert sorted(completed(f"foreword {command} s", folder, home)) == ["story", "support"]


def test_the_bank_of_the_line(folder, home, tmp_path):
    assert completed(f"foreword chat --bank {tmp_path / 'nothing'} s", folder, home) == []
    assert completed("foreword chat --bank memory://far/away s", folder, home) == []
    assert completed(f"foreword chat --bank {home / 'bank'} o", folder, tmp_path / "elsewhere") == ["other"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("train --method p-", {"p-tuning-v2", "p-tuning"}),
        ("search --method lora", {"lora", "lora-hybrid"}),
        ("train --init ta", {"task:"}),
        ("train --init task:s", {"task:story", "task:support"}),
        ("train --report-to m", {"mlflow"}),
        ("train --dtype b", {"bfloat16"}),
        ("generate --device c", {"cpu", "cuda"}),
        ("serve --engine l", {"llamacpp"}),
        ("eval other --engine e", {"embedded"}),
        ("bench t", {"ttft"}),
        ("bench step --engine v", {"vllm"}),
        ("distill --init e", {"even"}),
        ("eval other st", {"story"}),
    ],
)
def test_values_of_options(words, offered, folder, home):
    assert set(completed(f"foreword {words}", folder, home)) == offered


def test_commands_and_flags(folder, home):
    assert completed("foreword ch", folder, home) == ["chat"]
    assert completed("foreword chat --max", folder, home) == ["--max-tokens"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell, folder, tmp_path):
    found = subprocess.run(
        [sys.executable, "-m", "foreword", "--show-completion", shell],
        env=environment(folder, tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert found.returncode == 0, found.stderr
    assert "_FOREWORD_COMPLETE" in found.stdout
