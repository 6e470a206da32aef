"""`Serve` with its section in the docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks import markdown
from benchmarks.report import WorkloadReport
from foreword.bench import serve
from foreword.bench.record import Record
from foreword.bench.serve import CLIENTS, ENGINE, KEY, OUTPUT_TOKENS, PROMPT_TOKENS
from foreword.bench.workload import Goal


class Serve(WorkloadReport, serve.Serve):
    about = (
        f"{CLIENTS} clients that stream {OUTPUT_TOKENS} greedy tokens each behind prompts of {PROMPT_TOKENS}, all at "
        "once, over HTTP on the same machine; the clients are one process of bare sockets that reads events and counts "
        "them. What they take of the cores is part of the figure."
    )

    def goals(self, engine: str) -> Sequence[Goal]:
        return [Goal(f"{KEY}/{ENGINE.key}", 0.97)]  # a server that costs 3 % has 0.97 of the engine's throughput

    def table(self, records: Mapping[str, Record]) -> str:
        peers = [peer.key for peer in self.peers]
        rows = [row for key, record in records.items() for row in markdown.peer_rows(key, record, peers)]
        return markdown.table(("clients", "by", "seconds", "times faster (quartiles)"), rows)
