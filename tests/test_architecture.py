"""`docs/architecture.md` against the code: its drawings, its two walks, and what it tells a newcomer to type."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType

import openai
import pytest

import foreword
from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.prompts.registry import METHODS
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.training.train import train
from server.running_server import chat_model, publish_all
from tiny_models import tiny_model
from training.small_data import recipe, write_jsonl

SOURCE = Path(foreword.__file__).parent
ROOT = SOURCE.parents[1]
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
MOST_STATIONS = 14
STATION = re.compile(r"^\d+\. `([\w/]+\.py)` `([\w.]+)`: ([^\n]+)$", re.MULTILINE)
Station = tuple[str, str]


def stations(walk: str) -> list[tuple[str, str, str]]:
    """File, qualified function name and sentence of every station of a walk."""
    section = re.search(rf"<!-- walk: {walk} -->(.*?)<!-- /walk -->", PAGE, re.DOTALL)
    assert section is not None
    found = STATION.findall(section[1])
    assert len(found) == len(re.findall(r"^\d+\.", section[1], re.MULTILINE)), (
        "a station is not FILE FUNCTION: sentence"
    )
    return found


def qualified_names(file: Path) -> set[str]:
    """All functions and classes of a file, methods as ``Class.method``."""

    def visit(node: ast.AST, prefix: str) -> set[str]:
        names = set()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                names |= {prefix + child.name, *visit(child, f"{prefix}{child.name}.")}
        return names

    return visit(ast.parse(file.read_text(encoding="utf-8")), "")


def calls(work: Callable[[], object], watched: set[Station]) -> list[Station]:
    """The calls of the watched functions in their order, over all threads that ``work`` starts."""
    found: list[Station] = []
    files: dict[CodeType, Station] = {}

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(str(SOURCE)):
            return
        code = frame.f_code
        if code not in files:
            name = code.co_qualname.replace(".<locals>", "")
            files[code] = Path(code.co_filename).relative_to(SOURCE).as_posix(), name
        if files[code] in watched:
            found.append(files[code])

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # pyright: ignore[reportArgumentType]
    return found


def check_order(walk: str, called: list[Station]) -> None:
    """The stations are called in the order of the page; a station may be called before its turn, too."""
    rest = iter(called)
    for file, function, _ in stations(walk):
        assert (file, function) in rest, f"{file} {function} is not called where the walk of a {walk} says"


@pytest.mark.parametrize("walk", ["request", "row"])
def test_stations_exist_and_are_one_sentence_each(walk):
    found = stations(walk)
    assert 10 <= len(found) <= MOST_STATIONS
    for file, function, sentence in found:
        assert function in qualified_names(SOURCE / file), f"{file} has no {function}"
        assert sentence.endswith(".")
        assert ". " not in sentence


def test_a_request_walks_as_drawn(tmp_path):
    lm, bank = chat_model(), Bank(tmp_path)
    publish_all(bank, lm)

    def ask() -> None:
        with (
            Engine(lm, cache_bytes=1 << 24) as engine,
            serve_in_background(create_app(engine, bank)) as url,
            openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        ):
            message = {"role": "user", "content": "Hello"}
            client.chat.completions.create(model="kind", messages=[message], max_tokens=3)

    check_order("request", calls(ask, {(file, function) for file, function, _ in stations("request")}))


def test_a_row_walks_as_drawn(tmp_path):
    lm = tiny_model("llama")

    def learn() -> None:
        outcome = train(lm, recipe(tmp_path, max_steps=2), name="walked")
        Bank(tmp_path / "bank").publish(outcome.task)

    check_order("row", calls(learn, {(file, function) for file, function, _ in stations("row")}))


def test_the_glossary_names_what_there_is():
    """Every class and file in backticks exists, and the terms are in alphabetical order."""
    glossary = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^\| ([^|]+?) \|", glossary, re.MULTILINE)[1:]
    assert terms == sorted(terms, key=str.lower)
    names = {name for file in SOURCE.rglob("*.py") for name in qualified_names(file)}
    classes = set(re.findall(r"`([A-Z]\w+)`(?!\w)", re.sub(r"vLLM's `\w+`", "", glossary)))
    assert classes - {"P"} <= names, classes - names


def section(title: str) -> str:
    """The text of the page below a heading."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package that a newcomer may change."""
    shutil.copytree(SOURCE, tmp_path / "src/foreword", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def follow(text: str, checkout: Path) -> None:
    """Write the files and insert the lines that a section shows.

    A python block becomes the file that is named in front of it. A ``+`` line of a diff block goes behind the line
    shown before it, which must stand in the file exactly once.
    """
    for file, code in re.findall(r"^`(src/[\w/]+\.py)`\n+```python\n(.*?)```", text, re.DOTALL | re.MULTILINE):
        (checkout / file).write_text(code, encoding="utf-8")
    for file, lines in re.findall(r"`(src/[\w/]+\.py)`[^`]*```diff\n(.*?)```", text, re.DOTALL):
        source, last = (checkout / file).read_text(encoding="utf-8").splitlines(), ""
        for line in lines.splitlines():
            if line.startswith("+"):
                assert source.count(last) == 1, f"{file} has {source.count(last)} lines {last!r}"
                source.insert(source.index(last) + 1, line[1:])
            last = line[1:]
        (checkout / file).write_text("\n".join(source) + "\n", encoding="utf-8")


def run_in(checkout: Path, *command: str) -> str:
    """Standard output of a Python command in the changed copy."""
    paths = [str(checkout / "src"), str(ROOT / "tests")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HOME": str(checkout)}
    done = subprocess.run(
        [sys.executable, *command], cwd=checkout, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_newcomer_adds_a_method(checkout):
    follow(section("Add a method"), checkout)
    lm = tiny_model("llama")
    lm.model.save_pretrained(checkout / "model")
    lm.tokenizer.save_pretrained(checkout / "model")
    rows = [{"text": word * 3, "label": label} for word, label in (("a", "x"), ("b", "y")) for _ in range(20)]
    write_jsonl(checkout / "rows.jsonl", rows)
    common = "--model", "model", "--bank", "bank", "--json"
    learned = json.loads(
        run_in(
            checkout,
            *("-m", "foreword", "train", "--method", "repeated-prompt", "--data", "rows.jsonl", "--max-steps", "3"),
            *("--publish", "toy", *common),
        )
    )
    assert learned["task"].startswith("toy@0001-")
    [answer] = json.loads(run_in(checkout, "-m", "foreword", "classify", "toy", "aaa", *common))["data"]
    assert answer["label"] in ("x", "y")
    assert "repeated-prompt" not in METHODS, "the copy has the method, not the package"


ASK = """
import json, openai
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from server.running_server import chat_model

lm = chat_model()
"""


def test_a_newcomer_adds_an_engine(checkout):
    follow(section("Add an engine"), checkout)
    (checkout / "ask.py").write_text(
        ASK
        + """
from foreword.echo import EchoEngine

with serve_in_background(create_app(EchoEngine(lm), None)) as url:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        whole = client.completions.create(model=lm.name, prompt="say this", max_tokens=20)
        parts = client.completions.create(model=lm.name, prompt="and this", max_tokens=20, stream=True)
        print(json.dumps([whole.choices[0].text, "".join(part.choices[0].text for part in parts)]))
"""
    )
    assert json.loads(run_in(checkout, "ask.py")) == ["say this", "and this"]


def test_a_newcomer_adds_a_route(checkout):
    follow(section("Add a route"), checkout)
    (checkout / "ask.py").write_text(
        ASK
        + """
import httpx
from foreword.engine.engine import Engine

with Engine(lm, cache_bytes=1 << 22) as engine, serve_in_background(create_app(engine, None)) as url:
    print(httpx.get(f"{url}/v1/count", params={"text": "four"}).text)
"""
    )
    assert json.loads(run_in(checkout, "ask.py")) == {"tokens": 4}
