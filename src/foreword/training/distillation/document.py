"""`Document`: a long text, whole or in chunks that leave room for a conversation, each computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from foreword.core import Kind, Task
from foreword.errors import SettingError, UnsupportedModel
from foreword.models import LanguageModel
from foreword.prompts.static import static_task
from foreword.text.task_prompts import static_token_ids

# Tokens of a chunk at most, where the whole text does not fit: longer ones cost more than they bring.
CHUNK = 2048
# Tokens that a conversation needs behind the text.
ROOM = 512
# Where a text is cut, the best place first.
_SEAMS = ("\n\n", "\n", ". ", "。", " ")


@dataclass(frozen=True, eq=False)
class Document:
    """What is distilled.

    Attributes:
        kind: how it stands in front of requests, ``system`` or ``prompt``.
        text: all of it.
        chunks: tasks that hold all of it together, in order; their prefixes are used whole, as learned ones are.
    """

    kind: Kind
    text: str
    chunks: tuple[Task, ...]

    @classmethod
    def read(cls, lm: LanguageModel, kind: Kind, text: str, chunk: int | None = None) -> Document:
        """Compute the text's keys and values, in chunks where it does not fit into the context.

        Args:
            chunk: tokens of a chunk at most; by default the text is cut only if it has to be.

        Raises:
            UnsupportedModel: an encoder or an encoder-decoder.
            SettingError: chunks that leave no room for a conversation.
            UsageError: the text is empty; TemplateError: the model has no chat template for a system turn.
        """
        if not lm.causal:
            kind_of = "an encoder-decoder" if lm.is_encoder_decoder else "an encoder"
            raise UnsupportedModel(
                f"{lm.name} is {kind_of}, and a text is distilled into keys and values of a causal model; choose one."
            )

        def size(part: str) -> int:
            return len(static_token_ids(lm.tokenizer, kind, part))

        pieces = cut(text, size, _limit(lm, size(text), chunk))
        return cls(kind, text, tuple(_whole(static_task(lm, "chunk", kind, piece)) for piece in pieces))

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """Positions that it takes at full length."""
        return sum(chunk.prefix.length for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values at full length."""
        return sum(chunk.prefix.nbytes for chunk in self.chunks)


def cut(text: str, size: Callable[[str], int], limit: int) -> list[str]:
    """Parts of a text of ``limit`` tokens at most, which joined give the text: halved where it hurts least.

    Args:
        size: tokens of a part.
    """
    if len(text) < 2 or size(text) <= limit:
        return [text]
    at = _middle(text)
    return [*cut(text[:at], size, limit), *cut(text[at:], size, limit)]


def _middle(text: str) -> int:
    """The best place to cut in the middle half of a text of two characters or more."""
    low, high, half = len(text) // 4, 3 * len(text) // 4, len(text) // 2
    for seam in _SEAMS:
        before = text.rfind(seam, low, half)
        after = text.find(seam, half, high)
        found = [place + len(seam) for place in (before, after) if place >= 0]
        if found:
            return min(found, key=lambda place: abs(place - half))
    return half


def _limit(lm: LanguageModel, tokens: int, chunk: int | None) -> int:
    context = lm.context
    if chunk is None:
        return tokens if context is None or tokens + ROOM <= context else min(CHUNK, context // 2)
    if context is not None and chunk > context - ROOM and tokens > context - ROOM:
        raise SettingError(
            "chunk",
            f"--chunk {chunk} leaves no room for a conversation in the context of {lm.name}, {context}; take "
            f"{max(1, context - ROOM)} at most.",
        )
    return chunk


def _whole(task: Task) -> Task:
    """The same task with a prefix that is never sliced, so that teacher and student read the very same tokens."""
    return replace(task, prefix=replace(task.prefix, token_ids=None))
