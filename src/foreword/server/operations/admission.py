"""`Admission`: refuses what can never run, or may not wait now, before work is done for it, and bounds that work."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

from foreword.errors import EngineBusy, PromptTooLong, RequestError
from foreword.server.operations.auth import Caller
from foreword.server.operations.fair_threads import FairThreads

T = TypeVar("T")

CHARACTERS_A_TOKEN = 128
"""No token of a text is longer on average: the longest of known vocabularies are runs of so many blanks."""
SMALL_WORK = 8192
"""Characters that the event loop may handle by itself, which takes some milliseconds, as changing threads may."""


class Admission:
    """Counts what a request asks for, in the time that counting takes, and has large ones prepared in threads.

    Args:
        context: positions that a request may take; ``None`` without a limit.
        max_waiting: answers that may wait; a request that asks for more is refused.
        threads: prepare requests.
        num_waiting: answers that wait in the engine.
    """

    def __init__(
        self, context: int | None, max_waiting: int, threads: FairThreads, num_waiting: Callable[[], float] = lambda: 0
    ) -> None:
        self._context, self._max_waiting = context, max_waiting
        self._threads, self._num_waiting = threads, num_waiting
        self._held = 0

    def check_count(self, prompts: int, n: int = 1) -> None:
        """Raise RequestError for more answers than may ever wait, EngineBusy for more than may wait now."""
        answers = prompts * n
        if answers > self._max_waiting:
            of_n = f" (n is {n})" if n > 1 else ""
            raise RequestError(
                f"the request asks for {answers:,} answers to {prompts:,} prompts{of_n}, and at most "
                f"{self._max_waiting:,} may wait (--max-waiting); send fewer at once."
            )
        if (waiting := int(self._num_waiting()) + self._held) + answers > self._max_waiting:
            raise EngineBusy(
                f"{waiting:,} of the {self._max_waiting:,} requests that may wait are waiting already, and this one "
                f"asks for {answers:,}; ask again in a while."
            )

    def check_prompts(self, prompts: Sequence[object]) -> None:
        """Raise PromptTooLong for a text, or a list of token ids, that no context holds, whatever its tokens are."""
        if self._context is None:
            return
        for prompt in prompts:
            if isinstance(prompt, str):
                check_characters(len(prompt), self._context)
            elif isinstance(prompt, Sequence) and len(prompt) > self._context:
                raise PromptTooLong(
                    f"the prompt has {len(prompt):,} tokens, more than the context of {self._context:,}; shorten it."
                )
            elif isinstance(prompt, Mapping):
                check_characters(sum(len(value) for value in prompt.values() if isinstance(value, str)), self._context)

    def check_messages(self, messages: Sequence[Mapping[str, object]]) -> None:
        """Raise PromptTooLong for a conversation of more messages or characters than a context holds."""
        if self._context is None:
            return
        if len(messages) > self._context:
            raise PromptTooLong(
                f"there are {len(messages):,} messages of a token or more, and the context is of {self._context:,}; "
                "leave out old ones."
            )
        contents = (message.get("content") for message in messages)
        check_characters(sum(len(content) for content in contents if isinstance(content, str)), self._context)

    def check_json(self, *values: object) -> None:
        """The same for JSON values that become text in a prompt, in all their depth; takes as long as writing them."""
        if self._context is not None:
            check_characters(sum(len(json.dumps(value, ensure_ascii=False)) for value in values), self._context)

    @contextmanager
    def hold(self, answers: int) -> Iterator[None]:
        """Have answers count as waiting while they are prepared."""
        self._held += answers
        try:
            yield
        finally:
            self._held -= answers

    async def run(self, caller: Caller, function: Callable[[], T], *, work: int, answers: int = 0) -> T:
        """The result of ``function``, which is called here if there is little to do, else in a thread.

        Args:
            work: characters that it handles, about.
            answers: that wait for it.
        """
        if work <= SMALL_WORK:
            return function()
        with self.hold(answers):
            return await self._threads.run(caller.name, function)


def check_characters(count: int, context: int | None) -> None:
    """Raise PromptTooLong for a text of more characters than the tokens of a context can have."""
    if context is not None and count > (most := context * CHARACTERS_A_TOKEN):
        raise PromptTooLong(
            f"the text has {count:,} characters, and the context of {context:,} tokens holds {most:,} at most; "
            "shorten it."
        )
