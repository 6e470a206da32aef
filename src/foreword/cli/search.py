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
from foreword.cli.runs import publish_hint, resume_hint, write_task
from foreword.errors import SettingError, UsageError
from foreword.home import default_run_dir
from foreword.training.recipe import Recipe
from foreword.training.setting import flag_of

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.training.recipe_file import RecipeFile
    from foreword.training.search.config import SearchConfig
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
            "true}'; may be repeated."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="Points to try.", show_default="all of lists, 32 of ranges")
    ] = None,
    at_once: Annotated[int | None, typer.Option(help="Trials that learn in one batch.", show_default="16")] = None,
    halving: Annotated[
        str | None, typer.Option(help="At every rung one trial in so many goes on; or off.", show_default="3")
    ] = None,
    hyperparameters: SharedRecipeFlags,
    publish: Annotated[str | None, typer.Option(help="Publish the best task under this name.")] = None,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Learn with many settings side by side in one run, and publish what does best.

    Flags without --vary are the same for all trials.

    Example: foreword search --data reviews.jsonl --vary 'lr=[1e-3, 5e-3]' --vary 'length=[8, 32]' --publish reviews
    """
    file, settings = read_settings(context, recipe, ["search", *Recipe.keys()], _OF_THE_PLAN)
    flagged = [f"search.{flag.partition('=')[0].strip().replace('-', '_')}" for flag in vary or ()]
    with file.without(flagged).locate_errors():
        _search(file, settings)


# Keys of a recipe that `SearchConfig` checks.
_OF_THE_PLAN = ("trials", "at_once", "halving")


def _search(file: RecipeFile, settings: dict[str, Any]) -> None:
    quiet_libraries()
    from foreword.training.search.config import DEFAULT_ETA, SearchConfig

    base = make_recipe(settings)
    options = ModelOptions.from_settings(settings)
    halving = settings["halving"] if settings["halving"] is not None else DEFAULT_ETA
    plan = SearchConfig.of(_varied(settings), settings["trials"], settings["at_once"], halving)
    name = settings["publish"]
    store = options.open_bank()
    if name is not None:
        with file.locate_errors("publish"):
            options.check_name(name)
    check_recipe(file, base)
    plan.check(base)
    _check_unvaried(plan, base)
    out = base.out or default_run_dir("search")
    with on_interrupt(lambda: resume_hint(out)):
        lm = options.open_model()
        from foreword.training.search.search import search as run_search

        parents = {parent: options.find_task(parent, lm) for parent in _parents(plan, base)}
        transfers = {parent: task for parent, task in parents.items() if task is not None}
        found = run_search(lm, with_fields(base, out=out), plan, name=name or "run", transfers=transfers, say=say)
        recipe = _write_recipe(found, settings)
        task = found.task
        write_task(task, found.folder)
        if name is not None:
            task = store.publish(task, replace=settings["replace"], reserved=[lm.name])
    _emit(found, task, recipe, published=name is not None, json=settings["json"])


def _check_unvaried(plan: SearchConfig, base: Recipe) -> None:
    """Raise SettingError for one value of a key that has several."""
    usual = {field.name: field.default for field in fields(base)}
    # The seed of the points is the recipe's own, also where trials have other seeds.
    varied = set(plan.space.domains) - {"seed"}
    if varied & {"epochs", "max_steps"}:
        varied |= {"epochs", "max_steps"}
    for key in sorted(varied):
        if getattr(base, key) != usual[key]:
            raise SettingError(
                key, f"{flag_of(key)} would be ignored, since the search varies it; leave one of them out."
            )


def _varied(settings: Mapping[str, Any]) -> object:
    """What the recipe varies, and what flags vary over it."""
    from foreword.training.recipe_file import parse_value

    varied = settings.get("search")
    for flag in settings.get("vary") or ():
        key, equals, value = flag.partition("=")
        if not equals:
            raise UsageError(f"--vary {flag!r} is not KEY=LIST; write it such as 'lr=[1e-3, 5e-3]'.")
        if varied is not None and not isinstance(varied, Mapping):
            break  # the recipe's own is wrong, which is said where it is read
        varied = {**(varied or {}), key.strip().replace("-", "_"): parse_value(value)}
    if varied is None:
        raise UsageError("there is nothing to search; pass --vary KEY=LIST, or a recipe with search: in it.")
    return varied


def _parents(plan: SearchConfig, base: Recipe) -> list[str]:
    """Tasks that some trial starts from."""
    inits = [params["init"] for params in plan.params_to_check() if "init" in params] or [base.init]
    return sorted({init.removeprefix("task:") for init in inits if init.startswith("task:")})


def _write_recipe(found: SearchResult, settings: Mapping[str, Any]) -> Path:
    """The winner's recipe as it would be written by hand: what was given, with the winner's values in it."""
    import yaml

    from foreword.training.loop.run_dir import RunDir

    usual = {field.name: field.default for field in fields(Recipe) if field.name not in ("out", "resume")}
    values = {key: settings[key] for key in usual if settings.get(key) not in (None, usual[key])}
    options = asdict(ModelOptions.from_settings(settings))
    values = {**{key: value for key, value in options.items() if value not in (None, False, "auto")}, **values}
    values |= found.winner.params
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    RunDir(found.folder).write_text(WINNER, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
    return found.folder / WINNER


def _emit(found: SearchResult, task: Task, recipe: Path, *, published: bool, json: bool) -> None:
    from foreword.training.search.search import PLOTS_FILE, TRIALS_FILE

    ref = task.ref if published else None
    data = {
        "n": found.n,
        "metrics": found.metrics,
        "task": ref,
        "metrics_before": found.before,
        "trained_parameters": found.trained_parameters,
        "winner": found.winner.to_json(),
        "trials": [trial.to_json() for trial in found.trials],
        "savings": found.savings,
        "seconds": found.seconds,
        "run": str(found.folder),
        "recipe": str(recipe),
        "table": str(found.folder / TRIALS_FILE),
        "picture": str(found.folder / PLOTS_FILE),
    }
    emit(data, _text(found, ref, recipe), json)


def _text(found: SearchResult, ref: str | None, recipe: Path) -> str:
    from foreword.evaluation.table import table
    from foreword.training.search.samplers import format_value

    names = list(found.winner.headline_metrics)
    rows = [["trial", *found.winner.params, *names, "steps", ""]]
    for trial in found.trials:
        figures = [f"{trial.headline_metrics[name]:.4f}" if name in trial.headline_metrics else "-" for name in names]
        values = [format_value(value) for value in trial.params.values()]
        rows.append([str(trial.number), *values, *figures, f"{trial.step}/{trial.steps}", trial.state])
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.metrics.items())
    return "\n".join(
        [table(rows), "", *_saved(found), shown, f"the winner's recipe is {recipe}", publish_hint(ref, found.folder)]
    )


def _saved(found: SearchResult) -> list[str]:
    """What halving and batching saved, each by itself."""
    spared = found.savings["halving"]
    lines = [
        f"halving: {spared['dropped']} of {len(found.trials)} trials dropped, {spared['examples_not_run']:,} of "
        f"{spared['examples_run'] + spared['examples_not_run']:,} examples not run ({spared['share_not_run']:.0%})"
    ]
    for pair in found.savings["batching"]:
        lines.append(
            f"batching: a step of {pair['trials']} trials took {pair['seconds_together']:.2f} s together and "
            f"{pair['seconds_one_by_one']:.2f} s one by one ({pair['times_faster']:.2f}x, {pair['pairs']} measured)"
        )
    return (
        lines if len(lines) > 1 else [*lines, "batching: not measured, since no step was far enough from an evaluation"]
    )
