"""The worked example of ``SPEC.md`` is real: its bytes are read by the code."""

import datetime
import json
import re
from pathlib import Path

import pytest

import foreword.bank
from foreword.bank import record
from foreword.bank.digests import check_bytes
from foreword.bank.prefix_file import read_prefix
from foreword.bank.record import parse_record, write_record
from foreword.bank.version_folder import read_version, write_version

SPEC = (Path(foreword.bank.__path__[0]) / "SPEC.md").read_text(encoding="utf-8")


def block(kind: str, index: int = 0) -> str:
    return re.findall(rf"```{kind}\n(.*?)\n```", SPEC, re.DOTALL)[index]


def example_prefix() -> bytes:
    length = bytes.fromhex(block("hex"))
    header = block("header").encode().ljust(int.from_bytes(length, "little"))
    return length + header + bytes.fromhex(block("hex", 1).replace("\n", " "))


def test_the_example_prefix_is_read(tmp_path: Path) -> None:
    (tmp_path / "prefix.safetensors").write_bytes(example_prefix())
    prefix = read_prefix(tmp_path / "prefix.safetensors")
    assert (prefix.keys[0].tolist(), prefix.values[0].tolist()) == ([[[1.0, -2.0]]], [[[0.5, 0.0]]])


def test_the_example_task_is_read() -> None:
    text = block("task") + "\n"
    version = re.findall(r"`mood/versions/([^`]+)`", SPEC)[0]
    record = parse_record(text.encode(), "SPEC.md", "mood", version)
    assert write_record(record) == text.encode()
    check_bytes(example_prefix(), **record["files"]["prefix.safetensors"], where="SPEC.md")
    assert list(json.loads(text)["verbalizer"]) == ["好", "差"]


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """The version of the example as a folder."""
    folder = tmp_path / "example"
    folder.mkdir()
    (folder / "prefix.safetensors").write_bytes(example_prefix())
    (folder / "task.json").write_text(block("task") + "\n", encoding="utf-8")
    return folder


def test_a_version_without_parts_is_written_as_ever(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, digests included, whatever new files and fields there are for others."""
    task = read_version(example, "mood")
    assert (task.soft, task.adapter, task.head, task.bias, task.members, task.combine) == (None,) * 4 + ((), "mean")
    again = tmp_path / "again"
    again.mkdir()
    created = datetime.datetime.fromisoformat(json.loads(block("task"))["created"])

    class Then(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return created.astimezone(tz)

    monkeypatch.setattr(record, "datetime", Then)
    assert write_version(again, task).version == task.version
    assert sorted(path.name for path in again.iterdir()) == ["README.md", "prefix.safetensors", "task.json"]
    for name in ("prefix.safetensors", "task.json"):
        assert (again / name).read_bytes() == (example / name).read_bytes()
