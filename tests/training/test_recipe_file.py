"""Recipes as they are written: whatever is wrong is shown in its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from foreword.errors import RecipeError, UsageError
from foreword.training.recipe import Recipe
from foreword.training.recipe_file import RecipeFile


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("text", "line", "said", "shown"),
    [
        ("- a\n- b\n", 1, "a recipe is a mapping; write flags as keys, such as 'method: p-tuning-v2'.", "- a"),
        ("", 1, "a recipe is a mapping", None),
        ("data: x\na: [1\n", 2, "this is not YAML: while parsing a flow sequence", "a: [1"),
        ("data: x\nlr: 1\nlr: 2\n", 3, "this is not YAML: key 'lr' stands twice.", "lr: 2"),
        ("data: x\n a: b\n", 2, "this is not YAML: mapping values are not allowed here.", " a: b"),
        ("data: x\n\tlr: 1\n", 2, "this is not YAML: while scanning", "\tlr: 1"),
        ("data: x\nlr: \x07\n", 2, "this is not YAML: special characters are not allowed.", "lr: \x07"),
        (
            "a: !!python/object/apply:os.system ['true']\n",
            1,
            "tags are not read; write the value without one",
            "a: !!python",
        ),
        ("data: 'x\nlr: 1\n", 2, "found unexpected end of stream", "lr: 1"),
    ],
)
def test_what_is_no_recipe(text, line, said, shown, tmp_path):
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        RecipeFile.read(file)
    sentence, *frame = str(caught.value).split("\n")
    assert sentence.startswith(f"recipe {file} line {line}: ")
    assert said in sentence
    assert frame == [] if shown is None else frame[0].startswith(f"  {line} | {shown}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match="cannot be read: No such file or directory; check the path"):
        RecipeFile.read(tmp_path / "nothing.yaml")
    (tmp_path / "latin.yaml").write_bytes("data: caf\xe9".encode("latin-1"))
    with pytest.raises(UsageError, match=r"is not UTF-8 text \(byte 9\)"):
        RecipeFile.read(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: x\n\nlenght: 3\n", "line 3: there is no key 'lenght'; did you mean 'length'?\n  3 | lenght: 3"),
        (
            "data: x\nmaxsteps: 3 # few\n",
            "line 2: there is no key 'maxsteps'; did you mean 'max_steps'?\n  2 | maxsteps",
        ),
        ("zzz: 1\n", "line 1: there is no key 'zzz'; it takes data, "),
    ],
)
def test_unknown_keys(text, said, tmp_path):
    file = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        RecipeFile.read(file).check_keys(["data", "length", "max_steps"])
    assert str(caught.value).startswith(f"recipe {file} {said}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data: x\nlr: fast\n", "line 2: lr must be a number, got 'fast'.\n  2 | lr: fast"),
        ("data: x\n# a step\nbatch-size: 2.5\n", "line 3: batch-size must be a whole number, got 2.5.\n  3 | batch-"),
        ("data: x\nlength: 0\n", "line 2: length must be above 0, got 0.\n  2 | length: 0"),
        ("epochs: 1\ndata: x\nmax_steps: 3\n", "line 3: epochs and --max-steps both set the length of the run"),
        ("data:\n  - x\n", "line 1: data must be text, got ['x'].\n  1 | data:"),
    ],
)
def test_wrong_values_are_shown_where_they_stand(text, said, tmp_path):
    found = RecipeFile.read(write(tmp_path, text))
    with pytest.raises(RecipeError) as caught, found.locate_errors():
        Recipe(**found.values)
    assert str(caught.value).startswith(f"recipe {found.path} {said}")


def test_a_flag_in_place_of_a_key_is_not_shown_as_an_error_of_the_recipe(tmp_path):
    found = RecipeFile.read(write(tmp_path, "data: x\nlength: 3\n")).without({"length"})
    with pytest.raises(UsageError, match=r"^--length must be above 0, got -1\.$"), found.locate_errors():
        Recipe(**{**found.values, "length": -1})
