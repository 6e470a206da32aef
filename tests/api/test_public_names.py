"""The public names: listed, loaded on first use, and an error where they are misspelt."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import foreword
from foreword import models


def test_the_names_are_listed():
    assert sorted(foreword.__all__) == sorted(
        [
            "Bank",
            "Client",
            "DistilRecipe",
            "Engine",
            "ForewordError",
            "KVPrefix",
            "LoRA",
            "LoRAHybrid",
            "Manual",
            "PTuning",
            "PTuningV2",
            "PrefixTuning",
            "PromptTuning",
            "Recipe",
            "SamplingParams",
            "Task",
            "Template",
            "Verbalizer",
            "__version__",
            "compose",
            "connect",
            "distill",
            "evaluate",
            "export_peft",
            "import_peft",
            "load_model",
            "lower",
            "publish",
            "search",
            "train",
            "train_many",
        ]
    )
    assert dir(foreword) == sorted(foreword.__all__)
    assert all(getattr(foreword, name) is not None for name in foreword.__all__)


def test_a_misspelt_name_is_an_error_with_a_near_one():
    with pytest.raises(AttributeError, match="did you mean load_model"):
        _ = foreword.load_modle  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match=r"dir\(foreword\)"):
        _ = foreword.xyzzy  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="load_modle"):
        _ = models.load_modle  # type: ignore[attr-defined]


def test_a_misspelt_name_is_an_error_for_a_type_checker(tmp_path: Path):
    pytest.importorskip("pyright")
    file = tmp_path / "program.py"
    file.write_text(
        "import foreword\n"
        "engine = foreword.Engine()\n"
        "reveal_type(engine.generate('a', max_tokens=3))\n"
        "reveal_type(foreword.connect('http://a').classify(['a'], 'mood'))\n"
        "foreword.load_modle()\n"
        "engine.generate('a', max_token=3)\n"
        "engine.classify(['a'], task='mood', tsk=1)\n"
        "for chunk in engine.stream_chat([{'role': 'user', 'content': 'a'}]):\n"
        "    reveal_type(chunk.text)\n"
    )
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{Path(foreword.__file__).parents[1]}"]}}')
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    assert '"load_modle" is not a known attribute' in found
    assert 'No parameter named "max_token"' in found
    assert 'No parameter named "tsk"' in found
    assert 'is "Generation"' in found
    assert 'is "list[Classification]"' in found
    assert 'is "str"' in found
    assert "3 errors" in found
