"""What tenants say and are told is in nothing that the process writes: canaries go in, then everything is searched."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from training.small_data import examples, write_jsonl
from trust.two_tenants import SOURCE, TwoTenants


class Canaries:
    """Words that occur nowhere else, by the place that they are planted at."""

    def __init__(self) -> None:
        self.planted: dict[str, str] = {}

    def plant(self, place: str) -> str:
        return self.planted.setdefault(place, f"canary{secrets.token_hex(8)}")

    def found_in(self, text: str, *places: str) -> list[str]:
        """Places of those that stand in a text."""
        return [place for place, word in self.planted.items() if word in text and (not places or place in places)]

    def found_under(self, folder: Path) -> list[tuple[str, str]]:
        """Those in files and names of files of a folder."""
        found = []
        for file in folder.rglob("*"):
            found += [(str(file), place) for place in self.found_in(str(file.relative_to(folder)))]
            if file.is_file():
                found += [(str(file), place) for place in self.found_in(file.read_bytes().decode("latin-1"))]
        return found


def requests(plant: Any, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Requests that carry canaries: path and body; some are answered and some are refused."""

    def tool(place: str) -> dict[str, Any]:
        parameters = {
            "type": "object",
            "properties": {"to": {"const": plant(f"{place} parameter")}},
            "required": ["to"],
        }
        function = {"name": "send", "description": plant(f"{place} description"), "parameters": parameters}
        return {"type": "function", "function": function}

    asked = {"model": "a-say", "max_tokens": 4}
    chat = {"model": model, "max_tokens": 4}
    completions, chats, responses = "/v1/completions", "/v1/chat/completions", "/v1/responses"
    yield completions, asked | {"prompt": plant("prompt")}
    yield completions, asked | {"prompt": plant("echoed prompt"), "echo": True, "model": model}
    yield completions, asked | {"prompt": plant("streamed prompt"), "stream": True}
    yield completions, asked | {"prompt": "", "stop": [plant("stop")]}
    yield completions, asked | {"prompt": "x", "user": plant("user")}
    choice = {"choice": [plant("answer"), plant("answer") + " and more"]}
    yield completions, asked | {"prompt": "x", "max_tokens": 64, "structured_outputs": choice}
    yield completions, asked | {"prompt": "x", "structured_outputs": {"regex": plant("wrong regex") + "("}}
    yield completions, asked | {"prompt": "x", "structured_outputs": {"grammar": plant("wrong grammar")}}
    schema = {"type": plant("wrong schema"), "title": plant("title of a schema")}
    yield completions, asked | {"prompt": "x", "structured_outputs": {"json": schema}}
    said = [{"role": "system", "content": plant("system")}, {"role": "user", "content": plant("message")}]
    yield chats, chat | {"messages": said}
    call = {"name": "send", "arguments": json.dumps({"to": plant("tool arguments")})}
    turns = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c", "content": plant("tool result")},
    ]
    yield chats, chat | {"messages": turns, "tools": [tool("tool")], "max_tokens": 64}
    forced = {"tools": [tool("forced tool")], "tool_choice": "required", "max_tokens": 100}
    yield chats, chat | {"messages": said, **forced}
    yield chats, chat | {"messages": [{"role": plant("wrong role"), "content": plant("message of a wrong role")}]}
    yield chats, chat | {"messages": [{"role": "user", "content": {"text": plant("wrong content")}}]}
    yield chats, chat | {"messages": plant("wrong messages")}
    yield chats, chat | {"messages": said, "temperature": plant("wrong number")}
    yield chats, chat | {"messages": said, "logit_bias": {plant("wrong token"): 1}}
    broken = {"name": "send", "arguments": "{" + plant("broken arguments")}
    turns = [turns[0], {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": broken}]}]
    yield chats, chat | {"messages": turns}
    yield responses, {"model": model, "input": plant("input"), "instructions": plant("instructions")}
    yield (
        responses,
        {"model": model, "input": [{"type": plant("wrong item"), "content": plant("content of a wrong item")}]},
    )
    yield "/v1/classify", {"model": "a-mood", "input": [plant("row")]}
    yield "/v1/classify", {"model": "a-mood", "input": [{"text": plant("field"), plant("wrong field"): "x"}]}
    yield "/v1/embeddings", {"model": model, "input": plant("embedded text")}
    yield "/v1/tokenize", {"model": model, "prompt": plant("tokenized text")}
    yield completions, asked | {"prompt": plant("prompt that is too long") * 400}
    yield completions, asked | {"prompt": {"text": plant("prompt of a wrong type")}}
    yield completions, asked | {"prompt": [plant("prompt in a wrong list"), 1]}


@pytest.fixture
def canaries() -> Canaries:
    return Canaries()


def test_nothing_that_a_server_writes_holds_what_tenants_said(start, victim, canaries: Canaries) -> None:
    server: TwoTenants = start("--timeout", "20", "--timeout-graceful-shutdown", "1")
    plant = canaries.plant
    statuses: dict[str, list[int]] = {}
    for path, body in requests(plant, victim.model):
        answer = server.ask("POST", path, body, key="ann")
        statuses.setdefault(path, []).append(answer.status_code)
        assert answer.status_code != 500, (path, body, server.written()[-2000:])
        if answer.status_code >= 400:
            # Names of fields and of tasks are told to whom they belong; what was said is not repeated.
            repeated = [place for place in canaries.found_in(answer.text) if not place.startswith("wrong ")]
            assert not repeated, (repeated, answer.text)
    assert {200, 400} <= {status for found in statuses.values() for status in found}, statuses
    _ask_wrongly(server, canaries)
    metrics = server.ask("GET", "/metrics", key="boss").text
    assert not canaries.found_in(metrics)
    _leave_and_end(server, victim, canaries)
    assert not canaries.found_in(server.written())
    assert not [secret for secret in server.keys.values() if secret in server.written() + metrics]
    assert canaries.found_under(server.place) == []
    stored = canaries.found_under(victim.place)
    assert {place for _, place in stored} <= {"published text"}, stored
    assert all("a-new" in file for file, _ in stored), stored
    for secret in server.keys.values():
        files = [file for file in (*server.place.rglob("*"), *victim.place.rglob("*")) if file.is_file()]
        assert not [file for file in files if secret.encode() in file.read_bytes()]


def _ask_wrongly(server: TwoTenants, canaries: Canaries) -> None:
    """Headers, addresses, bodies and files."""
    plant = canaries.plant
    headers = {"User-Agent": plant("agent"), "Cookie": plant("cookie"), "Referer": f"http://x/{plant('referer')}"}
    answers = [
        server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {plant('wrong key')}"}),
        server.ask("GET", "/v1/models", headers={"Authorization": plant("wrong scheme")}),
        server.ask("GET", "/v1/models", headers=headers, key="ann"),
        server.ask("GET", f"/v1/models?api_key={plant('key in an address')}", key="ann"),
        server.ask("GET", "/v1/models", headers={"X-Request-ID": f"{plant('request id')} x"}, key="ann"),
        server.ask("POST", "/v1/completions", key="ann", content=f'{{"prompt": "{plant("broken body")}'),
        server.ask("POST", "/v1/tasks", {"name": "a-new", "prompt": plant("published text")}, key="boss"),
        server.ask("POST", "/v1/tasks", {"name": "a new", "prompt": plant("refused text")}, key="boss"),
        server.ask("POST", "/v1/tasks", {"name": "a-x", "prompt": plant("forbidden text")}, key="ann"),
    ]
    for place in ("prefix", plant("name of a part")):
        content = b"\x40\0\0\0\0\0\0\0" + json.dumps({plant("file"): plant("value in a file")}).encode().ljust(64)
        files = {place: (plant("name of a file"), content)}
        answers.append(server.ask("POST", "/v1/tasks", data={"name": "a-up"}, files=files, key="boss"))
    for answer in answers:
        assert answer.status_code < 500, (answer.request.url, answer.text)
        assert str(server.place) not in answer.text
        secret = canaries.found_in(answer.text, "wrong key", "wrong scheme", "key in an address", "published text")
        assert not secret, answer.text


def _leave_and_end(server: TwoTenants, victim: Any, canaries: Canaries) -> None:
    """Clients that go, a signal in the middle of answers, and one that leaves a dump of all threads."""
    headers = {"Authorization": f"Bearer {server.keys['ann']}"}
    body = {"model": "a-say", "max_tokens": 400, "ignore_eos": True, "stream": True}
    for by, place in ((None, "given up"), (signal.SIGTERM, "ended"), (signal.SIGABRT, "aborted")):
        asked = body | {"prompt": canaries.plant(place), "n": 4}
        try:
            with server.client.stream("POST", f"{server.url}/v1/completions", json=asked, headers=headers) as answer:
                lines = answer.iter_lines()
                next(lines, None)
                if by is not None:
                    server.stop(by)
                    list(lines)
        except httpx.TransportError:
            assert by is signal.SIGABRT
        if by is signal.SIGTERM:
            server.start()
    if victim.engine == "embedded":
        assert "Fatal Python error: Aborted" in server.written()


def test_no_figure_or_log_of_a_run_holds_its_rows(victim, tmp_path, canaries: Canaries) -> None:
    """`train` and `eval`, whose rows are rules that can be learned with a secret in each."""
    rows = [{**row, "text": f"{canaries.plant('row of training')} {row['text']}"} for row in examples(24, 1)]
    held = [{**row, "text": f"{canaries.plant('row of evaluation')} {row['text']}"} for row in examples(12, 2)]
    data, evaluated = write_jsonl(tmp_path / "data.jsonl", rows), write_jsonl(tmp_path / "eval.jsonl", held)
    place = tmp_path / "place"
    place.mkdir()
    model = ["--model", str(victim.place / "tiny"), "--bank", "bank"]
    labels = ["--template", "{text}{mask}", "--verbalizer", '{"y": " y", "n": " n"}']
    train = ["train", "--data", data, "--eval", evaluated, *labels, "--length", "4", "--max-steps", "8"]
    target = [{"text": row["text"], "target": canaries.plant("target")} for row in rows]
    written = ["train", "--data", write_jsonl(tmp_path / "target.jsonl", target), "--target-field", "target"]
    wrong = [{"text": canaries.plant("row without a label")}, *rows]
    commands = {
        0: [
            [*train, *model, "--publish", "rule", "--out", "run"],
            ["eval", "rule", "--data", evaluated, *model, "--json"],
            [
                *written,
                "--template",
                "{text} {target:target}",
                *model,
                "--length",
                "4",
                "--max-steps",
                "4",
                "--out",
                "other",
            ],
        ],
        2: [["train", "--data", write_jsonl(tmp_path / "wrong.jsonl", wrong), *labels, *model]],
    }
    environment = {**os.environ, "FOREWORD_HOME": str(place / "home"), "PYTHONPATH": str(SOURCE)}
    for status, each in commands.items():
        for command in each:
            done = subprocess.run(
                [sys.executable, "-m", "foreword", *command],
                capture_output=True,
                text=True,
                cwd=place,
                env=environment,
                timeout=300,
            )
            assert done.returncode == status, done.stderr
            assert not canaries.found_in(done.stdout + done.stderr), done.stdout + done.stderr
    assert canaries.found_under(place) == []
