"""``foreword train RECIPE.yaml``: whatever is wrong with a recipe is said with its line, before the model is loaded."""

from __future__ import annotations

import pytest

HEAD = "# reviews\ndata: DATA\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lenght: 4", "there is no key 'lenght'; did you mean 'length'?"),
        ("length: four", "length must be a whole number, got 'four'."),
        ("length: 0", "length must be above 0, got 0."),
        ("method: p-tuning-v3", "unknown method 'p-tuning-v3', did you mean 'p-tuning-v2'; choose p-tuning-v2, "),
        ("rank: 4", "method p-tuning-v2 has no option --rank; it takes "),
        ("template: '{text}{mask'", "never closed"),
        ("template: 5", "template must be text or a list, got 5."),
        ("verbalizer: {a: ' x'}", "a verbalizer needs at least 2 labels, got 1"),
        ("verbalizer: {a: ' x', b: ' x'}", "stands for both 'a' and 'b'"),
        ("trust_remote_code: 'no'", "trust-remote-code must be true or false, got 'no'."),
        ("publish: Bad Name", "a task name is 1 to 64 of "),
        ("resume: true", "resume needs --out RUN"),
        ("data: other.jsonl", "this is not YAML: key 'data' stands twice."),
    ],
)
def test_the_line_is_shown(run, reviews, tmp_path, line, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD.replace('DATA', str(reviews))}{line}\nmodel: ./nowhere\n")
    refused = run("train", recipe)
    assert refused.status == 2
    sentence, frame = refused.err.rstrip("\n").split("\n")
    assert sentence.startswith(f"foreword: recipe {recipe} line 3: ")
    assert said in sentence
    assert frame == f"  3 | {line}"
    assert refused.out == ""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("dtype: int3", "dtype must be one of auto, float32, bfloat16, float16, got 'int3'"),
        ("init: nonsense", "nonsense"),
        ("freeze_first: true\ninit: random", "freeze-first would freeze random values"),
        ("calibrate: true\ntemplate: '{text}: {target:label}'", "calibrate is for labels, and this run generates text"),
    ],
)
def test_so_is_one_that_turns_out_wrong_later(run, reviews, tmp_path, line, said):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{HEAD.replace('DATA', str(reviews))}{line}\n")
    refused = run("train", recipe)
    assert refused.status == 2
    assert f"recipe {recipe} line 3: " in refused.err
    assert said in refused.err
    assert f"  3 | {line.splitlines()[0]}" in refused.err


def test_a_flag_over_a_wrong_key_is_not_the_recipes_fault(run, reviews, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data: {reviews}\nlength: 0\nmax_steps: 1\n")
    assert run("train", recipe, "--length", 2).status == 0
    refused = run("train", recipe, "--length", "-1")
    assert refused.err == "foreword: --length must be above 0, got -1.\n"


def test_a_recipe_of_a_warm_start(run, reviews, tmp_path):
    (tmp_path / "other.yaml").write_text(f"data: {reviews}\ntemplat: '{{text}}:{{mask}}'\n")
    (tmp_path / "recipe.yaml").write_text(f"data: {reviews}\nwarm_start: [other.yaml]\nmax_steps: 1\n")
    refused = run("train", "recipe.yaml")
    assert "recipe other.yaml line 2: there is no key 'templat'; did you mean 'template'?" in refused.err
    assert "  2 | templat: " in refused.err
