"""``foreword distill``."""

from __future__ import annotations

from dataclasses import replace as with_fields
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli.completion import complete_task
from foreword.cli.flags import expand_options
from foreword.cli.interruption import on_interrupt
from foreword.cli.options import Json, ModelOptions, Replace, emit, exactly_one, quiet_libraries, read_text, say
from foreword.cli.runs import publish_hint, resume_hint
from foreword.errors import TrainingError, UsageError
from foreword.home import default_run_dir
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.setting import DATA, OUTPUT

if TYPE_CHECKING:
    from foreword.bank.bank import Bank
    from foreword.core import Kind, Task
    from foreword.training.distillation.distill import DistillResult

CURVE_SLOTS = (16, 32, 64, 128)


@expand_options
def distill(
    name: Annotated[
        str | None, typer.Argument(help="A static task whose text is distilled.", autocompletion=complete_task)
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(
            help="File with a text, or -: a system turn if the model has a chat template, else as --text.",
            rich_help_panel=DATA,
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="File with a system prompt, or -.", rich_help_panel=DATA)] = None,
    text: Annotated[
        str | None, typer.Option(help="File with text that stands in front, or -.", rich_help_panel=DATA)
    ] = None,
    *,
    recipe: DistilRecipe,
    curve: Annotated[
        bool,
        typer.Option(
            "--curve",
            help="Learn and measure 16, 32, 64 and 128 slots, too: a table and a picture.",
            rich_help_panel=OUTPUT,
        ),
    ] = False,
    min_quality: Annotated[
        float | None,
        typer.Option(
            help="Publish only what closes at least this share of the gap, such as 0.8.", rich_help_panel=OUTPUT
        ),
    ] = None,
    publish: Annotated[
        str | None, typer.Option(help="Publish the task under this name.", rich_help_panel=OUTPUT)
    ] = None,
    replace: Replace = False,
    options: ModelOptions,
    json: Json = False,
) -> None:
    """Distil a long text into a few virtual tokens that answer like it, and publish them.

    Example: foreword distill --document policy.txt --slots 64 --publish support
    """
    _, given = exactly_one({"NAME": name, "--document": document, "--system": system, "--text": text})
    if min_quality is not None and not 0 < min_quality <= 1:
        raise UsageError(f"--min-quality must be above 0 and at most 1, the whole gap, got {min_quality}.")
    if publish is not None:
        options.check_name(publish)
    quiet_libraries()
    recipe = with_fields(recipe, out=recipe.out or default_run_dir(publish or "distill"))
    store = options.open_bank()
    source = None if name is None else _check_static(store.load(name), store)
    content = source.text or "" if source is not None else read_text(given)
    kind: Kind | None = source.kind if source is not None else "system" if system else "prompt" if text else None
    with on_interrupt(lambda: resume_hint(str(recipe.out))):
        lm = options.open_model(is_trainable=True)
        if source is not None:
            options.check_model(source, lm)
        from foreword.bank.run_task import write_task
        from foreword.training.distillation.distill import distill as run_distill

        result = run_distill(
            lm,
            content,
            recipe,
            kind=kind,
            name=publish or "run",
            parent=source.ref if source is not None else None,
            curve=[each for each in CURVE_SLOTS if curve],
            say=say,
        )
        write_task(result.task, result.folder)
        closed = result.report.gap_closed
        if min_quality is not None and closed < min_quality:
            raise TrainingError(
                f"{recipe.slots} slots close {closed:.3f} of the gap, less than --min-quality {min_quality:g}, so "
                f"nothing was published; the run is kept in {recipe.out}, and more --slots, --max-steps or "
                "--conversations may do."
            )
        task = result.task
        if publish is not None:
            task = store.publish(task, replace=replace, reserved=[lm.name])
    ref = task.ref if publish is not None else None
    data = {
        **result.report.to_json(),
        "task": ref,
        **result.training_stats,
        "curve": [each.to_json() for each in result.curve],
        "run": str(result.folder),
    }
    emit(data, _summary(result, ref), json)


def _check_static(task: Task, bank: Bank) -> Task:
    """Raise UsageError unless a task is a static prompt with its text. Returns the task."""
    if task.prefix.token_ids is None or task.text is None:
        refs = [f"{task.name}@{version}" for version in bank.versions(task.name)]
        static = [ref for ref in refs if bank.describe(ref)["method"] == "static"]
        other = f"name a version that was published from a text, {static[-1]}, or " if static else ""
        raise UsageError(
            f"task '{task.ref}' has no text at full length to distil (method {task.method}); {other}give the text with "
            "--document."
        )
    return task


def _summary(result: DistillResult, ref: str | None) -> str:
    from foreword.training.distillation.curve import curve_table

    report = result.report
    lines = [
        f"gap closed {report.gap_closed:.3f} on {report.n} questions",
        f"answers: F1 with the full text's {report.f1['distilled']:.3f}, without any text {report.f1['none']:.3f}",
        f"agreement of tokens: {report.agreement['distilled']:.3f}, without any text {report.agreement['none']:.3f}",
        f"cache: {report.bytes['distilled']:,} bytes, {report.bytes_ratio:.1f} times fewer than before",
        f"decoding: {report.decode['distilled']:.0f} tokens/s, before {report.decode['full']:.0f}",
    ]
    if result.curve:
        lines += ["", curve_table(result.curve), f"picture: {result.folder / 'curve.png'}"]
    return "\n".join([*lines, publish_hint(ref, result.folder)])
