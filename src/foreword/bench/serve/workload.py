"""`Serve`: throughput of streaming clients over HTTP, beside the engine called in its own process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

from foreword.bench import markdown
from foreword.bench.candidate import Candidate
from foreword.bench.material import requests
from foreword.bench.measure import compared, interleaved
from foreword.bench.peers import Peer
from foreword.bench.record import Record
from foreword.bench.workload import Cell, Limit, Options, Say, Summary
from foreword.errors import BenchError

OURS = "foreword"
KEY = "streaming"
CLIENTS = 32
PROMPT_TOKENS = 64
OUTPUT_TOKENS = 64
ROUNDS = 5
ANSWER_SECONDS = 600
# A server that costs 3 % has 0.97 of the engine's throughput.
GOAL = 0.97

ENGINE = Peer("engine", "the same requests handed to the same engine in its own process, without a server")


@dataclass(frozen=True)
class Serve:
    """See ``about``."""

    name: ClassVar[str] = "serve"
    about: ClassVar[str] = (
        f"{CLIENTS} clients that stream {OUTPUT_TOKENS} greedy tokens each behind prompts of {PROMPT_TOKENS}, all at "
        "once, over HTTP on the same machine; the clients are one process of bare sockets that reads events and counts "
        "them. What they take of the cores is part of the figure."
    )
    peers: ClassVar[Sequence[Peer]] = (ENGINE,)
    engines: ClassVar[Sequence[str]] = ("embedded",)
    reads_data: ClassVar[bool] = True

    def cells(self, options: Options) -> list[Cell]:
        return [Cell(KEY, _settings(options), partial(_streaming, options))]

    def summary(self, records: Sequence[Record]) -> Summary:
        found = {record.key: record.found for record in records}
        ratios = {f"{key}/{peer}": each["median"] for key in found for peer, each in found[key]["ratios"].items()}
        return Summary(ratios, [Limit(f"{KEY}/{ENGINE.key}", GOAL, ratios.get(f"{KEY}/{ENGINE.key}"))])

    def tables(self, records: Sequence[Record]) -> str:
        rows = [
            row
            for record in records
            for row in markdown.peer_rows(record.key, record.found, OURS, [peer.key for peer in self.peers])
        ]
        return markdown.table(("clients", "by", "seconds", "times faster (quartiles)"), rows)


def _settings(options: Options) -> dict[str, Any]:
    return {
        "peers": list(options.peers),
        "model": options.model,
        "dtype": "bfloat16",
        "clients": min(CLIENTS, options.limit or CLIENTS),
        "prompt_tokens": PROMPT_TOKENS,
        "output_tokens": OUTPUT_TOKENS,
        "rounds": options.steps or ROUNDS,
        "seed": options.seed,
    }


def _streaming(options: Options, say: Say) -> dict[str, Any]:
    settings = _settings(options)
    given = {**settings, "text": requests(options.data)}
    with Candidate(OURS, "foreword.bench.serve.side:start", given) as side:
        prompts, place = side.ask("prompts"), side.ask("place")

        def measure(name: str, turn: int) -> float:
            if name == ENGINE.key:
                return side.ask("direct", tokens=settings["output_tokens"])
            return asyncio.run(_ask(place, prompts, settings["output_tokens"]))

        found = compared(interleaved([OURS, *options.peers], settings["rounds"], measure), OURS)
    for name, run in found["runs"].items():
        say(f"  {name}: {run['seconds']['median']:.2f} s")
    return found


async def _ask(place: Mapping[str, str], prompts: Sequence[Sequence[int]], tokens: int) -> float:
    """Seconds until all clients have all their tokens."""
    began = time.perf_counter()
    await asyncio.gather(*(_one(place, ids, tokens) for ids in prompts))
    return time.perf_counter() - began


async def _one(place: Mapping[str, str], ids: Sequence[int], tokens: int) -> None:
    """A client that does no more than read: it has the same cores as the server, and a user's has not."""
    where = urlsplit(place["url"])
    body = {"model": place["model"], "prompt": ids, "max_tokens": tokens, "temperature": 0, "stream": True}
    content = json.dumps({**body, "ignore_eos": True, "return_token_ids": True}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    try:
        writer.write(head.encode() + content)
        answer = await asyncio.wait_for(reader.read(), ANSWER_SECONDS)
    finally:
        writer.close()
    status = answer.partition(b"\r\n")[0]
    count = answer.count(b"data: ")
    # An event for every token, one that begins with the prompt's ids, and the end.
    if b" 200 " not in status or b"data: [DONE]\n\n" not in answer or count != tokens + 2:
        raise BenchError(f"a client got {count} events and {status.decode()!r}, expected {tokens + 2}.")
