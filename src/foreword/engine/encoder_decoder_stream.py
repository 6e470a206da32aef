"""`EncoderDecoderStream`: one answer of an encoder-decoder, written when it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Set

from foreword.engine.base import NOT_FINITE
from foreword.engine.protocol import Chunk, FinishReason, Request
from foreword.text.detokenize import Detokenizer


class EncoderDecoderStream:
    """A stream of a single chunk; see `foreword.engine.protocol.Stream`.

    Args:
        request: what is answered.
        detokenizer: turns its tokens into text, up to a stop text.
        end_ids: tokens that end a text.
        write: brings this answer, and others that wait, to their ends through `take`.
    """

    def __init__(
        self, request: Request, detokenizer: Detokenizer, end_ids: Set[int], write: Callable[[], None]
    ) -> None:
        self.request = request
        self.reused = 0
        self.token_ids: list[int] = []
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        self._write = write
        self._text = ""
        self._reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        return self._reason is not None

    def take(self, token: int | None) -> None:
        """The next token; ``None`` for logits that are no numbers. Once it has ended, nothing more is taken."""
        if self.ended:
            return
        if token is None:
            self._reason = "error"
            return
        self.token_ids.append(token)
        ends = self._ends(token)
        self._text += "" if ends else self._detokenizer.push(token)
        if ends or self._detokenizer.stopped:
            self._reason = "stop"
        elif len(self.token_ids) == self.request.sampling.max_tokens:
            self._reason = "length"

    def cancel(self) -> None:
        """Do not write it, unless it is written already."""
        self._reason = self._reason or "cancelled"

    def __iter__(self) -> Iterator[Chunk]:
        if not self.ended:
            self._write()
        error = NOT_FINITE if self._reason == "error" else None
        yield Chunk(self._text + self._detokenizer.finish(), tuple(self.token_ids), self._reason, error)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for chunk in self:
            yield chunk

    def _ends(self, token: int) -> bool:
        params = self.request.sampling
        return token in params.stop_token_ids or (token in self._end_ids and not params.ignore_eos)
