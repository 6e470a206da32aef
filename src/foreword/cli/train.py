"""``foreword train``."""

from __future__ import annotations

import os
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options
from foreword.cli.interruption import command_line, going_on
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.training.recipe import Recipe
    from foreword.training.recipe_file import RecipeFile
    from foreword.training.train import Outcome


def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A YAML recipe: flags as keys; flags given here win.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="p-tuning-v2, prefix-tuning, p-tuning, prompt-tuning, pet, autoprompt, lora, lora-hybrid or manual."
        ),
    ] = "p-tuning-v2",
    data: Annotated[str | None, typer.Option(help="Training examples: JSONL, CSV, Parquet or hub:NAME:SPLIT.")] = None,
    eval: Annotated[  # noqa: A002 - the flag is called --eval
        str | None, typer.Option("--eval", help="Evaluation examples.", show_default="a tenth of --data")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="How an example becomes text; may be given several times.",
            show_default="{the text field}\\nLabel:{mask}",
        ),
    ] = None,
    verbalizer: Annotated[
        str | None, typer.Option(help="Words of every label: JSON or a file.", show_default="the labels' names")
    ] = None,
    label_field: Annotated[str, typer.Option(help="Field that holds the label.")] = "label",
    target_field: Annotated[str | None, typer.Option(help="Field that holds the text to generate.")] = None,
    head: Annotated[
        str | None,
        typer.Option(help="verbalizer or linear.", show_default="verbalizer; linear for tags and sentence encoders"),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Virtual tokens.", show_default="the method's")] = None,
    init: Annotated[str, typer.Option(help="auto, random, uniform, vocab, text, labels or task:NAME.")] = "auto",
    init_text: Annotated[str | None, typer.Option(help="Text to start from.")] = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(help="Recipe of a further data set to learn with first; may be repeated.")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="the method's")] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="60 to 320, by size")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    accumulate: Annotated[int, typer.Option(help="Parts that a step is run in, for less memory.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations, for less memory still.")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many evaluations without a better one.", show_default="never")
    ] = None,
    class_weights: Annotated[
        str | None, typer.Option(help="Weight of every label in the loss: balanced, JSON or a file.")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Subtract what the task says to empty input.")] = False,
    members: Annotated[int, typer.Option(help="Prefixes of an ensemble, each with its own seed.")] = 1,
    rank: Annotated[int | None, typer.Option(help="Of an adapter (lora, lora-hybrid, pet).", show_default="8")] = None,
    encoder: Annotated[str | None, typer.Option(help="Of p-tuning: lstm or mlp.", show_default="lstm")] = None,
    projection: Annotated[
        bool | None, typer.Option("--projection/--no-projection", help="Of p-tuning-v2: learn through an MLP.")
    ] = None,
    freeze_first: Annotated[
        bool | None, typer.Option("--freeze-first/--learn-first", help="Of a prefix: keep its first token as it is.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="Of pet: learn an adapter (lora) or a whole model (all).", show_default="lora")
    ] = None,
    unlabeled: Annotated[
        str | None, typer.Option(help="Of pet: rows without labels, for several templates to label for each other.")
    ] = None,
    lm_weight: Annotated[
        float | None,
        typer.Option(help="Of pet: how much modelling the rows without labels counts.", show_default="0.01"),
    ] = None,
    candidates: Annotated[
        int | None, typer.Option(help="Of autoprompt: triggers that are tried a step.", show_default="24")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order of examples and of random values.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    report_to: Annotated[str, typer.Option(help="Tracker of the Transformers Trainer.")] = "none",
    out: Annotated[str | None, typer.Option(help="Run folder.", show_default="runs/NAME-TIME")] = None,
    publish: Annotated[str | None, typer.Option(help="Publish the task under this name.")] = None,
    replace: options.Replace = False,
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    json: options.Json = False,
) -> None:
    """Learn a prompt for a frozen model, and publish it.

    Example: foreword train --data reviews.jsonl --template 'Review: {text}\\nSentiment:{mask}' --publish reviews
    """
    file, given = _given(context, recipe)
    with file.blamed():
        _train(file, given)


def _train(file: RecipeFile, given: dict[str, Any]) -> None:
    """Learn, keep and publish what flags and recipe say."""
    run = _recipe({key: value for key, value in given.items() if key not in _ELSEWHERE})
    name, place = given["publish"], given["bank"]
    store = options.open_bank(place)
    if name is not None:
        from foreword.bank.bank import check_free

        if run.weights == "all":
            raise UsageError(
                "--weights all changes the model itself, which no task can carry; leave --publish out, and load what "
                "was learned with --model FOLDER."
            )
        with file.blamed("publish"):
            check_free(name, [given["model"] or options.default_model()])
    _check(file, run)
    out_folder = run.out or _default_out(name or run.method)
    with going_on(lambda: _left(out_folder)):
        lm = options.open_model(given["model"], given["dtype"], given["device"], given["trust_remote_code"])
        from foreword.bank.format import write_version
        from foreword.training.train import train as run_train

        transfer = options.find_task(run.parent, place, lm) if run.parent is not None else None
        outcome = run_train(
            lm,
            with_fields(run, out=out_folder),
            name=name or "run",
            transfer=transfer,
            say=options.say,
        )
        task = outcome.task
        if int(os.environ.get("RANK", "0")):
            return  # the first process of a distributed run writes and publishes
        if outcome.model is None:
            write_version(fresh(Path(out_folder) / "task"), with_fields(task, name=RUN_TASK))
        if name is not None:
            task = store.publish(task, replace=given["replace"], reserved=[lm.name])
    options.emit(
        {
            "n": outcome.n,
            "metrics": outcome.metrics,
            "task": task.ref if name is not None else None,
            "metrics_before": outcome.before,
            "trained_parameters": outcome.trained_parameters,
            "prefix_bytes": task.prefix.nbytes,
            "task_bytes": task.nbytes,
            "run": str(outcome.folder),
            "model": str(outcome.model) if outcome.model is not None else None,
        },
        _summary(outcome, task.ref if name is not None else None),
        given["json"],
    )


# The name that a task has in its run folder, until it is published under one of its own.
RUN_TASK = "run"

# Keys of a recipe that are not hyper-parameters of the run.
_ELSEWHERE = ("publish", "bank", "model", "dtype", "device", "trust_remote_code", "replace", "json", "recipe")


def _given(context: typer.Context, recipe: str | None) -> tuple[RecipeFile, dict[str, Any]]:
    """The recipe, and flags over its keys over environment and defaults."""
    from foreword.training.recipe import check_type
    from foreword.training.recipe_file import RecipeFile

    file = RecipeFile.read(recipe) if recipe is not None else RecipeFile.none()
    file.check_keys(set(context.params) - {"recipe", "json"})
    with file.blamed():
        for name in sorted(set(file.values) & set(_ELSEWHERE)):
            check_type(name, file.values[name], optional=True)
    typed = {
        name: value
        for name, value in context.params.items()
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    # An option that may be given several times is an empty tuple where it is not given.
    usual = {name: None if value == () else value for name, value in context.params.items()}
    return file.without(typed), {**usual, **file.values, **typed}


def _recipe(values: dict[str, Any]) -> Recipe:
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


def _check(file: RecipeFile, run: Recipe) -> None:
    """Raise now for a template, words or a method that would be refused once the model is loaded."""
    from foreword.text.template import Template
    from foreword.text.verbalizer import Verbalizer

    with file.blamed("template"):
        for source in run.templates:
            Template.parse(source)
    with file.blamed("verbalizer"):
        if run.verbalizer is not None:
            Verbalizer.parse(run.verbalizer)
    options.quiet_libraries()
    from foreword.prompts.registry import method

    method(run.method, **run.options)


def _left(out: str) -> str:
    """What a run leaves behind that is stopped, and how it goes on."""
    if not (Path(out) / "recipe.json").is_file():
        return f"nothing was written; start again: {command_line()}"
    return f"what was learned is in {out}; go on with: {command_line('--resume', '--out', out)}"


def _default_out(name: str) -> str:
    import time

    return f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def fresh(folder: Path) -> Path:
    """An empty folder; a resumed run writes its task anew."""
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _summary(outcome: Outcome, ref: str | None) -> str:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    if outcome.model is not None:
        return f"{shown}\na model of its own; load it with --model {outcome.model}"
    published = (
        f"published {ref}" if ref is not None else f"not published; foreword publish NAME --run {outcome.folder}"
    )
    return f"{shown}\n{published}"
