"""Stacked prefixes: exact where theory allows it, against plain Transformers; said where it does not."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import pytest
import torch
from tokenizers import processors
from torch import Tensor

from engine.reference import TOLERANCE, learned_prefix, reference_logits, stock_model
from foreword.attention import RaggedAttention
from foreword.core import Adapter, Batch, Front, Head, KVPrefix, LowRank, Task
from foreword.engine.protocol import Request
from foreword.errors import ModelMismatch, PromptTooLong, TemplateError, UnsupportedModel, UsageError
from foreword.models import LanguageModel
from foreword.prompts.compose import compose
from foreword.prompts.init import random_values
from foreword.prompts.lower import empty_prefix, lower
from foreword.prompts.registry import get_method
from foreword.prompts.static import static_task
from foreword.text.template import Template
from tiny_models import byte_tokenizer, tiny_model

FAMILIES = ("llama", "qwen3", "gemma3", "gpt2")
TURNING = ("llama", "qwen3", "gemma3")
ASKED = tuple(range(90, 101))
WORDS = {"yes": (" y",), "no": (" n",)}


def text_task(lm: LanguageModel, name: str, text: str, **fields: object) -> Task:
    return replace(static_task(lm, name, "prompt", text), **fields)


def learned_task(family: str, name: str, length: int = 5, seed: int = 0, **fields: object) -> Task:
    return Task(name, "p-tuning-v2", replace(learned_prefix(family, length, seed), **fields))


def next_token_logits(lm: LanguageModel, prefix: KVPrefix) -> Tensor:
    """``[T, vocab]`` of `ASKED` behind a prefix."""
    return lm.logits(Batch.from_rows(Front(prefix), [ASKED]), torch.arange(len(ASKED)))


def ids(lm: LanguageModel, text: str) -> tuple[int, ...]:
    return tuple(lm.tokenizer.encode(text, add_special_tokens=False))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_behind_a_learned_prefix_is_exact(family):
    """Plain Transformers: the learned prefix as ``past_key_values``, the text and the request as input."""
    lm, front = tiny_model(family), learned_task(family, "front")
    made = compose(lm, "both", [front, text_task(lm, "text", "Once upon a time,")])
    request = Request((*ids(lm, "Once upon a time,"), *ASKED), front.prefix, front.prefix.length)
    torch.testing.assert_close(
        next_token_logits(lm, made.task.prefix),
        reference_logits(family, request)[-len(ASKED) :],
        atol=TOLERANCE,
        rtol=0,
    )
    assert made.exact
    assert [part.how for part in made.parts] == ["first", "text"]
    assert (made.task.kind, made.task.method, made.task.prefix.token_ids) == ("learned", "composed", None)


@pytest.mark.parametrize("family", FAMILIES)
def test_texts_are_the_joined_text(family):
    lm = tiny_model(family)
    made = compose(lm, "both", [text_task(lm, name, text) for name, text in (("a", "Be brief."), ("b", " Be kind."))])
    whole = torch.tensor([[*ids(lm, "Be brief. Be kind."), *ASKED]])
    expected = stock_model(family)(input_ids=whole).logits[0, -len(ASKED) :]
    torch.testing.assert_close(next_token_logits(lm, made.task.prefix), expected, atol=TOLERANCE, rtol=0)
    assert made.exact
    assert (made.task.kind, made.task.text) == ("prompt", "Be brief. Be kind.")
    assert made.task.prefix.token_ids == ids(lm, "Be brief. Be kind.")
    assert made.task.prefix.digest == static_task(lm, "c", "prompt", "Be brief. Be kind.").prefix.digest


@pytest.mark.parametrize("family", TURNING)
def test_a_learned_prefix_behind_another_has_the_models_own_rotation(family):
    """Keys of a text that ran alone, as a learned prefix: behind five positions they are the model's own keys there."""
    lm, first = tiny_model(family), learned_task(family, "first")
    alone = text_task(lm, "b", "Some words of it").prefix
    behind = Task("b", "p-tuning-v2", replace(alone, token_ids=None, bos="request"))
    made = compose(lm, "both", [first, behind])
    kept: dict[int, Tensor] = {}
    batch = Batch((alone.length,), (None,), (replace(empty_prefix(lm), offset=5),), torch.tensor(alone.token_ids))
    attend = RaggedAttention(batch, lambda layer, key, _: kept.update({layer: key}))
    lm.logits(batch, torch.tensor([0]), attend=attend)
    for layer, key in enumerate(made.task.prefix.keys):
        torch.testing.assert_close(key[:, 5:], kept[layer], atol=TOLERANCE, rtol=0)
        assert torch.equal(key[:, :5], first.prefix.keys[layer])
    for value, one, other in zip(made.task.prefix.values, first.prefix.values, alone.values, strict=True):
        assert torch.equal(value, torch.cat([one, other], dim=1))
    assert (made.exact, [part.how for part in made.parts]) == (False, ["first", "rotated"])


@pytest.mark.parametrize("family", TURNING)
def test_a_stack_of_learned_prefixes_is_served_as_plain_transformers_would(family):
    lm = tiny_model(family)
    made = compose(lm, "three", [learned_task(family, n, 4, seed) for seed, n in enumerate("abc")]).task.prefix
    assert made.length == made.offset == 12
    expected = reference_logits(family, Request(ASKED, made, made.length))
    torch.testing.assert_close(next_token_logits(lm, made), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_soft_tokens_are_run_again_behind_what_stands_there(family):
    """Plain Transformers: a text's embeddings and the soft tokens as ``inputs_embeds``; no rotation is needed."""
    lm = tiny_model(family)
    encoder = get_method("prompt-tuning").encoder(lm, random_values(4, torch.Generator().manual_seed(1)))
    soft = encoder.soft_tokens()
    task = Task("soft", "prompt-tuning", lower(lm, encoder), soft=soft)
    made = compose(lm, "both", [text_task(lm, "a", "Be brief."), task])
    model = stock_model(family)
    table = model.get_input_embeddings()
    embeds = torch.cat([table(torch.tensor(ids(lm, "Be brief."))), soft, table(torch.tensor(ASKED))])[None]
    expected = model(inputs_embeds=embeds).logits[0, -len(ASKED) :]
    torch.testing.assert_close(next_token_logits(lm, made.task.prefix), expected, atol=TOLERANCE, rtol=0)
    assert (made.exact, [part.how for part in made.parts]) == (False, ["text", "soft"])
    assert made.task.soft is None


def test_keys_cannot_turn_where_positions_are_learned():
    lm = tiny_model("gpt2")
    with pytest.raises(UnsupportedModel, match="tiny-gpt2 has learned absolute positions"):
        compose(lm, "both", [learned_task("gpt2", "a"), learned_task("gpt2", "b", seed=1)])


@cache
def with_bos() -> LanguageModel:
    """A tiny Llama whose tokenizer begins every text."""
    lm = copy.copy(tiny_model("llama"))
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    pair = [("<bos>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=pair)
    lm.tokenizer = tokenizer
    return lm


@pytest.mark.parametrize(
    ("before", "begins", "stands"),
    [("request", True, "prefix"), ("prefix", False, "prefix"), ("none", False, "none")],
)
def test_a_text_begins_once(before, begins, stands):
    """Behind a learned prefix whose request brings the token, the text brings it; else it is there already."""
    lm = with_bos()
    front = learned_task("llama", "front", bos=before)
    made = compose(lm, "both", [front, text_task(lm, "text", "Once")]).task.prefix
    own = [*([lm.tokenizer.bos_token_id] if begins else []), *ids(lm, "Once")]
    assert (made.length, made.bos) == (5 + len(own), stands)
    expected = reference_logits("llama", Request((*own, *ASKED), front.prefix, 5))[-len(ASKED) :]
    torch.testing.assert_close(next_token_logits(lm, made), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("before", "behind", "stands"),
    [
        ("request", "request", "request"),
        ("request", "prefix", "prefix"),
        ("prefix", "request", "prefix"),
        ("none", "request", "none"),
    ],
)
def test_the_request_behind_learned_prefixes_begins_at_most_once(before, behind, stands):
    lm = with_bos()
    tasks = [learned_task("llama", "a", bos=before), learned_task("llama", "b", seed=1, bos=behind)]
    assert compose(lm, "both", tasks).task.prefix.bos == stands


def test_joined_texts_have_one_beginning():
    lm = with_bos()
    made = compose(lm, "both", [text_task(lm, "a", "Be brief."), text_task(lm, "b", " Be kind.")]).task
    assert made.prefix.token_ids == (lm.tokenizer.bos_token_id, *ids(lm, "Be brief. Be kind."))
    assert made.prefix.bos == "prefix"


def test_the_last_task_with_a_template_asks():
    lm = tiny_model("llama")
    asks = {"template": "{text}:{mask}", "verbalizer": WORDS, "generation": {}}
    writes = replace(learned_task("llama", "a"), template="{q}{target:a}", generation={"max_tokens": 9})
    made = compose(lm, "c", [writes, replace(learned_task("llama", "b", seed=1), **asks), text_task(lm, "t", "x")]).task
    assert (made.template, made.verbalizer, made.generation) == ("{text}:{mask}", WORDS, {})
    made = compose(lm, "c", [replace(writes, template=None), text_task(lm, "t", "x")]).task
    assert (made.template, made.verbalizer, made.generation) == (None, None, {"max_tokens": 9})
    own = compose(lm, "c", [replace(learned_task("llama", "b"), **asks), writes], template="Text: {t}{mask}").task
    assert (own.template, own.verbalizer) == ("Text: {t}{mask}", WORDS)
    other = compose(lm, "c", [writes, text_task(lm, "t", "x")], template="{t}{mask}", verbalizer={"z": (" z",)}).task
    assert other.verbalizer == {"z": (" z",)}


def test_a_task_without_positions_gives_its_template_alone():
    lm = tiny_model("llama")
    manual = Task("m", "manual", empty_prefix(lm), template="{text}:{mask}", verbalizer=WORDS)
    made = compose(lm, "both", [text_task(lm, "t", "Be kind."), manual])
    assert made.exact
    assert [part.how for part in made.parts] == ["text", "template"]
    assert (made.task.kind, made.task.template, made.task.verbalizer) == ("prompt", "{text}:{mask}", WORDS)
    assert [task.ref for task in made.separate_tasks()] == ["t"]


def test_what_it_came_from_is_kept():
    lm = tiny_model("llama")
    a, b = replace(learned_task("llama", "a"), version="0001-aaaaaaaaaaaa"), text_task(lm, "b", "Be kind.")
    kept = compose(lm, "both", [a, b]).task.provenance
    assert kept["parents"] == ["a@0001-aaaaaaaaaaaa", "b"]
    assert kept["parts"] == [
        {"task": "a@0001-aaaaaaaaaaaa", "digest": a.prefix.digest, "how": "first"},
        {"task": "b", "digest": b.prefix.digest, "how": "text"},
    ]


def test_parts_alone_are_asked_the_same():
    lm = tiny_model("llama")
    asks = replace(learned_task("llama", "a"), template="{soft:5}Say {text}:{mask}", verbalizer=WORDS)
    made = compose(lm, "both", [asks, text_task(lm, "t", "Be kind.")])
    first, text = made.separate_tasks()
    assert (first.prefix, first.template, first.verbalizer) == (asks.prefix, asks.template, WORDS)
    # The soft tokens are in the first prefix; a text in front has none to show.
    assert (text.kind, text.text, text.template) == ("prompt", "Be kind.", "Say {text}:{mask}")
    assert Template.parse(made.task.template).num_soft_tokens == 5


def refused_tasks() -> dict[str, tuple[dict[str, object], str]]:
    width = 48
    return {
        "system": ({"kind": "system", "text": "x"}, "is a system turn, which cannot be stacked"),
        "lost": ({"prefix": replace(learned_prefix("llama", 2), token_ids=(1, 2))}, "is static and has lost its text"),
        "soft": ({"soft": torch.zeros(2, width), "template": "{a}{soft:2}{mask}"}, "has soft tokens inside"),
        "unlowered": (
            {"soft": torch.zeros(2, width), "prefix": empty_prefix(tiny_model("llama"))},
            "has soft tokens inside",
        ),
        "head": ({"head": Head(("a", "b"), torch.zeros(2, width), torch.zeros(2))}, "has a head"),
        "adapter": ({"adapter": Adapter({"x": LowRank(torch.zeros(2, 4), torch.zeros(4, 2))})}, "has an adapter"),
        "members": ({"members": (learned_prefix("llama", 3),)}, "has members of its own"),
        "bias": ({"bias": {"yes": -1.0, "no": -1.0}}, "has a calibration"),
    }


@pytest.mark.parametrize("what", list(refused_tasks()))
def test_what_is_more_than_a_prefix_is_refused(what):
    fields, said = refused_tasks()[what]
    lm, wrong = tiny_model("llama"), replace(learned_task("llama", "wrong"), **fields)
    for tasks in ([wrong, text_task(lm, "t", "x")], [text_task(lm, "t", "x"), wrong]):
        with pytest.raises(UsageError, match=f"task 'wrong' {said}"):
            compose(lm, "c", tasks)


def test_other_models_encoders_and_too_much_are_refused():
    lm, one = tiny_model("llama"), learned_task("llama", "one")
    with pytest.raises(ModelMismatch, match="task 'other' was made for another model"):
        compose(lm, "c", [one, learned_task("qwen3", "other")])
    bert = tiny_model("bert")
    with pytest.raises(UsageError, match="BertForMaskedLM reads in both directions"):
        compose(bert, "c", [Task("a", "p-tuning-v2", empty_prefix(bert))] * 2)
    with pytest.raises(UsageError, match="two tasks or more, found 1"):
        compose(lm, "c", [one])
    with pytest.raises(PromptTooLong, match="has 256 tokens, the context of tiny-llama is 256"):
        compose(lm, "c", [one, learned_task("llama", "long", 251)])
    with pytest.raises(UsageError, match="none of the tasks has a position"):
        compose(lm, "c", [Task("m", "manual", empty_prefix(lm))] * 2)


@pytest.mark.parametrize(
    ("template", "verbalizer", "said"),
    [
        ("{soft:2}{t}{mask}", WORDS, "cannot have {soft:N}"),
        ("{t}", None, "no place for the answer"),
        ("{t}{mask}", None, "no task of the stack has words for {mask}"),
        ("{t}{target:a}", WORDS, "needs a template with {mask}"),
        (None, WORDS, "goes with --template"),
    ],
)
def test_templates_that_do_not_fit_are_refused(template, verbalizer, said):
    lm = tiny_model("llama")
    with pytest.raises((TemplateError, UsageError), match=said):
        compose(
            lm, "c", [learned_task("llama", "a"), text_task(lm, "t", "x")], template=template, verbalizer=verbalizer
        )
