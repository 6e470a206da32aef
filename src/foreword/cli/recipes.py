"""Recipes as commands take them: a file of keys, flags over it, and what can be checked before the model is loaded."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import typer

from foreword.cli import options
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.training.recipe import Recipe
    from foreword.training.recipe_file import RecipeFile


def given(
    context: typer.Context, recipe: str | None, elsewhere: Collection[str], more: Collection[str] = ()
) -> tuple[RecipeFile, dict[str, Any]]:
    """The recipe, and flags over its keys over environment and defaults.

    Args:
        recipe: the file, if there is one.
        elsewhere: keys that are no hyper-parameters of the run.
        more: keys that the recipe may have and that are no flags.
    """
    from foreword.training.recipe import check_type
    from foreword.training.recipe_file import RecipeFile

    file = RecipeFile.read(recipe) if recipe is not None else RecipeFile.empty()
    file.check_keys({*context.params, *more} - {"recipe", "json"})
    with file.locate_errors():
        for name in sorted(set(file.values) & set(elsewhere)):
            check_type(name, file.values[name], optional=True)
    typed = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    # An option that may be given several times is an empty tuple where it is not given.
    usual = {name: None if value == () else value for name, value in context.params.items()}
    return file.without(typed), {**usual, **file.values, **typed}


def recipe(values: dict[str, Any]) -> Recipe:
    from foreword.text.template import decode_escapes
    from foreword.training.recipe import Recipe

    if values.get("data") is None:
        raise UsageError("there is nothing to learn from; pass --data FILE, or a recipe that names it.")
    template = values["template"]
    if isinstance(template, str):
        template = decode_escapes(template)
    elif isinstance(template, list | tuple):
        decoded = [decode_escapes(each) if isinstance(each, str) else each for each in template]
        template = decoded[0] if len(decoded) == 1 else decoded
    return Recipe(**{**values, "template": template})


def check(file: RecipeFile, run: Recipe) -> None:
    """Raise now for a template, words or a method that would be refused once the model is loaded."""
    from foreword.text.template import Template
    from foreword.text.verbalizer import Verbalizer

    with file.locate_errors("template"):
        for source in run.templates:
            Template.parse(source)
    with file.locate_errors("verbalizer"):
        if run.verbalizer is not None:
            Verbalizer.parse(run.verbalizer)
    options.quiet_libraries()
    from foreword.prompts.registry import get_method

    get_method(run.method, **run.options)
