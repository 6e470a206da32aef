"""The embedded engine's tokens again, over models, block sizes, with and without vLLM's own cache, on two workers."""

from __future__ import annotations

import os

import pytest

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm-full")

from on_vllm.running_engine import vllm_engine
from served_model import LENGTHS, make_served_model, save_model, tokens
from server.running_server import wait_until

pytestmark = pytest.mark.slow

CACHED = ("--enable-prefix-caching",)
UNCACHED = ("--no-enable-prefix-caching",)


@pytest.fixture(scope="module", params=["llama", "gemma3", "built-in"])
def served(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    folder = None if request.param == "built-in" else save_model(request.param, place / "model")
    return make_served_model(folder, place / "bank", LENGTHS)


@pytest.fixture(scope="module")
def requests_and_answers(served):
    requests = served.requests(200)
    return requests, served.expected(requests)


@pytest.mark.parametrize("caching", [CACHED, UNCACHED], ids=["cached", "uncached"])
@pytest.mark.parametrize("block", [32, 128])
def test_mixed_requests_get_the_embedded_engine_s_tokens(served, requests_and_answers, block, caching):
    requests, expected = requests_and_answers
    with vllm_engine(served, "--block-size", str(block), "--max-model-len", "512", *caching) as engine:
        assert tokens(engine, requests) == expected
        assert tokens(engine, requests[::-1]) == expected[::-1]  # once more, from what is cached by now


def test_each_of_two_workers_takes_its_heads(served, requests_and_answers, monkeypatch):
    if served.lm.identity.layers[0].kv_heads % 2:
        pytest.skip("an odd number of heads is not divided in two")
    requests, expected = requests_and_answers
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")  # by itself it gives every worker a NUMA node
    with vllm_engine(served, "--tensor-parallel-size", "2", "--max-model-len", "512") as engine:
        assert tokens(engine, requests) == expected


def test_what_fails_to_load_fails_alone_with_groups_of_layers(served):
    import shutil
    from pathlib import Path

    from foreword.core import SamplingParams
    from foreword.engine.protocol import Request
    from foreword.text.task_prompts import from_ids

    lost = served.publish("lost", 107)
    name, _, version = lost.ref.partition("@")
    shutil.rmtree(Path(served.bank.location) / name / "versions" / version)
    good = served.requests(10, seed=4)
    with vllm_engine(served, "--max-model-len", "512") as engine:
        chunks = list(engine.submit(Request.from_prompt(from_ids(lost, (1, 2, 3)), SamplingParams(max_tokens=4))))
        assert chunks[-1].finish_reason == "error"
        assert tokens(engine, good) == served.expected(good)


def test_the_command_serves_and_ends(served, tmp_path):
    import signal
    import subprocess
    import sys

    import httpx

    from on_vllm.test_endpoint import free_port, wait_for

    port, log = free_port(), tmp_path / "log"
    typed = ["serve", "--engine", "vllm", "--model", served.folder, "--bank", served.bank.location, "--port", str(port)]
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "foreword", *typed, "--max-model-len", "512", "--", "--enforce-eager"],
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    wait_for(f"http://127.0.0.1:{port}/ready", server, log)
    body = {"model": "t3", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 0, log.read_text()[-3000:]
    wait_until(lambda: not _group_lives(server.pid))  # vLLM's processes are gone, too


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--nonsense", "3"], "unrecognized arguments: --nonsense"), (["--kv-transfer-config", "{}"], "set by Foreword")],
)
def test_wrong_flags_are_one_sentence(flags, said):
    import subprocess
    import sys

    typed = [sys.executable, "-m", "foreword", "serve", "--engine", "vllm", "--port", "0", "--", *flags]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert said in done.stderr.splitlines()[-1]
    assert "usage:" not in done.stderr
