"""Which task a request meets: names, versions, publishing while the server runs, and memory."""

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
from server.running import House, foreign_task, learned_task, static_task


def ask(client: openai.OpenAI, model: str, **extra: Any) -> openai.types.Completion:
    return client.completions.create(model=model, prompt="Hello", max_tokens=12, temperature=0, extra_body=extra)


def test_models(client: openai.OpenAI, house: House) -> None:
    models = client.models.list().data
    assert models[0].id == house.engine.name
    names = [model.id for model in models[1:]]
    assert names == sorted(names)
    assert {"poet", "story", "kind", "mood", "pair"} <= set(names)
    assert "foreign" not in names
    poet = next(model for model in models if model.id == "poet")
    assert (poet.object, poet.owned_by) == ("model", "foreword")
    assert poet.model_extra == {"parent": house.engine.name, "version": house.bank.current("poet")}
    assert client.models.retrieve("poet") == poet
    assert client.models.retrieve(house.engine.name).id == house.engine.name
    versioned = f"poet@{house.bank.current('poet')}"
    assert client.models.retrieve(versioned).id == versioned
    with pytest.raises(openai.NotFoundError, match="did you mean poet"):
        client.models.retrieve("poat")
    with pytest.raises(openai.ConflictError):
        client.models.retrieve("foreign")


def test_a_damaged_task_hides_no_other(house: House, tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    bank.publish(learned_task(house.lm, "whole"))
    broken = bank.publish(learned_task(house.lm, "broken"))
    (tmp_path / "broken" / "versions" / broken.version / "task.json").write_text("{")
    with serve_in_background(create_app(house.engine, bank)) as url:
        listed = httpx.get(f"{url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == [house.engine.name, "whole"]
        asked = httpx.post(f"{url}/v1/completions", json={"model": "broken", "prompt": "Hi"})
        assert (asked.status_code, asked.json()["error"]["code"]) == (500, "corrupt_file")


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


def test_publishing_while_the_server_runs(client: openai.OpenAI, house: House) -> None:
    first = house.bank.publish(learned_task(house.lm, "news", seed=1))
    old = ask(client, "news")
    second = house.bank.publish(learned_task(house.lm, "news", seed=2))
    new = ask(client, "news")
    assert (old.system_fingerprint, new.system_fingerprint) == (first.ref, second.ref)
    assert old.choices[0].text != new.choices[0].text
    for model in (first.ref, "news@1", "news@0001"):
        pinned = ask(client, model)
        assert pinned.choices[0].text == old.choices[0].text
        assert (pinned.model, pinned.system_fingerprint) == (model, first.ref)
    house.bank.rollback("news")
    assert ask(client, "news").choices[0].text == old.choices[0].text
    house.bank.remove("news")
    with pytest.raises(openai.NotFoundError):
        ask(client, "news")


def test_task_id(client: openai.OpenAI, house: House) -> None:
    house.bank.publish(learned_task(house.lm, "17", seed=17))
    wanted = ask(client, "17").choices[0].text
    base = ask(client, house.engine.name).choices[0].text
    for task_id in (17, "17", f"17@{house.bank.current('17')}"):
        assert ask(client, house.engine.name, task_id=task_id).choices[0].text == wanted
        assert ask(client, "17", task_id=task_id).choices[0].text == wanted
    assert ask(client, house.engine.name, task_id=house.engine.name).choices[0].text == base
    for model, task_id in (("poet", 17), ("17", house.engine.name), ("17@1", "17@2")):
        with pytest.raises(openai.BadRequestError, match="not the same"):
            ask(client, model, task_id=task_id)
    with pytest.raises(openai.NotFoundError):
        ask(client, house.engine.name, task_id=18)
    with pytest.raises(openai.BadRequestError, match="task_id must be"):
        ask(client, house.engine.name, task_id=True)


def test_tasks_of_the_process_alone(house: House) -> None:
    extra = {"0": static_task(house.lm, "0", "prompt", "Zero: "), "1": learned_task(house.lm, "1", seed=4)}
    with serve_in_background(create_app(house.engine, None, extra_tasks=extra)) as url:
        listed = httpx.get(f"{url}/v1/models").json()["data"]
        assert [model["id"] for model in listed] == [house.engine.name, "0", "1"]
        body = {"prompt": "Hi", "temperature": 0, "max_tokens": 8, "task_id": 0}
        asked = httpx.post(f"{url}/v1/completions", json=body).json()
        joined = body | {"prompt": "Zero: Hi", "task_id": house.engine.name}
        base = httpx.post(f"{url}/v1/completions", json=joined).json()
        assert asked["choices"] == base["choices"]
        assert (asked["model"], base["model"]) == ("0", house.engine.name)
        missing = httpx.post(f"{url}/v1/completions", json={"model": "2", "prompt": "Hi"})
        assert missing.status_code == 404
        assert "Zero" not in missing.text
    with pytest.raises(ModelMismatch):
        create_app(house.engine, None, extra_tasks={"x": foreign_task("x")})


def test_concurrent_requests_load_a_version_once(house: House, tmp_path: Path) -> None:
    loads: list[str] = []

    class CountingBank(Bank):
        def load(self, ref: str) -> Task:
            loads.append(ref)
            threading.Event().wait(0.1)
            return super().load(ref)

    bank = CountingBank(tmp_path)
    bank.publish(learned_task(house.lm, "slow"))
    table = TaskTable(house.engine, bank, {})

    async def resolve_all() -> list[Task | None]:
        waiting = [asyncio.create_task(table.resolve("slow", None, Caller())) for _ in range(8)]
        await asyncio.sleep(0.05)
        waiting[0].cancel()
        return await asyncio.gather(*waiting[1:])

    tasks = asyncio.run(resolve_all())
    assert loads == [f"slow@{bank.current('slow')}"]
    assert len({id(task) for task in tasks}) == 1


def test_a_failed_load_is_tried_again(house: House, tmp_path: Path) -> None:
    bank = Bank(tmp_path)
    task = bank.publish(learned_task(house.lm, "late"))
    path = tmp_path / "late" / "versions" / task.version / "prefix.safetensors"
    content = path.read_bytes()
    path.unlink()
    table = TaskTable(house.engine, bank, {})
    with pytest.raises(Exception, match=r"prefix\.safetensors"):
        asyncio.run(table.resolve("late", None, Caller()))
    path.write_bytes(content)
    loaded = asyncio.run(table.resolve("late", None, Caller()))
    assert loaded is not None
    assert loaded.ref == task.ref


def test_nothing_named(house: House) -> None:
    table = TaskTable(house.engine, None, {})
    with pytest.raises(RequestError, match="model is missing"):
        asyncio.run(table.resolve(None, None, Caller()))
    with pytest.raises(UnknownTask, match="there is only tiny-llama"):
        asyncio.run(table.resolve("something", None, Caller()))


def test_the_task_used_longest_ago_leaves_first(house: House) -> None:
    tasks = {name: learned_task(house.lm, name) for name in "abc"}
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


def test_answers_are_right_when_tasks_are_evicted(house: House) -> None:
    """With room for one prefix, tasks come and go while requests for all of them run."""
    names = [f"guest-{number}" for number in range(3)]
    for number, name in enumerate(names):
        house.bank.publish(learned_task(house.lm, name, seed=30 + number))
    with house.client() as client:
        expected = [ask(client, name).choices[0].text for name in names]
    size = learned_task(house.lm, "x").prefix.nbytes

    async def ask_all(url: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            made = [
                client.completions.create(model=name, prompt="Hello", max_tokens=12, temperature=0)
                for _ in range(4)
                for name in names
            ]
            return [answer.choices[0].text for answer in await asyncio.gather(*made)]

    with serve_in_background(create_app(house.engine, house.bank, prefix_bytes=size)) as url:
        assert asyncio.run(ask_all(url)) == expected * 4


def test_a_closed_engine_is_unavailable(house: House) -> None:
    with Engine(house.lm, cache_bytes=1 << 22) as engine:
        app = create_app(engine, house.bank)
    with serve_in_background(app) as url:
        asked = httpx.post(f"{url}/v1/completions", json={"model": "poet", "prompt": "Hi"})
        assert asked.status_code == 503
        assert asked.json()["error"]["type"] == "server_error"
