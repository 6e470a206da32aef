"""Nobody gets the answer of another task: all are compared with those of single runs, while everything moves."""

from __future__ import annotations

import itertools
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
import pytest

from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.text.task_prompts import from_text
from trust.expected_answers import TOKENS, Answer, ExpectedAnswers, Question
from trust.two_tenants import TwoTenants
from trust.victim import TENANTS

TASKS = 300
MOVING = 12
"""Tasks whose versions change all the time; both of their answers are right."""
TOGETHER = 16
"""Texts of one request."""
WORKERS = 16


@dataclass(frozen=True)
class Asked:
    """A task, who asks it, and its questions: one a version that may be served."""

    task: Task
    key: str
    questions: tuple[Question, ...]

    def accepts(self, found: Answer) -> bool:
        return any(question.is_answered_by(found) for question in self.questions)


@dataclass(eq=False)
class Tally:
    """What came, over all threads."""

    answers: int = 0
    wrong: list[tuple[str, Answer]] = field(default_factory=list)
    other: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def compare(self, asked: Asked, found: list[Answer]) -> None:
        with self.lock:
            self.answers += len(found)
            self.wrong += [(asked.task.name, each) for each in found if not asked.accepts(each)]

    def count(self, what: str) -> None:
        with self.lock:
            self.other[what] += 1


@pytest.fixture(scope="module")
def population(victim) -> list[Asked]:
    kinds = ["generate", "label", "text", *(["adapter"] if victim.engine == "embedded" else [])]
    found = []
    with ExpectedAnswers(victim.lm) as expected:
        for number in range(TASKS):
            kind = kinds[number // len(TENANTS) % len(kinds)]
            key, letter = list(TENANTS.items())[number % 2]
            task = victim.publish(f"{letter}-{number:03d}", 1000 + number, kind=kind, length=16 + number % 9)
            found.append(Asked(task, key, (expected.question(task),)))
        for number in range(MOVING):
            key, letter = list(TENANTS.items())[number % 2]
            name = f"{letter}-moving-{number}"
            first = victim.publish(name, 2000 + number)
            question = expected.question(first)
            second = victim.publish(name, 3000 + number)
            while (other := expected.answer(second, question.text)) is None:
                question = expected.question(first)
            found.append(Asked(second, key, (question, Question(question.text, other))))
    return found


def ask_many(server: TwoTenants, asked: Asked, tally: Tally, draw: random.Random) -> None:
    """`TOGETHER` answers, whole, streamed and given up, or of labels."""
    text = asked.questions[0].text
    if asked.task.verbalizer is not None:
        body = {"model": asked.task.name, "input": [text] * TOGETHER}
        answer = server.ask("POST", "/v1/classify", body, key=asked.key)
        if answer.status_code == 200:
            tally.compare(asked, [next(iter(each["probs"].values())) for each in answer.json()["data"]])
    elif draw.random() < 0.1:
        give_up(server, asked)
        return tally.count("cancelled")
    else:
        answer = server.complete(asked.key, asked.task.name, [text] * TOGETHER, TOKENS, return_token_ids=True)
        if answer.status_code == 200:
            tally.compare(asked, [tuple(each["token_ids"]) for each in answer.json()["choices"]])
    if answer.status_code != 200:
        tally.count(f"{answer.status_code} {answer.text[:200]}")


def give_up(server: TwoTenants, asked: Asked) -> None:
    """Leave in the middle of an answer."""
    body = {"model": asked.task.name, "prompt": asked.questions[0].text, "max_tokens": 200, "stream": True}
    headers = {"Authorization": f"Bearer {server.keys[asked.key]}"}
    url = f"{server.url}/v1/completions"
    with server.client.stream("POST", url, json=body | {"ignore_eos": True}, headers=headers) as answer:
        next(answer.iter_lines(), None)


def test_answers_over_sockets(start, victim, population, scale) -> None:
    """Under publishing, eviction of prefixes, giving up and restarts."""
    server = start("--prefix-bytes", str(40 * population[0].task.prefix.nbytes), "--quiet")
    wanted, restarts = scale(4_000, 100_000), scale(1, 6)
    tally, stop = Tally(), threading.Event()
    gate = threading.Condition()
    paused, busy = [False], [0]

    def work(seed: int) -> None:
        draw = random.Random(seed)
        while not stop.is_set():
            with gate:
                gate.wait_for(lambda: not paused[0])
                busy[0] += 1
            try:
                ask_many(server, draw.choice(population), tally, draw)
            except httpx.TransportError as error:
                tally.count(type(error).__name__)
            finally:
                with gate:
                    busy[0] -= 1
                    gate.notify_all()

    def publish() -> None:
        for turn in itertools.count():
            if stop.wait(0.05):
                return
            number = turn % MOVING
            letter = "ab"[number % 2]
            victim.publish(f"{letter}-moving-{number}", (2000, 3000)[turn // MOVING % 2] + number)
            victim.publish(f"{letter}-new-{turn % 20}", 4000 + turn)

    with ThreadPoolExecutor(WORKERS + 1) as pool:
        running = [pool.submit(publish), *(pool.submit(work, seed) for seed in range(WORKERS))]
        try:
            for turn in range(1, restarts + 2):
                _until(lambda turn=turn: tally.answers >= wanted * turn / (restarts + 1), running)
                if turn <= restarts:
                    # By turns in the middle of everything, and with answers on their way.
                    with gate:
                        paused[0] = True
                    server.stop(signal.SIGKILL if turn % 2 else signal.SIGTERM)
                    with gate:
                        gate.wait_for(lambda: busy[0] == 0)
                    server.start()
                    with gate:
                        paused[0] = False
                        gate.notify_all()
        finally:
            stop.set()
            with gate:
                paused[0] = False
                gate.notify_all()
    for each in running:
        each.result()
    print(f"\n{tally.answers} answers over {len(population)} tasks, {len(tally.wrong)} foreign; {dict(tally.other)}")
    assert tally.answers >= wanted
    assert not tally.wrong, tally.wrong[:5]
    assert tally.other["cancelled"] > 0
    expected = ("cancelled", "ReadError", "RemoteProtocolError", "ConnectError", "503 ")  # of the restarts
    assert not [each for each in tally.other if not each.startswith(expected)], tally.other


def _until(reached: Callable[[], bool], running: list) -> None:
    deadline = time.monotonic() + 3600
    while not reached():
        assert time.monotonic() < deadline
        for each in running:
            if each.done():
                each.result()
        time.sleep(0.05)


def test_answers_under_preemption(victim, population, scale) -> None:
    """The embedded engine in this process, with pages for a few requests alone: each waits, and starts again."""
    if victim.engine != "embedded":
        pytest.skip("the cache of a served engine is not made so small")
    asked = [each for each in population if each.task.verbalizer is None and len(each.questions) == 1]
    wanted, compared, cancelled = scale(1_500, 30_000), 0, 0
    sampling = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    draw = random.Random(0)
    position = sum(layer.kv_heads * (layer.key_dim + layer.value_dim) * 4 for layer in victim.lm.identity.layers)
    with Engine(victim.lm, cache_bytes=160 * position, max_batch=64) as engine:
        while compared < wanted:
            chosen = draw.choices(asked, k=128)
            streams = []
            for each in chosen:
                prompt = from_text(victim.lm.tokenizer, each.task, each.questions[0].text)
                streams.append(engine.submit(Request.from_prompt(prompt, sampling)))
            given_up = set(draw.sample(range(len(streams)), 16))
            for index in given_up:
                streams[index].cancel()
            for index, (each, stream) in enumerate(zip(chosen, streams, strict=True)):
                chunks = list(stream)
                found = tuple(token for chunk in chunks for token in chunk.token_ids)
                if index in given_up:
                    cancelled += 1
                    assert found == each.questions[0].answer[: len(found)]  # type: ignore[index]
                else:
                    assert each.accepts(found), (each.task.name, found, chunks[-1])
                    compared += 1
        preempted = engine.statistics()["preempted"]
    print(f"\n{compared} answers, {cancelled} cancelled, {preempted} preempted; 0 foreign")
    assert preempted > 0
