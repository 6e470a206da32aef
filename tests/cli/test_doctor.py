"""``foreword doctor``: what is whole, what is broken, and what to do about it."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from foreword.bank.bank import Bank
from foreword.cli.doctor import threads
from foreword.cli.doctor.installation import check_installation
from models import save_tiny


def of(found, area: str, state: str | None = None) -> list[dict[str, str]]:
    return [each for each in found.json["findings"] if each["area"] == area and state in (None, each["state"])]


@pytest.fixture
def published(run, tmp_path) -> Bank:
    (tmp_path / "text.txt").write_text("Be kind.")
    for name in ("one", "two"):
        run("publish", name, "--text", "text.txt")
    return Bank(tmp_path / "home" / "bank")


def test_all_is_well(run, published, folder):
    found = run("doctor", "--json")
    assert found.status == 0, found.err
    assert found.json["healthy"] is True
    assert found.json["architecture"] == "LlamaForCausalLM"
    assert found.json["difference"] < 1e-4
    assert of(found, "model")[0]["what"] == str(folder)
    assert [each["what"] for each in of(found, "bank")] == [published.place, "writable", "one", "two"]
    (answer,) = of(found, "engine")
    assert answer["found"].startswith("first token after")
    assert "8 tokens" in answer["found"]
    assert "19 of 39 prompt tokens cached" in answer["found"]
    shown = run("doctor")
    assert [line for line in shown.out.splitlines() if not line.startswith(" ")] == [
        "installation",
        "model",
        "bank",
        "engine",
    ]
    assert "BROKEN" not in shown.out
    assert "\x1b" not in shown.out


def test_packages_are_those_of_the_metadata(run):
    found = {each.what: each for each in check_installation()}
    assert found["python"].found == ".".join(map(str, sys.version_info[:3]))
    assert found["torch"].found == metadata.version("torch")
    assert found["torch"].state == "good"
    assert "extra [eval]" in found
    assert "extra [dev]" not in found


def test_a_package_that_is_missing_or_of_another_version(run, monkeypatch):
    real = metadata.version
    others = {"fsspec": "2020.1", "sacrebleu": "1.0"}

    def version(name: str) -> str:
        if name == "uvicorn":
            raise metadata.PackageNotFoundError(name)
        return others.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    found = run("doctor", "--json")
    assert found.status == 1
    broken = {each["what"]: each for each in of(found, "installation", "broken")}
    assert set(broken) == {"fsspec", "uvicorn"}
    assert broken["fsspec"]["found"].startswith("2020.1, runs with ")
    assert broken["uvicorn"]["mend"].startswith("pip install 'uvicorn")
    (extra,) = (each for each in of(found, "installation", "note") if each["what"] == "extra [eval]")
    assert "pip install 'foreword[eval]'" in extra["mend"]
    assert "foreword: 2 of " in found.err
    assert "uvicorn: not installed; pip install" in found.err


def test_a_damaged_task_and_one_of_another_model(run, published, tmp_path):
    prefix = next((tmp_path / "home" / "bank" / "one" / "versions").glob("*/prefix.safetensors"))
    prefix.chmod(0o644)
    prefix.write_bytes(prefix.read_bytes()[:-8])
    other = save_tiny("gpt2", tmp_path / "gpt2")
    found = run("doctor", "--model", other, "--json")
    assert found.status == 1
    (damaged,) = of(found, "bank", "broken")
    assert damaged["what"] == "one"
    assert "prefix.safetensors" in damaged["found"]
    assert "foreword bank rollback one" in damaged["mend"]
    (others,) = of(found, "bank", "note")
    assert others["found"] == "2 (one, two)"
    assert "1 of " in found.err


def test_a_bank_that_cannot_be_written(run, tmp_path):
    (tmp_path / "file").write_text("")
    found = run("doctor", "--bank", tmp_path / "file" / "bank", "--json")
    assert found.status == 1
    (writable,) = of(found, "bank", "broken")
    assert "choose another with --bank" in writable["found"]


def test_a_model_that_is_not_there_leaves_the_rest_checked(run, published):
    found = run("doctor", "--model", "./nowhere", "--json")
    assert found.status == 1
    assert of(found, "model", "broken")
    assert len(of(found, "bank", "good")) == 4
    assert of(found, "engine") == []
    assert "no model folder" in found.err


def test_an_encoder_labels_behind_a_prefix(run, tmp_path):
    found = run("doctor", "--model", save_tiny("bert", tmp_path / "bert"), "--json")
    assert found.status == 0, found.err
    assert of(found, "engine")[0]["what"] == "label behind a prefix"


def test_threads(monkeypatch, tmp_path):
    assert threads._quota(tmp_path / "none") is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads._quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads._quota(tmp_path / "cpu.max") is None
    monkeypatch.setattr(threads, "cores", lambda: 0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    few, waiting = threads.check_threads()
    assert (few.state, few.mend) == ("note", "set OMP_NUM_THREADS=0")
    assert "unset OMP_WAIT_POLICY" in waiting.mend
