"""``foreword chat``: on a pipe in this process, on a real terminal in one of its own."""

from __future__ import annotations

import dataclasses
import io
import stat
import sys
import time
from pathlib import Path

import pytest
import torch

from cli.processes import Terminal, environment
from foreword.bank.bank import Bank
from foreword.core import Head, SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.models import load_model
from foreword.text import task_prompts
from server.running_server import label_task, learned_prefix

GREEDY = ("--temperature", 0, "--max-tokens", 6)


@pytest.fixture
def talk(run, monkeypatch):
    """``foreword chat ARGS`` with lines through a pipe."""

    def talk(lines: str, *args: object):
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        return run("chat", *args)

    return talk


@pytest.fixture
def kind(run, tmp_path) -> str:
    (tmp_path / "kind.txt").write_text("Be kind.")
    run("publish", "kind", "--system", "kind.txt")
    return "kind"


@pytest.fixture
def answer(folder: Path, tmp_path: Path):
    """What the engine answers to messages, greedily, with six tokens."""
    lm = load_model(str(folder), progress=lambda line: None)

    def answer(messages: list[dict[str, str]], name: str | None = None) -> str:
        task = Bank(tmp_path / "home" / "bank").load(name) if name is not None else None
        prompt = task_prompts.from_messages(lm.tokenizer, task, messages)
        with Engine(lm) as engine:
            return "".join(
                chunk.text for chunk in engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=6)))
            )

    return answer


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def test_a_pipe_gets_the_answers_and_nothing_else(talk, answer):
    said = talk("hello\n\nand then\n", *GREEDY)
    first = answer([user("hello")])
    second = answer([user("hello"), {"role": "assistant", "content": first}, user("and then")])
    assert said.status == 0, said.err
    assert said.out == f"{first}\n{second}\n"
    assert ">" not in said.err
    assert "/help" not in said.err


@pytest.mark.parametrize("args", [("kind",), ("--task", "kind")])
def test_a_task_answers_as_over_the_api(talk, kind, answer, args):
    assert talk("hello\n", *args, *GREEDY).out == answer([user("hello")], "kind") + "\n"


def test_commands(talk, kind, answer):
    said = talk("hello\n/task kind\nhello\n/base\nhello\n/clear\nhello\n/task\n/help\n/quit\nnever\n", *GREEDY)
    base, task = answer([user("hello")]), answer([user("hello")], "kind")
    lines = said.out.removeprefix(f"{base}\n{task}\n{base}\n{base}\n")
    assert lines.startswith("kind\n/task NAME")
    assert lines.endswith("is always a question.\n")
    assert "(kind@0001-" in said.err
    assert "(a new conversation)" in said.err


def test_figures_of_the_last_answer_and_of_the_session(talk, kind):
    said = talk("/task kind\nhello\nonce more\n/stats\n", *GREEDY)
    last, session = said.out.splitlines()[-2:]
    assert last.startswith("last answer: first token after ")
    assert " ms, " in last
    assert "tokens/s, 6 tokens, " in last
    assert session.endswith(" in 2 answers")
    assert "12 tokens" in session
    cached, of = (int(word) for word in last.split(", ")[-1].split() if word.isdigit())
    assert 50 < cached < of  # the system turn, and the first question with its answer


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/task kin", "foreword: no task 'kin' in "),
        ("/task kin", "did you mean kind?"),
        ("/tsak kind", "there is no command /tsak; did you mean /task?"),
        ("/stats", "nothing was answered yet; ask something first."),
        ("y" * 400, "the context of 256 has no room for one more token; shorten it."),
    ],
)
def test_an_error_is_one_sentence_and_the_chat_goes_on(talk, kind, answer, line, said):
    found = talk(f"{line}\nhello\n", *GREEDY)
    assert found.status == 0
    assert said in found.err
    assert "Traceback" not in found.err
    assert found.out == answer([user("hello")]) + "\n"


def test_a_conversation_that_has_become_too_long_says_how_to_begin_anew(talk):
    found = talk("a\n" * 20, *GREEDY)
    assert "/clear begins a new conversation." in found.err


def test_a_template_of_one_field_takes_every_question_by_itself(talk, folder, tmp_path, answer):
    lm = load_model(str(folder), progress=lambda line: None)
    template = "{text} means {target:label}"
    task = Task("writer", "p-tuning-v2", learned_prefix(lm.identity), template=template, generation={"max_tokens": 6})
    Bank(tmp_path / "home" / "bank").publish(task)
    found = talk("hello\nhello\n", "writer")  # a learned task is greedy without being told
    assert found.out == f"{answer([user('hello')], 'writer')}\n" * 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("kin",), "did you mean kind?"),
        (("kind", "--task", "kind"), "give one of them"),
        (("--temperature", "101"), "temperature must be between 0 and 100"),
    ],
)
def test_what_cannot_begin_is_one_sentence(talk, kind, args, said):
    found = talk("hello\n", *args)
    assert said in found.err
    assert found.out == ""


def test_a_question_may_begin_with_a_slash(talk, answer):
    assert talk(" /etc\n", *GREEDY).out == answer([user("/etc")]) + "\n"


def test_on_a_terminal(endless, tmp_path):
    """Prompt, streaming, Ctrl-C at an answer and at the prompt, history across sessions, Ctrl-D."""
    home = tmp_path / "home"
    args = ["chat", "--temperature", 0, "--max-tokens", 100_000]
    terminal = Terminal(args, tmp_path, environment(endless, home))
    try:
        assert "/help lists the commands" in terminal.until("base>")
        terminal.type("go on\r")
        terminal.until("\n")
        terminal.until("\ufffd")  # a random model writes bytes; they are shown while it goes on
        terminal.type("\x03")
        terminal.until("(stopped)")
        terminal.until("base>")
        terminal.type("half a line")
        terminal.until("half a line")
        time.sleep(0.2)  # Python loses a SIGINT that comes after readline's echo and before its next wait for keys
        terminal.type("\x03")
        terminal.until("base>")
        terminal.type("/stats\r")
        assert "in 1 answer\r" in terminal.until("base>")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.shown
    finally:
        terminal.close()
    history = home / "chat_history"
    assert history.read_text() == "go on\n/stats\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    again = Terminal(args, tmp_path, environment(endless, home, NO_COLOR="1"))
    try:
        again.until("base> ")
        again.type("\x1b[A\x1b[A")  # two up
        again.until("go on")
        again.type("\x15/ta\t")
        again.until("/task")
        again.type("\x15\x04")
        assert again.end() == 0
        assert "\x1b[1m" not in again.shown
    finally:
        again.close()


def test_a_task_that_labels_answers_its_label(talk, run, folder, tmp_path):
    lm = load_model(str(folder), progress=lambda line: None)
    Bank(tmp_path / "home" / "bank").publish(label_task(lm))
    label = run("classify", "mood", "hello", "--json").json["data"][0]["label"]
    word = {"good": " yes", "bad": " no"}[label]
    assert talk("hello\nhello\n", "mood").out == f"{word.strip()}\n" * 2
    found = run("generate", "mood", "hello", "--json").json
    assert (found["text"], found["finish_reason"]) == (word, "stop")
    assert found["usage"]["completion_tokens"] == len(word)
    assert run("generate", "mood", "--field", "text=hello").out.strip() == word.strip()
    assert run("generate", "mood", "hello", "--temperature", "2").out.strip() == word.strip()
    assert "leave --beams out" in run("generate", "mood", "hello", "--beams", "2").err
    assert "answers one of its labels" in run("generate", "mood", "hello", "--choice", "x").err


def test_a_template_of_several_fields_takes_no_messages(talk, run, folder, tmp_path):
    lm = load_model(str(folder), progress=lambda line: None)
    task = dataclasses.replace(label_task(lm, "pair"), template="{first} / {second}:{target:third}", verbalizer=None)
    Bank(tmp_path / "home" / "bank").publish(task)
    found = talk("hello\n", "pair")
    assert found.status == 2
    assert "task 'pair' fills the fields first and second" in found.err
    assert "--field name=value" in found.err
    head = Head(("O", "B"), torch.zeros(2, lm.identity.hidden_size), torch.zeros(2), per_token=True)
    words = Task("words", "p-tuning-v2", task.prefix, template="{tokens}", head=head)
    Bank(tmp_path / "home" / "bank").publish(words)
    assert "run foreword classify words" in talk("hello\n", "words").err
    assert "run foreword classify words" in run("generate", "words", "hello").err
