"""``foreword distill``: publishing, refusing to publish, and replacing a served prompt without a restart."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import openai
import pytest

from cli.processes import environment, interrupt, start, wait_for
from cli.test_serving import Served
from foreword.bank.bank import Bank

POLICY = "Lamp 3 costs 9 coins. It ships on Monday; refunds take 2 days."
SMALL = ("--slots", 8, "--conversations", 12, "--held", 4, "--answer-tokens", 6, "--max-steps", 4, "--batch-size", 4)


@pytest.fixture(scope="module")
def roomy(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model folder with room for conversations of bytes; rotary positions need no weights."""
    roomy = shutil.copytree(folder, tmp_path_factory.mktemp("models") / "roomy-llama")
    config = json.loads((roomy / "config.json").read_text())
    (roomy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return roomy


@pytest.fixture
def distil(run, roomy, monkeypatch, tmp_path):
    """Runs ``foreword distill`` on the roomy model; ``policy.txt`` is there."""
    monkeypatch.setenv("FOREWORD_MODEL", str(roomy))
    (tmp_path / "policy.txt").write_text(POLICY)
    return lambda *args: run("distill", *args)


def test_a_document_becomes_a_task_that_answers(distil, run, tmp_path):
    made = distil("--document", "policy.txt", *SMALL, "--publish", "lamps", "--json")
    assert made.status == 0, made.err
    found = made.json
    assert found["task"].startswith("lamps@0001-")
    assert found["n"] <= 4
    assert found["bytes_ratio"] == found["bytes"]["full"] / found["bytes"]["distilled"] > 8
    none, full, distilled = (found["logprob"][name] for name in ("none", "full", "distilled"))
    assert found["gap_closed"] == pytest.approx((distilled - none) / (full - none))
    shown = run("bank", "show", "lamps", "--json").json
    assert (shown["kind"], shown["method"], shown["text"]) == ("system", "distill", POLICY)
    answer = run("generate", "lamps", "What costs 9?", "--max-tokens", 3, "--json").json
    assert answer["usage"]["cached_tokens"] == 8
    again = run("publish", "copy", "--run", found["run"], "--json").json
    assert again["length"] == 8


def test_text_stands_in_front_as_it_is_and_people_are_told(distil, tmp_path):
    made = distil("--text", "policy.txt", *SMALL, "--out", "run")
    assert made.status == 0, made.err
    assert "gap closed" in made.out
    assert "decoding: " in made.out
    assert "not published; foreword publish NAME --run run" in made.out
    assert json.loads((tmp_path / "run" / "task" / "task.json").read_text())["kind"] == "prompt"


def test_below_min_quality_nothing_is_published(distil, tmp_path):
    made = distil("--system", "policy.txt", *SMALL, "--publish", "lamps", "--min-quality", 1, "--out", "run", "--json")
    assert made.status == 1
    assert made.out == ""
    last = made.err.strip().splitlines()[-1]
    assert last.startswith("foreword: 8 slots close ")
    assert "less than --min-quality 1, so nothing was published; the run is kept in run" in last
    assert Bank(tmp_path / "home" / "bank").names() == []
    assert (tmp_path / "run" / "task" / "prefix.safetensors").is_file()
    again = distil(
        *("--system", "policy.txt", *SMALL, "--publish", "lamps", "--min-quality", 1e-9),
        *("--out", "run", "--resume", "--json"),
    )
    assert (again.status == 0) == (json.loads((tmp_path / "run" / "summary.json").read_text())["gap_closed"] >= 1e-9)
    assert "step 1/4" not in again.err


def test_a_served_prompt_is_replaced_without_a_restart(distil, run, roomy, tmp_path):
    full = run("publish", "lamps", "--system", "policy.txt", "--json").json
    server = Served(roomy, tmp_path / "home")
    try:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)

        def ask() -> tuple[str, int, int]:
            answer = client.chat.completions.create(
                model="lamps", messages=[{"role": "user", "content": "What costs 9?"}], max_tokens=4, temperature=0
            )
            details = answer.usage.prompt_tokens_details
            return answer.system_fingerprint, answer.usage.prompt_tokens, details.cached_tokens

        ref, prompt, cached = ask()
        assert (ref, cached) == (full["task"], full["length"])
        made = distil("lamps", *SMALL, "--publish", "lamps", "--json")
        assert made.status == 0, made.err
        now, short, kept = ask()
        assert (now, kept) == (made.json["task"], 8)
        assert now.startswith("lamps@0002-")
        # The same request behind fewer positions.
        assert prompt - cached == short - kept
        task = Bank(tmp_path / "home" / "bank").load("lamps")
        assert task.provenance["parents"] == [full["task"]]
        card = next((tmp_path / "home" / "bank").glob("lamps/versions/0002-*/README.md")).read_text()
        assert f"- parent: {full['task']}" in card
        run("bank", "rollback", "lamps")
        assert ask()[:2] == (ref, prompt)
    finally:
        server.process.kill()
        server.process.wait()
    again = distil(made.json["task"], *SMALL)
    assert again.status == 2
    assert "has no text at full length to distil (method distill)" in again.err


def test_interrupted_it_says_how_to_go_on(roomy, tmp_path):
    env = environment(roomy, tmp_path / "home")
    (tmp_path / "policy.txt").write_text(POLICY)
    args = ["distill", "--document", "policy.txt", *SMALL, "--max-steps", 900, "--publish", "lamps", "--json"]
    process = start(args, tmp_path, env)
    wait_for(lambda: list(tmp_path.glob("runs/*/conversations.json")), process)
    _, err = interrupt(process)
    assert process.returncode == 130
    line = err.strip().splitlines()[-1]
    assert line.startswith("foreword: stopped; what was learned is in runs/lamps-")
    command = shlex.split(line.partition("go on with: ")[2])
    assert command[-3:-1] == ["--resume", "--out"]
    assert Bank(tmp_path / "home" / "bank").names() == []


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "give exactly one of NAME, --document, --system, --text; got none"),
        (("a", "--text", "policy.txt"), "got NAME, --text"),
        (("--text", "policy.txt", "--min-quality", 2), "--min-quality must be above 0 and at most 1"),
        (("--text", "nowhere.txt"), "nowhere.txt cannot be read"),
        (("--text", "policy.txt", "--slots", 400), "the text has 62 tokens, so 400 slots would not be shorter"),
        (("--text", "policy.txt", "--init", "best"), "--init must be one of auto"),
        (("--text", "policy.txt", "--publish", "No!"), "No!"),
        (("nobody",), "no task 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(args, said, distil, tmp_path):
    refused = distil(*args)
    assert refused.status != 0
    assert said in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "runs").exists()
