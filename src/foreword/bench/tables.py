"""`docs/benchmarks.md`: written from the records alone, so that no figure in it was typed by hand."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.bench.peers import Peer
from foreword.bench.record import Record, Results
from foreword.bench.workload import Limit, Workload

_HEAD = """\
# Benchmarks

Written by `foreword bench tables` from the records in `bench/results`; do not edit by hand. Every ratio says how many
times better Foreword is, from candidates that took turns in one run on one machine: compare ratios, not times. A row
that loses stays in its table. `foreword bench NAME` measures again; what is there already is not repeated. vLLM is
looked for in the Python that `$FOREWORD_BENCH_VLLM_PYTHON` names, and other peers likewise.
"""


def page(workloads: Mapping[str, Workload], results: Results) -> str:
    """The whole page: a section for every workload that has been measured."""
    sections = [_HEAD]
    for name, workload in workloads.items():
        if records := results.all(name):
            sections.append(_section(workload, records))
    return "\n".join(sections)


def _section(workload: Workload, records: Sequence[Record]) -> str:
    parts = [
        f"## {workload.name}",
        _wrapped(workload.about),
        *_peers(workload),
        workload.tables(records),
        *_facts(records),
    ]
    if limits := workload.summary(records).limits:
        parts.append(_goals(limits))
    return "\n\n".join(parts) + "\n"


def _peers(workload: Workload) -> list[str]:
    return ["\n".join(_wrapped(f"`{peer.key}`: {peer.about}{_awaited(peer)}.", "- ") for peer in workload.peers)]


def _awaited(peer: Peer) -> str:
    return f"; missing until the issue '{peer.awaits}' brings it" if peer.awaits else ""


def _goals(limits: Sequence[Limit]) -> str:
    head = "| goal | wanted | found | |\n|---|--:|--:|---|"
    return "\n".join([head, *(_goal(limit) for limit in limits)])


def _goal(limit: Limit) -> str:
    wanted = f"{'<=' if limit.at_most else '>='} {limit.goal:g}"
    found = "not measured" if limit.found is None else f"{limit.found:.3g}"
    return f"| {limit.name} | {wanted} | {found} | {'met' if limit.met else '**not met**'} |"


def _facts(records: Sequence[Record]) -> list[str]:
    """Machine and versions, once for all records that share them, with their dates, commits and seeds."""
    shared: dict[str, list[Record]] = {}
    for record in records:
        shared.setdefault(_said(record.facts), []).append(record)
    return ["\n".join(_wrapped(f"{said}. {_when(found)}.", "- ") for said, found in shared.items())]


def _said(facts: Mapping[str, Any]) -> str:
    machine, versions = facts["machine"], facts["versions"]
    shown = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['cores']} cores of {machine['cpu']}, {machine['memory_bytes'] / 2**30:.0f} GiB; {shown}"


def _when(records: Sequence[Record]) -> str:
    ordered = sorted(records, key=lambda record: record.facts["started"])
    days = [ordered[0].facts["started"], ordered[-1].facts["started"]]
    commits = dict.fromkeys(str(record.facts["commit"]) for record in ordered)
    seeds = sorted({record.settings["seed"] for record in records})
    return (
        f"Measured {' to '.join(dict.fromkeys(days))}, seed {', '.join(map(str, seeds))}, commit "
        f"{', '.join(commits)}; + is a commit with changes that were not committed yet"
    )


def _wrapped(text: str, mark: str = "") -> str:
    """Lines of the docs' width; ``mark`` makes it an item of a list."""
    return textwrap.fill(
        text,
        120,
        initial_indent=mark,
        subsequent_indent=" " * len(mark),
        break_long_words=False,
        break_on_hyphens=False,
    )
