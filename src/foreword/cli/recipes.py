"""Recipes as commands take them: a file of keys, flags over it, and what can be checked before the model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import FlagsOf, parameter_types
from foreword.cli.options import ModelOptions, quiet_libraries, say, typed_options
from foreword.errors import UsageError
from foreword.training.recipe import Recipe
from foreword.training.setting import check_type

if TYPE_CHECKING:
    from foreword.training.data.training_data import TrainingData
    from foreword.training.recipe_file import RecipeFile

# Settings of a single run, which runs that learn in the same batches do not have.
SINGLE = ("warm_start", "members", "weights", "unlabeled", "lm_weight", "candidates", "report_to")

RecipeFlags = Annotated[dict[str, Any], FlagsOf(Recipe)]
SharedRecipeFlags = Annotated[dict[str, Any], FlagsOf(Recipe, without=SINGLE)]


def read_settings(
    context: typer.Context, path: str | None, more_keys: Collection[str] = (), unchecked: Collection[str] = ()
) -> tuple[RecipeFile, dict[str, Any]]:
    """The recipe file, and every setting: flags over the file's keys over environment and defaults.

    Args:
        path: the file; ``None`` if there is none.
        more_keys: keys that it may have and that are no flags.
        unchecked: keys whose types the caller checks, beside the hyper-parameters, which `Recipe` checks.
    """
    from foreword.training.recipe_file import RecipeFile

    file = RecipeFile.read(path) if path is not None else RecipeFile.empty()
    file.check_keys({*context.params, *more_keys} - {"recipe", "json"})
    types = parameter_types(context.command.callback) if context.command.callback is not None else {}
    with file.locate_errors():
        for name in sorted(set(file.values) - {*Recipe.keys(), *more_keys, *unchecked}):
            check_type(name, file.values[name], (*types[name], NoneType))
    typed = typed_options(context)
    # An option that may be given several times is an empty tuple where it is not given.
    usual = {name: None if value == () else value for name, value in context.params.items()}
    return file.without(typed), {**usual, **file.values, **typed}


def make_recipe(settings: Mapping[str, Any]) -> Recipe:
    """The hyper-parameters among the settings of a command. Raises UsageError if there are no data among them."""
    from foreword.text.template import decode_escapes

    if settings.get("data") is None:
        raise UsageError("there is nothing to learn from; pass --data FILE, or a recipe that names it.")
    template = settings["template"]
    if isinstance(template, str):
        template = decode_escapes(template)
    elif isinstance(template, list | tuple):
        decoded = [decode_escapes(each) if isinstance(each, str) else each for each in template]
        template = decoded[0] if len(decoded) == 1 else decoded
    keys = Recipe.keys()
    values = {name: value for name, value in settings.items() if name in keys}
    return Recipe(**{**values, "template": template})


def read_training_data(recipe: Recipe) -> TrainingData:
    """Read and check the data of a recipe before the model is loaded, and print them in one line."""
    from foreword.training.data.training_data import TrainingData

    data = TrainingData.read(recipe, vocabulary=None)
    say(data.overview)
    return data


def check_recipe(file: RecipeFile, recipe: Recipe, options: ModelOptions) -> None:
    """Raise now for a method, a template, words or a task that would be refused once the model is loaded."""
    from foreword.prompts.registry import check_method, get_method
    from foreword.text.template import Template
    from foreword.text.verbalizer import Verbalizer
    from foreword.training.loop.run_dir import RunDir

    with file.locate_errors("template"):
        for source in recipe.templates:
            Template.parse(source)
    with file.locate_errors("verbalizer"):
        if recipe.verbalizer is not None:
            Verbalizer.parse(recipe.verbalizer)
    check_method(recipe.method)
    if recipe.out is not None:
        RunDir(Path(recipe.out)).check(resume=recipe.resume)
    with file.locate_errors("init"):
        options.check_task(recipe.parent)
    quiet_libraries()
    if recipe.method_options:
        get_method(recipe.method, **recipe.method_options)
