"""`Answers`: the one door by which a request for a task reaches an engine.

Server, command line, rtp-llm's `Pipeline` and Python programs come through here, so a task answers alike in all. A task
that labels by the words of a verbalizer answers the word of the label that ``/v1/classify`` finds best; the others
generate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary, ref

import numpy as np

from foreword.core import SamplingParams, Task
from foreword.engine.protocol import ANONYMOUS, Chunk, EngineProtocol, LabelLogprob, Request, Sender, Stream
from foreword.engine.stream import ChunkStream
from foreword.errors import EngineBusy, EngineError, ForewordError, PromptTooLong, UnsupportedOption
from foreword.evaluation.predict import ensemble_prompts, label_probs, label_scorer, parse_template, split_rows
from foreword.evaluation.sampling_params import NO_DEFAULTS
from foreword.text import seam, task_prompts
from foreword.text.label_scorers import LabelScorer
from foreword.text.prompt import Prompt

MAX_SCORERS = 8
"""Tenants whose label answers are scored at the same time; the engine has them take turns."""
MAX_SCORED_TOKENS = 4096
"""Tokens of the label answers that are scored together; what waits behind them takes its turn."""
NOT_FINITE = "the model gave no finite scores for this request; the prefix of task '{}' may be broken."


class Answers:
    """Submits requests for tasks to one engine; may be called from any thread.

    Labels are scored in threads of its own, those of one tenant and task together that came while others were scored.
    It holds the engine and does not close it.

    Args:
        engine: generates and scores.
        max_waiting: label answers that may wait; more are refused at once.
        model_defaults: of sampling parameters, for those who make them; see
            `foreword.models.generation_config.generation_config`.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        max_waiting: int = 4096,
        model_defaults: Mapping[str, Any] = NO_DEFAULTS,
    ) -> None:
        self.engine = engine
        self.model_defaults = model_defaults
        self._max_waiting = max_waiting
        self._pending: dict[str, deque[_LabelAnswer]] = {}
        self._lock = Lock()  # of `_pending`: a tenant is in it as long as its answers wait or are scored
        self._scorers: WeakKeyDictionary[Task, LabelScorer] = WeakKeyDictionary()
        self._threads = ThreadPoolExecutor(MAX_SCORERS, thread_name_prefix="foreword-labels")

    def submit(
        self,
        task: Task | None,
        prompt: Prompt,
        sampling: SamplingParams,
        *,
        n: int = 1,
        strip: bool = False,
        sender: Sender = ANONYMOUS,
    ) -> list[Stream]:
        """Queue a request and return at once, but for the words of a task that is asked for the first time.

        The answer of a task that labels is one chunk with the finish reason ``stop``: the first word of the label, and
        with ``logprobs`` one `LabelLogprob`. Only ``max_tokens``, ``n`` and ``logprobs`` have an effect on it.

        Args:
            task: made for the engine's model; ``None`` for the base model.
            prompt: of `foreword.text.task_prompts`.
            sampling: see `foreword.evaluation.sampling_params`.
            n: answers, each with a stream; see `Request.fan_out`.
            strip: leave the blanks around the word of a label out, as a chat message wants it.
            sender: who asks.

        Raises:
            RequestError, PromptTooLong, ModelMismatch, UnsupportedModel, EngineBusy, EngineError: as
                `EngineProtocol.submit` does; of a label, errors of scoring are raised where its stream is read.
            UnsupportedOption: a label is asked for in a form that its word does not have.
            VerbalizerError, TemplateError: the words of the task do not fit the model.
        """
        request = Request.from_prompt(prompt, sampling, task.name if task is not None else "", sender)
        if task is None or not task_prompts.answers_label(task):
            return self._generate(request.fan_out(n))
        answer = self._label_answer(task, prompt, request, n, strip)
        streams = answer.open()
        with self._lock:
            idle = sender.tenant not in self._pending
            self._pending.setdefault(sender.tenant, deque()).append(answer)
        if idle:
            self._threads.submit(self._score_pending, sender.tenant)
        return streams

    def _generate(self, requests: Sequence[Request]) -> list[Stream]:
        streams: list[Stream] = []
        try:
            for each in requests:
                streams.append(self.engine.submit(each))
        except Exception:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def _label_answer(self, task: Task, prompt: Prompt, request: Request, n: int, strip: bool) -> _LabelAnswer:
        if request.sampling.constraint is not None:
            raise UnsupportedOption(
                f"task '{task.name}' answers one of its labels ({', '.join(task.labels)}), which takes no other form; "
                "leave response_format, structured_outputs and the like (--choice, --regex, --json-schema) out."
            )
        if (scorer := self._scorers.get(task)) is None:
            scorer = self._scorers[task] = label_scorer(self.engine, task)
        room = prompt.room(self.engine.context, is_encoder_decoder=self.engine.is_encoder_decoder)
        if room is not None and scorer.max_extra_tokens > room:
            raise PromptTooLong(
                f"the prompt has {request.prompt_tokens} tokens with its prefix, the context of {self.engine.context} "
                "has no room for a label of "
                f"{scorer.max_extra_tokens} tokens; shorten it."
            )
        with self._lock:
            waiting = sum(map(len, self._pending.values()))
        if waiting >= self._max_waiting:
            raise EngineBusy(f"{waiting} requests are waiting already, as many as may; ask again in a while.")
        return _LabelAnswer(task, prompt, scorer, request, n, strip, [])

    def _score_pending(self, tenant: str) -> None:
        """Score the oldest answers that a tenant waits for, those with the same words and salt together."""
        groups: dict[tuple[LabelScorer, Sender], list[_LabelAnswer]] = {}
        for answer in self._take_pending(tenant):
            if answer.wanted:
                sender = Sender(tenant, answer.request.cache_salt)
                groups.setdefault((answer.scorer, sender), []).append(answer)
        for (scorer, sender), group in groups.items():
            try:
                self._score(scorer, group, sender)
            except Exception as error:  # of one prompt, perhaps: each is scored by itself to find out which
                for answer in group:
                    self._score_alone(scorer, answer, sender) if len(group) > 1 else answer.fail(error)
        with self._lock:
            if not self._pending[tenant]:
                del self._pending[tenant]
                return
        self._threads.submit(self._score_pending, tenant)

    def _take_pending(self, tenant: str) -> list[_LabelAnswer]:
        """The oldest answers that a tenant waits for, of `MAX_SCORED_TOKENS` together; one at least."""
        taken: list[_LabelAnswer] = []
        tokens = 0
        with self._lock:
            queue = self._pending[tenant]
            while queue and (not taken or tokens + queue[0].num_tokens <= MAX_SCORED_TOKENS):
                tokens += queue[0].num_tokens
                taken.append(queue.popleft())
        return taken

    def _score_alone(self, scorer: LabelScorer, answer: _LabelAnswer, sender: Sender) -> None:
        try:
            self._score(scorer, [answer], sender)
        except Exception as error:  # it belongs to the reader of the answer
            answer.fail(error)

    def _score(self, scorer: LabelScorer, group: Sequence[_LabelAnswer], sender: Sender) -> None:
        prompts = [ensemble_prompts(each.task, [each.prompt]) for each in group]
        together = [prompt for members in prompts for prompt in members]
        scores = np.asarray(self.engine.score(together, scorer, sender=sender))
        for answer, rows in zip(group, split_rows(scores, [len(members) for members in prompts]), strict=True):
            answer.finish(self.engine, label_probs(answer.task, rows)[0])


@dataclass(frozen=True, eq=False)
class _LabelAnswer:
    """One prompt whose labels are scored, and the streams of its answers.

    Attributes:
        task: gives the labels and their words.
        prompt: in front of the words.
        scorer: of the words.
        request: with the sampling parameters.
        n: streams.
        strip: leave the blanks around a word out.
        streams: weak references, so that an answer without a reader is not scored.
    """

    task: Task
    prompt: Prompt
    scorer: LabelScorer
    request: Request
    n: int
    strip: bool
    streams: list[ref[ChunkStream]]

    def open(self) -> list[Stream]:
        """Make the streams."""
        streams = [_LabelStream(self.request) for _ in range(self.n)]
        self.streams.extend(map(ref, streams))
        return [*streams]

    @property
    def num_tokens(self) -> int:
        """Of its prompts, one for each member of an ensemble."""
        return len(self.prompt.token_ids) * (1 + len(self.task.members))

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return any((stream := each()) is not None and not stream.cancelled for each in self.streams)

    def finish(self, engine: EngineProtocol, probs: np.ndarray) -> None:
        """Send the answer for probabilities ``[labels]``."""
        if not np.isfinite(probs).all():
            return self.fail(EngineError(NOT_FINITE.format(self.task.name)))
        words = [self.task.verbalizer[label][0] for label in self.task.labels] if self.task.verbalizer else []
        best = int(probs.argmax())
        before = None if engine.is_encoder_decoder else parse_template(self.task).before_answer
        token_ids = tuple(seam.answer_ids(engine.tokenizer, words[best], before))
        shown = [word.strip() for word in words] if self.strip else words
        chunk = Chunk(shown[best], token_ids, "stop", logprobs=self._logprobs(shown, probs))
        if len(token_ids) > (most := self.request.sampling.max_tokens):
            text = engine.tokenizer.decode(list(token_ids[:most]), clean_up_tokenization_spaces=False)
            text = text.strip() if self.strip else text
            chunk = replace(chunk, text=text, token_ids=token_ids[:most], finish_reason="length")
        self._put(chunk)

    def fail(self, error: Exception) -> None:
        """End the answer with an error, which its readers raise."""
        if not isinstance(error, ForewordError):
            error = EngineError(f"the engine could not score this request: {type(error).__name__}: {error}")
        self._put(error)

    def _logprobs(self, words: Sequence[str], probs: np.ndarray) -> tuple[LabelLogprob, ...]:
        """The label as the one entry, with the best words of the request's number."""
        top = self.request.sampling.logprobs
        if top is None:
            return ()
        # A probability of zero is below what float32 holds, and JSON has no minus infinity.
        logprobs = np.log(np.maximum(probs, np.finfo(np.float32).tiny)).tolist()
        order: list[int] = np.argsort(-probs, kind="stable").tolist()
        ranked = tuple((words[index], logprobs[index]) for index in order[:top])
        return (LabelLogprob(words[order[0]], logprobs[order[0]], ranked),)

    def _put(self, item: Chunk | ForewordError) -> None:
        for each in self.streams:
            if (stream := each()) is not None:
                stream.put(item)


class _LabelStream(ChunkStream):
    """A stream that ends as soon as it is cancelled: no step of the engine will end it."""

    def __init__(self, request: Request) -> None:
        super().__init__(request, lambda: None)

    def cancel(self) -> None:
        super().cancel()
        self.put(Chunk("", (), "cancelled"))
