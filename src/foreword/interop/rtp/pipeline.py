"""`Pipeline`: rtp-llm's streaming generation for one prompt or several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foreword.engine.protocol import Stream
from foreword.errors import EngineError, RequestError, UsageError
from foreword.interop.rtp.generate_config import GenerateConfig
from foreword.interop.rtp.model import Model


@dataclass(frozen=True)
class GenerateResponse:
    """The answers of a call so far.

    Attributes:
        batch_response: the text of every prompt's answer; a list of texts each with ``num_return_sequences``, and for
            a single prompt that list itself.
        finished: whether nothing more will come.
    """

    batch_response: list[str] | list[list[str]]
    finished: bool


class Pipeline:
    """Generates answers; thread-safe.

    Args:
        model: from `ModelFactory`.
        tokenizer: ``model.tokenizer``, as rtp-llm's programs give it.

    Raises:
        UsageError: the tokenizer of another model.
    """

    def __init__(self, model: Model, tokenizer: Any = None) -> None:
        if tokenizer is not None and tokenizer is not model.tokenizer:
            raise UsageError("the tokenizer must be the model's own; give model.tokenizer.")
        self.model = model
        self.tokenizer = model.tokenizer

    def __call__(
        self, prompt: str | Sequence[str], generate_config: Mapping[str, Any] | None = None, **options: Any
    ) -> Iterator[GenerateResponse]:
        """Submit all prompts, which run in one batch, and yield a response a step.

        Args:
            prompt: one text or several, taken verbatim: no chat template.
            generate_config: see `GenerateConfig`.
            options: the same by name; they come before ``generate_config``.

        Raises:
            RequestError: a prompt or an option that can never be answered.
            UnsupportedOption: an option that would change the answer and is not supported.
            UnknownTask: there is no such ``task_id``.
            EngineBusy: too many requests are waiting.
            EngineError: the pipeline was stopped, or the engine failed; also while results come.
        """
        config = GenerateConfig.parse({**(generate_config or {}), **options})
        texts = [prompt] if isinstance(prompt, str) else _check_prompts(prompt)
        answers = [[_AnswerStream(stream) for stream in self.model.submit(text, config)] for text in texts]
        return _responses(answers, config, single_prompt=isinstance(prompt, str))

    def stop(self) -> None:
        """Stop the model."""
        self.model.stop()


class _AnswerStream:
    """One streamed answer: its text so far, and the text of the last chunk."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream  # a stream that is garbage-collected is cancelled
        self._chunks = iter(stream)
        self.text, self.delta, self.finished = "", "", False

    def advance(self) -> None:
        """Wait for the next chunk unless the answer is finished."""
        self.delta = ""
        if self.finished:
            return
        chunk = next(self._chunks)
        if chunk.error is not None:
            raise EngineError(chunk.error)
        if chunk.finish_reason == "cancelled":
            raise EngineError("the pipeline was stopped while it answered; load the model again.")
        self.delta, self.finished = chunk.text, chunk.finish_reason is not None
        self.text += chunk.text


def _check_prompts(prompts: Sequence[str]) -> list[str]:
    if not isinstance(prompts, list | tuple) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise RequestError(f"the prompt must be a text or a list of texts, found {prompts!r:.80}.")
    return list(prompts)


def _responses(
    answers: list[list[_AnswerStream]], config: GenerateConfig, *, single_prompt: bool
) -> Iterator[GenerateResponse]:
    flat = [answer for row in answers for answer in row]
    finished = False
    while not finished:
        for answer in flat:  # the engine steps all of them together, so none waits long for another
            answer.advance()
        finished = all(answer.finished for answer in flat)
        if finished or config.streaming:
            yield GenerateResponse(_texts(answers, config, single_prompt), finished)


def _texts(
    answers: list[list[_AnswerStream]], config: GenerateConfig, single_prompt: bool
) -> list[str] | list[list[str]]:
    only_new = config.return_incremental and config.streaming
    rows = [[answer.delta if only_new else answer.text for answer in row] for row in answers]
    if config.num_return_sequences == 0 or single_prompt:
        return [text for row in rows for text in row]
    return rows
