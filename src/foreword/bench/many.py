"""`Many`: a thousand published prefixes in a bounded memory, beside one that is always there."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

from foreword.bench import client
from foreword.bench.participants import EMBEDDED, ENGINES, OURS, VLLM, Peer
from foreword.bench.prompts import FIXTURES, learned_name, user_requests
from foreword.bench.worker import Worker
from foreword.bench.workload import Case, Log, Options, Workload, compared, interleaved, spread

PREFIXES, RESIDENT, LENGTH = 1000, 64, 32
PROMPT_TOKENS, OUTPUT_TOKENS = 32, 16
REQUESTS, CONCURRENCY, ROUNDS = 128, 16, 5
TRAFFIC = {"uniform": 0.0, "zipf": 1.0}
ONE = Peer("one_prefix", "the same engine and the same requests, all behind one prefix, which stays in memory")


class Many(Workload):
    """Requests behind 1,000 learned prefixes with memory for 64, drawn alike (uniform) or by 1/k (zipf)."""

    name = "many"
    peers: ClassVar[Sequence[Peer]] = (ONE,)
    engines = (EMBEDDED, VLLM)

    def cases(self, options: Options) -> list[Case]:
        settings = self.settings(options)
        return [options.case(key, _measure, **settings, skew=skew) for key, skew in TRAFFIC.items()]

    def settings(self, options: Options) -> dict[str, Any]:
        prefixes = options.limit or PREFIXES
        resident = min(RESIDENT, max(2, prefixes // 4))
        # What runs must fit into the bound with room to spare: a request holds its prefix whatever the bound says.
        traffic = {"requests": min(REQUESTS, prefixes), "concurrency": min(CONCURRENCY, max(1, resident // 4))}
        tokens = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        bank = {"prefixes": prefixes, "resident": resident, "length": LENGTH}
        return {"dtype": "bfloat16", **bank, **traffic, **tokens, "rounds": options.steps or ROUNDS}


@contextmanager
def started(
    options: Options, settings: Mapping[str, Any], factory: str = f"{client.__name__}:start"
) -> Iterator[tuple[Worker, Mapping[str, Any]]]:
    """Our engine in front of a bank that ends with the block, and what it was given."""
    text = user_requests(options.data)
    with TemporaryDirectory() as bank:
        given = {**settings, "bank": bank}
        with Worker("fixtures", FIXTURES, given) as made:
            bound = settings["resident"] * made.ask("publish_learned")
            prompts = made.ask("texts", text=text, count=settings["requests"], tokens=settings["prompt_tokens"])
        given |= {"prompts": prompts, "prefix_bytes": bound}
        with ENGINES[options.engine].worker(factory, given) as worker:
            yield worker, given


def drawn(count: int, total: int, skew: float, seed: int) -> list[int]:
    """Which of ``total`` tasks each of ``count`` requests names: the k-th with a weight of ``1 / k ** skew``."""
    weights = list(accumulate((rank + 1) ** -skew for rank in range(total)))
    return random.Random(seed).choices(range(total), cum_weights=weights, k=count)


def _measure(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in (OURS, *options.peers)}
    sizes = {"tokens": settings["output_tokens"], "concurrency": settings["concurrency"]}
    with started(options, settings) as (worker, given):

        def measure(name: str, turn: int) -> float:
            seed = settings["seed"] * 1000 + turn
            tasks = drawn(settings["requests"], settings["prefixes"], settings["skew"], seed)
            names = [learned_name(task if name == OURS else 0) for task in tasks]
            requests = list(zip(names, given["prompts"], strict=True))
            answers[name].append(worker.ask("run", requests=requests, **sizes))
            return answers[name][-1]["seconds"]

        metrics = compared(interleaved(list(answers), settings["rounds"], measure), log)
    for name, each in answers.items():
        metrics["runs"][name]["tokens_per_second"] = spread([one["tokens"] / one["seconds"] for one in each[1:]])
    # What vLLM's worker loads and holds cannot be seen from outside.
    if options.engine == EMBEDDED:
        metrics["loads"] = spread([answer["loads"] for answer in answers[OURS][1:]])
        metrics["resident_bytes"] = max(answer["resident_bytes"] for answer in answers[OURS])
    return {**metrics, "bound_bytes": given["prefix_bytes"]}
