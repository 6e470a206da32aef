"""Trigger tokens: vocabulary tokens in front, found by a search and published as text (AutoPrompt, Shin et al. 2020,
arXiv:2010.15980)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from foreword.core import Front
from foreword.errors import SettingError
from foreword.models import LanguageModel
from foreword.models.language_model import token_embeddings
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.text import seam


class TriggerTokens(PromptEncoder):
    """Vocabulary tokens that a search replaces one at a time; there are no parameters for an optimizer.

    Args:
        lm: the model that embeds them.
        token_ids: where the search starts.
    """

    token_ids: Tensor

    def __init__(self, lm: LanguageModel, token_ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("token_ids", torch.tensor(token_ids, device=lm.device))
        self._lm = lm

    @property
    def trigger(self) -> tuple[int, ...]:
        """The tokens as they are now."""
        return tuple(self.token_ids.tolist())

    def set_tokens(self, trigger: Sequence[int]) -> None:
        """Replace them by as many other tokens."""
        self.token_ids.copy_(torch.tensor(trigger))

    @torch.no_grad()
    def front(self) -> Front:
        """Their embeddings: in front of the rows of a causal model, behind the beginning-of-text token; inside those of
        an encoder."""
        specials = seam.special_tokens(self._lm.tokenizer)[0] if self._lm.causal else ()
        ids = torch.cat([self.token_ids.new_tensor(specials), self.token_ids])
        values = token_embeddings(self._lm.model, ids).clone()
        return Front(soft=values, bos="prefix") if self._lm.causal else Front(inner_soft=values)


@dataclass(frozen=True)
class AutoPrompt:
    """Search for ``length`` tokens; the search itself is `foreword.training.methods.autoprompt.autoprompt`.

    Attributes:
        candidates: triggers evaluated in each step.
    """

    name: ClassVar[str] = "autoprompt"
    lr = 0.0
    length: ClassVar[int] = 8
    init: ClassVar[str] = "vocab"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    candidates: int = 24

    def encoder(self, lm: LanguageModel, start: InitialValues) -> TriggerTokens:
        if start.token_ids is None:
            raise SettingError("method", "--method autoprompt starts from real tokens; use --init vocab or text.")
        return TriggerTokens(lm, start.token_ids)
