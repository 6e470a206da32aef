"""`Manual`: a template and its words without learning, the baseline of every other method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from foreword.core import Front
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues


class NoPrompt(PromptEncoder):
    """An empty front."""

    def front(self) -> Front:
        return Front()


@dataclass(frozen=True)
class Manual:
    """Publish the template without a prefix.

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="manual", template="{text}\\nMood:{mask}")
    >>> foreword.Manual().learns
    False
    """

    name: ClassVar[str] = "manual"
    lr = 0.0
    length: ClassVar[int] = 0
    init: ClassVar[str] = "random"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    def encoder(self, lm: LanguageModel, start: InitialValues) -> NoPrompt:
        """No values: nothing is trained."""
        del lm, start
        return NoPrompt()
