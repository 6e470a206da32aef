"""``foreword train``."""

from __future__ import annotations

import os
from dataclasses import replace as with_fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import flags, options, recipes, runs
from foreword.cli.interruption import going_on
from foreword.errors import UsageError
from foreword.home import default_run_dir

if TYPE_CHECKING:
    from foreword.training.recipe_file import RecipeFile
    from foreword.training.train import TrainResult


def train(
    context: typer.Context,
    recipe: Annotated[str | None, typer.Argument(help="A YAML recipe: flags as keys; flags given here win.")] = None,
    method: flags.Method = "p-tuning-v2",
    data: Annotated[str | None, typer.Option(help="Training examples: JSONL, CSV, Parquet or hub:NAME:SPLIT.")] = None,
    eval: Annotated[  # noqa: A002 - the flag is called --eval
        str | None, typer.Option("--eval", help="Evaluation examples.", show_default="a tenth of --data")
    ] = None,
    template: flags.Template = None,
    verbalizer: flags.Verbalizer = None,
    label_field: flags.LabelField = "label",
    target_field: flags.TargetField = None,
    head: flags.Head = None,
    length: flags.Length = None,
    init: flags.Init = "auto",
    init_text: flags.InitText = None,
    warm_start: Annotated[
        list[str] | None, typer.Option(help="Recipe of a further data set to learn with first; may be repeated.")
    ] = None,
    lr: flags.Lr = None,
    epochs: flags.Epochs = None,
    max_steps: flags.MaxSteps = None,
    batch_size: flags.BatchSize = 16,
    accumulate: flags.Accumulate = 1,
    checkpointing: flags.Checkpointing = False,
    patience: flags.Patience = None,
    class_weights: flags.ClassWeights = None,
    calibrate: flags.Calibrate = False,
    members: Annotated[int, typer.Option(help="Prefixes of an ensemble, each with its own seed.")] = 1,
    rank: flags.Rank = None,
    encoder: flags.Encoder = None,
    projection: flags.Projection = None,
    freeze_first: flags.FreezeFirst = None,
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
    seed: flags.Seed = 0,
    resume: flags.Resume = False,
    report_to: Annotated[str, typer.Option(help="Tracker of the Transformers Trainer.")] = "none",
    out: flags.Out = None,
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
    file, given = recipes.given(context, recipe, ELSEWHERE)
    with file.locate_errors():
        _train(file, given)


def _train(file: RecipeFile, given: dict[str, Any]) -> None:
    """Learn, keep and publish what flags and recipe say."""
    run = recipes.recipe({key: value for key, value in given.items() if key not in ELSEWHERE})
    name, place = given["publish"], given["bank"]
    store = options.open_bank(place)
    if name is not None:
        from foreword.bank.bank import check_free

        if run.weights == "all":
            raise UsageError(
                "--weights all changes the model itself, which no task can carry; leave --publish out, and load what "
                "was learned with --model FOLDER."
            )
        with file.locate_errors("publish"):
            check_free(name, [given["model"] or options.default_model()])
    recipes.check(file, run)
    out_folder = run.out or default_run_dir(name or run.method)
    with going_on(lambda: runs.left(out_folder)):
        lm = options.open_model(given["model"], given["dtype"], given["device"], given["trust_remote_code"])
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
            runs.keep(task, Path(out_folder))
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


# Keys of a recipe that are not hyper-parameters of the run.
ELSEWHERE = ("publish", "bank", "model", "dtype", "device", "trust_remote_code", "replace", "json", "recipe")


def _summary(outcome: TrainResult, ref: str | None) -> str:
    shown = ", ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    if outcome.model is not None:
        return f"{shown}\na model of its own; load it with --model {outcome.model}"
    published = (
        f"published {ref}" if ref is not None else f"not published; foreword publish NAME --run {outcome.folder}"
    )
    return f"{shown}\n{published}"
