"""`Serve`: throughput of streaming clients over HTTP, beside the same engine called in its own process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar
from urllib.parse import urlsplit

from foreword.bench.participants import EMBEDDED, ENGINES, OURS, Peer, open_engine
from foreword.bench.prompts import user_requests, windows
from foreword.bench.worker import Handlers
from foreword.bench.workload import Case, Log, Options, Workload, compared, interleaved
from foreword.core import SamplingParams
from foreword.engine.protocol import Request
from foreword.errors import BenchError
from foreword.server.app import create_app
from foreword.server.background import serve_in_background

KEY = "streaming"
CLIENTS, PROMPT_TOKENS, OUTPUT_TOKENS, ROUNDS = 32, 64, 64, 5
ANSWER_SECONDS = 600
ENGINE = Peer("engine", "the same requests handed to the same engine in its own process, without a server")


class Serve(Workload):
    """32 clients that stream 64 tokens each, all at once; what they take of the cores is part of the figure."""

    name = "serve"
    peers: ClassVar[Sequence[Peer]] = (ENGINE,)
    engines = (EMBEDDED,)

    def cases(self, options: Options) -> list[Case]:
        sizes = {"clients": min(CLIENTS, options.limit or CLIENTS), "rounds": options.steps or ROUNDS}
        tokens = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
        return [options.case(KEY, _measure, dtype="bfloat16", **sizes, **tokens)]


def _measure(options: Options, settings: Mapping[str, Any], log: Log) -> dict[str, Any]:
    given = {**settings, "text": user_requests(options.data)}
    with ENGINES[options.engine].worker(f"{__name__}:start", given) as worker:
        place = worker.ask("place")

        def measure(name: str, turn: int) -> float:
            if name == ENGINE.key:
                return worker.ask("generate", tokens=settings["output_tokens"])
            return asyncio.run(_stream_all(place, settings["output_tokens"]))

        return compared(interleaved([OURS, *options.peers], settings["rounds"], measure), log)


async def _stream_all(place: Mapping[str, Any], tokens: int) -> float:
    """Seconds until all clients have all their tokens."""
    began = time.perf_counter()
    await asyncio.gather(*(_stream(place, ids, tokens) for ids in place["prompts"]))
    return time.perf_counter() - began


async def _stream(place: Mapping[str, Any], ids: Sequence[int], tokens: int) -> None:
    """A client that does no more than read from a bare socket: it has the same cores as the server."""
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
    status, count = answer.partition(b"\r\n")[0], answer.count(b"data: ")
    # An event for every token, one that begins with the prompt's ids, and the end.
    if b" 200 " not in status or b"data: [DONE]\n\n" not in answer or count != tokens + 2:
        raise BenchError(f"a client got {count} events and {status.decode()!r}, expected {tokens + 2}.")


def start(settings: Mapping[str, Any]) -> Handlers:
    """The engine and the server in front of it."""
    engine, stack = open_engine(settings), ExitStack()
    prompts = windows(engine.tokenizer, settings["text"], settings["clients"], settings["prompt_tokens"])
    url = stack.enter_context(serve_in_background(create_app(engine, None)))

    def generate(tokens: int) -> float:
        """Seconds until all prompts are answered by the engine itself."""
        sampling = SamplingParams(max_tokens=tokens, ignore_eos=True)
        began = time.perf_counter()
        for stream in [engine.submit(Request(tuple(ids), sampling=sampling)) for ids in prompts]:
            list(stream)
        return time.perf_counter() - began

    place = {"url": url, "model": engine.name, "prompts": prompts}
    # The port is open until the stack is closed.
    return {"close": stack.close, "generate": generate, "place": lambda: place}
