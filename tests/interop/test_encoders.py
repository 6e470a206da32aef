"""What of encoders PEFT can hold: a LoRA, which answers there as here; a prefix only where it puts one in front."""

from __future__ import annotations

import peft
import pytest
import torch

from foreword.core import Adapter, Batch, Front, LowRank, Task
from foreword.errors import UsageError
from foreword.interop.export import export_peft
from foreword.interop.peft import import_peft, read_peft
from foreword.prompts.lower import empty_prefix
from interop.conftest import random_prefix
from tiny_encoders import CONFIGS, bare_encoder, tiny_encoder

IDS = list(range(5, 17))
LAYER = {
    "mpnet": "mpnet.encoder.layer.1.attention.attn.k",
    "deberta-v3": "deberta.encoder.layer.0.attention.self.key_proj",
}


@pytest.mark.parametrize("family", LAYER)
def test_a_lora_gives_the_same_logits_in_peft_and_comes_back(family, tmp_path):
    lm = tiny_encoder(family)
    adapter = Adapter({LAYER[family]: LowRank(0.3 * torch.randn(2, 48), 0.3 * torch.randn(48, 2))}, 0.5)
    assert export_peft(lm, Task("t", "lora", empty_prefix(lm), adapter=adapter), tmp_path / "out") == "LORA"
    model = bare_encoder(CONFIGS[family]())
    model.config._attn_implementation = "eager"
    loaded = peft.PeftModel.from_pretrained(model, tmp_path / "out").eval()
    back = import_peft(lm, read_peft(str(tmp_path / "out")), "back").adapter
    with torch.no_grad():
        expected = loaded(input_ids=torch.tensor([IDS])).logits[0]
        for each in (adapter, back):
            found = lm.logits(Batch.from_rows(Front(adapter=each), [IDS]), torch.arange(len(IDS)))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["albert", "distilbert", "modernbert", "eurobert", "mpnet", "roformer"])
def test_a_prefix_that_peft_would_not_put_in_front_is_neither_exported_nor_imported(family, tmp_path):
    lm = tiny_encoder(family)
    with pytest.raises(
        UsageError, match=r"the prefix of task 't' cannot be a prefix of PEFT: PEFT hands prefixes on as"
    ):
        export_peft(lm, Task("t", "p-tuning-v2", random_prefix(lm)), tmp_path / "out")
    config = peft.PrefixTuningConfig(
        task_type="FEATURE_EXTRACTION", num_virtual_tokens=3, num_layers=3, token_dim=48, num_attention_heads=4
    )
    peft.get_peft_model(bare_encoder(CONFIGS[family]()), config).save_pretrained(tmp_path / "theirs")
    with pytest.raises(UsageError, match="cannot be a prefix of PEFT"):
        import_peft(lm, read_peft(str(tmp_path / "theirs")), "theirs")
