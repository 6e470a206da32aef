"""The bank on a local disk, through its public class."""

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from foreword.bank import digests
from foreword.bank.bank import Bank
from foreword.bank.local import LocalStore
from foreword.bank.record import content_digest
from foreword.bank.version_folder import check_version, read_version, write_version
from foreword.core import KVPrefix, ModelIdentity, Task
from foreword.errors import BankError, CorruptFile, PublishConflict, UnknownTask, UsageError

MakeTask = Callable[..., Task]
MakePrefix = Callable[..., KVPrefix]


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "bank")


def folder_of(tmp_path: Path, task: Task) -> Path:
    return tmp_path / "bank" / task.name / "versions" / task.version


def rewrite(folder: Path, *, sign: bool = True, **fields: Any) -> None:
    """Change ``task.json``; ``sign`` makes the version's digest fit again, as another writer would."""
    record = json.loads((folder / "task.json").read_text()) | fields
    record = {k: v for k, v in record.items() if v is not ...}
    if sign and isinstance(record.get("version"), str):
        record["version"] = record["version"][:5] + content_digest(record)[:12]
    (folder / "task.json").write_text(json.dumps(record))


def test_round_trip(bank: Bank, make_task: MakeTask, make_prefix: MakePrefix) -> None:
    task = make_task(
        "kefu.v2_x-1",
        kind="system",
        method="static",
        prefix=make_prefix(dtype=torch.bfloat16, token_ids=(1, 2, 3)),
        text="你是客服助手。\n\t请用中文回答 \U0001f600 \u2028 \x00",
        template="{question}\n答案:{mask}",
        verbalizer={"负面": ("差", " bad"), "正面": ("好",), "a": ("b",), "0": ()},
        generation={"max_tokens": 5, "stop": ("\n", "。"), "temperature": 0.5},
        provenance={"metrics": {"accuracy": 0.1 + 0.2}, "parents": ["a@0001"], "none": None},
    )
    published = bank.publish(task)
    loaded = bank.load("kefu.v2_x-1")
    assert published.version == loaded.version == bank.current(task.name)
    assert loaded.ref == f"kefu.v2_x-1@{published.version}"
    assert loaded.prefix.digest == task.prefix.digest
    assert (loaded.kind, loaded.method, loaded.text, loaded.template) == (
        "system",
        "static",
        task.text,
        task.template,
    )
    assert loaded.verbalizer is not None
    assert list(loaded.verbalizer.items()) == list((task.verbalizer or {}).items())
    assert loaded.generation == {"max_tokens": 5, "stop": ["\n", "。"], "temperature": 0.5}
    assert loaded.provenance == task.provenance
    assert bank.verify() == []


def test_metadata_are_the_task_without_the_values(bank: Bank, make_task: MakeTask, make_prefix: MakePrefix) -> None:
    members = (make_prefix(seed=1), make_prefix(seed=2))
    ref = bank.publish(make_task("t", prefix=make_prefix(dtype=torch.bfloat16, token_ids=(1, 2, 3)))).ref
    ensemble = bank.publish(make_task("e", template="{a}{mask}", verbalizer={"x": ("x",)}, members=members)).ref
    for each in (ref, ensemble):
        whole, metadata = bank.load(each), bank.load_metadata(each)
        assert (metadata.ref, metadata.template, metadata.provenance) == (whole.ref, whole.template, whole.provenance)
        pairs = zip((whole.prefix, *whole.members), (metadata.prefix, *metadata.members), strict=True)
        for held, without in pairs:
            assert without.digest == held.digest
            assert (without.model, without.offset, without.bos) == (held.model, held.offset, held.bos)
            assert (without.token_ids, without.source) == (held.token_ids, held.source)
            assert [key.shape for key in without.keys] == [key.shape for key in held.keys]
            assert without.keys[0].dtype == held.keys[0].dtype
            assert all(tensor.is_meta for tensor in (*without.keys, *without.values))
        assert metadata.nbytes == 0 < whole.nbytes


def test_metadata_read_no_value_and_check_everything_else(bank: Bank, tmp_path: Path, make_task: MakeTask) -> None:
    folder = folder_of(tmp_path, bank.publish(make_task("t")))
    path = folder / "prefix.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert bank.load_metadata("t").prefix.length == 3
    with pytest.raises(CorruptFile):
        bank.load("t")
    with pytest.raises(CorruptFile):
        bank.prefix(bank.load_metadata("t").prefix.source)
    path.write_bytes(raw[:-4])
    with pytest.raises(CorruptFile):
        bank.load_metadata("t")


def test_manual_template_with_empty_prefix(bank: Bank, make_task: MakeTask, make_prefix: MakePrefix) -> None:
    bank.publish(make_task(prefix=make_prefix(length=0), method="manual", template="{text}: {mask}"))
    assert bank.load("sst2").prefix.length == 0


def test_versions_count_up_and_stay(bank: Bank, make_task: MakeTask) -> None:
    tasks = [bank.publish(make_task(seed=seed)) for seed in range(3)]
    versions = [task.version for task in tasks]
    assert [v[:5] for v in versions] == ["0001-", "0002-", "0003-"]
    assert bank.versions("sst2") == versions
    assert bank.load("sst2").version == versions[2]
    for ref in (f"sst2@{versions[0]}", "sst2@0001", "sst2@1"):
        assert bank.load(ref).prefix.digest == tasks[0].prefix.digest


def test_describe_and_card(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    task = bank.publish(make_task(verbalizer={"neg": ("bad",)}, provenance={"metrics": {"accuracy": 0.9, "n": "x"}}))
    found = bank.describe("sst2@1")
    assert (found["name"], found["version"], found["kind"]) == ("sst2", task.version, "learned")
    assert found["created"].endswith("Z")
    card = (folder_of(tmp_path, task) / "README.md").read_text()
    for part in ("# sst2", "p-tuning-v2", "LlamaForCausalLM", "accuracy: 0.9", "foreword classify sst2"):
        assert part in card
    bank.publish(make_task("chat"))
    assert "foreword generate chat" in next((tmp_path / "bank/chat/versions").glob("*/README.md")).read_text()


def test_names_are_sorted_and_unfinished_tasks_unseen(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    assert bank.names() == []
    for name in ("b", "a"):
        bank.publish(make_task(name))
    (tmp_path / "bank" / "half" / "versions").mkdir(parents=True)
    (tmp_path / "bank" / "stray.txt").write_text("x")
    (tmp_path / "bank" / "Not A Name").mkdir()
    assert bank.names() == ["a", "b"]


@pytest.mark.parametrize(
    "name", ["", "A", "-a", ".a", "a b", "a/b", "../a", "a\n", "a" * 65, "客服", "a@1", "..", "a\x00"]
)
def test_bad_names(bank: Bank, make_task: MakeTask, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="choose another name"):
        bank.publish(make_task(name))
    for ask in (
        bank.load,
        bank.describe,
        bank.current,
        bank.versions,
        bank.rollback,
        bank.remove,
        bank.verify,
    ):
        with pytest.raises(UnknownTask):
            ask(name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_come_with_near_ones(bank: Bank, make_task: MakeTask) -> None:
    with pytest.raises(UnknownTask, match="publish a task first"):
        bank.load("sst2")
    for name in ("sst2", "agnews"):
        bank.publish(make_task(name))
    with pytest.raises(UnknownTask, match=r"no task 'sst3' in .*bank: did you mean sst2\?"):
        bank.load("sst3")
    with pytest.raises(UnknownTask, match="there are agnews, sst2"):
        bank.load("zzz")
    for name in "cdefghijk":
        bank.publish(make_task(name))
    with pytest.raises(UnknownTask, match="`foreword bank list` lists"):
        bank.load("zzz")


@pytest.mark.parametrize("version", ["2", "0002", "../../x", "", "9" * 5000, "²", "0001-000000000000"])
def test_unknown_versions(bank: Bank, make_task: MakeTask, version: str) -> None:
    bank.publish(make_task())
    with pytest.raises(UnknownTask, match=r"no version .* of 'sst2': "):
        bank.load(f"sst2@{version}")


@pytest.mark.parametrize("text", ["../../secret", "", "0001", "/etc/passwd", "0001-0123456789ab/../..", "\xff"])
def test_current_cannot_lead_elsewhere(bank: Bank, make_task: MakeTask, tmp_path: Path, text: str) -> None:
    task = bank.publish(make_task())
    (tmp_path / "bank/sst2/current").write_text(text, encoding="latin-1")
    for ask in (bank.load, bank.describe, bank.current):
        with pytest.raises(CorruptFile, match=r"rollback sst2 --version VERSION"):
            ask("sst2")
    assert "current" in bank.verify("sst2")[0]
    assert bank.rollback("sst2", "1") == task.version
    assert bank.load("sst2").version == task.version


def test_current_names_a_version_that_is_gone(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    bank.publish(make_task())
    (tmp_path / "bank/sst2/current").write_text("0009-0123456789ab\n")
    with pytest.raises(CorruptFile, match="0009-0123456789ab"):
        bank.load("sst2")
    assert "0009-0123456789ab" in bank.verify()[0]


def test_rollback(bank: Bank, make_task: MakeTask) -> None:
    first, second, third = (bank.publish(make_task(seed=seed)).version for seed in range(3))
    assert bank.rollback("sst2") == second
    assert bank.rollback("sst2") == first
    with pytest.raises(UnknownTask, match="no version before"):
        bank.rollback("sst2")
    assert bank.current("sst2") == first
    assert bank.rollback("sst2", "3") == third
    with pytest.raises(UnknownTask):
        bank.rollback("sst2", "4")
    bank.rollback("sst2", "1")
    assert bank.publish(make_task(seed=9)).version.startswith("0004-")


def test_remove(bank: Bank, make_task: MakeTask) -> None:
    versions = [bank.publish(make_task(seed=seed)).version for seed in range(3)]
    with pytest.raises(UsageError, match="roll back to another version first"):
        bank.remove("sst2", "3")
    bank.remove("sst2", "2")
    assert bank.versions("sst2") == [versions[0], versions[2]]
    assert bank.publish(make_task()).version.startswith("0004-")
    bank.remove("sst2")
    assert bank.names() == []
    with pytest.raises(UnknownTask):
        bank.remove("sst2")
    assert bank.publish(make_task()).version.startswith("0001-")


def test_reserved_names(bank: Bank, make_task: MakeTask) -> None:
    with pytest.raises(PublishConflict, match="belongs to the base model"):
        bank.publish(make_task("smollm2-135m"), reserved={"SmolLM2-135M"})


def test_another_models_name_needs_replace(
    bank: Bank, make_task: MakeTask, make_prefix: MakePrefix, identity: ModelIdentity
) -> None:
    bank.publish(make_task())
    child = replace(identity, weights="c" * 64, lineage=(identity.weights,))
    bank.publish(make_task(prefix=make_prefix(model=child)))
    for other in (replace(identity, weights="d" * 64), replace(identity, architecture="OPTForCausalLM")):
        task = make_task(prefix=make_prefix(model=other))
        with pytest.raises(PublishConflict, match="--replace"):
            bank.publish(task)
        assert bank.load("sst2").prefix.model == child
    bank.publish(make_task(prefix=make_prefix(model=other)), replace=True)
    assert bank.load("sst2").prefix.model == other


def test_a_damaged_version_can_be_published_over(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    task = bank.publish(make_task())
    (folder_of(tmp_path, task) / "task.json").write_text("{")
    bank.publish(make_task())
    assert bank.load("sst2").version.startswith("0002-")


def test_stamp_changes_with_what_is_served(bank: Bank, make_task: MakeTask) -> None:
    etags = [bank.etag()]
    for change in (
        lambda: bank.publish(make_task()),
        lambda: bank.publish(make_task(seed=1)),
        lambda: bank.rollback("sst2"),
        lambda: bank.publish(make_task("other")),
        lambda: bank.remove("sst2"),
    ):
        change()
        etags.append(bank.etag())
        assert bank.etag() == etags[-1]
    assert len(set(etags)) == len(etags)


def test_unknown_generation_default_is_refused(bank: Bank, make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match="max_token"):
        bank.publish(make_task(generation={"max_token": 3}))
    assert bank.names() == []


@pytest.mark.parametrize("file", ["task.json", "README.md", "prefix.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "extra"])
def test_verify_finds_every_damage(bank: Bank, make_task: MakeTask, tmp_path: Path, file: str, damage: str) -> None:
    path = folder_of(tmp_path, bank.publish(make_task())) / file
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"short": data[:-9], "flipped": data[:-9] + b"#" + data[-8:], "extra": data + b"x"}
        path.write_bytes(changed[damage])
    assert any(file in problem for problem in bank.verify())
    if file == "README.md":
        bank.load("sst2")
    else:
        with pytest.raises(CorruptFile):
            bank.load("sst2")


def test_verify_reads_bytes_that_look_unchanged(
    bank: Bank, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder_of(tmp_path, bank.publish(make_task())) / "README.md"
    os.utime(path, ns=(10**18, 10**18))
    assert digests.file_sha256(path) == digests.file_sha256(path, fresh=True)
    path.write_bytes(b"#" * path.stat().st_size)
    os.utime(path, ns=(10**18, 10**18))
    assert any("README.md was altered" in problem for problem in bank.verify())


def test_digests_are_computed_once_a_settled_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"one")
    young = digests.file_sha256(path)
    path.write_bytes(b"two")
    assert digests.file_sha256(path) != young
    os.utime(path, ns=(10**18, 10**18))
    settled = digests.file_sha256(path)
    monkeypatch.setattr(digests.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert digests.file_sha256(path) == settled


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "upgrade foreword"),
        ({"format": ...}, "expected format 1"),
        ({"name": "other"}, "expected name sst2, found other"),
        ({"kind": "magic"}, "kind must be one of"),
        ({"method": None}, "method must be"),
        ({"text": 1}, "text must be"),
        ({"template": []}, "template must be"),
        ({"verbalizer": {"a": "b"}}, "verbalizer must be"),
        ({"verbalizer": {"a": [1]}}, "verbalizer must be"),
        ({"verbalizer": []}, "verbalizer must be"),
        ({"generation": {"magic": 1}}, "generation must be"),
        ({"provenance": 1}, "provenance must be"),
        ({"model": {}}, "model must be"),
        ({"created": "yesterday"}, "created must be"),
        ({"created": "2026-01-01T00:00:00"}, "created must be"),
        ({"files": {}}, "expected prefix.safetensors among"),
        ({"files": {"prefix.safetensors": {"size": -1, "sha256": "0" * 64}}}, "files must be"),
        ({"files": {"prefix.safetensors": {"size": 1}}}, "files must be"),
        ({"magic": 1}, 'found "magic"; it was made by a newer Foreword'),
        ({"text": ...}, "expected the fields text"),
        ({"version": "../x"}, "version must be"),
    ],
)
def test_malformed_task_json(
    bank: Bank, make_task: MakeTask, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    folder = folder_of(tmp_path, bank.publish(make_task()))
    rewrite(folder, **fields)
    for ask in (bank.load, bank.describe):
        with pytest.raises(CorruptFile, match=message):
            ask("sst2")


@pytest.mark.parametrize(
    "file",
    [
        *("idea.safetensors", "../../../../etc/passwd", "/etc/passwd", "../x", "adapter/../x", "adapter\\x", "adapter"),
        *("adapter/x", "adapter/adapter_model.bin", "soft.safetensors/x", "./soft.safetensors", "adapter//x"),
        *("member-1.safetensors", "member-02.safetensors", "member-.safetensors", "member-20000.safetensors"),
    ],
)
def test_files_that_are_not_known_are_refused_by_name(tmp_path: Path, make_task: MakeTask, file: str) -> None:
    write_version(tmp_path, make_task())
    record = json.loads((tmp_path / "task.json").read_text())
    rewrite(tmp_path, files=record["files"] | {file: {"size": 1, "sha256": "0" * 64}})
    with pytest.raises(CorruptFile, match=re.escape(f"found {json.dumps(file)}; it was made by a newer Foreword")):
        read_version(tmp_path, "sst2")


def test_altered_task_json_is_noticed(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, bank.publish(make_task(text="be kind")))
    rewrite(folder, sign=False, text="be rude")
    with pytest.raises(CorruptFile, match="altered"):
        bank.load("sst2")
    rewrite(folder, text="be rude")
    with pytest.raises(CorruptFile, match="wrong place: expected version"):
        bank.load("sst2")


def test_task_and_prefix_of_different_models(tmp_path: Path, make_task: MakeTask, identity: ModelIdentity) -> None:
    write_version(tmp_path, make_task())
    rewrite(tmp_path, model=replace(identity, weights="c" * 64).to_json())
    with pytest.raises(CorruptFile, match="different models"):
        read_version(tmp_path, "sst2")


def test_unlisted_files_are_reported(tmp_path: Path, make_task: MakeTask) -> None:
    write_version(tmp_path, make_task())
    (tmp_path / "notes.txt").write_text("x")
    assert [p for p in check_version(tmp_path, "sst2") if "notes.txt: not listed" in p]


def test_a_file_url_is_the_same_bank_as_its_path(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    version = bank.publish(make_task()).version
    for protocol in ("file", "local"):
        assert Bank(f"{protocol}://{tmp_path}/bank").current("sst2") == version


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(place)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def sentence_of(bank: Bank, task: Task) -> str:
    """What publishing says when it fails, or nothing."""
    try:
        bank.publish(task)
    except BankError as error:
        return str(error)
    return ""


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp-" in path.name]


def test_full_disk(small_disk: Path, make_task: MakeTask, make_prefix: MakePrefix) -> None:
    bank = Bank(small_disk / "bank")
    version = bank.publish(make_task()).version
    big = make_task(prefix=make_prefix(length=2000))
    with pytest.raises(BankError, match=r"No space left on device; nothing was published; the version served b"):
        bank.publish(big)
    with pytest.raises(BankError, match="nothing was published"):
        bank.publish(replace(big, name="new"))
    assert bank.current("sst2") == version
    assert bank.versions("sst2") == [version]
    assert bank.names() == ["sst2"]
    assert leftovers(small_disk) == []
    assert bank.verify() == []
    assert bank.publish(make_task()).version.startswith("0002-")


@pytest.mark.parametrize("verb", ["fsync", "replace", "rename"])
def test_every_failing_step_leaves_the_version_before(
    bank: Bank, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    bank.publish(make_task())
    real, count = getattr(os, verb), 0

    def failing(*args: Any) -> Any:
        nonlocal count
        count += 1
        if count == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, verb, failing)
    for step in range(1, 60):
        before, stored = bank.current("sst2"), bank.versions("sst2")
        count = 0
        said = sentence_of(bank, make_task(seed=step))
        assert leftovers(tmp_path) == []
        if not said:
            assert step > 1
            break
        served = bank.current("sst2")
        if "is served now" in said:
            assert served != before
        else:
            assert "nothing was published" in said
            assert (served, bank.versions("sst2")) == (before, stored)
    else:
        pytest.fail("publishing never succeeded")
    assert bank.verify() == []


def test_a_root_that_is_a_file(tmp_path: Path, make_task: MakeTask) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BankError, match="nothing was published"):
        Bank(tmp_path / "file").publish(make_task())


def test_removing_a_task_takes_it_off_first(bank: Bank, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch) -> None:
    bank.publish(make_task())

    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patched:
        patched.setattr("foreword.bank.local.shutil.rmtree", fail)
        with pytest.raises(BankError, match=r"Permission denied; it is there whole or not at all; remove it again to"):
            bank.remove("sst2")
    assert bank.names() == []
    bank.remove("sst2")
    assert bank.sweep() == []
    with pytest.raises(UnknownTask):
        bank.remove("sst2")


def test_trying_to_write_leaves_nothing(bank: Bank, tmp_path: Path, make_task: MakeTask) -> None:
    bank.check_writable()
    assert not (tmp_path / "bank").exists()
    bank.publish(make_task())
    before = sorted((tmp_path / "bank").rglob("*"))
    bank.check_writable()
    assert sorted((tmp_path / "bank").rglob("*")) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(BankError, match="nothing can be published there; make it writable, or choose another"):
        Bank(tmp_path / "file" / "bank").check_writable()


@pytest.mark.parametrize("verb", ["commit", "write_current"])
@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_publish_is_whole_or_not_there(
    bank: Bank, make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, verb: str, after: bool
) -> None:
    """Ctrl-C right before or behind each of the two strokes that make a version exist and serve it."""
    first = bank.publish(make_task())
    stroke = getattr(LocalStore, verb)

    def interrupted(*args: Any) -> None:
        if after:
            stroke(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, verb, interrupted)
        with pytest.raises(KeyboardInterrupt):
            bank.publish(make_task(seed=1))
    served = verb == "write_current" and after
    assert len(bank.versions("sst2")) == 1 + served
    assert (bank.current("sst2") == first.version) is not served
    assert bank.verify() == []


def test_a_rollback_proves_the_version_before_it_serves_it(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    first, second = (bank.publish(make_task(seed=seed)) for seed in range(2))
    path = folder_of(tmp_path, first) / "prefix.safetensors"
    status, data = path.stat(), bytearray(path.read_bytes())
    bank.load("sst2@1")
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    for change in (lambda: bank.rollback("sst2"), lambda: bank.set_split("sst2", {"1": 1, "2": 1})):
        with pytest.raises(CorruptFile, match=r"sst2@0001-\w+ is damaged and was not served"):
            change()
    assert bank.served("sst2") == (second.version, None)


def test_half_a_version_is_none(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    first, second, third = (bank.publish(make_task(seed=seed)) for seed in range(3))
    (folder_of(tmp_path, second) / "task.json").unlink()
    assert bank.versions("sst2") == [first.version, third.version]
    assert bank.verify() == []
    assert bank.rollback("sst2") == first.version
    assert bank.sweep() == [f"sst2/versions/{second.version}"]
    assert bank.publish(make_task(seed=4)).version.startswith("0004-")


def test_what_an_earlier_foreword_left_of_a_removal_never_comes_back(
    bank: Bank, make_task: MakeTask, tmp_path: Path
) -> None:
    for seed in range(2):
        bank.publish(make_task(seed=seed))
    (tmp_path / "bank/sst2/current").unlink()
    published = bank.publish(make_task(seed=3))
    assert bank.versions("sst2") == [published.version]
    with pytest.raises(UnknownTask):
        bank.rollback("sst2")


def test_a_removal_during_a_read_is_no_damage(
    bank: Bank, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank.publish(make_task())
    record = LocalStore.record

    def removed_meanwhile(store: LocalStore, name: str, version: str) -> dict[str, Any]:
        found = record(store, name, version)
        monkeypatch.undo()
        Bank(tmp_path / "bank").remove("sst2")
        return found

    monkeypatch.setattr(LocalStore, "record", removed_meanwhile)
    with pytest.raises(UnknownTask):
        bank.load("sst2")
