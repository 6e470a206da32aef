"""What is written from the records alone: `docs/benchmarks.md`."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

from benchmarks.report import WorkloadReport
from foreword.bench.record import Record, Results
from foreword.bench.workload import Goal

_HEAD = """\
# Benchmarks

Written by `python -m benchmarks tables` from the records in `bench/results`; do not edit by hand. Every ratio says how
many times better Foreword is, from participants that took turns in one run on one machine: compare ratios, not times. A
row that loses stays in its table. `python -m benchmarks NAME` measures again; what is there already is not repeated.
vLLM is looked for in the Python that `$FOREWORD_BENCH_VLLM_PYTHON` names, and other peers likewise.
`foreword bench NAME` measures `ttft`, `step`, `serve`, `many` and `conformance` on your own model, without other
software.
"""


def page(workloads: Mapping[str, WorkloadReport], results: Results) -> str:
    """The page: a section for every workload that has been measured."""
    measured = {name: results.all(name) for name in workloads}
    return "\n".join([_HEAD, *(_section(workloads[name], records) for name, records in measured.items() if records)])


def _section(workload: WorkloadReport, records: Sequence[Record]) -> str:
    peers = "\n".join(_wrapped(f"`{peer.key}`: {peer.about}.", "- ") for peer in workload.peers)
    environments: dict[str, list[Record]] = {}
    for record in records:
        environments.setdefault(_environment(record), []).append(record)
    measured = "\n".join(_wrapped(f"{text}. {_when(own)}.", "- ") for text, own in environments.items())
    parts = [f"## {workload.name}", _wrapped(workload.about), peers, workload.tables(records), measured]
    if goals := workload.summary(records).goals:
        head = "| goal | wanted | found | |\n|---|--:|--:|---|"
        parts.append("\n".join([head, *map(_row, goals)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(goal: Goal) -> str:
    wanted = f"{'<=' if goal.at_most else '>='} {goal.target:g}"
    found = "not measured" if goal.value is None else f"{goal.value:.3g}"
    return f"| {goal.name} | {wanted} | {found} | {'met' if goal.met else '**not met**'} |"


def _environment(record: Record) -> str:
    """Machine and versions."""
    machine, versions = record.environment["machine"], record.environment["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_bytes'] / 2**30:.0f} GiB; {shown}"


def _when(records: Sequence[Record]) -> str:
    """Dates, seeds and commits."""
    ordered = sorted(records, key=lambda record: record.environment["started"])
    days = [ordered[0].environment["started"], ordered[-1].environment["started"]]
    commits = dict.fromkeys(str(record.environment["commit"]) for record in ordered)
    seeds = sorted({record.settings["seed"] for record in records})
    return (
        f"Measured {' to '.join(dict.fromkeys(days))}, seed {', '.join(map(str, seeds))}, commit "
        f"{', '.join(commits)}; + is a commit with changes that were not committed yet"
    )


def _wrapped(text: str, mark: str = "") -> str:
    """Lines of the docs' width; ``mark`` makes it an item of a list."""
    wrapper = textwrap.TextWrapper(120, mark, " " * len(mark), break_long_words=False, break_on_hyphens=False)
    return wrapper.fill(text)
