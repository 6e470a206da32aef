"""``foreword bank ensemble``, and what ``bank ensemble`` and ``bank compose`` refuse to put together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cli.conftest import Run
from foreword.bank.bank import Bank
from foreword.core import Adapter, Head, KVPrefix, LowRank, ModelIdentity, Task
from foreword.models import load_model

TEMPLATE = "Review: {text}\nSentiment:{mask}"
WORDS = {"positive": (" great",), "negative": (" bad", " poor")}

Publish = Callable[..., str]


@pytest.fixture(scope="module")
def identity(folder: Path) -> ModelIdentity:
    return load_model(str(folder)).identity


def random_prefix(identity: ModelIdentity, seed: int) -> KVPrefix:
    draw = torch.Generator().manual_seed(seed)
    keys = tuple(torch.randn(s.kv_heads, 4, s.key_dim, generator=draw) for s in identity.layers)
    values = tuple(torch.randn(s.kv_heads, 4, s.value_dim, generator=draw) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=4)


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    return Bank(tmp_path / "home" / "bank")


@pytest.fixture
def publish(bank: Bank, identity: ModelIdentity) -> Publish:
    """Publishes a learned task for the tiny model and gives its name."""

    def publish(name: str, seed: int, **fields: Any) -> str:
        task = Task(name, "p-tuning-v2", random_prefix(identity, seed), template=TEMPLATE, verbalizer=WORDS)
        bank.publish(replace(task, **fields))
        return name

    return publish


@pytest.mark.parametrize(("flags", "combine"), [((), "mean"), (("--vote",), "vote")])
def test_members_are_the_prefixes_in_order(run: Run, bank: Bank, publish: Publish, flags, combine: str) -> None:
    names = [publish(name, seed) for seed, name in enumerate("abc")]
    made = run("bank", "ensemble", *names, "--publish", "three", *flags, "--json")
    assert made.status == 0, made.err
    tasks = [bank.load(name) for name in names]
    task = bank.load("three")
    assert made.json == {"task": task.ref, "members": 3, "combine": combine, "bytes": 3 * tasks[0].nbytes}
    assert [task.prefix.digest, *(m.digest for m in task.members)] == [one.prefix.digest for one in tasks]
    assert (task.template, task.verbalizer, task.kind, task.combine) == (TEMPLATE, WORDS, "learned", combine)
    assert (task.method, task.provenance) == ("ensemble", {"parents": [one.ref for one in tasks]})
    assert run("bank", "verify").out.strip() == "everything checks"
    assert "combine" in run("bank", "show", "three", "--json").json


def test_versions_of_one_task_are_members_too(run: Run, bank: Bank, publish: Publish) -> None:
    for seed in range(2):
        publish("a", seed)
    assert run("bank", "ensemble", "a@1", "a@2", "--publish", "a-2").status == 0
    assert len(bank.load("a-2").members) == 1


def test_soft_tokens_that_are_in_the_prefix_are_no_hindrance(
    run: Run, bank: Bank, publish: Publish, identity: ModelIdentity
) -> None:
    """A task of prompt tuning keeps its soft tokens for transfer; what is served is its prefix."""
    names = [publish(name, seed, soft=torch.zeros(4, identity.hidden_size)) for seed, name in enumerate("ab")]
    assert run("bank", "ensemble", *names, "--publish", "both").status == 0
    assert (bank.load("both").soft, len(bank.load("both").members)) == (None, 1)


def test_its_probabilities_are_the_mean_of_its_members(run: Run, publish: Publish) -> None:
    letters = {"positive": ("y",), "negative": ("n",)}
    names = [publish(name, seed, verbalizer=letters) for seed, name in enumerate("ab")]
    run("bank", "ensemble", *names, "--publish", "both")
    one, other, both = (run("classify", name, "fine", "--json").json["data"][0]["probs"] for name in (*names, "both"))
    assert abs(one["positive"] - other["positive"]) > 1e-2
    assert both == pytest.approx({label: (one[label] + other[label]) / 2 for label in WORDS}, abs=1e-5)


def parts(identity: ModelIdentity) -> dict[str, tuple[dict[str, Any], str]]:
    """What makes a task more than one prefix, and how a refusal calls it."""
    width = identity.hidden_size
    layer = "model.layers.0.self_attn.q_proj"
    head = Head(tuple(WORDS), torch.zeros(2, width), torch.zeros(2))
    return {
        "soft": (
            {"soft": torch.zeros(2, width), "template": "{text} {soft:2}:{mask}"},
            "soft tokens inside its template",
        ),
        "adapter": ({"adapter": Adapter({layer: LowRank(torch.zeros(2, width), torch.zeros(64, 2))})}, "an adapter"),
        "head": ({"head": head, "verbalizer": None}, "a head"),
        "bias": ({"bias": {"positive": -1.0, "negative": -2.0}}, "a calibration"),
        "members": ({"members": (random_prefix(identity, 9),)}, "members of its own"),
    }


@pytest.mark.parametrize("part", ["soft", "adapter", "head", "bias", "members"])
def test_tasks_that_are_more_than_a_prefix_are_refused(
    run: Run, bank: Bank, publish: Publish, identity: ModelIdentity, part: str
) -> None:
    fields, called = parts(identity)[part]
    publish("plain", 1)
    publish("more", 2, **fields)
    static = replace(bank.load("plain"), name="static", method="static", kind="prompt", text="Once", verbalizer=None)
    bank.publish(replace(static, prefix=replace(static.prefix, token_ids=(79, 110, 99, 101))))
    for verb, command in (
        ("combined", ("ensemble", "plain", "more")),
        ("combined", ("ensemble", "more", "plain")),
        ("stacked", ("compose", "more", "static")),
        ("stacked", ("compose", "plain", "more")),
    ):
        refused = run("bank", *command, "--publish", "new")
        assert refused.status == 2
        assert f"task 'more@{bank.current('more')}' has {called}, and only prefixes can be {verb}" in refused.err
    assert bank.names() == ["more", "plain", "static"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"template": "{text}{mask}"}, "differs from 'one@0001-%s' in its template; name tasks that ask"),
        ({"verbalizer": {"positive": (" great",), "negative": (" bad",)}}, "in its verbalizer;"),
        ({"verbalizer": dict(reversed(WORDS.items()))}, "in its verbalizer;"),
        ({"template": "{text}{mask}", "verbalizer": {"x": (" y",)}}, "in its template and its verbalizer;"),
        ({"kind": "prompt", "text": "x"}, "is of the kind prompt, not learned"),
        ({"verbalizer": None, "template": "{text} {target:answer}"}, "has no labels to choose from"),
    ],
)
def test_tasks_that_do_not_ask_the_same_are_refused(
    run: Run, bank: Bank, publish: Publish, fields: dict[str, Any], said: str
) -> None:
    publish("one", 1)
    publish("two", 2, **fields)
    refused = run("bank", "ensemble", "one", "two", "--publish", "new")
    assert refused.status == 2
    assert refused.err.startswith(f"foreword: task 'two@{bank.current('two')}' ")
    assert said.replace("0001-%s", bank.current("one")) in refused.err
    assert bank.names() == ["one", "two"]


def test_prefixes_that_differ_in_model_or_beginning_are_refused(
    run: Run, publish: Publish, identity: ModelIdentity
) -> None:
    publish("one", 1)
    publish("bos", 2, prefix=replace(random_prefix(identity, 2), bos="prefix"))
    publish("other", 3, prefix=random_prefix(replace(identity, weights="c" * 64), 3))
    assert "in its beginning-of-text rule;" in run("bank", "ensemble", "one", "bos", "--publish", "new").err
    assert "in its model;" in run("bank", "ensemble", "one", "other", "--publish", "new").err


def test_one_prefix_is_no_ensemble(run: Run, bank: Bank, publish: Publish) -> None:
    publish("one", 1)
    publish("same", 1)
    assert "needs two tasks or more, found 1" in run("bank", "ensemble", "one", "--publish", "new").err
    refused = run("bank", "ensemble", "one", "same", "--publish", "new")
    assert (refused.status, "are the same prefix; name each prefix once" in refused.err) == (2, True)
    assert "no task 'nothing'" in run("bank", "ensemble", "one", "nothing", "--publish", "new").err
    assert bank.names() == ["one", "same"]


def test_names_that_are_taken_or_bad(run: Run, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [publish(name, seed) for seed, name in enumerate("ab")]
    assert "choose another name" in run("bank", "ensemble", *names, "--publish", "Not/A/Name").err
    monkeypatch.setenv("FOREWORD_MODEL", "smollm2-135m")
    assert "belongs to the base model" in run("bank", "ensemble", *names, "--publish", "smollm2-135m").err
