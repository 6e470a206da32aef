"""A tiny model with a chat template and a long context, and a text to distil."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

from foreword.core import Kind
from foreword.models import LanguageModel
from foreword.training.distillation.document import Document
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.self_study import SelfStudyConversation
from server.running_server import CHATML
from tiny_models import byte_tokenizer, tiny_model

TEXT = "Lamp 3 costs 9 coins. It ships on Monday; refunds take 2 days."


@cache
def chat_model(family: str = "llama", context: int | None = 4096) -> LanguageModel:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    return replace(tiny_model(family), tokenizer=tokenizer, context=context, name=f"chat-{family}")


@cache
def document(kind: Kind = "prompt", chunk: int | None = None) -> Document:
    return Document.prefill(chat_model(), kind, TEXT, chunk)


def dialog(lm: LanguageModel, question: str, answer: str, chunk: int = 0) -> SelfStudyConversation:
    prompt, answer_ids = (tuple(lm.tokenizer.encode(part, add_special_tokens=False)) for part in (question, answer))
    return SelfStudyConversation(chunk, "given", question, prompt, answer_ids)


def recipe(folder: Path, **changes) -> DistilRecipe:
    """Settings that learn in a few seconds; ``folder`` gets the run."""
    settings = {"slots": 8, "conversations": 12, "held": 4, "answer_tokens": 6, "max_steps": 10, "batch_size": 4}
    return DistilRecipe(**{**settings, "lr": 3e-2, "out": str(folder / "run"), **changes})
