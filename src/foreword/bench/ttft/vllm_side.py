"""vLLM by itself, which keeps what it computed of the policy: the policy is a part of every question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from statistics import mean
from typing import Any

from foreword.bench.stock_vllm import StockVllm


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """vLLM, ready; it has not seen the policy."""
    llm, policy, salts = StockVllm(settings["model"]), settings["policy"], count()

    def ask(questions: Sequence[str], fresh: bool) -> dict[str, Any]:
        """Ask all at once: mean ``seconds`` to the first token, and the first ``tokens``.

        Args:
            fresh: under a salt of its own each, so that nothing which was computed before is used.
        """
        prompts = [
            {"prompt": policy + each, **({"cache_salt": str(next(salts))} if fresh else {})} for each in questions
        ]
        answers = llm.answers(prompts, 1)
        return {"seconds": mean(each.seconds for each in answers), "tokens": [each.tokens[0] for each in answers]}

    return {"ask": ask}
