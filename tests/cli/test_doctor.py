"""``foreword doctor``: what is whole, what is broken, and what to do about it."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from foreword.bank.bank import Bank
from foreword.cli.doctor import threads
from foreword.cli.doctor.installation import check_installation
from tiny_models import save_tiny


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
    assert found.json["carried"] == "on ragged rows"
    assert found.json["limits"] == []
    assert "under 1% of the tolerance" in of(found, "model")[1]["found"]
    assert of(found, "model")[2]["found"] == "carried on ragged rows: 3 layers attend"
    assert [each["what"] for each in of(found, "bank")] == [published.location, "writable", "one", "two"]
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


def test_packages_are_those_of_the_metadata():
    found = {each.what: each for each in check_installation()}
    assert found["python"].found == ".".join(map(str, sys.version_info[:3]))
    assert (found["torch"].state, found["torch"].found) == ("good", metadata.version("torch"))
    extras = {what for what in found if what.startswith("extra")}
    assert extras == {f"extra [{name}]" for name in metadata.metadata("foreword").get_all("Provides-Extra")} - {
        "extra [dev]"
    }


def test_packages_that_are_missing_or_of_another_version(run, tmp_path, monkeypatch):
    """Against descriptions of packages as pip writes them, found before the real ones."""
    needs = ["old>=2,<3", "absent>=1", "torch>=2", "elsewhere; sys_platform == 'plan9'"]
    of_extra = ["old>=2; extra == 'more'", "torch>=2; extra == 'fine'", "absent; extra == 'dev'"]
    head = ["Requires-Python: >=3.11", *(f"Provides-Extra: {name}" for name in ("more", "fine", "dev"))]
    describe(tmp_path, "foreword", "1.0", *head, *(f"Requires-Dist: {need}" for need in needs + of_extra))
    describe(tmp_path, "old", "1.0")
    monkeypatch.syspath_prepend(tmp_path)
    found = run("doctor", "--json")
    assert found.status == 1
    checked = {each["what"]: (each["state"], each["found"], each["mend"]) for each in of(found, "installation")}
    assert checked["old"] == ("broken", "1.0, runs with <3,>=2", "pip install 'old<3,>=2'")
    assert checked["absent"] == ("broken", "not installed", "pip install 'absent>=1'")
    assert checked["torch"][0] == "good"
    assert checked["extra [more]"][0] == "note"
    assert checked["extra [more]"][2] == "if you need it: pip install 'foreword[more]'"
    assert checked["extra [fine]"][0] == "good"
    assert not {"elsewhere", "extra [dev]"} & set(checked)
    assert "foreword: 2 of " in found.err
    assert "old: 1.0, runs with <3,>=2; pip install 'old<3,>=2'" in found.err


def describe(folder: Path, name: str, version: str, *lines: str) -> None:
    """What pip leaves of a package that it has installed."""
    (folder / f"{name}-{version}.dist-info").mkdir()
    head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text("\n".join(head) + "\n")


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
    assert threads._cgroup_quota(tmp_path / "none") is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert threads._cgroup_quota(tmp_path / "cpu.max") == 1.5
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert threads._cgroup_quota(tmp_path / "cpu.max") is None
    monkeypatch.setattr(threads, "cores", lambda: 0)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    few, waiting = threads.check_threads()
    assert (few.state, few.mend) == ("note", "set OMP_NUM_THREADS=0")
    assert "unset OMP_WAIT_POLICY" in waiting.mend
