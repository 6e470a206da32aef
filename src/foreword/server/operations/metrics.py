"""`Metrics`: what an operator watches, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from foreword.server.tasks.resident_tasks import ResidentTasks

TASKS = 100
"""Tasks that have a label of their own, the first that are asked; the others share ``other``."""

_FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_BETWEEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

# What `EngineProtocol.statistics` counts since the start; everything else there is a gauge.
_COUNTED = frozenset(
    {
        "requests",
        "steps",
        "tokens_run",
        "tokens_generated",
        "cancelled",
        "failed",
        "scored",
        "preempted",
        "tokens_reused",
    }
)


class Times(NamedTuple):
    """Of the answers of one task, in seconds.

    Attributes:
        first: until an answer's first token.
        between: from one token to the next.
        whole: until its last.
    """

    first: Callable[[float], None]
    between: Callable[[float], None]
    whole: Callable[[float], None]


class Metrics:
    """Histograms and counters of one server, in a registry of its own.

    Args:
        statistics: of the engine, asked when somebody looks.
        resident: the tasks in memory.
    """

    def __init__(self, statistics: Callable[[], Mapping[str, float]], resident: ResidentTasks) -> None:
        self._registry = CollectorRegistry()
        self._tasks: set[str] = set()
        self._registry.register(_State(statistics, resident))
        self._responses = self._counter("responses", "HTTP responses.", ("route", "status"))
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts, prefixes included.", ("task",))
        self._cached = self._counter("cached_tokens", "Tokens of prompts that were not computed anew.", ("task",))
        self._answer = self._counter("answer_tokens", "Tokens of answers.", ("task",))
        self._first = self._histogram("time_to_first_token", "From the request to its first token.", _FIRST)
        self._between = self._histogram("inter_token", "From one token of an answer to the next.", _BETWEEN)
        self._whole = self._histogram("answer", "From the request to the last token of its answer.", _WHOLE)

    def response(self, route: str, status: int) -> None:
        """Count one response; ``route`` is the path's pattern, so that there are few of them."""
        self._responses.labels(route, status).inc()

    def times(self, task: str) -> Times:
        """Where the times of a request's answers go, looked up once: there is one for every token."""
        label = self._label(task)
        return Times(*(each.labels(label).observe for each in (self._first, self._between, self._whole)))

    def used(self, task: str, prompt: int, cached: int, answer: int) -> None:
        """Count the tokens of one request."""
        label = self._label(task)
        self._prompt.labels(label).inc(prompt)
        self._cached.labels(label).inc(cached)
        self._answer.labels(label).inc(answer)

    def text(self) -> bytes:
        """All of them, as ``/metrics`` answers."""
        return generate_latest(self._registry)

    def _label(self, task: str) -> str:
        if task not in self._tasks and len(self._tasks) >= TASKS:
            return "other"
        self._tasks.add(task)
        return task

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"foreword_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"foreword_{name}_seconds", text, ("task",), registry=self._registry, buckets=buckets)


class _State(Collector):
    """What engine and memory say of themselves when they are asked."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]], resident: ResidentTasks) -> None:
        self._statistics = statistics
        self._resident = resident

    def collect(self) -> Iterator[Metric]:
        for name, value in self._statistics().items():
            kind = CounterMetricFamily if name in _COUNTED else GaugeMetricFamily
            yield kind(f"foreword_engine_{name}", f"{name.replace('_', ' ')} of the engine", value=value)
        resident = self._resident
        yield GaugeMetricFamily("foreword_prefix_bytes", "Bytes of the tasks in memory.", value=resident.nbytes)
        yield GaugeMetricFamily("foreword_prefixes", "Tasks in memory.", value=len(resident))
        yield CounterMetricFamily("foreword_prefix_loads", "Tasks that were loaded.", value=resident.loads)
        yield CounterMetricFamily("foreword_prefix_hits", "Requests whose task was in memory.", value=resident.hits)
        yield CounterMetricFamily("foreword_prefix_evictions", "Tasks that had to leave.", value=resident.evictions)
