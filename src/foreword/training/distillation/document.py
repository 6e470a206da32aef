"""`Document`: a long text and its keys and values, whole or in chunks that leave room for a conversation."""

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
MAX_CHUNK_TOKENS = 2048
# Tokens that a conversation needs behind the text.
CONVERSATION_TOKENS = 512
# Where a text is split, in order of preference.
_SEPARATORS = ("\n\n", "\n", ". ", "。", " ")


@dataclass(frozen=True, eq=False)
class Document:
    """The text that is distilled, with its keys and values.

    Attributes:
        kind: how it stands in front of requests, ``system`` or ``prompt``.
        text: all of it.
        chunks: static tasks whose texts joined give the text; their prefixes are used whole, as learned ones are.
    """

    kind: Kind
    text: str
    chunks: tuple[Task, ...]

    @classmethod
    def prefill(cls, lm: LanguageModel, kind: Kind, text: str, chunk: int | None = None) -> Document:
        """Compute the text's keys and values, in chunks where it does not fit into the context.

        Args:
            chunk: tokens of a chunk at most; by default the text is split only if it has to be.

        Raises:
            UnsupportedModel: an encoder or an encoder-decoder.
            SettingError: chunks that leave no room for a conversation.
            UsageError: the text is empty; TemplateError: the model has no chat template for a system turn.
        """
        if not lm.causal:
            architecture = "an encoder-decoder" if lm.is_encoder_decoder else "an encoder"
            raise UnsupportedModel(
                f"{lm.name} is {architecture}, and a text is distilled into keys and values of a causal model; choose "
                "one."
            )

        def token_count(part: str) -> int:
            return len(static_token_ids(lm.tokenizer, kind, part))

        parts = split_text(text, token_count, _chunk_limit(lm, token_count(text), chunk))
        tasks = [static_task(lm, "chunk", kind, part) for part in parts]
        # Without token ids a prefix is never sliced, so that teacher and student read the very same tokens.
        return cls(kind, text, tuple(replace(task, prefix=replace(task.prefix, token_ids=None)) for task in tasks))

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def tokens(self) -> int:
        """Length of the whole text in tokens."""
        return sum(chunk.prefix.length for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(chunk.prefix.nbytes for chunk in self.chunks)


def split_text(text: str, token_count: Callable[[str], int], limit: int) -> list[str]:
    """Split a text into parts of ``limit`` tokens at most, by halving it at the best separators.

    Args:
        token_count: tokens of a part.
    """
    if len(text) < 2 or token_count(text) <= limit:
        return [text]
    at = _split_position(text)
    return [*split_text(text[:at], token_count, limit), *split_text(text[at:], token_count, limit)]


def _split_position(text: str) -> int:
    """Behind the separator nearest to the middle, in the middle half of a text of two characters or more."""
    low, high, half = len(text) // 4, 3 * len(text) // 4, len(text) // 2
    for separator in _SEPARATORS:
        before = text.rfind(separator, low, half)
        after = text.find(separator, half, high)
        positions = [position + len(separator) for position in (before, after) if position >= 0]
        if positions:
            return min(positions, key=lambda position: abs(position - half))
    return half


def _chunk_limit(lm: LanguageModel, tokens: int, chunk: int | None) -> int:
    """Tokens of a chunk at most, for a text of so many tokens."""
    context = lm.context
    if chunk is None:
        if context is None or tokens + CONVERSATION_TOKENS <= context:
            return tokens
        return min(MAX_CHUNK_TOKENS, context // 2)
    if context is not None and chunk > context - CONVERSATION_TOKENS and tokens > context - CONVERSATION_TOKENS:
        raise SettingError(
            "chunk",
            f"--chunk {chunk} leaves no room for a conversation in the context of {lm.name}, {context}; take "
            f"{max(1, context - CONVERSATION_TOKENS)} at most.",
        )
    return chunk
