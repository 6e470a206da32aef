"""``foreword serve`` as operators run it: keys, a journal, and an end that drops nobody."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest

import foreword
from cli.conftest import Run


class Served:
    """A server in a process of its own; what it writes is collected."""

    def __init__(self, folder: Path, home: Path, *flags: str) -> None:
        self.lines: list[str] = []
        environment = {**os.environ, "FOREWORD_MODEL": str(folder), "FOREWORD_HOME": str(home)}
        command = [sys.executable, "-m", "foreword", "serve", "--port", "0", *flags]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=home.parent)
        self._ready = threading.Event()
        self.url = ""
        threading.Thread(target=self._read, daemon=True).start()
        assert self._ready.wait(90), self.lines

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if line.startswith("serving "):
                self.url = line.split(" at ")[1].split(",")[0].strip()
                self._ready.set()
        self._ready.set()

    @property
    def journal(self) -> list[dict]:
        return [json.loads(line) for line in self.lines if line.startswith("{")]


@pytest.fixture
def served(folder: Path, tmp_path: Path, run: Run) -> Iterator[tuple[Served, str]]:
    made = run("key", "shop", "--api-keys", "keys.jsonl", "--json")
    server = Served(folder, tmp_path / "home", "--api-keys", str(tmp_path / "keys.jsonl"))
    yield server, made.json["key"]
    if server.process.poll() is None:
        server.process.kill()
    server.process.wait()


def test_answers_on_their_way_are_finished_before_the_end(served):
    server, secret = served
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
        model = client.models.list().data[0].id
        asked = {"model": model, "prompt": "Once", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
        with client.completions.with_streaming_response.create(**asked, stream=True) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            server.process.send_signal(signal.SIGTERM)
            events = [first, *(line for line in lines if line)]
    assert events[-1] == "data: [DONE]"
    assert json.loads(events[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.process.wait(timeout=30) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    last = server.journal[-1]
    assert (last["path"], last["status"], last["key"]) == ("/v1/completions", 200, "shop")
    assert last["answer_tokens"] == 200
    assert secret not in "\n".join(server.lines)


def test_an_answer_that_does_not_end_is_ended_without_a_traceback(endless, tmp_path):
    server = Served(endless, tmp_path / "home", "--timeout-graceful-shutdown", "1", "--no-ui")
    try:
        body = {"model": str(endless), "prompt": "Once", "max_tokens": 100_000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            server.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            events = [line for line in lines if line]
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 15
    finally:
        server.process.kill()
    assert events[-2] == "event: error"
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert error["message"] == "the engine stopped before the answer was complete; ask again."
    said = "\n".join(server.lines)
    assert "Traceback" not in said
    assert "Error" not in said


def test_every_client_is_told_within_the_grace(endless, tmp_path):
    server = Served(endless, tmp_path / "home", "--grace", "3", "--no-ui")
    body = {"model": str(endless), "max_tokens": 100_000, "stream": True, "ignore_eos": True}
    kinds = {
        "/v1/completions": {"prompt": ["Once", "Twice"], "n": 8, **body},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], **body},
        "/v1/responses": {"input": "Hi", "max_output_tokens": 100_000, "stream": True, "model": str(endless)},
    }
    ends: list[tuple[str, list[str]]] = []

    def stream(path: str) -> None:
        with httpx.stream("POST", server.url + path, json=kinds[path], timeout=60) as answer:
            ends.append((path, [line for line in answer.iter_lines() if line]))

    def whole() -> None:
        answer = httpx.post(
            f"{server.url}/v1/completions", json={**body, "prompt": "Once", "stream": False}, timeout=60
        )
        ends.append(("whole", [str(answer.status_code)]))

    threads = [threading.Thread(target=stream, args=(path,)) for path in [*kinds] * 4]
    threads.append(threading.Thread(target=whole))
    address = urlsplit(server.url)
    deaf = socket.socket()
    try:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((str(address.hostname), int(address.port or 0)))
        sent = json.dumps(kinds["/v1/completions"]).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(sent)}"
        )
        deaf.sendall(head.encode() + b"\r\n\r\n" + sent)
        for thread in threads:
            thread.start()
        time.sleep(2)
        server.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        assert server.process.wait(timeout=30) == 0
        assert time.monotonic() - began < 9
        for thread in threads:
            thread.join(10)
    finally:
        deaf.close()
        server.process.kill()
    assert len(ends) == len(threads)
    for path, lines in ends:
        assert lines == ["503"] if path == "whole" else "error" in lines[-1], (path, lines[-1])
    assert "Traceback" not in "\n".join(server.lines)


def test_a_second_signal_ends_the_server_at_once(endless, tmp_path):
    server = Served(endless, tmp_path / "home", "--grace", "100", "--no-ui")
    body = {"model": str(endless), "prompt": "Once", "max_tokens": 100_000, "stream": True, "ignore_eos": True}
    try:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
            next(answer.iter_lines())
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            assert server.process.poll() is None
            began = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            server.process.wait(timeout=30)
            assert time.monotonic() - began < 6
    finally:
        server.process.kill()
    assert "Traceback" not in "\n".join(server.lines)


def test_the_way_in(folder, tmp_path):
    server = Served(folder, tmp_path / "home", "--no-ui")
    try:
        front = httpx.get(f"{server.url}/")
        assert front.status_code == 200
        assert "/v1/models" in front.text
        page = httpx.get(f"{server.url}/ui")
        assert page.status_code == 404
        assert page.text.startswith("There is no page here: ")
        health = httpx.get(f"{server.url}/health").json()
        assert health["engine"] == "embedded"
        assert health["versions"]["foreword"] == foreword.__version__
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)


def test_a_key_in_the_environment_closes_the_server(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FOREWORD_API_KEY", "fw-one")
    server = Served(folder, tmp_path / "home", "--quiet")
    try:
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/metrics", headers={"Authorization": "Bearer fw-one"}).status_code == 200
        assert server.journal == []
    finally:
        server.process.terminate()
        server.process.wait(timeout=30)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--api-keys", "none.jsonl"), "cannot be read as a file of keys"),
        (("--api-keys", "empty.jsonl"), "holds no key"),
        (("--max-body-bytes", 3), "max-body-bytes"),
        (("--timeout", 0), "timeout"),
    ],
)
def test_settings_that_are_wrong_are_said_before_the_model_loads(run, tmp_path, flags, said):
    (tmp_path / "empty.jsonl").write_text("\n")
    refused = run("serve", "--port", 0, *flags)
    assert refused.status == 2
    assert said in refused.err
    assert "loading" not in refused.err


def test_a_key_is_added_once(run, tmp_path):
    assert run("key", "shop", "--api-keys", "keys.jsonl", "--task", "a*", "--task", "b").out.startswith("fw-")
    again = run("key", "shop", "--api-keys", "keys.jsonl")
    assert again.status == 2
    assert "a key 'shop' already" in again.err
    assert len((tmp_path / "keys.jsonl").read_text().splitlines()) == 1
