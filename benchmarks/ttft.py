"""`Ttft` beside vLLM by itself, which keeps what it computed of the policy that is sent along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from statistics import mean
from typing import Any, ClassVar

from benchmarks import markdown
from benchmarks.report import WorkloadReport
from benchmarks.stock_vllm import VLLM_SETTINGS, StockVllm
from foreword.bench import ttft
from foreword.bench.participants import OURS, VLLM, VLLM_ENVIRONMENT, VLLM_PACKAGES, Peer
from foreword.bench.record import Record
from foreword.bench.ttft import COLD, CONCURRENCY, POLICY_TOKENS, QUESTION_TOKENS, WARM, Ask, Inputs
from foreword.bench.worker import Handlers
from foreword.bench.workload import Goal, Options

UNCACHED = replace(
    ttft.UNCACHED,
    about=f"{ttft.UNCACHED.about}; beside our engine on vLLM, vLLM by itself under a salt of its own for every request",
    beside=(),
)
STOCK = Peer(
    VLLM,
    "vLLM by itself, the policy sent along and found again by its automatic prefix caching, in blocks of 128 tokens as "
    f"it chooses on CPUs, but for the first request of a process; compiled and warmed up: {VLLM_SETTINGS}",
    VLLM_PACKAGES,
    environment=VLLM_ENVIRONMENT,
)


class Ttft(WorkloadReport, ttft.Ttft):
    peers: ClassVar[Sequence[Peer]] = (UNCACHED, STOCK)
    about = (
        f"Time to the first token of a question of {QUESTION_TOKENS} tokens behind a policy of {POLICY_TOKENS:,}, from "
        "the text of the question to the token, tokenizing and the look-up of the task included. warm: the policy is "
        "published and in memory, one question alone or eight at once (their mean). cold: the first request of a fresh "
        "process whose engine is ready and whose bank, on disk, has not been read; beside the median of "
        f"{WARM} requests after it."
    )

    def goals(self, engine: str) -> Sequence[Goal]:
        # vLLM's own cache is gone after a restart, and a published policy is not.
        return [*super().goals(engine), *([Goal(f"{COLD}/{VLLM}", 1.0)] if engine == VLLM else [])]

    def other_peers(self, options: Options, inputs: Inputs, stack: ExitStack) -> dict[str, Ask]:
        fresh = {VLLM: False, **({UNCACHED.key: True} if options.engine == VLLM else {})}
        wanted = {name: each for name, each in fresh.items() if name in options.peers}
        if not wanted:
            return {}
        stock = stack.enter_context(STOCK.worker(f"{__name__}:start", inputs))

        def asking(fresh: bool) -> Ask:
            return lambda questions: stock.ask("ask", questions=questions, fresh=fresh)

        return {name: asking(each) for name, each in wanted.items()}

    def table(self, records: Mapping[str, Record]) -> str:
        rows = []
        for key in (*CONCURRENCY, COLD):
            if key in records:
                rows += markdown.peer_rows(key, records[key], [peer.key for peer in self.peers])
        if COLD in records:
            found = records[COLD].metrics
            over = f"first / warm {markdown.times(found['over_warm'])}"
            rows.append(["of which loading", OURS, markdown.milliseconds(found["load"]), "-"])
            rows.append(["after it", OURS, markdown.milliseconds(found["after"]), over])
        return markdown.table(("request", "by", "first token", "times faster (quartiles)"), rows)


def start(settings: Mapping[str, Any]) -> Handlers:
    """vLLM, ready; it has not seen the policy."""
    llm, policy, salts = StockVllm(settings["model"]), settings["policy"], count()

    def ask(questions: Sequence[str], fresh: bool) -> dict[str, Any]:
        """See `Ask`; ``fresh`` under a salt of its own each, so that nothing which was computed before is used."""
        prompts: list[dict[str, Any]] = [{"prompt": policy + each} for each in questions]
        for prompt in prompts if fresh else ():
            prompt["cache_salt"] = str(next(salts))
        answers = llm.answers(prompts, 1)
        first = mean(each.seconds for each in answers)
        return {"first_seconds": first, "first_tokens": [each.tokens[0] for each in answers]}

    return {"ask": ask}
