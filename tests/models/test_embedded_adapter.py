"""A PEFT adapter in place of a model or beside one is refused with the mend, and the mend works."""

from __future__ import annotations

import re

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from foreword.cli.app import app
from foreword.errors import UnsupportedModel
from foreword.models import load_model
from foreword.models.model_info import model_info
from tiny_models import save_tiny


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter of a saved tiny model, and the model's folder."""
    base = save_tiny("llama", tmp_path / "base")
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", base


def test_an_adapter_alone_is_no_model(adapter):
    folder, _ = adapter
    with pytest.raises(UnsupportedModel, match=r"is a PEFT adapter without a model; .*`foreword import peft .*adapter"):
        load_model(str(folder))


def test_an_adapter_beside_weights_is_refused_and_imported(adapter, tmp_path):
    folder, base = adapter
    for file in folder.glob("adapter_*"):
        (base / file.name).write_bytes(file.read_bytes())
    for load in (load_model, model_info):
        with pytest.raises(UnsupportedModel, match=r"beside the weights .* --model .*base --publish NAME") as caught:
            load(str(base))
    (base / "adapter_config.json").unlink()
    args = re.search(r"`foreword (.*)`", str(caught.value))[1].replace("FOLDER", str(folder)).replace("NAME", "mine")
    done = CliRunner().invoke(app, [*args.split(), "--bank", str(tmp_path / "bank")])
    assert done.exit_code == 0, done.output
