"""`TaskTable` and `Catalogue`: names, versions, publishing while the server runs, and the LRU cache of tasks."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import ModelMismatch, RequestError, UnknownTask
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.auth import Caller
from foreword.server.tasks.resident_tasks import ResidentTasks
from foreword.server.tasks.table import TaskTable
from server.running_server import RunningServer, foreign_task, learned_task, static_task


def ask(client: openai.OpenAI, model: str, **extra: Any) -> openai.types.Completion:
    return client.completions.create(model=model, prompt="Hello", max_tokens=12, temperature=0, extra_body=extra)


def test_models(client: openai.OpenAI, server: RunningServer) -> None:
    models = client.models.list().data
    assert models[0].id == server.engine.name
    names = [model.id for model in models[1:]]
    assert names == sorted(names)
    assert {"poet", "story", "kind", "mood", "pair"} <= set(names)
    assert "foreign" not in names
    poet = next(model for model in models if model.id == "poet")
    assert (poet.object, poet.owned_by) == ("model", "foreword")
    assert poet.model_extra == {"parent": server.engine.name, "version": server.bank.current("poet")}
    assert client.models.retrieve("poet") == poet
    assert client.models.retrieve(server.engine.name).id == server.engine.name
    versioned = f"poet@{server.bank.current('poet')}"
    assert client.models.retrieve(versioned).id == versioned
    with pytest.raises(openai.NotFoundError, match="did you mean poet"):
        client.models.retrieve("poat")
    with pytest.raises(openai.ConflictError):
        client.models.retrieve("foreign")


def test_a_damaged_task_hides_no_other(server: RunningServer, tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    bank.publish(learned_task(server.lm, "whole"))
    broken = bank.publish(learned_task(server.lm, "broken"))
    (tmp_path / "broken" / "versions" / broken.version / "task.json").write_text("{")
    with serve_in_background(create_app(server.engine, bank)) as url:
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == [server.engine.name, "whole"]
        response = httpx.post(f"{url}/v1/completions", json={"model": "broken", "prompt": "Hi"})
        assert (response.status_code, response.json()["error"]["code"]) == (500, "corrupt_file")


def test_unknown_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean poet") as caught:
        ask(client, "poets")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    for name in ("gpt-4", "poet@0099", "poet@", "../poet", "", "@", "tiny-llama@0001"):
        with pytest.raises(openai.NotFoundError):
            ask(client, name)


def test_task_of_another_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.ConflictError, match="OtherForCausalLM") as caught:
        ask(client, "foreign")
    assert caught.value.code == "model_mismatch"
    assert caught.value.response.headers["x-should-retry"] == "false"


def test_publishing_while_the_server_runs(client: openai.OpenAI, server: RunningServer) -> None:
    first = server.bank.publish(learned_task(server.lm, "news", seed=1))
    old = ask(client, "news")
    second = server.bank.publish(learned_task(server.lm, "news", seed=2))
    new = ask(client, "news")
    assert (old.system_fingerprint, new.system_fingerprint) == (first.ref, second.ref)
    assert old.choices[0].text != new.choices[0].text
    for model in (first.ref, "news@1", "news@0001"):
        pinned = ask(client, model)
        assert pinned.choices[0].text == old.choices[0].text
        assert (pinned.model, pinned.system_fingerprint) == (model, first.ref)
    server.bank.rollback("news")
    assert ask(client, "news").choices[0].text == old.choices[0].text
    server.bank.remove("news")
    with pytest.raises(openai.NotFoundError):
        ask(client, "news")


def test_task_id(client: openai.OpenAI, server: RunningServer) -> None:
    server.bank.publish(learned_task(server.lm, "17", seed=17))
    expected = ask(client, "17").choices[0].text
    base = ask(client, server.engine.name).choices[0].text
    for task_id in (17, "17", f"17@{server.bank.current('17')}"):
        assert ask(client, server.engine.name, task_id=task_id).choices[0].text == expected
        assert ask(client, "17", task_id=task_id).choices[0].text == expected
    assert ask(client, server.engine.name, task_id=server.engine.name).choices[0].text == base
    for model, task_id in (("poet", 17), ("17", server.engine.name), ("17@1", "17@2")):
        with pytest.raises(openai.BadRequestError, match="not the same"):
            ask(client, model, task_id=task_id)
    with pytest.raises(openai.NotFoundError):
        ask(client, server.engine.name, task_id=18)
    with pytest.raises(openai.BadRequestError, match="task_id must be"):
        ask(client, server.engine.name, task_id=True)


def test_tasks_of_the_process_alone(server: RunningServer) -> None:
    extra = {"0": static_task(server.lm, "0", "prompt", "Zero: "), "1": learned_task(server.lm, "1", seed=4)}
    with serve_in_background(create_app(server.engine, None, extra_tasks=extra)) as url:
        models = httpx.get(f"{url}/v1/models").json()["data"]
        assert [model["id"] for model in models] == [server.engine.name, "0", "1"]
        body = {"prompt": "Hi", "temperature": 0, "max_tokens": 8, "task_id": 0}
        response = httpx.post(f"{url}/v1/completions", json=body).json()
        joined = body | {"prompt": "Zero: Hi", "task_id": server.engine.name}
        base = httpx.post(f"{url}/v1/completions", json=joined).json()
        assert response["choices"] == base["choices"]
        assert (response["model"], base["model"]) == ("0", server.engine.name)
        missing = httpx.post(f"{url}/v1/completions", json={"model": "2", "prompt": "Hi"})
        assert missing.status_code == 404
        assert "Zero" not in missing.text
    with pytest.raises(ModelMismatch):
        create_app(server.engine, None, extra_tasks={"x": foreign_task("x")})


def test_concurrent_requests_load_a_version_once(server: RunningServer, tmp_path: Path) -> None:
    loads: list[str] = []

    class CountingBank(Bank):
        def load(self, ref: str) -> Task:
            loads.append(ref)
            threading.Event().wait(0.1)
            return super().load(ref)

    bank = CountingBank(tmp_path)
    bank.publish(learned_task(server.lm, "slow"))
    table = TaskTable(server.engine, bank, {})

    async def resolve_all() -> list[Task | None]:
        waiting = [asyncio.create_task(table.resolve("slow", None, Caller())) for _ in range(8)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()
        return await asyncio.gather(*waiting[1:])

    tasks = asyncio.run(resolve_all())
    assert loads == [f"slow@{bank.current('slow')}"]
    assert len({id(task) for task in tasks}) == 1


def test_a_failed_load_is_tried_again(server: RunningServer, tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    task = bank.publish(learned_task(server.lm, "late"))
    path = tmp_path / "late" / "versions" / task.version / "prefix.safetensors"
    content = path.read_bytes()
    path.unlink()
    table = TaskTable(server.engine, bank, {})
    with pytest.raises(Exception, match=r"prefix\.safetensors"):
        asyncio.run(table.resolve("late", None, Caller()))
    path.write_bytes(content)
    loaded = asyncio.run(table.resolve("late", None, Caller()))
    assert loaded is not None
    assert loaded.ref == task.ref


def test_nothing_named(server: RunningServer) -> None:
    table = TaskTable(server.engine, None, {})
    with pytest.raises(RequestError, match="model is missing"):
        asyncio.run(table.resolve(None, None, Caller()))
    with pytest.raises(UnknownTask, match="there is only tiny-llama"):
        asyncio.run(table.resolve("something", None, Caller()))


def test_the_least_recently_used_task_is_evicted_first(server: RunningServer) -> None:
    tasks = {name: learned_task(server.lm, name) for name in "abc"}
    size = tasks["a"].prefix.nbytes
    resident = ResidentTasks(2 * size)
    resident.add(tasks["a"])
    resident.add(tasks["b"])
    assert resident.get("a") is tasks["a"]
    resident.add(tasks["c"])
    assert [name in resident for name in "abc"] == [True, False, True]
    resident.add(tasks["c"])
    assert resident.nbytes == 2 * size
    small = ResidentTasks(size - 1)
    small.add(tasks["a"])
    assert "a" not in small
    assert small.nbytes == 0


def test_answers_are_right_when_tasks_are_evicted(server: RunningServer) -> None:
    """With room for one prefix, tasks come and go while requests for all of them run."""
    names = [f"guest-{number}" for number in range(3)]
    for number, name in enumerate(names):
        server.bank.publish(learned_task(server.lm, name, seed=30 + number))
    with server.client() as client:
        expected = [ask(client, name).choices[0].text for name in names]
    size = learned_task(server.lm, "x").prefix.nbytes

    async def ask_all(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            made = [
                client.completions.create(model=name, prompt="Hello", max_tokens=12, temperature=0)
                for _ in range(4)
                for name in names
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*made)]

    with serve_in_background(create_app(server.engine, server.bank, prefix_bytes=size)) as url:
        assert asyncio.run(ask_all(url)) == expected * 4


def test_a_closed_engine_is_unavailable(server: RunningServer) -> None:
    with Engine(server.lm, cache_bytes=1 << 22) as engine:
        app = create_app(engine, server.bank)
    with serve_in_background(app) as url:
        response = httpx.post(f"{url}/v1/completions", json={"model": "poet", "prompt": "Hi"})
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "server_error"
