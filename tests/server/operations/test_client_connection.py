"""A client that goes away is 499 in metrics and access log, whatever it asked; one that stays is not."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from server.operations.test_metrics_and_limits import log_lines, samples  # noqa: F401  (a fixture)
from server.running_server import RunningServer, wait_until

CHAT = {"model": "poet", "messages": [{"role": "user", "content": "A tale"}], "max_tokens": 150, "ignore_eos": True}
TEXTS = ["one or the other"] * 600
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "poet", "prompt": "A tale", "max_tokens": 150, "ignore_eos": True},
    "/v1/classify": {"model": "mood", "input": TEXTS},
    "/v1/embeddings": {"model": "poet", "input": TEXTS},
}


def count(server: RunningServer, path: str, status: str) -> float:
    found = samples(httpx.get(f"{server.url}/metrics").text)
    return found.get(("foreword_responses_total", path, status), 0)


def statuses(server: RunningServer, path: str) -> dict[str, float]:
    found = samples(httpx.get(f"{server.url}/metrics").text)
    return {key[2]: value for key, value in found.items() if key[:2] == ("foreword_responses_total", path)}


def send_and_leave(server: RunningServer, path: str, body: dict[str, Any], *, read: int = 0) -> None:
    """Send a whole request, read so many bytes of its response, and close the connection."""
    address, content = urlsplit(server.url), json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(head.encode() + content)
        if read:
            assert connection.recv(read)


@pytest.mark.parametrize("path", BODIES)
def test_a_client_that_does_not_wait_is_499(server: RunningServer, path: str, log_lines: list[dict]) -> None:  # noqa: F811
    before = statuses(server, path)
    send_and_leave(server, path, BODIES[path])
    wait_until(lambda: count(server, path, "499") == before.get("499", 0) + 1)
    assert {**statuses(server, path), "499": 0} == {**before, "499": 0}
    wait_until(lambda: any(line["path"] == path for line in log_lines))
    assert [line["status"] for line in log_lines if line["path"] == path] == [499]


def test_a_client_that_leaves_in_the_middle_of_a_stream_is_499(server: RunningServer) -> None:
    path = "/v1/chat/completions"
    before = statuses(server, path)
    send_and_leave(server, path, {**CHAT, "stream": True}, read=100)
    wait_until(lambda: count(server, path, "499") == before.get("499", 0) + 1)
    assert count(server, path, "200") == before.get("200", 0)
    wait_until(lambda: server.engine.statistics()["running"] == 0)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_stays_is_200(server: RunningServer, stream: bool) -> None:
    path = "/v1/chat/completions"
    before = statuses(server, path)
    httpx.post(server.url + path, json={**CHAT, "max_tokens": 3, "stream": stream}).raise_for_status()
    wait_until(lambda: count(server, path, "200") == before.get("200", 0) + 1)
    assert count(server, path, "499") == before.get("499", 0)
