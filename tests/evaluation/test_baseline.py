"""The base model in a task's place."""

from __future__ import annotations

import pytest
import torch

from foreword.core import Head, Task
from foreword.errors import UsageError
from foreword.evaluation.baseline import baseline_task
from foreword.prompts.lower import lower_tokens
from tiny_models import tiny_model

WORDS = {"good": (" great",), "bad": (" grim",)}


def learned(**changes) -> Task:
    prefix = lower_tokens(tiny_model("llama"), [1, 2, 3])
    return Task("t", "p-tuning-v2", prefix, **{"template": "{text}:{mask}", "verbalizer": WORDS, **changes})


def test_nothing_that_was_learned_is_left():
    task = learned(soft=torch.zeros(2, 48), bias={"good": 1.0, "bad": 0.0}, generation={"max_tokens": 3})
    base = baseline_task(task, "tiny", tiny_model("llama").identity)
    assert (base.ref, base.template, base.verbalizer, base.generation) == (
        "tiny",
        "{text}:{mask}",
        WORDS,
        {"max_tokens": 3},
    )
    assert base.prefix.length == 0
    assert base.soft is base.adapter is base.bias is None


def test_a_template_loses_its_soft_tokens():
    task = learned(template="{soft:10}{text}\nLabel:{soft:2}{mask}", soft=torch.zeros(2, 48))
    assert baseline_task(task, "tiny", tiny_model("llama").identity).template == "{text}\nLabel:{mask}"


def test_what_the_base_model_cannot_do():
    head = Head(("a", "b"), torch.zeros(2, 48), torch.zeros(2))
    with pytest.raises(UsageError, match="labels with a head that was learned"):
        baseline_task(learned(head=head), "tiny", tiny_model("llama").identity)


def test_a_task_of_conversations_has_the_chat_template_alone():
    assert baseline_task(learned(template=None), "tiny", tiny_model("llama").identity).template is None
