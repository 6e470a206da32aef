"""Files that an earlier version wrote are read by this one: banks, runs that were stopped, recipes, files of a server.

They are in ``tests/kept``, whose README says which version wrote them and how. Only public seams are used here: the
command line, HTTP, and names of the package `foreword` itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

import foreword

KEPT = Path(__file__).parent / "kept"
EXPECTED: dict[str, Any] = (
    json.loads((KEPT / "expected.json").read_text(encoding="utf-8")) if (KEPT / "expected.json").is_file() else {}
)
LLAMA, BERT = "models/tiny-llama", "models/tiny-bert"
CLOSE = 1e-4
# What `foreword distill` measures with a clock.
TIMED = ("decode", "seconds")


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.status == 0, self.err
        return json.loads(self.out)


def command(place: Path, *args: object, **env: str) -> Done:
    """``python -m foreword ARGS`` in a copy of the kept files; in this process, which has its libraries loaded."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(place),
        mock.patch.dict(os.environ, environment(place, **env)),
        mock.patch.object(sys, "argv", ["foreword", *map(str, args)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_module("foreword", run_name="__main__")
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return Done(status, out.getvalue(), err.getvalue())


def environment(place: Path, **env: str) -> dict[str, str]:
    """The kept bank, the kept model, and this very code."""
    source = str(Path(foreword.__file__).parents[1])
    own = {"FOREWORD_HOME": str(place / "home"), "FOREWORD_BANK": "bank", "FOREWORD_MODEL": LLAMA}
    return {**own, "FOREWORD_API_KEYS": "", "FOREWORD_API_KEY": "", "PYTHONPATH": source, **env}


class Server:
    """``python -m foreword serve ARGS`` as a process of its own, in a copy of the kept files."""

    def __init__(self, place: Path, *args: str) -> None:
        given = {key: value for key, value in environment(place).items() if value}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "foreword", "serve", "--port", "0", "--no-ui", "--quiet", *args],
            stderr=subprocess.PIPE,
            text=True,
            cwd=place,
            env={**os.environ, **given},
        )
        assert self.process.stderr is not None
        said = ""
        while "serving" not in said:
            said = self.process.stderr.readline()
            assert said, "the server ended"
        self.url = next(word for word in said.split() if word.startswith("http://")).rstrip(",")

    def ask(self, path: str, body: dict[str, Any] | None = None, key: str = "") -> tuple[int, Any]:
        """Status and JSON of an answer."""
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        data = json.dumps(body).encode() if body is not None else None
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers), timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)


# What is asked of the kept files; `kept/write.py` asks the same and keeps the answers.


def listed(place: Path) -> dict[str, dict[str, str]]:
    """Every task of the bank as `foreword bank list` has it, by name."""
    keys = ("name", "version", "kind", "method")
    tasks = command(place, "bank", "list", "--json").json["tasks"]
    return {task["name"]: {key: task[key] for key in keys} for task in tasks}


def digests(place: Path) -> dict[str, str]:
    """Digest of every prefix file of the bank, out of its header."""
    found = {}
    for file in sorted((place / "bank").rglob("*.safetensors")):
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        if "foreword" in header.get("__metadata__", {}):
            found[file.relative_to(place).as_posix()] = json.loads(header["__metadata__"]["foreword"])["digest"]
    return found


def answers(server: Server, asked: dict[str, Any]) -> dict[str, Any]:
    """What tasks answer over HTTP: greedy tokens behind texts and in conversations, labels with probabilities, tags.

    Args:
        asked: texts by route and task.
    """
    found: dict[str, dict[str, Any]] = {route: {} for route in asked}
    for name, prompts in asked.get("/v1/completions", {}).items():
        body = {"model": name, "prompt": prompts, "max_tokens": 8, "temperature": 0, "return_token_ids": True}
        found["/v1/completions"][name] = _said(server, "/v1/completions", body)
    for name, texts in asked.get("/v1/chat/completions", {}).items():
        more = {"max_tokens": 8, "temperature": 0, "return_token_ids": True}
        bodies = [{"model": name, "messages": [{"role": "user", "content": text}], **more} for text in texts]
        found["/v1/chat/completions"][name] = [_said(server, "/v1/chat/completions", body) for body in bodies]
    for route in ("/v1/classify", "/v1/tag"):
        for name, inputs in asked.get(route, {}).items():
            status, answer = server.ask(route, {"model": name, "input": inputs})
            assert status == 200, answer
            found[route][name] = answer["data"]
    return found


def _said(server: Server, route: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = server.ask(route, body)
    assert status == 200, answer
    choices = [{key: choice[key] for key in ("token_ids", "finish_reason")} for choice in answer["choices"]]
    return {"choices": choices, "usage": answer["usage"]}


def evaluated(place: Path, name: str, model: str) -> Any:
    """Figures of a task on the held-out rows, by `foreword eval`."""
    return command(place, "eval", name, "--data", "data/held.jsonl", "--model", model, "--json").json


def flags(place: Path) -> dict[str, list[str]]:
    """Flags that every command takes, out of its help."""
    found = {}
    for name in COMMANDS:
        shown = command(place, *name.split(), "--help", COLUMNS="200", TERMINAL_WIDTH="200", NO_COLOR="1", TERM="dumb")
        assert shown.status == 0, shown.err
        given = re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.out.partition("\nExample:")[0])
        found[name] = sorted(set(given))
    return found


COMMANDS = (
    *("serve", "train", "train-many", "search", "distill", "publish", "cache", "generate", "classify", "eval", "chat"),
    *("doctor", "bench", "key", "import peft", "import ptuning-v2", "export peft"),
    *("bank list", "bank show", "bank verify", "bank rollback", "bank remove", "bank compose", "bank ensemble"),
)


def routes(server: Server) -> dict[str, list[str]]:
    """Routes with the names of their operations, fields of all bodies, and names of all metrics."""
    status, found = server.ask("/openapi.json")
    assert status == 200
    routes = {
        f"{method} {path}": [operation["operationId"]]
        for path, methods in found["paths"].items()
        for method, operation in methods.items()
    }
    bodies = {name: sorted(body.get("properties", {})) for name, body in found["components"]["schemas"].items()}
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        metrics = re.findall(r"^# TYPE (foreword_\w+)", answer.read().decode(), re.MULTILINE)
    return {**routes, **bodies, "metrics": sorted(metrics)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kept files. Runs and recipes name data and models relative to it."""
    return Path(shutil.copytree(KEPT, tmp_path_factory.mktemp("kept") / "files"))


def assert_close(found: Any, expected: Any, where: str = "") -> None:
    """Equal; numbers with a fraction to `CLOSE`."""
    if isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert found.keys() == expected.keys(), where
        for key in expected:
            assert_close(found[key], expected[key], f"{where}/{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_close(one, other, f"{where}/{index}")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=CLOSE), where
    else:
        assert found == expected, where


def assert_same_tensors(found: Path, expected: Path) -> None:
    """The files of two versions hold the same values, to `CLOSE`."""
    files = sorted(file.relative_to(expected) for file in expected.rglob("*.safetensors"))
    assert files == sorted(file.relative_to(found) for file in found.rglob("*.safetensors"))
    for file in files:
        ours, theirs = load_file(found / file), load_file(expected / file)
        assert ours.keys() == theirs.keys(), file
        for name, values in theirs.items():
            assert ours[name].dtype == values.dtype, f"{file} {name}"
            assert torch.allclose(ours[name], values, rtol=0, atol=CLOSE), f"{file} {name}"


def version(bank: Path, name: str, number: str = "") -> Path:
    """Folder of a version, the served one by default."""
    if number:
        return next((bank / name / "versions").glob(f"{number}-*"))
    return bank / name / "versions" / (bank / name / "current").read_text().strip()


def record_of(name: str) -> dict[str, Any]:
    """The record of a kept task."""
    return json.loads((version(KEPT / "bank", name) / "task.json").read_text())


def versions() -> list[Path]:
    """Every version of the kept bank."""
    return sorted((KEPT / "bank").glob("*/versions/*"))


def assert_went_on(said: str, run: Path) -> None:
    """The first step that a command tells of is behind the last that a run folder holds."""
    kept = [int(folder.name.removeprefix("checkpoint-")) for folder in run.glob("checkpoints/checkpoint-*")]
    kept += [json.loads(file.read_text())["step"] for file in run.glob("state.json")]
    assert min(int(step) for step in re.findall(r"step (\d+)/", said)) > max(kept)


# The bank.


def test_every_digest_checks(place: Path) -> None:
    assert command(place, "bank", "verify", "--json").json == {"problems": []}
    assert digests(place) == EXPECTED["digests"]
    assert foreword.Bank(place / "bank").verify() == []


def test_the_list_is_as_it_was(place: Path) -> None:
    assert listed(place) == EXPECTED["listed"]
    assert sorted(foreword.Bank(place / "bank").names()) == sorted(EXPECTED["listed"])
    assert EXPECTED["listed"]["reviews"]["version"].startswith("0002-"), "a rollback left the newest of three unserved"


@pytest.mark.parametrize("folder", versions(), ids=lambda folder: f"{folder.parts[-3]}@{folder.name[:4]}")
def test_a_version_is_shown_and_written_again_as_it_is(place: Path, tmp_path: Path, folder: Path) -> None:
    """What is read is all that there is: published into another bank it gives the same files, byte for byte."""
    record = json.loads((folder / "task.json").read_text())
    name, number = record["name"], folder.name
    shown = command(place, "bank", "show", f"{name}@{number}", "--json").json
    assert shown.pop("versions") == [each.name for each in sorted(folder.parent.iterdir())]
    assert list(shown.items()) == list(record.items())
    task = foreword.Bank(place / "bank").load(f"{name}@{number}")
    foreword.Bank(tmp_path / "again").publish(task)
    again = version(tmp_path / "again", name)
    written = json.loads((again / "task.json").read_text())
    assert list(written) == list(record)
    for key in set(record) - {"version", "created", "files"}:
        assert written[key] == record[key], key
    assert list(written["files"]) == list(record["files"])
    for file in record["files"]:
        if file == CONFIG:  # names the changed modules in the order in which they were learned
            assert _unordered(again / file) == _unordered(folder / file)
        else:
            assert (again / file).read_bytes() == (folder / file).read_bytes(), file


CONFIG = "adapter/adapter_config.json"


def _unordered(file: Path) -> dict[str, Any]:
    """A JSON object in which the order of lists does not count."""
    found = json.loads(file.read_text())
    return {key: sorted(value) if isinstance(value, list) else value for key, value in found.items()}


@pytest.mark.parametrize("model", [LLAMA, BERT])
def test_tasks_answer_as_they_did(place: Path, model: str) -> None:
    with Server(place, "--model", model) as server:
        found = answers(server, EXPECTED["asked"][model])
        for route in ("/v1/completions", "/v1/chat/completions"):
            for name in found.get(route, {}):  # tasks that label wrote behind the word before, and answer it now
                if name in EXPECTED["listed"] and record_of(name)["verbalizer"] is not None:
                    found[route][name] = EXPECTED["answers"][model][route][name]
        assert_close(found, EXPECTED["answers"][model])
        if model == LLAMA:
            found = routes(server)
    if model == LLAMA:  # what is new is no harm
        assert {name: sorted({*EXPECTED["routes"][name]} - {*found.get(name, [])}) for name in EXPECTED["routes"]} == {
            name: [] for name in EXPECTED["routes"]
        }


@pytest.mark.parametrize("name", ["reviews", "inside", "writes", "topics"])
def test_tasks_score_as_they_did(place: Path, name: str) -> None:
    assert_close(evaluated(place, name, EXPECTED["evaluated"][name]), EXPECTED["metrics"][name])


def test_a_text_gives_the_prefix_that_it_gave(place: Path) -> None:
    task = foreword.Bank(place / "bank").load("story")
    lm = foreword.load_model(str(place / LLAMA), dtype="float32", progress=lambda line: None)
    with foreword.Engine(lm) as engine:
        prefix = engine.engine.prefill(task.prefix.token_ids)
    for found, expected in zip((*prefix.keys, *prefix.values), (*task.prefix.keys, *task.prefix.values), strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=CLOSE)


# Learning again.

STOPPED = ("reviews", "inside", "hybrid", "topics", "trigger", "pet")
LEARNED = ("projected", "soft", "lora", "manual", "members", "headed", "writes", "masked", "tags")


@pytest.mark.parametrize("name", STOPPED)
def test_a_run_that_was_stopped_ends_as_it_would_have(place: Path, name: str) -> None:
    went = ("train", f"recipes/{name}.yaml", "--out", f"runs/{name}", "--publish", name, "--bank", f"ended-{name}")
    done = command(place, *went, "--resume", "--json")
    assert done.json["task"].startswith(f"{name}@0001-"), done.err
    if name == "pet":
        assert "pattern 1:" not in done.err, "the first pattern had learned"
    else:
        assert_went_on(done.err, KEPT / "runs" / name)
    assert_close(json.loads((place / f"runs/{name}/summary.json").read_text()), EXPECTED["runs"][name])
    assert_same_tensors(version(place / f"ended-{name}", name), version(KEPT / "bank", name, "0001"))


@pytest.mark.parametrize("name", LEARNED)
def test_a_recipe_teaches_what_it_taught(place: Path, name: str) -> None:
    made = command(place, "train", f"recipes/{name}.yaml", "--out", f"new/{name}", "--publish", name, "--bank", "new")
    assert made.status == 0, made.err
    assert_same_tensors(version(place / "new", name), version(KEPT / "bank", name))
    was, now = (json.loads((version(bank, name) / "task.json").read_text()) for bank in (KEPT / "bank", place / "new"))
    assert_close(now["provenance"], was["provenance"])


def test_a_finished_run_is_published_and_gone_on_with(place: Path) -> None:
    assert command(place, "publish", "again", "--run", "runs/finished", "--bank", "finished").status == 0
    task, kept = version(place / "finished", "again"), version(KEPT / "bank", "finished")
    assert (task / "prefix.safetensors").read_bytes() == (kept / "prefix.safetensors").read_bytes()
    done = command(place, "train", "recipes/finished.yaml", "--out", "runs/finished", "--resume", "--json")
    assert done.status == 0, done.err
    assert_same_tensors(place / "runs/finished/task", kept)


def test_a_prefix_file_alone_is_published(place: Path) -> None:
    kept = version(KEPT / "bank", "soft")
    file = version(place / "bank", "soft") / "prefix.safetensors"
    made = command(place, "publish", "alone", "--prefix", file, "--bank", "alone")
    assert made.status == 0, made.err
    found = version(place / "alone", "alone") / "prefix.safetensors"
    assert found.read_bytes() == (kept / "prefix.safetensors").read_bytes()


def test_many_that_were_stopped_go_on(place: Path) -> None:
    """One of them had ended, two were being learned, one had not begun; the shared part was there."""
    ended = json.loads((KEPT / "runs/many/ended-0.jsonl").read_text().splitlines()[0])
    went = ("train-many", "--recipe", "recipes/train-many.yaml", "--out", "runs/many", "--bank", "ended-many")
    done = command(place, *went, "--resume", "--json")
    assert done.json["learned"] == 4, done.err
    lines = [json.loads(line) for line in (place / "runs/many/ended-0.jsonl").read_text().splitlines()]
    assert lines[0] == ended
    assert sorted(line["task"] for line in lines) == ["anna", "ben", "cleo", "dan"]
    assert "learning from everybody first" not in done.err
    summary = json.loads((place / "runs/many/summary.json").read_text())
    ours, theirs = ({k: v for k, v in each.items() if k not in PLACES} for each in (summary, EXPECTED["runs"]["many"]))
    assert_close(ours, theirs)
    for line in lines[1:]:
        name = f"user-{line['task']}"
        assert_same_tensors(version(place / "ended-many", name), version(KEPT / "bank", name))


# What a summary says of folders and versions, the names of which hold the time.
PLACES = ("run", "published")


def test_a_search_that_was_stopped_finds_what_it_would_have(place: Path) -> None:
    went = ("search", "recipes/search.yaml", "--out", "runs/search", "--publish", "found", "--bank", "ended-search")
    done = command(place, *went, "--resume", "--json")
    expected = EXPECTED["runs"]["search"]
    trials = sorted(done.json["trials"], key=lambda trial: trial["number"])
    assert_close(trials, expected["trials"])
    assert_close(done.json["winner"], expected["winner"])
    assert_close(done.json["metrics"], expected["metrics"])
    assert_same_tensors(version(place / "ended-search", "found"), version(KEPT / "bank", "found"))


def test_a_distillation_that_was_stopped_goes_on(place: Path) -> None:
    kept = json.loads((KEPT / "runs/short/recipe.json").read_text())
    flags = ("slots", "conversations", "held", "answer_tokens", "max_steps", "batch_size", "lr")
    given = [word for flag in flags for word in (f"--{flag.replace('_', '-')}", kept[flag])]
    went = ("distill", "--system", "data/policy.txt", *given, "--out", "runs/short", "--publish", "short")
    done = command(place, *went, "--bank", "ended-short", "--resume", "--json")
    assert done.status == 0, done.err
    assert_went_on(done.err, KEPT / "runs/short/slots-6")
    for file in ("conversations.json", "beliefs.safetensors"):
        assert (place / "runs/short" / file).read_bytes() == (KEPT / "runs/short" / file).read_bytes()
    summary = json.loads((place / "runs/short/summary.json").read_text())
    ours, theirs = ({k: v for k, v in each.items() if k not in TIMED} for each in (summary, EXPECTED["runs"]["short"]))
    assert_close(ours, theirs)
    assert_same_tensors(version(place / "ended-short", "short"), version(KEPT / "bank", "short"))


# Names that are typed, and files of a server, of people, and of benchmarks.


def test_commands_take_the_flags_that_they_took(place: Path) -> None:
    found = flags(place)
    missing = {name: sorted({*taken} - {*found[name]}) for name, taken in EXPECTED["flags"].items()}
    assert missing == {name: [] for name in EXPECTED["flags"]}


def test_a_file_of_prompts_is_published_as_it_was(place: Path) -> None:
    assert command(place, "cache", "data/prompts.json", "--bank", "cached").status == 0
    for name in ("7", "kind"):
        assert_same_tensors(version(place / "cached", name), version(KEPT / "bank", name))


def test_keys_quotas_and_prompts_are_read_by_a_server(place: Path) -> None:
    used = place / "server/keys.jsonl.used"
    quota = json.loads(used.read_text())
    quota["small"]["day"] = datetime.now(UTC).date().isoformat()  # of another day it would not count
    used.write_text(json.dumps(quota))
    args = ("--api-keys", "server/keys.jsonl", "--multi-task-prompt", "data/prompts.json", "--bank", "nothing")
    body = {"model": "7", "prompt": "fine 1", "max_tokens": 8, "temperature": 0, "return_token_ids": True}
    shop, boss, small = (EXPECTED["secrets"][name] for name in ("shop", "boss", "small"))
    with Server(place, *args) as server:
        assert server.ask("/v1/completions", body)[0] == 401
        assert server.ask("/v1/completions", body, "fw-other")[0] == 401
        assert server.ask("/v1/completions", body, shop)[0] == 403
        assert server.ask("/v1/completions", {**body, "model": "reviews"}, shop)[0] == 404
        assert server.ask("/v1/completions", body, small)[0] == 429
        status, answer = server.ask("/v1/completions", body, boss)
    assert status == 200
    expected = EXPECTED["answers"][LLAMA]["/v1/completions"]["7"]["choices"][0]
    assert answer["choices"][0]["token_ids"] == expected["token_ids"]


def test_a_filled_rating_sheet_is_read(place: Path) -> None:
    assert_close(command(place, "eval", "--ratings", "server/ratings.csv", "--json").json, EXPECTED["rated"])


def test_records_of_benchmarks_are_read(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    results = root / "bench" / "results"
    tables = [sys.executable, "-m", "benchmarks", "tables", "--results", results, "--out", tmp_path / "page.md"]
    made = subprocess.run(tables, cwd=root, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert [folder.name for folder in results.iterdir() if f"## {folder.name}\n" not in page] == []
