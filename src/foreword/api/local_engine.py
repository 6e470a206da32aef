"""`LocalEngine`: an engine of this process and the calls that ask it; `foreword.Engine` is this class."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import httpx

from foreword.api.client import Client
from foreword.api.defaults import BankSource
from foreword.api.engines import ENGINES, EngineName
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.core.overview import Overview, join_some
from foreword.engine.protocol import EngineProtocol
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.models.generation_config import generation_config as read_generation_config
from foreword.server.app import create_app
from foreword.server.in_process_transport import InProcessTransport


class LocalEngine(Client):
    """An engine in this process: generates, chats, classifies, tags and embeds with the tasks of a bank.

    Its calls go through the routes of the server, without a socket, so a task answers as it is served; every one has
    an asynchronous twin `aNAME`, and `stream_generate` and `stream_chat` give an answer as it is made. Requests of many
    threads and coroutines run in one batch. Close it, or use it as a context manager: it holds the model.

    >>> engine = foreword.Engine(lm)
    >>> engine.generate("Once upon a time", max_tokens=4, temperature=0).finish_reason
    'length'
    >>> [answer.label in ("good", "bad") for answer in engine.classify(["a fine film", "dull"], "mood")]
    [True, True]
    >>> for chunk in engine.stream_chat([{"role": "user", "content": "Hello"}], max_tokens=4, ignore_eos=True):
    ...     text = chunk.text  # shown as it comes
    >>> chunk.usage.completion_tokens
    4
    >>> engine.close()

    Args:
        model: a loaded model, or its name (``None`` is the commands' model); or an engine that runs already, which is
            not closed with this.
        engine: ``embedded`` (PyTorch), ``llamacpp`` (a GGUF file) or ``vllm``, for a model that is given by name.
        bank: where tasks are looked up, at every call; by default the commands' bank.
        max_model_len: positions that a request may take; by default the model's context.
        max_waiting: requests that may wait; more are refused with EngineBusy.
        allow_other_weights: serve tasks made for other weights of the same shape.
        prefix_bytes: bound of the loaded prefixes, in bytes.
        generation_config: ``auto`` samples as the model's ``generation_config.json`` says where neither a call nor a
            task does, as on a server; ``none`` leaves it.

    Attributes:
        engine: the running engine.
        bank: where names are looked up.

    Raises:
        UnknownModel, UnsupportedModel: there is no such model, or it cannot carry prefixes.
        UsageError: no such engine, or one that is not installed.
    """

    def __init__(
        self,
        model: LanguageModel | EngineProtocol | str | None = None,
        *,
        engine: EngineName = "embedded",
        bank: BankSource = None,
        max_model_len: int | None = None,
        max_waiting: int = 4096,
        allow_other_weights: bool = False,
        prefix_bytes: int = 1 << 30,
        generation_config: Literal["auto", "none"] = "auto",
    ) -> None:
        if engine not in ENGINES:
            raise UsageError(f"there is no engine {engine!r}; choose {', '.join(ENGINES)}.")
        if generation_config not in ("auto", "none"):
            raise UsageError(f"generation_config must be auto or none, found {generation_config!r}.")
        self.bank = bank if isinstance(bank, Bank) else Bank.for_engine(engine, bank)
        self._opened: EngineProtocol | None = None
        if model is None or isinstance(model, str | LanguageModel):
            limits = {"max_model_len": max_model_len, "max_waiting": max_waiting}
            self._opened = ENGINES[engine](model, self.bank, {**limits, "allow_other_weights": allow_other_weights})
            model = self._opened
        self.engine: EngineProtocol = model
        self._allow_other_weights = allow_other_weights
        self._given = _GivenTasks()
        app = create_app(
            self.engine,
            self.bank,
            extra_tasks=self._given,
            allow_other_weights=allow_other_weights,
            prefix_bytes=prefix_bytes,
            max_waiting=max_waiting,
            model_defaults=read_generation_config(self.engine.name) if generation_config == "auto" else {},
            engine_kind=engine,
        )
        # No timeout: a request may wait in the queue, and whoever waits can cancel it.
        http = httpx.AsyncClient(transport=InProcessTransport(app), base_url="http://foreword", timeout=None)
        super().__init__(http, "this engine")

    def overview(self) -> Overview:
        """The model that it runs, and the names of the tasks in its bank."""
        facts = {
            "architecture": f"{self.engine.identity.architecture} ({type(self.engine).__name__})",
            "bank": f"{self.bank.location}: {join_some(self.bank.names()) or 'empty'}",
            "state": "running" if self.engine.alive else "closed",
        }
        return Overview(f"Engine of {self.engine.name!r}", facts)

    def close(self) -> None:
        """Cancel what runs, and free the model. May be called twice."""
        super().close()
        if self._opened is not None:
            self._opened.close()

    def _model_name(self, task: Task | str | None) -> AbstractContextManager[str | None]:
        if not isinstance(task, Task):
            return super()._model_name(task)
        label = f"task '{task.name}'"
        task.prefix.model.check(self.engine.identity, label, allow_other_weights=self._allow_other_weights)
        return self._given.named(task)


class _GivenTasks(Mapping[str, Task]):
    """The tasks that calls in progress were given as objects, under names that no bank can have; none is listed."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task] = {}
        self._numbers = itertools.count(1)

    @contextmanager
    def named(self, task: Task) -> Iterator[str]:
        name = f"{task.name}@given-{next(self._numbers)}"
        self._tasks[name] = task
        try:
            yield name
        finally:
            del self._tasks[name]

    def __getitem__(self, name: str) -> Task:
        return self._tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0
