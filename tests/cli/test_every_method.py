"""Every method the whole way: learned, published, read back from the bank, measured and asked, each by one command."""

from __future__ import annotations

import pytest

from foreword.bank.bank import Bank
from foreword.prompts.registry import METHODS

VARIANTS = {
    **{name: ("--method", name) for name in METHODS},
    "soft tokens inside": ("--method", "p-tuning", "--template", "{soft:2}{text}{soft:3}\\nLabel:{mask}"),
    "projection": ("--projection",),
    "ensemble": ("--members", 2),
    "head": ("--head", "linear"),
    "calibrated": ("--method", "manual", "--calibrate"),
}


@pytest.mark.parametrize("flags", VARIANTS.values(), ids=VARIANTS.keys())
def test_learned_published_measured_and_asked(run, reviews, tmp_path, flags):
    manual = "manual" in flags
    short = () if manual else ("--max-steps", 2)
    trained = run("train", "--data", reviews, *flags, *short, "--publish", "made", "--json")
    assert trained.status == 0, trained.err
    assert trained.json["task"] == "made@" + Bank(tmp_path / "home" / "bank").current("made")
    measured = run("eval", "made", "--data", reviews, "--json")
    assert measured.status == 0, measured.err
    assert measured.json["n"] == 24
    asked = run("classify", "made", "fine 3", "--json")
    assert asked.status == 0, asked.err
    (answer,) = asked.json["data"]
    assert set(answer["probs"]) == {"positive", "negative"}
    assert run("bank", "verify").status == 0


def test_a_soft_prompt_starts_from_another(run, reviews):
    """SPoT: what was learned is kept beside the prefix that it was lowered to."""
    method = ("--method", "prompt-tuning", "--length", 4)
    assert run("train", "--data", reviews, *method, "--max-steps", 2, "--publish", "first").status == 0
    again = run(
        "train",
        "--data",
        reviews,
        *method,
        "--init",
        "task:first",
        "--max-steps",
        1,
        "--lr",
        1e-12,
        "--publish",
        "next",
    )
    assert again.status == 0, again.err
    bank = Bank("home/bank")
    assert bank.load("first").prefix.keys[0].allclose(bank.load("next").prefix.keys[0], atol=1e-4)
