"""``foreword search``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli.flags import expand_options
from foreword.cli.interruption import on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, quiet_libraries, say
from foreword.cli.recipes import SharedRecipeFlags, check_recipe, make_recipe, read_settings
from foreword.cli.runs import publish_hint, resume_hint
from foreword.errors import UsageError
from foreword.home import default_run_dir
from foreword.training.recipe import Recipe
from foreword.training.setting import OUTPUT

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.training.recipe_file import RecipeFile
    from foreword.training.search.search import SearchResult

WINNER = "winner.yaml"


@expand_options
def search(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(help="A YAML recipe of train, with search: in it; flags given here win.")
    ] = None,
    *,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="KEY=LIST or KEY=RANGE as in search:, such as 'lr=[1e-3, 5e-3]' or 'lr={low: 1e-4, high: 1e-2, log: "
            "true}'; may be repeated.",
            rich_help_panel="Search",
        ),
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="Points to try.", show_default="all of lists, 32 of ranges", rich_help_panel="Search"),
    ] = None,
    at_once: Annotated[
        int | None, typer.Option(help="Trials that learn in one batch.", show_default="16", rich_help_panel="Search")
    ] = None,
    halving: Annotated[
        str | None,
        typer.Option(
            help="At every rung one trial in so many goes on; or off.", show_default="3", rich_help_panel="Search"
        ),
    ] = None,
    hyperparameters: SharedRecipeFlags,
    publish: Annotated[
        str | None, typer.Option(help="Publish the best task under this name.", rich_help_panel=OUTPUT)
    ] = None,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Learn with many settings side by side in one run, and publish what does best.

    Flags without --vary are the same for all trials.

    Example: foreword search --data reviews.jsonl --vary 'lr=[1e-3, 5e-3]' --vary 'length=[8, 32]' --publish reviews
    """
    file, settings = read_settings(context, recipe, ["search", *Recipe.keys()], _CONFIG_KEYS)
    flagged = [f"search.{flag.partition('=')[0].strip().replace('-', '_')}" for flag in vary or ()]
    with file.without(flagged).locate_errors():
        _search(file, settings)


# Keys whose types `SearchConfig` checks.
_CONFIG_KEYS = ("trials", "at_once", "halving")


def _search(file: RecipeFile, settings: dict[str, Any]) -> None:
    quiet_libraries()
    from foreword.training.search.config import DEFAULT_ETA, SearchConfig

    base = make_recipe(settings)
    options = ModelOptions.from_settings(settings)
    halving = settings["halving"] if settings["halving"] is not None else DEFAULT_ETA
    config = SearchConfig.of(_search_space(settings), settings["trials"], settings["at_once"], halving)
    name = settings["publish"]
    store = options.open_bank()
    if name is not None:
        with file.locate_errors("publish"):
            options.check_name(name)
    check_recipe(file, base, options)
    config.check(base)
    config.check_not_overridden(base)
    out = base.out or default_run_dir("search")
    with on_interrupt(lambda: resume_hint(out)):
        lm = options.open_model(is_trainable=True)
        from foreword.bank.run_task import write_task
        from foreword.training.search.search import search as run_search

        parents = {parent: options.find_task(parent, lm) for parent in config.parents(base)}
        transfers = {parent: task for parent, task in parents.items() if task is not None}
        result = run_search(lm, with_fields(base, out=out), config, name=name or "run", transfers=transfers, say=say)
        recipe = _write_recipe(result, settings)
        task = result.task
        write_task(task, result.folder)
        if name is not None:
            task = store.publish(task, replace=settings["replace"], reserved=[lm.name])
    _emit(result, task, recipe, published=name is not None, json=settings["json"])


def _search_space(settings: Mapping[str, Any]) -> object:
    """The ``search:`` mapping of the recipe, updated by ``--vary``."""
    from foreword.core.yaml_reader import read_yaml

    varied = settings.get("search")
    for flag in settings.get("vary") or ():
        key, equals, value = flag.partition("=")
        if not equals:
            raise UsageError(f"--vary {flag!r} is not KEY=LIST; write it such as 'lr=[1e-3, 5e-3]'.")
        if varied is not None and not isinstance(varied, Mapping):
            break  # the recipe's own is wrong, which is said where it is read
        varied = {**(varied or {}), key.strip().replace("-", "_"): read_yaml(value, f"--vary {key}={value[:60]}")}
    if varied is None:
        raise UsageError("there is nothing to search; pass --vary KEY=LIST, or a recipe with search: in it.")
    return varied


def _write_recipe(result: SearchResult, settings: Mapping[str, Any]) -> Path:
    """Write the winner's recipe: all settings that are not defaults, with the winner's values. Returns its path."""
    import yaml

    from foreword.training.loop.run_dir import RunDir

    defaults = {field.name: field.default for field in fields(Recipe) if field.name not in ("out", "resume")}
    values = {key: settings[key] for key in defaults if settings.get(key) not in (None, defaults[key])}
    options = asdict(ModelOptions.from_settings(settings))
    values = {**{key: value for key, value in options.items() if value not in (None, False, "auto")}, **values}
    values |= result.winner.params
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    RunDir(result.folder).write_text(WINNER, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return result.folder / WINNER


def _emit(result: SearchResult, task: Task, recipe: Path, *, published: bool, json: bool) -> None:
    from foreword.training.search.search import PLOTS_FILE, TRIALS_FILE

    ref = task.ref if published else None
    data = {
        "n": result.n,
        "metrics": result.metrics,
        "task": ref,
        "metrics_before": result.before,
        "trained_parameters": result.trained_parameters,
        "winner": result.winner.to_json(),
        "trials": [trial.to_json() for trial in result.trials],
        "savings": result.savings,
        "seconds": result.seconds,
        "run": str(result.folder),
        "recipe": str(recipe),
        "table": str(result.folder / TRIALS_FILE),
        "picture": str(result.folder / PLOTS_FILE),
    }
    emit(data, _summary(result, ref, recipe), json)


def _summary(result: SearchResult, ref: str | None, recipe: Path) -> str:
    from foreword.evaluation.table import table
    from foreword.training.search.samplers import format_value

    names = list(result.winner.headline_metrics)
    rows = [["trial", *result.winner.params, *names, "steps", ""]]
    for trial in result.trials:
        figures = [f"{trial.headline_metrics[name]:.4f}" if name in trial.headline_metrics else "-" for name in names]
        values = [format_value(value) for value in trial.params.values()]
        rows.append([str(trial.number), *values, *figures, f"{trial.step}/{trial.steps}", trial.state])
    shown = ", ".join(f"{name} {value:.4f}" for name, value in result.metrics.items())
    winner = f"the winner's recipe is {recipe}"
    return "\n".join([table(rows), "", *_format_savings(result), shown, winner, publish_hint(ref, result.folder)])


def _format_savings(result: SearchResult) -> list[str]:
    """Lines about the work that halving and batching saved."""
    spared = result.savings["halving"]
    lines = [
        f"halving: {spared['dropped']} of {len(result.trials)} trials dropped, {spared['examples_not_run']:,} of "
        f"{spared['examples_run'] + spared['examples_not_run']:,} examples not run ({spared['share_not_run']:.0%})"
    ]
    for pair in result.savings["batching"]:
        lines.append(
            f"batching: a step of {pair['trials']} trials took {pair['seconds_together']:.2f} s together and "
            f"{pair['seconds_one_by_one']:.2f} s one by one ({pair['times_faster']:.2f}x, {pair['pairs']} measured)"
        )
    if not result.savings["batching"]:
        lines.append("batching: not measured, since no step was far enough from an evaluation")
    return lines
