"""`/v1/tasks`: tasks are published, rolled back, pinned and removed while the server runs."""

from __future__ import annotations

import threading

import httpx
import openai
import pytest

from engine.reference import random_ids
from foreword.bank.prefix_file import write_prefix
from foreword.core import SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import PromptTooLong, UsageError
from foreword.prompts.lower import lower_tokens
from foreword.prompts.static import prefilled_task, static_task
from foreword.server.tasks.resident_tasks import ResidentTasks
from foreword.text.task_prompts import static_token_ids
from server.running_server import RunningServer, foreign_task, learned_prefix, learned_task, wait_until
from tiny_models import tiny_model


def post(server: RunningServer, path: str, status: int = 200, **body: object) -> dict:
    response = httpx.post(f"{server.url}/v1/tasks{path}", json=body)
    assert response.status_code == status, response.text
    return response.json()


def get(server: RunningServer, name: str) -> dict:
    return httpx.get(f"{server.url}/v1/tasks/{name}").raise_for_status().json()


@pytest.mark.parametrize("kind", ["system", "prompt"])
def test_a_text_becomes_a_task_that_answers_like_the_text(server, client, kind):
    text = "Be short. " * 15
    shown = post(server, "", 201, name=f"new-{kind}", **{kind: text})
    assert shown["kind"] == kind
    assert shown["method"] == "static"
    assert shown["versions"] == [shown["version"]] == [shown["current"]]
    expected = server.bank.load(f"new-{kind}")
    assert expected.text == text
    expected_task = static_task(server.lm, "x", kind, text)  # type: ignore[arg-type]
    assert expected.prefix.token_ids == expected_task.prefix.token_ids
    for one, other in zip(expected.prefix.keys, expected_task.prefix.keys, strict=True):
        assert (one - other).abs().max() < 1e-4
    if kind == "prompt":
        ours = client.completions.create(model="new-prompt", prompt="Yes", max_tokens=8, temperature=0)
        whole = client.completions.create(model=server.lm.name, prompt=f"{text}Yes", max_tokens=8, temperature=0)
        assert ours.choices[0].text == whole.choices[0].text


def test_versions_roll_back_and_are_removed(server, client):
    first = post(server, "", 201, name="turns", prompt="One. ")["version"]
    second = post(server, "", 201, name="turns", prompt="Two. ")["version"]
    assert get(server, "turns")["versions"] == [first, second]
    answers = [client.completions.create(model="turns", prompt="a").system_fingerprint]
    assert post(server, "/turns/rollback")["current"] == first
    answers.append(client.completions.create(model="turns", prompt="a").system_fingerprint)
    assert post(server, "/turns/rollback", version="2")["current"] == second
    assert answers == [f"turns@{second}", f"turns@{first}"]
    assert get(server, f"turns@{first}")["version"] == first
    assert httpx.delete(f"{server.url}/v1/tasks/turns@{second}").status_code == 400
    assert httpx.delete(f"{server.url}/v1/tasks/turns@{first}").json()["deleted"]
    assert get(server, "turns")["versions"] == [second]
    assert httpx.delete(f"{server.url}/v1/tasks/turns").status_code == 200
    assert httpx.get(f"{server.url}/v1/tasks/turns").status_code == 404
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="turns", prompt="a")


def test_a_running_answer_keeps_its_version(server, client):
    server.bank.publish(learned_task(server.lm, "moving", seed=1))
    plain = client.completions.create(model="moving", prompt="abc", max_tokens=60).choices[0].text
    with client.completions.create(model="moving", prompt="abc", max_tokens=60, stream=True) as stream:
        texts = [next(iter(stream)).choices[0].text]
        server.bank.publish(learned_task(server.lm, "moving", seed=2))
        httpx.post(f"{server.url}/v1/tasks/moving/warm").raise_for_status()
        texts += [event.choices[0].text for event in stream]
    assert "".join(texts) == plain
    assert client.completions.create(model="moving", prompt="abc", max_tokens=60).choices[0].text != plain


def test_a_prefix_file_is_uploaded(server, client, tmp_path):
    prefix = learned_prefix(server.lm.identity, seed=3)
    write_prefix(tmp_path / "p.safetensors", prefix, method="prefix-tuning", provenance={"metrics": {"accuracy": 0.9}})
    data = (tmp_path / "p.safetensors").read_bytes()

    def upload(status: int = 201, content: bytes = data, **fields: str) -> dict:
        response = httpx.post(f"{server.url}/v1/tasks", data=fields, files={"prefix": ("p.safetensors", content)})
        assert response.status_code == status, response.text
        return response.json()

    shown = upload(name="sent")
    assert (shown["method"], shown["metrics"], shown["kind"]) == ("prefix-tuning", {"accuracy": 0.9}, "learned")
    server.bank.publish(learned_task(server.lm, "by-hand", seed=3))
    ours, theirs = (client.completions.create(model=name, prompt="abc") for name in ("sent", "by-hand"))
    assert ours.choices[0].text == theirs.choices[0].text
    words = {"template": "{text}\\nMood:{mask}", "verbalizer": '{"good": " yes", "bad": " no"}'}
    assert upload(name="sent-mood", **words)["labels"] == ["good", "bad"]
    assert upload(name="sent", generation='{"max_tokens": 3}')["generation"] == {"max_tokens": 3}
    unknown = upload(400, name="sent", generation='{"colour": 3}')
    assert "'colour' is none of frequency_penalty" in unknown["error"]["message"]
    assert "top_p must be above 0" in upload(400, name="sent", generation='{"top_p": 3}')["error"]["message"]
    assert "upload" in upload(400, name="sent", colour="red")["error"]["message"]
    assert "JSON object" in upload(400, name="x", template="{text}{mask}", verbalizer="/etc/passwd")["error"]["message"]
    for damaged in (data[:-9], b"", b"\xff" * 64, data[:8] + b"[" * 5000, b"PK" + data):
        error = upload(400, name="x", content=damaged)["error"]
        assert error["code"] == "corrupt_file"
        assert "/" not in error["message"]
    assert "name" in upload(400, name="No Name")["error"]["message"]
    missing = httpx.post(f"{server.url}/v1/tasks", data={"name": "x"}, files={"other": b"1"})
    assert missing.status_code == 400


def test_a_published_text_has_its_own_sampling(server, client):
    body = {"name": "brief", "prompt": "Once", "temperature": 0.0, "top_p": 0.5, "max_tokens": 3, "stop": "zzz"}
    made = httpx.post(f"{server.url}/v1/tasks", json=body).raise_for_status().json()
    assert made["generation"] == {"temperature": 0.0, "top_p": 0.5, "max_tokens": 3, "stop": ["zzz"]}
    answers = [client.completions.create(model="brief", prompt=" upon") for _ in range(3)]
    assert len({answer.choices[0].text for answer in answers}) == 1
    assert all(answer.usage.completion_tokens <= 3 for answer in answers)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"name": "x"}, 400, "either system or prompt"),
        ({"name": "x", "system": "a", "prompt": "b"}, 400, "either system or prompt"),
        ({"name": "Big Name", "prompt": "a"}, 400, "Big Name"),
        ({"name": "x", "prompt": ""}, 400, "is empty"),
        ({"name": "x", "prompt": "a", "colour": 1}, 400, "colour is not supported"),
        ({"name": "x", "prompt": 3}, 400, "prompt must be"),
        ({"prompt": "a"}, 400, "name is missing"),
        ({"name": "x", "prompt": "a", "temperature": 101}, 400, "temperature must be between 0 and 100"),
        ({"name": "foreign", "prompt": "a"}, 409, "serves OtherForCausalLM"),
        ({"name": "x", "prompt": "a " * 3000}, 400, "shorten it"),
    ],
)
def test_refused_publications(server, body, status, message):
    server.bank.publish(foreign_task("foreign"), replace=True)
    response = httpx.post(f"{server.url}/v1/tasks", json=body)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]["message"]


def test_the_base_model_is_no_task(server):
    name = server.lm.name
    assert httpx.post(f"{server.url}/v1/tasks", json={"name": name, "prompt": "a"}).status_code in (400, 409)
    assert httpx.delete(f"{server.url}/v1/tasks/{name}").status_code == 409
    assert httpx.post(f"{server.url}/v1/tasks/{name}/pin").status_code == 409
    assert httpx.post(f"{server.url}/v1/tasks/nobody/warm").status_code == 404


def test_a_pinned_task_stays_and_is_not_removed(server):
    assert post(server, "/poet/pin")["pinned"]
    assert get(server, "poet")["resident"]
    assert httpx.delete(f"{server.url}/v1/tasks/poet").status_code == 409
    assert not post(server, "/poet/unpin")["pinned"]


def test_pinned_tasks_are_not_evicted():
    lm = tiny_model("llama")
    tasks = [learned_task(lm, name) for name in "abc"]
    size = tasks[0].nbytes
    resident = ResidentTasks(2 * size)
    resident.pin(tasks[0])
    for task in tasks[1:]:
        resident.add(task)
    assert "a" in resident
    assert "b" not in resident
    assert resident.nbytes == 2 * size
    assert (resident.loads, resident.evictions) == (3, 1)
    resident.pin(tasks[2])
    with pytest.raises(UsageError, match="cannot be pinned"):
        resident.pin(tasks[1])
    resident.unpin("a")
    resident.add(tasks[1])
    assert "a" not in resident
    resident.remove("c")
    assert resident.nbytes == size


def test_a_text_is_run_between_the_steps_of_others():
    """An answer goes on while a long text becomes a prefix: at most a step's tokens of it at a time."""
    lm = tiny_model("llama")
    text = random_ids(60, 5)
    engine = Engine(lm, cache_bytes=1 << 20, step_tokens=16, start=False)
    stream = engine.submit(Request(random_ids(3, 1), sampling=SamplingParams(max_tokens=30, ignore_eos=True)))
    found = []
    prefilling = threading.Thread(target=lambda: found.append(engine.prefill(text)))
    prefilling.start()
    for _ in range(12):
        wait_until(lambda: bool(engine._jobs) or not prefilling.is_alive())
        engine.step()
    prefilling.join(timeout=20)
    assert engine.statistics()["tokens_generated"] >= 4
    expected = lower_tokens(lm, text)
    for one, other in zip(found[0].keys, expected.keys, strict=True):
        assert (one - other).abs().max() < 1e-5
    with pytest.raises(PromptTooLong):
        engine.prefill(range(100_000))
    stream.cancel()
    engine.close()


def test_a_static_task_beside_an_engine_is_the_one_of_its_model():
    lm = tiny_model("llama")
    with Engine(lm, cache_bytes=1 << 20) as engine:
        text = "Once upon a time"
        token_ids = static_token_ids(engine.tokenizer, "prompt", text)
        found = prefilled_task("x", "prompt", text, token_ids, engine.prefill(token_ids))
    expected = static_task(lm, "x", "prompt", "Once upon a time")
    assert found.prefix.token_ids == expected.prefix.token_ids
    assert found.prefix.bos == expected.prefix.bos
    assert found.provenance == expected.provenance
