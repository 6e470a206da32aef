"""PET and AutoPrompt on the command line: what they publish, and what cannot be published."""

from __future__ import annotations

import json

from foreword.prompts.trigger import AutoPrompt
from foreword.training.methods.pet.pvp_run import LM_WEIGHT

WORDS = ("--verbalizer", '{"positive": " great", "negative": " bad"}', "--batch-size", 4, "--json")


def test_patterns_teach_and_are_published(run, reviews, tmp_path):
    rows = tmp_path / "more.jsonl"
    rows.write_text("".join(json.dumps({"text": f"fine {n}"}) + "\n" for n in range(6)))
    patterns = ("--template", r"{text}\nIt was{mask}", "--template", "{text} All in all{mask}")
    made = run("train", "--method", "pet", "--data", reviews, *patterns, *WORDS, "--max-steps", 2, "--unlabeled", rows,
               "--lm-weight", "0.5", "--rank", 2, "--publish", "reviews")  # fmt: skip
    assert made.status == 0, made.err
    assert made.json["task"].startswith("reviews@")
    assert made.json["model"] is None
    assert "2 patterns teach pattern" in made.err
    scored = run("eval", "reviews", "--data", reviews, "--json")
    assert scored.status == 0, scored.err
    assert run("classify", "reviews", "fine 1", "--json").json["data"][0]["label"] in ("positive", "negative")


def test_a_trigger_is_published_and_writes_too(run, reviews, tmp_path):
    made = run("train", "--method", "autoprompt", "--data", reviews, "--template", "{text}:{mask}", *WORDS,
               "--max-steps", 2, "--candidates", 4, "--length", 3, "--publish", "found")  # fmt: skip
    assert made.status == 0, made.err
    assert (made.json["trained_parameters"], made.json["task"][:6]) == (3, "found@")
    assert run("classify", "found", "fine 1", "--json").status == 0
    assert run("generate", "found", "fine", "--max-tokens", 3, "--json").json["usage"]["cached_tokens"] == 3
    assert run("publish", "again", "--run", made.json["run"], "--json").json["length"] == 3


def test_a_model_of_its_own_is_no_task(run, reviews, tmp_path):
    flags = ("train", "--method", "pet", "--weights", "all", "--data", reviews, *WORDS, "--max-steps", 2)
    refused = run(*flags, "--publish", "reviews")
    assert refused.status == 2
    assert "leave --publish out" in refused.err
    assert "--model FOLDER" in refused.err
    made = run(*flags, "--out", tmp_path / "run")
    assert made.status == 0, made.err
    assert made.json["model"] == str(tmp_path / "run" / "model")
    assert not (tmp_path / "run" / "task").exists()
    refused = run("publish", "reviews", "--run", tmp_path / "run")
    assert refused.status == 2
    assert f"load it with --model {tmp_path / 'run' / 'model'}" in refused.err
    manual = ("train", "--method", "manual", "--model", made.json["model"], "--data", reviews, *WORDS)
    assert run(*manual).json["metrics"] == made.json["metrics"]


def test_flags_of_pet_may_stand_in_a_recipe(run, reviews, tmp_path):
    recipe = tmp_path / "pet.yaml"
    recipe.write_text(
        f"method: pet\ndata: {reviews}\nverbalizer: {{positive: ' great', negative: ' bad'}}\nlm-weight: some\n"
    )
    wrong = run("train", recipe)
    assert wrong.status == 2
    assert "line 4: lm-weight must be a number, got 'some'" in wrong.err


def test_help_shows_the_defaults_that_are_used(run):
    shown = " ".join(run("train", "--help").out.split())
    assert f"without labels counts. [default: ({LM_WEIGHT})]" in shown
    assert f"tried a step. [default: ({AutoPrompt.candidates})]" in shown
