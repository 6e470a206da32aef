"""`ArchitectureConformance`: every architecture of the installed Transformers, one tiny random model at a time."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers

from foreword.bench.architecture_checks import examine
from foreword.bench.architectures import KINDS, Architecture
from foreword.bench.participants import EMBEDDED
from foreword.bench.record import Record
from foreword.bench.workload import Case, Goal, Log, Options, Workload
from foreword.errors import UsageError

BYTES, SECONDS = 10 << 30, 300
GOALS = {"causal": 0.95, "masked": 0.9, "seq2seq": 0.95}


class ArchitectureConformance(Workload):
    """Which architectures carry prefixes, and whether they learn and answer as in plain Transformers.

    Args:
        kinds: names of `KINDS`.
        model_types: those alone; all without any.

    Raises:
        UsageError: there is no such kind or model type.
    """

    name = "architectures"
    engines = (EMBEDDED,)
    reads_data = False

    def __init__(self, kinds: Sequence[str] = tuple(KINDS), model_types: Sequence[str] = ()) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise UsageError(f"there is no kind {unknown[0]!r} of model; choose from {', '.join(KINDS)}.")
        known = [each for kind in kinds for each in Architecture.all(kind)]
        self.architectures = [each for each in known if not model_types or each.model_type in model_types]
        if missing := sorted(set(model_types) - {each.model_type for each in known}):
            raise UsageError(
                f"Transformers {transformers.__version__} has no {' or '.join(kinds)} model type {missing[0]!r}."
            )
        self._kinds = {each.kind for each in self.architectures}

    def cases(self, options: Options) -> list[Case]:
        settings = {"transformers": transformers.__version__, "dtype": "float32", "title": "architectures"}
        return [
            Case(f"{each.kind}/{each.model_type}", {**settings, "class": each.class_name}, self._measure(each))
            for each in self.architectures
        ]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [Goal(f"{kind}/carried", share) for kind, share in GOALS.items() if kind in self._kinds]

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        """Of every kind the share that carries prefixes among those that could be built."""
        found: dict[str, list[bool]] = {}
        for record in records:
            if "not_built" not in record.metrics:
                found.setdefault(record.key.partition("/")[0], []).append("carried" in record.metrics)
        return {f"{kind}/carried": sum(each) / len(each) for kind, each in found.items()}

    def _measure(self, architecture: Architecture) -> Any:
        def measure(options: Options, settings: Mapping[str, Any], log: Log) -> Mapping[str, Any]:
            del options, settings
            found = in_a_child(architecture)
            log(f"  {next(iter(found.values()))}")
            return found

        return measure


def in_a_child(architecture: Architecture) -> Mapping[str, Any]:
    """What `examine` finds, in a process with limits of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_examine, args=(architecture, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else {"failed": f"it was not done after {SECONDS} seconds."}
    except EOFError:
        return {"failed": f"its process ended, most likely for want of memory ({BYTES >> 30} GiB)."}
    finally:
        child.join(1)
        child.kill()
        child.join()
        ours.close()


def _examine(architecture: Architecture, answers: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)
    answers.send(examine(architecture))
