"""Commands that are killed at every call that changes files, and what has to hold afterwards.

Run by `test_kills.py` as a process into which ``kill_at.c`` is preloaded: it imports everything once, and forks for
each kill. Prints a JSON object a command: its calls, its kills, and sentences about what was lost.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import foreword.api
import foreword.interop.export
import foreword.training.distillation.distill
import foreword.training.many.train_many
import foreword.training.search.search
import foreword.training.train  # noqa: F401 - imported once, for all forks
from benchmarks.conformance.gguf import write_gguf
from bucket import Bucket
from foreword.bank.bank import Bank
from foreword.bank.run_task import write_task
from foreword.cli import main
from foreword.errors import ExpiredTask, ForewordError, UnknownTask
from foreword.server.operations.api_keys import read_keys
from trust.victim import Victim, make_victim

LIBRARY = ctypes.CDLL(None)
NEVER = 1 << 40
SECONDS = 120
"""That a command may take."""
LATER = 2 * 86400.0
"""Seconds after which an object store takes no object for one of a writer at work."""

LABELLED = ("--template", "Review: {text}:{mask}", "--verbalizer", '{"positive": " good", "negative": " bad"}')
ROWS = ("--model", "tiny", "--data", "rows.jsonl", *LABELLED)
SMALL = ("--length", "2", "--max-steps", "3", "--batch-size", "4")
MANY = ("--publish-prefix", "u-", "--publish-all", "--min-rows", "2")
DISTIL = ("--slots", "3", "--conversations", "3", "--held", "1", "--answer-tokens", "2", "--max-steps", "2")

Result = Callable[["Place"], object]


@dataclass(frozen=True)
class Place:
    """A copy of the folder in which a command runs, with the model ``tiny``, a bank, rows, a run and keys.

    Attributes:
        folder: where it runs.
        url: of the bank.
    """

    folder: Path
    url: str

    def open(self, *, later: float = 0.0) -> Bank:
        return Bank(self.url, cache=self.folder / "cache", clock=lambda: time.time() + later)

    def served(self) -> dict[str, str]:
        bank = self.open()
        return {name: bank.current(name) for name in bank.names()}

    def versions(self) -> dict[str, list[str]]:
        bank = self.open()
        return {name: bank.versions(name) for name in bank.names()}

    def run(self, words: Collection[str], at: int = NEVER) -> tuple[int, int, str]:
        """Run ``foreword`` in a fork that is killed at its ``at``-th call. Exit status, calls, what it said."""
        said, counted = self.folder / "said", os.pipe()
        pid = os.fork()
        if pid == 0:
            os.chdir(self.folder)
            out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ |= {"FOREWORD_HOME": str(self.folder / "home"), "FOREWORD_BANK": self.url, "NO_COLOR": "1"}
            sys.argv = ["foreword", *words]
            signal.alarm(SECONDS)
            LIBRARY.kill_at(ctypes.c_long(at))
            status = 1
            try:
                main()
                status = 0
            except SystemExit as end:
                status = int(end.code or 0)
            except BaseException:
                traceback.print_exc()
            calls = LIBRARY.calls_made()
            LIBRARY.kill_at(ctypes.c_long(0))
            sys.stdout.flush()
            sys.stderr.flush()
            os.write(counted[1], str(calls).encode())
            os._exit(status)
        os.close(counted[1])
        with os.fdopen(counted[0]) as reader:
            calls = int(reader.read() or 0)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, calls, said.read_text(errors="replace")


@dataclass(frozen=True)
class Command:
    """A command and what it may change.

    Attributes:
        words: behind ``foreword``.
        removes: numbers of the versions that it removes, by task; all of them where there are none.
        over: what it says when it is run again and there is nothing left to do.
        resume: a file that tells that there is a run to go on with, by ``--resume``.
        result: what has to be the same as when it was not killed.
    """

    words: tuple[str, ...]
    removes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    over: tuple[str, ...] = ()
    resume: str = ""
    result: Result = lambda place: None


def task_tensors(*names: str) -> Result:
    """The values that tasks serve."""

    def result(place: Place) -> object:
        tasks = [place.open().load(name) for name in names]
        return [(task.name, task.prefix.digest, task.nbytes) for task in tasks]

    return result


def contents(*paths: str) -> Result:
    """All files below paths, with the digests of their bytes."""

    def result(place: Place) -> object:
        files = [file for path in paths for file in sorted((place.folder / path).rglob("*")) if file.is_file()]
        found = {str(file.relative_to(place.folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
        return {name: digest for name, digest in found.items() if not name.endswith(".lock")}

    return result


def key_names(place: Place) -> object:
    return sorted(key.name for key in read_keys(place.folder / "keys.jsonl"))


BANK = {
    "publish, new": Command(("publish", "new", "--run", "runs/made")),
    "publish, again": Command(("publish", "a-say", "--run", "runs/made", "--replace")),
    "publish, of many files": Command(("publish", "a-say", "--run", "runs/many-files")),
    "publish, behind a removal that was killed": Command(("publish", "b-text", "--run", "runs/made")),
    "remove a task": Command(("bank", "remove", "a-say"), {"a-say": ()}, ("no task",)),
    "remove a split task": Command(("bank", "remove", "b-mood"), {"b-mood": ()}, ("no task",)),
    "remove a version": Command(("bank", "remove", "a-say", "--version", "1"), {"a-say": (1,)}, ("no version",)),
    "rollback": Command(("bank", "rollback", "a-say"), over=("no version before",)),
    "rollback that ends a split": Command(("bank", "rollback", "b-mood", "--version", "1")),
    "split": Command(("bank", "split", "a-say", "0001=0.9", "0003=0.1")),
    "split, another": Command(("bank", "split", "b-mood", "0001=0.9", "0003=0.1")),
    "prune": Command(("bank", "prune"), {"a-short": ()}),
}
LEARNING = {
    "train": Command(
        ("train", *ROWS, *SMALL, "--out", "run", "--publish", "mine"),
        resume="run/recipe.json",
        result=task_tensors("mine"),
    ),
    "search": Command(
        ("search", *ROWS, *SMALL, "--vary", "lr=[0.001, 0.01]", "--out", "run", "--publish", "mine"),
        resume="run/recipe.json",
        result=task_tensors("mine"),
    ),
    "train-many": Command(
        (
            "train-many",
            "many.jsonl",
            "--model",
            "tiny",
            *LABELLED,
            *SMALL,
            "--out",
            "run",
            *MANY,
        ),
        resume="run/recipe.json",
        result=task_tensors("u-0", "u-1", "u-2"),
    ),
    "distil": Command(
        ("distill", "--system", "policy.txt", "--model", "tiny", *DISTIL, "--out", "run", "--publish", "mine"),
        resume="run/recipe.json",
        result=task_tensors("mine"),
    ),
}
FILES = {
    "convert": Command(("models", "pull", "tiny.gguf"), result=contents("home/models")),
    "export": Command(
        ("export", "peft", "a-mood", "exported", "--model", "tiny"),
        over=("is not an empty folder",),
        result=contents("exported"),
    ),
    "key": Command(("key", "shop"), over=("has a key 'shop' already",), result=key_names),
}
GROUPS = {"bank": BANK, "store": BANK, "learning": LEARNING, "files": FILES}


def prepare(folder: Path, victim: Victim, url: str) -> Place:
    """A place as each command finds it: of ``a-say`` three versions are there, ``b-mood`` is split, ``a-short`` has
    expired, ``b-text`` was removed by a command that was killed."""
    place = Place(folder, url)
    bank = place.open()
    for name in victim.bank.names():
        bank.publish(victim.bank.load(name))
    for seed in (51, 52):
        for name in ("a-say", "b-mood"):
            bank.publish(victim.bank.load(victim.publish(name, seed).ref))
    bank.set_split("b-mood", {"0002": 0.2, "0003": 0.8})
    long_ago = Bank(url, cache=folder / "cache", clock=lambda: 0.0)
    long_ago.publish(replace(victim.bank.load("a-text"), name="a-short", ttl=1))
    time.sleep(1.2)
    for at in range(1, 40):
        place.run(("bank", "remove", "b-text"), at)
        if "b-text" not in bank.names():
            break
    assert any("b-text" in path for path in bank.sweep(dry_run=True))
    return place


def lost(place: Place, before: Place, command: Command, after: Mapping[str, str]) -> list[str]:
    """What does not hold right after a kill.

    Args:
        before: the place as it was.
        after: what is served when the command is not killed.
    """
    found = place.open().verify()
    bank, versions, served = place.open(), place.versions(), before.served()
    for name, old in before.versions().items():
        gone = {int(version[:4]) for version in old} - {int(version[:4]) for version in versions.get(name, [])}
        may_go = set(command.removes[name] or (int(v[:4]) for v in old)) if name in command.removes else set()
        if gone and (gone != may_go or (name in versions and not command.removes[name])):
            found.append(f"versions {gone} of {name} are gone")
    for name, version in place.served().items():
        with suppress(ExpiredTask):
            bank.load(name)
        new = int(version[:4]) > max((int(v[:4]) for v in before.versions().get(name, [])), default=0)
        if version not in (served.get(name), after.get(name)) and not new:
            found.append(f"{name} is served as {version}")
    return found


def not_finished(place: Place, command: Command, after: Mapping[str, str], result: object) -> list[str]:
    """What does not hold once the command was run again."""
    words = command.words
    if command.resume and (place.folder / command.resume).is_file():
        words = (*words, "--resume")
    status, _, said = place.run(words)
    if status and not any(words in said for words in command.over):
        return [f"again, it ends with {status}: {said[-300:]}"]
    found, bank, served = place.open().verify(), place.open(), place.served()
    if served.keys() != after.keys():
        found.append(f"there are {sorted(served)}")
    for name, numbers in command.removes.items():
        if not numbers:
            found += _revived(bank, name)
    if command.result(place) != result:
        found.append("the result is another one")
    place.open(later=LATER).sweep()
    return found + [f"{path} is left" for path in strangers(place)]


def _revived(bank: Bank, name: str) -> list[str]:
    """What comes back with a name that is published again."""
    published = bank.publish(replace(bank.load("a-text"), name=name))
    found = [f"{version} of {name} came back" for version in bank.versions(name) if version != published.version]
    with suppress(UnknownTask):
        found.append(f"{name} was rolled back to {bank.rollback(name)}")
    return found


def strangers(place: Place) -> list[str]:
    """Files in the bank that no version and no task needs."""
    root = Path(place.url.removeprefix("bucket://"))
    root = root if root.is_absolute() else place.folder / root
    bank, needed = place.open(), set()
    for name, versions in place.versions().items():
        needed |= {f"{name}/{file}" for file in ("current", "split", "used")} | {f".locks/{name}"}
        for version in versions:
            record = bank.describe(f"{name}@{version}")
            needed |= {f"{name}/versions/{version}/{file}" for file in ("task.json", *record["files"])}
            needed |= {f"{name}/files/{entry['sha256']}" for entry in record["files"].values()}
    # A `Bucket` writes an object to a hidden file first, which in a real store nobody could see.
    hidden = "://" in place.url
    files = [path for path in root.rglob("*") if path.is_file() and not (hidden and path.name.startswith("."))]
    names = [str(path.relative_to(root)) for path in files]
    return [name for name in names if name not in needed and not name.startswith(".locks/") and "/claims/" not in name]


def kill(command: Command, template: Path, place: Place, kills: int) -> dict[str, object]:
    """Kill a command ``kills`` times at most, evenly over its calls."""

    def fresh() -> Place:
        shutil.rmtree(place.folder, ignore_errors=True)
        shutil.copytree(template, place.folder)
        return place

    before = Place(template, place.url.replace(str(place.folder), str(template)))
    status, calls, said = fresh().run(command.words)
    if status:
        return {"calls": calls, "kills": 0, "lost": [f"without a kill, it ends with {status}: {said[-500:]}"]}
    after, result = place.served(), command.result(place)
    done, problems, kills = 0, [], min(kills, calls)
    for at in sorted({1 + round(step * (calls - 1) / max(kills - 1, 1)) for step in range(kills)}):
        status, _, said = fresh().run(command.words, at)
        done += status == -9
        try:
            found = lost(place, before, command, after) + not_finished(place, command, after, result)
        except ForewordError as error:
            found = [str(error)]
        problems += [f"call {at}: {problem}" for problem in found]
        if status not in (0, -9):
            problems.append(f"call {at}: it ended with {status}: {said[-300:]}")
    return {"calls": calls, "kills": done, "lost": problems}


def run() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, required=True)
    parser.add_argument("--command")
    options = parser.parse_args()
    template, folder = options.folder / "template", options.folder / "place"
    template.mkdir()
    store = options.group == "store"
    # In a process of its own: what loads a model starts threads, which a fork would not have.
    preparing = os.fork()
    if preparing == 0:
        victim = make_victim(options.folder / "victim")
        shutil.copytree(victim.place / "tiny", template / "tiny")
        write_inputs(template, victim)
        prepare(template, victim, f"bucket://{template}/bank" if store else str(template / "bank"))
        os._exit(0)
    assert os.waitpid(preparing, 0)[1] == 0, "the place was not prepared"
    place = Place(folder, f"bucket://{folder}/bank" if store else str(folder / "bank"))
    for name, command in GROUPS[options.group].items():
        if options.command in (None, name):
            began = time.monotonic()
            done = kill(command, template, place, options.kills)
            print(json.dumps({"command": name, **done, "seconds": round(time.monotonic() - began)}), flush=True)


def write_inputs(folder: Path, victim: Victim) -> None:
    rows = [
        {"text": f"{word} {i}", "label": label}
        for i in range(6)
        for word, label in (("fine", "positive"), ("poor", "negative"))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    many = [{**row, "task": str(task)} for task in range(3) for row in rows]
    (folder / "many.jsonl").write_text("".join(json.dumps(row) + "\n" for row in many))
    (folder / "policy.txt").write_text("Lamp 3 costs 9 coins. It ships on Monday.")
    write_task(victim.bank.load("a-mood"), folder / "runs/made")
    adapted = victim.bank.load(victim.publish("adapted", 60, kind="adapter").ref)
    write_task(adapted, folder / "runs/many-files")
    victim.bank.remove("adapted")
    write_gguf(victim.lm, folder / "tiny.gguf")


if __name__ == "__main__":
    assert Bucket.protocol == "bucket"
    run()
