"""`Metrics`: Prometheus counters, gauges and histograms of one server."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

MAX_TASK_LABELS = 100
"""Tasks that have a label of their own, in the order of their first requests; the others share ``other``."""

# Histograms as name, help and buckets in seconds, in the order of `LatencyObservers`.
_LATENCIES = (
    (
        "time_to_first_token",
        "From the request to its first token.",
        (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    ),
    (
        "inter_token",
        "From one token of an answer to the next.",
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
    ),
    (
        "answer",
        "From the request to the last token of its answer.",
        (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
    ),
)
# Of `EngineProtocol.statistics`, those that count since the start; everything else there is a gauge.
_ENGINE_COUNTERS = (
    *("requests", "steps", "scored", "preempted", "cancelled", "failed"),
    *("tokens_run", "tokens_generated", "tokens_reused"),
)


class LatencyObservers(NamedTuple):
    """``Histogram.observe`` of the latencies of one task, in seconds.

    Attributes:
        time_to_first_token: from the request to the first token.
        inter_token: from one token to the next.
        total: from the request to the last token.
    """

    time_to_first_token: Callable[[float], None]
    inter_token: Callable[[float], None]
    total: Callable[[float], None]


class TaskCacheStatistics(Protocol):
    """Statistics of the cache of tasks; its length is their number."""

    nbytes: int
    loads: int
    hits: int
    evictions: int

    def __len__(self) -> int: ...


class Metrics:
    """All metrics of one server, in a registry of its own.

    Args:
        statistics: of the engine, read at every scrape.
        resident: the tasks in memory, read at every scrape.
    """

    def __init__(self, statistics: Callable[[], Mapping[str, float]], resident: TaskCacheStatistics) -> None:
        self._registry = CollectorRegistry()
        self._labelled_tasks: set[str] = set()
        self._registry.register(_StatisticsCollector(statistics, resident))
        self._responses = self._counter("responses", "HTTP responses.", ("route", "status"))
        self._prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, prefixes included.", ("task",))
        self._cached_tokens = self._counter(
            "cached_tokens", "Tokens of prompts that were not computed anew.", ("task",)
        )
        self._answer_tokens = self._counter("answer_tokens", "Tokens of answers.", ("task",))
        self._latencies = [self._histogram(*each) for each in _LATENCIES]
        version = ("task", "version")
        self._version_responses = self._counter(
            "version_responses", "HTTP responses of versions that are split.", (*version, "status")
        )
        self._version_answer_tokens = self._counter(
            "version_answer_tokens", "Tokens of answers by versions that are split.", version
        )
        self._version_latencies = [
            self._histogram(f"version_{name}", text, buckets, version) for name, text, buckets in _LATENCIES
        ]

    def count_response(self, route: str, status: int) -> None:
        """Count one response; ``route`` is the path's template, so that there are few label values."""
        self._responses.labels(route, status).inc()

    def count_version_response(self, task: str, version: str, status: int) -> None:
        """Count one response of a version that is served beside another."""
        self._version_responses.labels(*self._version_labels(task, version), status).inc()

    def latency_observers(self, task: str, version: str | None = None) -> LatencyObservers:
        """Observers of one task's latencies, looked up once a request: one of them is called for every token.

        Args:
            version: if it is served beside another.
        """
        label = self._label(task)
        own = [histogram.labels(label).observe for histogram in self._latencies]
        if version is None:
            return LatencyObservers(*own)
        labels = self._version_labels(task, version)
        pairs = zip(own, self._version_latencies, strict=True)
        return LatencyObservers(*(_both(observe, histogram.labels(*labels).observe) for observe, histogram in pairs))

    def count_tokens(self, task: str, prompt: int, cached: int, answer: int, version: str | None = None) -> None:
        """Count the tokens of one request; also by its version, if that is served beside another."""
        label = self._label(task)
        if version is not None:
            self._version_answer_tokens.labels(*self._version_labels(task, version)).inc(answer)
        self._prompt_tokens.labels(label).inc(prompt)
        self._cached_tokens.labels(label).inc(cached)
        self._answer_tokens.labels(label).inc(answer)

    def exposition(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self._registry)

    def _label(self, task: str) -> str:
        if task not in self._labelled_tasks and len(self._labelled_tasks) >= MAX_TASK_LABELS:
            return "other"
        self._labelled_tasks.add(task)
        return task

    def _version_labels(self, task: str, version: str) -> tuple[str, str]:
        ref = self._label(f"{task}@{version}")
        return (ref, ref) if ref == "other" else (task, version)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"foreword_{name}", text, labels, registry=self._registry)

    def _histogram(
        self, name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ("task",)
    ) -> Histogram:
        return Histogram(f"foreword_{name}_seconds", text, labels, registry=self._registry, buckets=buckets)


def _both(first: Callable[[float], None], second: Callable[[float], None]) -> Callable[[float], None]:
    def observe(seconds: float) -> None:
        first(seconds)
        second(seconds)

    return observe


class _StatisticsCollector(Collector):
    """Reads the engine's statistics and those of the tasks in memory at every scrape."""

    def __init__(self, statistics: Callable[[], Mapping[str, float]], resident: TaskCacheStatistics) -> None:
        self._statistics = statistics
        self._resident = resident

    def collect(self) -> Iterator[Metric]:
        for name, value in self._statistics().items():
            family = CounterMetricFamily if name in _ENGINE_COUNTERS else GaugeMetricFamily
            yield family(f"foreword_engine_{name}", f"{name.replace('_', ' ')} of the engine", value=value)
        resident = self._resident
        yield GaugeMetricFamily("foreword_prefix_bytes", "Bytes of the tasks in memory.", value=resident.nbytes)
        yield GaugeMetricFamily("foreword_prefixes", "Tasks in memory.", value=len(resident))
        yield CounterMetricFamily("foreword_prefix_loads", "Tasks that were loaded.", value=resident.loads)
        yield CounterMetricFamily("foreword_prefix_hits", "Requests whose task was in memory.", value=resident.hits)
        yield CounterMetricFamily("foreword_prefix_evictions", "Tasks that had to leave.", value=resident.evictions)
