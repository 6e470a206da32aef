"""How surprising the references are to a task that generates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from foreword.core import Batch, Front
from foreword.engine.protocol import EngineProtocol
from foreword.text.question import Question
from foreword.text.ragged import lay_out
from foreword.text.request import Prompt

if TYPE_CHECKING:
    import torch

# References scored in one call: each brings a row of figures for every token, as wide as all tokens that occur in it.
_AT_ONCE = 64


@dataclass(frozen=True)
class TokenChoice:
    """The log-probability of some tokens at every place of a question: a `Choice` whose labels are these tokens.

    Attributes:
        tokens: token ids, each once.
        decoder: of an encoder-decoder, which writes what stands behind a question's first place.
    """

    hidden: ClassVar[bool] = False
    tokens: tuple[int, ...]
    decoder: bool = False

    @property
    def labels(self) -> int:
        return len(self.tokens)

    @property
    def longest(self) -> int:
        return 0

    def size(self, question: Question) -> int:
        return len(question.token_ids)

    def lay_out(
        self, front: Front, questions: Sequence[Question], device: torch.device | str | None = None
    ) -> tuple[Batch, torch.Tensor]:
        """Each question once; all its places."""
        return lay_out(front, questions, device, decoder=self.decoder)

    def scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """``[answers, tokens]`` float32 from logits ``[answers, vocab]``."""
        import torch

        wide = torch.promote_types(outputs.dtype, torch.float32)
        wanted = outputs[:, torch.tensor(self.tokens, device=outputs.device)].to(wide)
        return wanted - outputs.to(wide).logsumexp(-1, keepdim=True)


def log_likelihoods(
    engine: EngineProtocol, prompts: Sequence[Prompt], targets: Sequence[Sequence[int]]
) -> list[torch.Tensor]:
    """Log-probability of every token of a target behind its prompt, ``[tokens]`` for each of them.

    Args:
        prompts: what stands in front.
        targets: token ids, none empty, that fit into the context behind their prompts.
    """
    import torch

    found: list[torch.Tensor] = []
    for start in range(0, len(prompts), _AT_ONCE):
        piece = list(zip(prompts, targets, strict=True))[start : start + _AT_ONCE]
        tokens = tuple(sorted({token for _, target in piece for token in target}))
        column = {token: place for place, token in enumerate(tokens)}
        scores = engine.score(
            [_continued(prompt, target) for prompt, target in piece], TokenChoice(tokens, engine.decoder)
        )
        chosen = torch.tensor([column[token] for _, target in piece for token in target])
        found += scores.gather(1, chosen[:, None])[:, 0].split([len(target) for _, target in piece])
    return found


def perplexity(log_likelihoods: Sequence[torch.Tensor]) -> float:
    """``exp`` of the mean negative log-likelihood of a token, over all tokens of all references.

    Args:
        log_likelihoods: of the tokens of every reference, natural logarithms.

    Returns:
        At least 1; infinity if it is too large for a float.
    """
    import torch

    every = torch.cat(list(log_likelihoods)).double()
    try:
        return math.exp(-float(every.mean()))
    except OverflowError:
        return math.inf


def _continued(prompt: Prompt, target: Sequence[int]) -> Prompt:
    """The prompt with a target behind it, read where each of its tokens is predicted; the last is never run."""
    last = len(prompt.token_ids) - 1
    return replace(prompt, token_ids=(*prompt.token_ids, *target[:-1]), places=tuple(range(last, last + len(target))))
