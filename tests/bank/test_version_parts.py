"""What a task has besides its prefix: soft tokens, a head, an adapter, members, a bias; in both stores, and every way
in which their files can be wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save

from foreword.bank.bank import Bank
from foreword.bank.record import content_digest
from foreword.bank.version_folder import check_version, read_version, write_version
from foreword.core import Adapter, Head, LowRank, ModelIdentity, Task
from foreword.errors import CorruptFile, UsageError

Make = Callable[..., Any]
ADAPTER = ("adapter/adapter_config.json", "adapter/adapter_model.safetensors")
FILES = ("member-2.safetensors", "member-3.safetensors", "soft.safetensors", "head.safetensors", *ADAPTER)


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "bank")
        return
    url = f"memory://{uuid.uuid4().hex}/bank"
    yield url
    fs = fsspec.filesystem("memory")
    if fs.exists(url):
        fs.rm(url, recursive=True)


@pytest.fixture
def bank(root: str, tmp_path: Path) -> Bank:
    return Bank(root, cache=tmp_path / "cache")


def assert_same_parts(found: Task, expected: Task) -> None:
    for name in ("template", "text", "bias", "combine", "labels", "nbytes"):
        assert getattr(found, name) == getattr(expected, name)
    assert [m.digest for m in found.members] == [m.digest for m in expected.members]
    assert_same_tensors(found.soft, expected.soft)
    assert (found.head is None, found.adapter is None) == (expected.head is None, expected.adapter is None)
    if found.head is not None and expected.head is not None:
        for name in ("labels", "per_token", "problem_type"):
            assert getattr(found.head, name) == getattr(expected.head, name)
        assert_same_tensors(found.head.weight, expected.head.weight)
        assert_same_tensors(found.head.bias, expected.head.bias)
    if found.adapter is not None and expected.adapter is not None:
        assert found.adapter.scale == expected.adapter.scale
        assert found.adapter.layers.keys() == expected.adapter.layers.keys()
        for name, pair in expected.adapter.layers.items():
            assert_same_tensors(found.adapter.layers[name].down, pair.down)
            assert_same_tensors(found.adapter.layers[name].up, pair.up)


def assert_same_tensors(found: torch.Tensor | None, expected: torch.Tensor | None) -> None:
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert found.dtype == expected.dtype
        assert torch.equal(found.float(), expected.detach().float())


def bare(task: Task, **kept: Any) -> Task:
    """The full task with some of its parts only."""
    none = {"soft": None, "head": None, "adapter": None, "bias": None, "members": (), "combine": "mean"}
    return replace(task, **(none | kept))


def test_a_task_with_everything(bank: Bank, root: str, make_full_task: Make, tmp_path: Path) -> None:
    task = make_full_task()
    version = bank.publish(task).version
    for reader in (bank, Bank(root, cache=tmp_path / "fresh")):
        assert_same_parts(reader.load("full"), task)
        assert reader.load("full").version == version
        assert reader.verify() == []
    assert set(bank.describe("full")["files"]) == {"README.md", "prefix.safetensors", *FILES}


LABELLED = {"labels": ["neg", "好", "pos"], "per_token": False}
PARTS = (
    "soft",
    "head",
    "per token",
    "several labels",
    "number",
    "adapter",
    "members",
    "mean",
    "bias",
    "verbalizer bias",
)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_alone(bank: Bank, make_full_task: Make, part: str) -> None:
    full = make_full_task()
    kept = {
        "soft": {"soft": full.soft},
        "head": {"head": full.head},
        "per token": {"head": replace(full.head, per_token=True)},
        "several labels": {"head": replace(full.head, problem_type="multi_label_classification")},
        "number": {"head": Head(("stars",), full.head.weight[:1], full.head.bias[:1], problem_type="regression")},
        "adapter": {"adapter": full.adapter},
        "members": {"members": full.members, "combine": "vote"},
        "mean": {"members": full.members[:1]},
        "bias": {"head": full.head, "bias": full.bias},
        "verbalizer bias": {"verbalizer": {"b": ("x",), "a": ("y", "z")}, "bias": {"a": -1, "b": -2.5}},
    }[part]
    task = bare(full, **kept)
    bank.publish(task)
    assert_same_parts(bank.load("full"), task)
    assert bank.verify() == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_every_floating_dtype_keeps_every_bit(bank: Bank, make_full_task: Make, dtype: torch.dtype) -> None:
    full = make_full_task()
    head = replace(full.head, weight=full.head.weight.to(dtype), bias=full.head.bias.to(dtype))
    task = replace(full, soft=full.soft.to(dtype), head=head, adapter=full.adapter.to(dtype=dtype))
    bank.publish(task)
    assert_same_parts(bank.load("full"), task)


def test_views_and_gradients_are_stored_by_value(bank: Bank, make_full_task: Make) -> None:
    block = torch.randn(20, 16, requires_grad=True)
    task = bare(make_full_task(), soft=block[4:9], head=Head(("a", "b"), block[:2], block[:2, 0]))
    bank.publish(task)
    assert_same_parts(bank.load("full"), task)


def test_many_members_keep_their_order(bank: Bank, make_task: Make, make_prefix: Make) -> None:
    task = make_task(members=tuple(make_prefix(seed=seed) for seed in range(1, 13)))
    bank.publish(task)
    assert_same_parts(bank.load("sst2"), task)


def test_members_come_by_number_however_they_are_listed(tmp_path: Path, make_task: Make, make_prefix: Make) -> None:
    task = make_task(members=tuple(make_prefix(seed=seed) for seed in range(1, 11)))
    write_version(tmp_path, task)
    files = json.loads((tmp_path / "task.json").read_text())["files"]
    forge(tmp_path, files=dict(sorted(files.items(), reverse=True)))
    assert_same_parts(read_version(tmp_path, "sst2"), task)


def test_optional_fields_are_absent_where_nothing_needs_them(bank: Bank, make_task: Make) -> None:
    bank.publish(make_task())
    assert not {"head", "bias", "combine"} & bank.describe("sst2").keys()


def test_describe_and_card(tmp_path: Path, make_full_task: Make, make_task: Make) -> None:
    bank = Bank(tmp_path)
    task = bank.publish(make_full_task())
    found = bank.describe("full")
    assert found["head"] == {"labels": ["neg", "好", "pos"], "per_token": False}
    assert (found["combine"], found["bias"]["pos"]) == ("vote", -1.5)
    card = (tmp_path / "full/versions" / task.version / "README.md").read_text()
    adapter = make_full_task().adapter
    for line in (
        "- ensemble: 3 prefixes, answers combined by vote",
        "- soft tokens: 5",
        f"- adapter: LoRA of rank 4, {adapter.nbytes} bytes",
        "- head: a label for the whole text",
        f"- all tensors: {task.nbytes} bytes",
        "- labels: neg, 好, pos",
        "- scores: calibrated",
        "foreword classify full",
    ):
        assert line in card
    plain = bank.publish(make_task())
    assert "all tensors" not in (tmp_path / "sst2/versions" / plain.version / "README.md").read_text()


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["missing", "short", "flipped", "extra"])
def test_damage_is_found_before_serving(tmp_path: Path, make_full_task: Make, file: str, damage: str) -> None:
    bank = Bank(tmp_path)
    path = tmp_path / "full/versions" / bank.publish(make_full_task()).version / file
    data = path.read_bytes()
    changed = {"short": data[:-9], "flipped": data[:-9] + b"#" + data[-8:], "extra": data + b"x"}
    path.unlink() if damage == "missing" else path.write_bytes(changed[damage])
    with pytest.raises(CorruptFile, match=file):
        bank.load("full")
    assert any(file in problem for problem in bank.verify())


def test_a_damaged_cache_is_filled_again(make_full_task: Make, tmp_path: Path) -> None:
    bank = Bank(f"memory://{uuid.uuid4().hex}/bank", cache=tmp_path / "cache")
    bank.publish(make_full_task())
    bank.load("full")
    for file in FILES:
        path = next((tmp_path / "cache").rglob(file))
        path.write_bytes(path.read_bytes()[:-3] + b"###")
        assert_same_parts(bank.load("full"), make_full_task())
        path.unlink()
        assert_same_parts(bank.load("full"), make_full_task())
    shutil.rmtree(next((tmp_path / "cache").rglob("adapter")))
    assert_same_parts(bank.load("full"), make_full_task())


def test_a_local_bank_copied_to_a_store_serves(make_full_task: Make, tmp_path: Path) -> None:
    Bank(tmp_path / "local").publish(make_full_task())
    url = f"memory://{uuid.uuid4().hex}/bank"
    fsspec.filesystem("memory").put(f"{tmp_path}/local", url, recursive=True)
    copy = Bank(url, cache=tmp_path / "cache")
    assert_same_parts(copy.load("full"), make_full_task())
    assert copy.verify() == []


def test_removing_takes_all_files(bank: Bank, root: str, make_full_task: Make) -> None:
    for seed in range(2):
        bank.publish(make_full_task(seed=seed))
    bank.remove("full", "1")
    assert_same_parts(bank.load("full"), make_full_task(seed=1))
    assert bank.verify() == []
    bank.remove("full")
    fs, path = fsspec.url_to_fs(root)
    assert fs.find(path) == [] or all(".locks" in left for left in fs.find(path))


@pytest.mark.parametrize("stray", ["notes.txt", "adapter/notes.txt", "adapter/deep/x", "deep/er/x"])
def test_unlisted_files_are_named_in_every_folder(tmp_path: Path, make_full_task: Make, stray: str) -> None:
    write_version(tmp_path, make_full_task())
    (tmp_path / stray).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / stray).write_text("x")
    named = {"adapter/deep/x": "adapter/deep", "deep/er/x": "deep"}.get(stray, stray)
    assert check_version(tmp_path, "full") == [f"{tmp_path / named}: not listed in task.json; delete it."]


def test_an_adapter_of_a_version_without_one_is_unlisted(tmp_path: Path, make_task: Make) -> None:
    write_version(tmp_path, make_task())
    (tmp_path / "adapter").mkdir()
    assert check_version(tmp_path, "sst2") == [f"{tmp_path / 'adapter'}: not listed in task.json; delete it."]


# What writing refuses: one test, one error.


def wrong(full: Task, part: str) -> dict[str, Any]:
    """A change that makes the full task impossible."""
    soft, head, adapter = full.soft, full.head, full.adapter
    assert soft is not None
    assert head is not None
    assert adapter is not None
    changes: dict[str, Any] = {
        "soft width": {"soft": torch.zeros(4, 15)},
        "soft rank": {"soft": torch.zeros(16)},
        "soft none": {"soft": torch.zeros(0, 16)},
        "soft dtype": {"soft": torch.zeros(5, 16, dtype=torch.int64)},
        "soft nan": {"soft": torch.full((5, 16), float("nan"))},
        "soft slots": {"soft": torch.zeros(4, 16)},
        "head width": {"head": replace(head, weight=torch.zeros(3, 15))},
        "head labels": {"head": replace(head, weight=torch.zeros(2, 16))},
        "head bias": {"head": replace(head, bias=torch.zeros(3, 1))},
        "head inf": {"head": replace(head, bias=torch.tensor([0.0, 1.0, float("inf")]))},
        "head twice": {"head": replace(head, labels=("neg", "neg", "pos"))},
        "head words": {"verbalizer": {"neg": ("a",), "好": ("b",), "pos": ("c",)}},
        "bias labels": {"bias": {"neg": 0.0, "pos": 0.0}},
        "bias nan": {"bias": {"neg": 0.0, "pos": 0.0, "好": float("nan")}},
        "bias nothing": {"head": None},
        "vote alone": {"members": ()},
        "combine": {"combine": "best"},
        "adapter none": {"adapter": Adapter({})},
        "adapter rank": {"adapter": Adapter({"a": LowRank(torch.zeros(2, 4), torch.zeros(4, 3))})},
        "adapter empty": {"adapter": Adapter({"a": LowRank(torch.zeros(0, 4), torch.zeros(4, 0))})},
        "adapter flat": {"adapter": Adapter({"a": LowRank(torch.zeros(2), torch.zeros(4, 2))})},
        "adapter name": {"adapter": Adapter({"../a": LowRank(torch.zeros(2, 4), torch.zeros(4, 2))})},
        "adapter scale": {"adapter": Adapter(adapter.layers, float("inf"))},
        "adapter nan": {"adapter": Adapter({"a": LowRank(torch.zeros(2, 4), torch.full((4, 2), float("nan")))})},
        "kind": {"kind": "best"},
        "ttl": {"ttl": 10**11},
        "metrics": {"provenance": {"metrics": {"accuracy": 10**400}}},
        "metrics list": {"provenance": {"metrics": [0.9]}},
        "parents": {"provenance": {"parents": 5}},
        "adapter int": {"adapter": Adapter({"a": LowRank(torch.zeros(2, 4, dtype=torch.int8), torch.zeros(4, 2))})},
    }
    return changes[part]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("soft width", r"soft must be \[S, 16\], found \[4, 15\]"),
        ("soft rank", r"soft must be \[S, 16\], found \[16\]"),
        ("soft none", r"soft must be \[S, 16\], found \[0, 16\]"),
        ("soft dtype", r"the soft tokens must be floating point, soft is torch.int64"),
        ("soft nan", "soft of the soft tokens holds NaN or infinity"),
        ("soft slots", r"the template has 5 soft tokens in its \{soft:N\}, found 4"),
        ("head width", r"weight must be \[3, 16\], found \[3, 15\]"),
        ("head labels", r"weight must be \[3, 16\], found \[2, 16\]"),
        ("head bias", r"bias must be \[3\], found \[3, 1\]"),
        ("head inf", "bias of the head holds NaN or infinity"),
        ("head twice", "head must be an object of labels"),
        ("head words", "labels come from a head or from a verbalizer, found both"),
        ("bias labels", "bias must have the labels"),
        ("bias nan", "bias must be an object of label to finite number"),
        ("bias nothing", "bias must have the labels"),
        ("vote alone", "combine goes with further prefixes"),
        ("combine", "combine must be one of mean, vote"),
        ("adapter none", "it changes no layer"),
        ("adapter rank", r"a must have factors \[rank, in\] and \[out, rank\], found \[2, 4\] and \[4, 3\]"),
        ("adapter empty", r"a must have factors"),
        ("adapter flat", r"a must have factors"),
        ("adapter name", r"'../a' is not the name of a module"),
        ("adapter scale", "its scale must be a finite number"),
        ("adapter nan", "the adapter holds NaN or infinity"),
        ("kind", "kind must be one of learned, system, prompt"),
        ("ttl", "ttl must be a number of seconds from 1 to 10000000000"),
        ("metrics", "provenance must be an object, with objects as metrics"),
        ("metrics list", "provenance must be an object, with objects as metrics"),
        ("parents", "provenance must be an object, with objects as metrics"),
        ("adapter int", "the adapter must be floating point"),
    ],
)
def test_publishing_refuses_what_could_not_be_read(
    tmp_path: Path, make_full_task: Make, part: str, message: str
) -> None:
    full = make_full_task()
    bank = Bank(tmp_path)
    with pytest.raises(UsageError, match=message):
        bank.publish(replace(full, **wrong(full, part)))
    assert bank.names() == []


def test_members_of_another_model_are_refused(
    tmp_path: Path, make_full_task: Make, make_prefix: Make, identity: ModelIdentity
) -> None:
    other = make_prefix(model=replace(identity, weights="c" * 64))
    with pytest.raises(UsageError, match=r"member-2.safetensors would hold a prefix of another model"):
        Bank(tmp_path).publish(make_full_task(members=(other,)))


# What reading refuses: a version that another writer made, with right sizes and digests.


def forge(folder: Path, replaced: dict[str, bytes | None] | None = None, **fields: Any) -> None:
    """Replace files and fields of a version and sign it again; ``None`` or ``...`` takes one away."""
    record = json.loads((folder / "task.json").read_text())
    for name, data in (replaced or {}).items():
        (folder / name).unlink(missing_ok=True)
        record["files"].pop(name, None)
        if data is not None:
            (folder / name).write_bytes(data)
            record["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record = {key: value for key, value in (record | fields).items() if value is not ...}
    record["version"] = record["version"][:5] + content_digest(record)[:12]
    (folder / "task.json").write_text(json.dumps(record))


def sentence(folder: Path) -> str:
    """How the version is refused; verify says the same."""
    with pytest.raises(CorruptFile) as caught:
        read_version(folder, "full")
    assert str(caught.value) in check_version(folder, "full")
    assert str(caught.value).endswith(".")
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path, make_full_task: Make) -> Path:
    folder = tmp_path / "version"
    folder.mkdir()
    write_version(folder, make_full_task())
    return folder


SOFT = "soft.safetensors"
HEAD = "head.safetensors"
NAN = float("nan")


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        (SOFT, save({"soft": torch.zeros(5, 16)})[:-1], "soft.safetensors is truncated"),
        (SOFT, save({"soft": torch.zeros(5, 16)}) + b"x", "soft.safetensors is too long"),
        (SOFT, b"", "soft.safetensors is truncated"),
        (SOFT, b"PK\x03\x04" + b"x" * 100, "found another format"),
        (SOFT, b"\x80\x04K\x01." * 10, "found another format"),
        (SOFT, save({}), "expected the tensor soft, found none"),
        (SOFT, save({"hard": torch.zeros(5, 16)}), "expected the tensor soft, found none"),
        (SOFT, save({"soft": torch.zeros(5, 16), "x": torch.zeros(1)}), "expected soft only, found x"),
        (SOFT, save({"soft": torch.zeros(4, 15)}), "soft must be [S, 16], found [4, 15]"),
        (SOFT, save({"soft": torch.zeros(64)}), "soft must be [S, 16], found [64]"),
        (SOFT, save({"soft": torch.zeros(0, 16)}), "soft must be [S, 16], found [0, 16]"),
        (SOFT, save({"soft": torch.zeros(5, 16, dtype=torch.int32)}), "soft must be floating point, found I32"),
        (SOFT, save({"soft": torch.full((5, 16), NAN)}), "soft must hold finite numbers"),
        (SOFT, save({"soft": torch.full((5, 16), NAN).to(torch.float8_e4m3fn)}), "soft must hold finite numbers"),
        (SOFT, save({"soft": torch.zeros(4, 16)}), "the template has 5 soft tokens in its {soft:N}, found 4"),
        (HEAD, save({"weight": torch.zeros(3, 16)}), "expected the tensor bias, found none"),
        (HEAD, save({"weight": torch.zeros(3, 15), "bias": torch.zeros(3)}), "weight must be [3, 16], found [3, 15]"),
        (HEAD, save({"weight": torch.zeros(4, 16), "bias": torch.zeros(4)}), "weight must be [3, 16], found [4, 16]"),
        (HEAD, save({"weight": torch.zeros(3, 16), "bias": torch.zeros(2)}), "bias must be [3], found [2]"),
        (HEAD, save({"weight": torch.zeros(3, 16), "bias": torch.full((3,), NAN)}), "bias must hold finite numbers"),
        (HEAD, b"{}", "head.safetensors is truncated"),
        ("member-2.safetensors", save({"soft": torch.zeros(5, 16)}), "expected a Foreword header"),
        ("adapter/adapter_model.safetensors", save({}), "it changes no layer"),
        ("adapter/adapter_config.json", b"{", "expected JSON"),
        ("adapter/adapter_config.json", b'{"peft_type": "IA3"}', 'expected peft_type LORA, found "IA3"'),
    ],
)
def test_malformed_files(folder: Path, file: str, data: bytes, message: str) -> None:
    forge(folder, {file: data})
    assert message in sentence(folder)


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        ((HEAD,), {}, "a head needs both its labels and head.safetensors"),
        ((), {"head": ..., "bias": ...}, "a head needs both its labels and head.safetensors"),
        ((), {"head": {"labels": ["a"]}}, "head must be an object of labels"),
        ((), {"head": {"labels": [], "per_token": False}}, "head must be an object of labels"),
        ((), {"head": {"labels": ["a", "a", "b"], "per_token": False}}, "head must be an object of labels"),
        ((), {"head": {"labels": ["a", "b", 1], "per_token": False}}, "head must be an object of labels"),
        ((), {"head": {"labels": ["a", "b", "c"], "per_token": 1}}, "head must be an object of labels"),
        ((), {"head": None}, "head must be an object of labels"),
        ((), {"head": {**LABELLED, "problem_type": "single_label_classification"}}, "head must be an object of labels"),
        ((), {"head": {**LABELLED, "problem_type": None}}, "head must be an object of labels"),
        ((), {"head": {**LABELLED, "problem_type": "regression"}}, "head must be an object of labels"),
        (
            (),
            {"head": {**LABELLED, "per_token": True, "problem_type": "multi_label_classification"}},
            "head must be an object of labels",
        ),
        (
            (),
            {"head": {**LABELLED, "problem_type": "multi_label_classification"}},
            "a head for multi_label_classification goes without bias and further prefixes",
        ),
        ((), {"verbalizer": {"neg": ["x"]}}, "labels come from a head or from a verbalizer, found both"),
        ((), {"bias": {"neg": 0, "pos": 0}}, "bias must have the labels"),
        ((), {"bias": {"neg": 0, "pos": 0, "好": 0, "x": 0}}, "bias must have the labels"),
        ((), {"bias": {"neg": 0, "pos": 0, "好": "0"}}, "bias must be an object of label to finite number"),
        ((), {"bias": {"neg": 0, "pos": 0, "好": True}}, "bias must be an object of label to finite number"),
        ((), {"bias": {"neg": 0, "pos": 0, "好": 10**400}}, "a number has more than 308 digits"),
        ((), {"bias": []}, "bias must be an object of label to finite number"),
        ((HEAD,), {"head": ...}, "bias must have the labels"),
        ((), {"combine": ...}, "combine goes with further prefixes"),
        ((), {"combine": "best"}, "combine must be one of mean, vote"),
        (("member-2.safetensors", "member-3.safetensors"), {}, "combine goes with further prefixes"),
        (("member-2.safetensors",), {}, "expected member-2.safetensors among its files, found none"),
        ((ADAPTER[0],), {}, "expected adapter/adapter_config.json among its files, found none"),
        ((ADAPTER[1],), {}, "expected adapter/adapter_model.safetensors among its files, found none"),
        ((), {"template": "{soft:6}{text}"}, "the template has 6 soft tokens in its {soft:N}, found 5"),
    ],
)
def test_parts_that_contradict_each_other(
    folder: Path, files: tuple[str, ...], fields: dict[str, Any], message: str
) -> None:
    forge(folder, dict.fromkeys(files), **fields)
    assert message in sentence(folder)


def test_bias_that_json_cannot_hold(folder: Path) -> None:
    text = (folder / "task.json").read_text().replace('"pos": -1.5', '"pos": NaN')
    (folder / "task.json").write_text(text)
    assert "NaN is not JSON" in sentence(folder)


def test_a_listed_file_that_is_missing(folder: Path) -> None:
    (folder / SOFT).unlink()
    assert "expected a file of" in sentence(folder)


def test_an_adapter_folder_that_is_a_file(folder: Path) -> None:
    shutil.rmtree(folder / "adapter")
    (folder / "adapter").write_text("x")
    assert "expected a file of" in sentence(folder)


def test_a_member_of_another_model(folder: Path, tmp_path: Path, make_task: Make, make_prefix: Make) -> None:
    identity = make_prefix().model
    other = tmp_path / "other"
    other.mkdir()
    write_version(other, make_task(prefix=make_prefix(model=replace(identity, weights="c" * 64))))
    forge(folder, {"member-3.safetensors": (other / "prefix.safetensors").read_bytes()})
    assert "different models" in sentence(folder)


def test_adapter_values_that_are_no_numbers(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER[1])
    next(iter(tensors.values()))[0, 0] = float("inf")
    forge(folder, {ADAPTER[1]: save(tensors)})
    assert "must hold finite numbers" in sentence(folder)


def test_a_record_whose_parts_are_whole_is_described_without_tensors(folder: Path) -> None:
    """Listing a bank reads no tensor file; serving does."""
    forge(folder, {SOFT: b"x"})
    bank_folder = folder.parent / "bank/full/versions"
    bank_folder.mkdir(parents=True)
    version = json.loads((folder / "task.json").read_text())["version"]
    folder.rename(bank_folder / version)
    (folder.parent / "bank/full/current").write_text(f"{version}\n")
    bank = Bank(folder.parent / "bank")
    assert bank.describe("full")["version"] == version
    with pytest.raises(CorruptFile, match=r"soft.safetensors is truncated"):
        bank.load("full")


def test_soft_tokens_of_a_prompt_without_slots_are_kept(make_full_task: Make, tmp_path: Path) -> None:
    """A lowered prompt keeps what it was lowered from; literal braces are no slots."""
    bank = Bank(tmp_path)
    for template in ("{text}", "{{soft:9}} {text}", None):
        task = replace(bare(make_full_task()), soft=torch.ones(3, 16), template=template)
        found = bank.load(bank.publish(task).name)
        assert found.soft is not None
        assert found.soft.shape == (3, 16)
