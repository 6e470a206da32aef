"""`Ttft`: time to the first token behind a published policy, beside sending the policy along."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import client
from foreword.bench.participants import EMBEDDED, ENGINES, LLAMACPP, OURS, VLLM, Peer
from foreword.bench.prompts import FIXTURES, policy, user_requests
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Goal, Log, Options, Workload, compared, interleaved, spread, times_better

TASK, POLICY, POLICY_TOKENS, QUESTION_TOKENS = "policy", "tau2_retail", 1000, 32
ROUNDS, STARTS, WARM = 8, 5, 5
CONCURRENCY = {"warm/1": 1, "warm/8": 8}
COLD = "cold"
# An engine on vLLM reuses what it computed, so it cannot be its own uncached peer.
UNCACHED = Peer(
    "uncached",
    "the same engine in the same process, the policy sent along and nothing of it reused",
    beside=(EMBEDDED, LLAMACPP),
)
Ask = Callable[[Sequence[str]], dict[str, Any]]
"""Asks questions together: mean ``first_seconds``, and the ``first_tokens``."""


Inputs = Mapping[str, Any]
"""What all participants are given: ``bank``, ``policy``, ``questions``, and the prefix's size as ``published``."""


class Ttft(Workload):
    """Questions of 32 tokens behind a policy of 1,000: warm, and as the first request of a fresh process (cold)."""

    name = "ttft"
    peers: ClassVar[Sequence[Peer]] = (UNCACHED,)
    engines = (EMBEDDED, VLLM, LLAMACPP)

    def cases(self, options: Options) -> list[Case]:
        tokens, asked = min(POLICY_TOKENS, options.limit or POLICY_TOKENS), QUESTION_TOKENS
        own = {"dtype": "bfloat16", "policy": POLICY, "policy_tokens": tokens, "question_tokens": asked}
        rounds, starts = ({"rounds": options.steps or count} for count in (ROUNDS, STARTS))
        warm = [options.case(key, partial(self._warm, n), **own, **rounds) for key, n in CONCURRENCY.items()]
        return [*warm, options.case(COLD, self._cold, **own, **starts)]

    def goals(self, engine: str) -> Sequence[Goal]:
        warm = [Goal(f"{key}/{UNCACHED.key}", 15.0) for key in CONCURRENCY]
        return [*warm, Goal(f"{COLD}/over_warm", 1.3, at_most=True)]

    def other_peers(self, options: Options, inputs: Inputs, stack: ExitStack) -> dict[str, Ask]:
        """Peers in processes of their own, which the stack ends."""
        return {}

    def _warm(self, concurrency: int, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
        tokens: dict[str, list[int]] = {name: [] for name in (OURS, *options.peers)}
        with TemporaryDirectory() as bank, ExitStack() as stack:
            inputs = _inputs(options, settings, bank, concurrency * (settings["rounds"] + 1))
            asks = _asks(stack.enter_context(_start(options, inputs)), inputs)
            asks |= self.other_peers(options, inputs, stack)

            def measure(name: str, turn: int) -> float:
                answer = asks[name](inputs["questions"][turn * concurrency : (turn + 1) * concurrency])
                tokens[name] += answer["first_tokens"]
                return answer["first_seconds"]

            metrics = compared(interleaved(list(tokens), settings["rounds"], measure), log)
        # Shares of questions with the same first token as without the prefix; in bfloat16 a tie may fall either way.
        equal = {name: list(map(int.__eq__, tokens[OURS], theirs)) for name, theirs in tokens.items() if name != OURS}
        same = {name: sum(each) / len(each) for name, each in equal.items()}
        return {**metrics, "published": inputs["published"], "same_first_tokens": same}

    def _cold(self, options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
        seconds: dict[str, list[float]] = {name: [] for name in (OURS, *options.peers)}
        load, after = [], []
        with TemporaryDirectory() as bank:
            inputs = _inputs(options, settings, bank, WARM + 2)
            sent, first, *others = ([question] for question in inputs["questions"])
            for turn in range(settings["rounds"]):
                log(f"  start {turn + 1} of {settings['rounds']}")
                with _start(options, inputs) as ours:
                    asks = _asks(ours, inputs)
                    cold, *warm = map(asks[OURS], (first, *others))
                    answers = {OURS: cold}
                    if UNCACHED.key in options.peers and options.engine in UNCACHED.beside:
                        answers[UNCACHED.key] = asks[UNCACHED.key](sent)
                with ExitStack() as stack:
                    for name, ask in self.other_peers(options, inputs, stack).items():
                        answers[name] = ask(sent if name == UNCACHED.key else first)
                for name, figures in seconds.items():
                    figures.append(answers[name]["first_seconds"])
                load.append(cold["load_seconds"])
                after.append(statistics.median(answer["first_seconds"] for answer in warm))
        over = {"load": spread(load), "after": spread(after), "over_warm": times_better(after, seconds[OURS])}
        return {**compared(seconds, log), "published": inputs["published"], **over}


def _inputs(options: Options, settings: Mapping[str, Any], bank: str, count: int) -> Inputs:
    given = {**settings, "bank": bank}
    with Worker("fixtures", FIXTURES, given) as made:
        text = made.ask("texts", text=policy(options.data, POLICY), count=1, tokens=settings["policy_tokens"])[0]
        published = made.ask("publish_text", name=TASK, text=text)
        questions = made.ask("texts", text=user_requests(options.data), count=count, tokens=QUESTION_TOKENS)
    return {**given, "policy": text, "published": published, "questions": questions}


def _start(options: Options, inputs: Inputs) -> Worker:
    return ENGINES[options.engine].worker(f"{client.__name__}:start", inputs)


def _asks(ours: Worker, inputs: Inputs) -> dict[str, Ask]:
    """Asks our engine behind the published policy, and with the policy in every question."""

    def ask(task: str | None, policy: str, questions: Sequence[str]) -> dict[str, Any]:
        requests = [(task, policy + question) for question in questions]
        return ours.ask("run", requests=requests, tokens=1, concurrency=len(requests))

    return {OURS: partial(ask, TASK, ""), UNCACHED.key: partial(ask, None, inputs["policy"])}
