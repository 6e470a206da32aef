"""Checkpoints of models that read images too: their text side is loaded, and carries prefixes."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, MllamaConfig

from foreword.core import Batch, Front, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.models import load_model
from foreword.models.text_side import drop_other_towers
from foreword.models.tokenized_model import TokenizedModel
from foreword.models.ways import wrap_model
from foreword.prompts.lower import lower_tokens
from foreword.text import chat, task_prompts
from foreword.training.train import train
from tiny_models import SHARED, byte_tokenizer
from tiny_vision_language import FAMILIES, save_tiny
from training.small_data import recipe, write_jsonl

FRONT, ROW = list(range(60, 80)), list(range(90, 100))


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_tiny(request.param, tmp_path_factory.mktemp("model"))


def test_the_text_side_answers_behind_a_prefix_as_the_whole_model_does(folder):
    lm = load_model(str(folder))
    whole = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = whole(input_ids=torch.tensor([FRONT + ROW])).logits[0, len(FRONT) :]
    batch = Batch.from_rows(Front(lower_tokens(lm, FRONT)), [ROW])
    with torch.no_grad():
        found = lm.logits(batch, torch.arange(len(ROW)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert lm.causal
    assert not [name for name, _ in lm.model.named_parameters() if "vision" in name or "visual" in name]
    known = TokenizedModel.load(str(folder))
    assert (known.causal, known.has_lm_head, known.vocab_size) == (True, True, lm.vocab_size)
    assert known.context == lm.context


def test_it_is_served_and_learns(folder, tmp_path):
    lm = load_model(str(folder))
    prompt = task_prompts.from_text(lm.tokenizer, None, "The weather")
    with Engine(lm) as engine:
        (chunks,) = engine.generate([Request.from_prompt(prompt, SamplingParams(max_tokens=5))])
    ids = torch.tensor([prompt.token_ids])
    whole = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    for token in [token for chunk in chunks for token in chunk.token_ids]:
        with torch.no_grad():
            assert int(whole(input_ids=ids).logits[0, -1].argmax()) == token
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    rows = [{"text": "ab" * (1 + n % 3), "label": "yn"[n % 2]} for n in range(8)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    prefix = train(lm, recipe(tmp_path, data=data, eval=None, method="p-tuning-v2", max_steps=2)).task.prefix
    assert prefix is not None
    assert prefix.length == 16


def test_a_tower_that_text_runs_through_is_kept(folder):
    model = AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="eager").eval()
    body = model.base_model
    towers = {name for name, _ in body.named_children()} - {"language_model", "text_model"}
    tower = next(name for name in ("visual", "vision_tower", "vision_model") if name in towers)
    model.register_forward_pre_hook(lambda module, args: getattr(body, tower).config)
    drop_other_towers(model)
    assert {name for name, child in body.named_children() if child is not None} >= towers


def test_the_chat_template_of_an_older_processor_is_found(tmp_path):
    folder = save_tiny("smolvlm", tmp_path)
    template = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }}{% endfor %}|{% endfor %}"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    tokenizer = TokenizedModel.load(str(folder)).tokenizer
    assert chat.render(tokenizer, [{"role": "user", "content": "Hello"}]) == "Hello|"
    (folder / "chat_template.json").write_text("[]")
    assert TokenizedModel.load(str(folder)).tokenizer.chat_template is None


def test_the_text_side_of_mllama_writes():
    """Its configuration is registered for no output matrix: only the class says that it is causal."""
    sizes = {**SHARED, "num_hidden_layers": 2, "cross_attention_layers": [1], "pad_token_id": 257}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MllamaConfig(text_config=sizes)).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.12)
    assert wrap_model(model, byte_tokenizer(), name="tiny-mllama").causal
