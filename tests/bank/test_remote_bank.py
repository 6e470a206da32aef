"""The bank on object stores: fsspec's memory store, and a bucket that is a folder reached by URL."""

import json
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from bucket import Bucket
from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.errors import BankError, CorruptFile, PublishConflict, UnknownTask, UsageError

MakeTask = Callable[..., Task]


@pytest.fixture(params=["memory", "bucket"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    Bucket.calls, Bucket.fail = (), staticmethod(lambda verb, path: None)
    if request.param == "bucket":
        yield f"bucket://{tmp_path}/store/bank"
        return
    root = f"memory://{uuid.uuid4().hex}/bank"
    yield root
    fs = fsspec.filesystem("memory")
    if fs.exists(root):
        fs.rm(root, recursive=True)


@pytest.fixture
def bank(url: str, tmp_path: Path) -> Bank:
    return Bank(url, cache=tmp_path / "cache")


@pytest.fixture
def bucket(tmp_path: Path) -> Bank:
    Bucket.calls, Bucket.fail = (), staticmethod(lambda verb, path: None)
    return Bank(f"bucket://{tmp_path}/store", cache=tmp_path / "cache")


def alter(url: str, part: str) -> None:
    """Flip the last bytes of every object whose path has ``part`` in it."""
    fs, root = fsspec.url_to_fs(url)
    found = [path for path in fs.find(root) if part in path]
    assert found
    for path in found:
        data = fs.cat_file(path)
        fs.pipe_file(path, data[:-4] + bytes(byte ^ 1 for byte in data[-4:]))


def test_life_of_a_task(bank: Bank, make_task: MakeTask) -> None:
    assert bank.names() == []
    with pytest.raises(UnknownTask):
        bank.load("sst2")
    tasks = [bank.publish(make_task(seed=seed, text="你好")) for seed in range(3)]
    versions = [task.version for task in tasks]
    assert bank.names() == ["sst2"]
    assert bank.versions("sst2") == versions
    assert bank.load("sst2").prefix.digest == tasks[2].prefix.digest
    assert bank.load("sst2@1").prefix.digest == tasks[0].prefix.digest
    assert bank.describe("sst2")["text"] == "你好"
    assert bank.rollback("sst2") == versions[1]
    assert bank.verify() == []
    bank.remove("sst2", "3")
    assert bank.versions("sst2") == versions[:2]
    assert bank.publish(make_task()).version.startswith("0004-")
    assert bank.verify() == []
    bank.remove("sst2")
    assert bank.names() == []
    with pytest.raises(UnknownTask):
        bank.load("sst2")


def test_trying_to_write_leaves_nothing(bank: Bank, url: str) -> None:
    bank.check_writable()
    assert bank.names() == []
    fs, root = fsspec.url_to_fs(url)
    assert fs.find(root) == []


def test_etag(bank: Bank, make_task: MakeTask) -> None:
    etags = [bank.etag()]
    for change in (lambda: bank.publish(make_task()), lambda: bank.publish(make_task(seed=1))):
        change()
        etags.append(bank.etag())
    bank.rollback("sst2")
    etags.append(bank.etag())
    assert len(set(etags)) == 4
    assert bank.etag() == etags[-1]


def test_a_second_read_asks_only_what_is_current(bucket: Bank, make_task: MakeTask) -> None:
    bucket.publish(make_task())
    bucket.load("sst2")
    Bucket.calls = ()
    bucket.load("sst2")
    bucket.describe("sst2")
    assert Bucket.calls == ("get current", "get current")


def test_publish_order_is_files_mark_current(bucket: Bank, make_task: MakeTask) -> None:
    version = bucket.publish(make_task()).version
    files = sorted(entry["sha256"] for entry in bucket.describe("sst2")["files"].values())
    puts = [call.removeprefix("put ") for call in Bucket.calls if call.startswith("put")]
    assert version.startswith(puts[0])
    assert sorted(puts[1:3]) == files
    assert puts[3:] == ["task.json", "current"]


def test_altered_bytes_in_the_cache_are_fetched_again(bank: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    expected = bank.publish(make_task()).prefix.digest
    bank.load("sst2")
    for name in ("prefix.safetensors", "task.json", "README.md"):
        path = next((tmp_path / "cache").rglob(name))
        path.write_bytes(path.read_bytes()[:-3] + b"###")
        assert bank.load("sst2").prefix.digest == expected
        path.unlink()
        assert bank.load("sst2").prefix.digest == expected
        assert bank.verify() == []


@pytest.mark.parametrize("part", ["/files/", "/task.json"])
def test_altered_bytes_in_the_store_are_refused(
    bank: Bank, make_task: MakeTask, url: str, tmp_path: Path, part: str
) -> None:
    expected = bank.publish(make_task()).prefix.digest
    bank.load("sst2")
    alter(url, part)
    assert any(url in problem for problem in bank.verify())
    assert bank.load("sst2").prefix.digest == expected
    with pytest.raises(CorruptFile, match=r"altered|expected"):
        Bank(url, cache=tmp_path / "other").load("sst2")
    assert bank.publish(make_task()).version.startswith("0002-")


def test_missing_objects(bank: Bank, make_task: MakeTask, url: str, tmp_path: Path) -> None:
    bank.publish(make_task())
    fs, root = fsspec.url_to_fs(url)
    fs.rm(f"{root}/sst2/files", recursive=True)
    with pytest.raises(CorruptFile, match="found none"):
        bank.load("sst2")
    fs.rm(f"{root}/sst2/versions", recursive=True)
    with pytest.raises(CorruptFile, match="found none"):
        bank.load("sst2")
    assert bank.verify()


def test_current_cannot_lead_elsewhere(bank: Bank, make_task: MakeTask, url: str) -> None:
    version = bank.publish(make_task()).version
    fs, root = fsspec.url_to_fs(url)
    fs.pipe_file(f"{root}/sst2/current", b"../../../../etc/passwd")
    with pytest.raises(CorruptFile, match="rollback sst2 --version VERSION"):
        bank.load("sst2")
    assert bank.rollback("sst2", "1") == version


def test_a_failing_put_publishes_nothing(bucket: Bank, make_task: MakeTask) -> None:
    version = bucket.publish(make_task()).version

    def fail(verb: str, path: str) -> None:
        nonlocal left
        left -= verb == "put"
        if verb == "put" and left == 0:
            raise ConnectionError("the store is away") if odd else RuntimeError("the store is away")

    for step in range(1, 5):  # claim, prefix, task.json, current; the card is there already
        left, odd = step, step % 2
        Bucket.fail = staticmethod(fail)
        with pytest.raises(BankError, match="the store is away; nothing was published"):
            bucket.publish(make_task(seed=step))
        Bucket.fail = staticmethod(lambda verb, path: None)
        assert bucket.current("sst2") == version
        assert bucket.versions("sst2") == [version]
        assert bucket.verify() == []
    assert bucket.publish(make_task(seed=9)).version > version


def test_a_lost_race_is_a_conflict(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    bucket.publish(make_task())
    other = Bank(f"bucket://{tmp_path}/store", cache=tmp_path / "cache2")

    def steal(verb: str, path: str) -> None:
        if verb == "put" and "/claims/" in path:
            Bucket.fail = staticmethod(lambda verb, path: None)
            other.publish(make_task(seed=1))

    Bucket.fail = staticmethod(steal)
    with pytest.raises(PublishConflict, match="another writer is publishing number 0002"):
        bucket.publish(make_task(seed=2))
    assert bucket.load("sst2").prefix.digest == make_task(seed=1).prefix.digest


def test_a_slow_writer_does_not_take_over_a_faster_one(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    bucket.publish(make_task())
    other = Bank(f"bucket://{tmp_path}/store", cache=tmp_path / "cache2")

    def overtake(verb: str, path: str) -> None:
        if verb == "put" and path.endswith("task.json"):
            Bucket.fail = staticmethod(lambda verb, path: None)
            other.publish(make_task(seed=1))

    Bucket.fail = staticmethod(overtake)
    with pytest.raises(PublishConflict, match="was stored but is not served"):
        bucket.publish(make_task(seed=2))
    assert bucket.current("sst2").startswith("0003-")
    assert bucket.rollback("sst2", "2").startswith("0002-")
    assert bucket.load("sst2").prefix.digest == make_task(seed=2).prefix.digest


def test_a_local_bank_copied_to_a_bucket_serves(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    task = Bank(tmp_path / "local").publish(make_task())
    shutil.copytree(tmp_path / "local", tmp_path / "store")
    assert bucket.load("sst2").prefix.digest == task.prefix.digest
    assert bucket.publish(make_task(seed=1)).version.startswith("0002-")
    assert bucket.verify() == []


def test_shared_files_survive_a_removal(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    for _ in range(2):
        bucket.publish(make_task())
    records = [json.dumps(bucket.describe(f"sst2@{n}")["files"]) for n in (1, 2)]
    assert records[0] == records[1]
    bucket.remove("sst2", "1")
    assert Bank(f"bucket://{tmp_path}/store", cache=tmp_path / "fresh").load("sst2")


def test_unknown_protocol() -> None:
    with pytest.raises(UsageError, match="install the package"):
        Bank("nosuch://bank")


def test_default_cache_is_in_home(
    url: str, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "home"))
    bank = Bank(url)
    bank.publish(make_task())
    bank.load("sst2")
    assert list((tmp_path / "home/cache/bank").rglob("prefix.safetensors"))


def test_a_removal_that_was_killed_brings_nothing_back(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    """Killed behind its first object: the task is gone, and the next version counts on."""
    for seed in range(2):
        bucket.publish(make_task(seed=seed))

    def killed(verb: str, path: str) -> None:
        if (tmp_path / "store/sst2/current").read_bytes().startswith(b"removed"):
            raise KeyboardInterrupt

    Bucket.fail = staticmethod(killed)
    with pytest.raises(KeyboardInterrupt):
        bucket.remove("sst2")
    Bucket.fail = staticmethod(lambda verb, path: None)
    assert (tmp_path / "store/sst2/current").read_text() == "removed 0002\n"
    assert bucket.names() == []
    with pytest.raises(UnknownTask):
        bucket.load("sst2@1")
    published = bucket.publish(make_task(seed=2))
    assert bucket.versions("sst2") == [published.version]
    with pytest.raises(UnknownTask, match="no version before"):
        bucket.rollback("sst2")
    assert bucket.sweep() == []


def test_a_writer_at_work_is_not_swept(bucket: Bank, make_task: MakeTask, tmp_path: Path) -> None:
    bucket.publish(make_task())
    (tmp_path / "store/sst2/claims/0002").touch()
    file = tmp_path / "store/sst2/files" / ("a" * 64)
    file.touch()
    assert bucket.sweep() == []
    later = Bank(bucket.location, cache=tmp_path / "cache", clock=lambda: time.time() + 2 * 86400)
    assert later.sweep() == [f"sst2/files/{'a' * 64}"]
    assert not file.exists()
    assert bucket.verify() == []
