"""`EncoderDecoderStream`: one answer of an encoder-decoder, generated when it is read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Set

from foreword.engine.base import not_finite
from foreword.engine.protocol import Chunk, FinishReason, Request
from foreword.text.detokenize import Detokenizer


class EncoderDecoderStream:
    """A stream of a single chunk; see `foreword.engine.protocol.Stream`.

    Args:
        request: what is answered.
        detokenizer: turns its tokens into text, up to a stop text.
        end_ids: tokens that end a text.
        generate: generates this answer and others that wait, through `append_token`.
        dtype: what the model computes in.
    """

    def __init__(
        self,
        request: Request,
        detokenizer: Detokenizer,
        end_ids: Set[int],
        generate: Callable[[], None],
        dtype: object = None,
    ) -> None:
        self._dtype = dtype
        self.request = request
        self.cached_tokens = 0
        self.token_ids: list[int] = []
        self._detokenizer = detokenizer
        self._end_ids = end_ids
        self._generate = generate
        self._text = ""
        self._reason: FinishReason | None = None

    @property
    def ended(self) -> bool:
        return self._reason is not None

    def append_token(self, token: int | None) -> None:
        """Append the next token, ``None`` for logits that are not finite; ignored once the answer has ended."""
        if self.ended:
            return
        if token is None:
            self._reason = "error"
            return
        self.token_ids.append(token)
        stops = self._is_stop(token)
        self._text += "" if stops else self._detokenizer.push(token)
        if stops or self._detokenizer.stopped:
            self._reason = "stop"
        elif len(self.token_ids) == self.request.sampling.max_tokens:
            self._reason = "length"

    def cancel(self) -> None:
        """Do not generate it, unless that is done already."""
        self._reason = self._reason or "cancelled"

    def __iter__(self) -> Iterator[Chunk]:
        if not self.ended:
            self._generate()
        error = not_finite(self.request, self._dtype) if self._reason == "error" else None
        yield Chunk(self._text + self._detokenizer.finish(), tuple(self.token_ids), self._reason, error)

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        for chunk in self:
            yield chunk

    def _is_stop(self, token: int) -> bool:
        params = self.request.sampling
        return token in params.stop_token_ids or (token in self._end_ids and not params.ignore_eos)
