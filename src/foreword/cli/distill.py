"""``foreword distill``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foreword.cli import options, runs
from foreword.cli.completion import task_names
from foreword.cli.interruption import going_on
from foreword.errors import TrainingError, UsageError
from foreword.home import default_run_dir

if TYPE_CHECKING:
    from foreword.core import Kind, Task
    from foreword.training.distillation.distill import DistillResult

CURVE = (16, 32, 64, 128)


def distill(
    context: typer.Context,
    name: Annotated[
        str | None, typer.Argument(help="A static task whose text is distilled.", autocompletion=task_names)
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(help="File with a text, or -: a system turn if the model has a chat template, else as --text."),
    ] = None,
    system: Annotated[str | None, typer.Option(help="File with a system prompt, or -.")] = None,
    text: Annotated[str | None, typer.Option(help="File with text that stands in front, or -.")] = None,
    slots: Annotated[int, typer.Option(help="Virtual tokens.")] = 64,
    init: Annotated[
        str, typer.Option(help="Where they start: attention, even or first, or auto for the best of them.")
    ] = "auto",
    questions: Annotated[
        str | None, typer.Option(help="Questions to learn from: rows with question.", show_default="self-made")
    ] = None,
    eval_questions: Annotated[
        str | None,
        typer.Option(
            help="Questions to measure by: rows with question, and answers if known.", show_default="self-made"
        ),
    ] = None,
    conversations: Annotated[int, typer.Option(help="Self-made conversations to learn from.")] = 256,
    held: Annotated[int, typer.Option(help="Self-made questions to choose by, and as many to measure by.")] = 48,
    answer_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.")] = 64,
    chunk: Annotated[
        int | None, typer.Option(help="Tokens that the text is cut into.", show_default="cut only if it has to be")
    ] = None,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = 1e-2,
    max_steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 300,
    batch_size: Annotated[int, typer.Option(help="Conversations a step.")] = 4,
    accumulate: Annotated[int, typer.Option(help="Parts that a step is run in, for less memory.")] = 1,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations, for less memory still.")
    ] = False,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many looks without a better one.", show_default="never")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    curve: Annotated[
        bool, typer.Option("--curve", help="Learn and measure 16, 32, 64 and 128 slots, too: a table and a picture.")
    ] = False,
    min_quality: Annotated[
        float | None, typer.Option(help="Publish only what closes at least this share of the gap, such as 0.8.")
    ] = None,
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
    """Distil a long text into a few virtual tokens that answer like it, and publish them.

    Example: foreword distill --document policy.txt --slots 64 --publish support
    """
    given = _source({"NAME": name, "--document": document, "--system": system, "--text": text})
    if min_quality is not None and not 0 < min_quality <= 1:
        raise UsageError(f"--min-quality must be above 0 and at most 1, the whole gap, got {min_quality}.")
    if publish is not None:
        from foreword.bank.bank import check_free

        check_free(publish, [model or options.default_model()])
    options.quiet_libraries()
    from foreword.training.distillation.recipe import DistilRecipe

    out = out or default_run_dir(publish or "distill")
    # The other flags are named as the recipe's own settings.
    settings = {each.name: context.params[each.name] for each in fields(DistilRecipe)}
    recipe = DistilRecipe(**{**settings, "out": out})
    store = options.open_bank(bank)
    source = None if name is None else static(store.load(name))
    content = source.text or "" if source is not None else options.read_text(given)
    kind: Kind | None = source.kind if source is not None else "system" if system else "prompt" if text else None
    with going_on(lambda: runs.left(out)):
        lm = options.open_model(model, dtype, device, trust_remote_code)
        if source is not None:
            options.check_model(source, lm)
        from foreword.training.distillation.distill import distill as run_distill

        made = run_distill(
            lm,
            content,
            recipe,
            kind=kind,
            name=publish or "run",
            parent=source.ref if source is not None else None,
            curve=[each for each in CURVE if curve],
            say=options.say,
        )
        runs.keep(made.task, Path(out))
        closed = made.report.gap_closed
        if min_quality is not None and closed < min_quality:
            raise TrainingError(
                f"{slots} slots close {closed:.3f} of the gap, less than --min-quality {min_quality:g}, so nothing was "
                f"published; the run is kept in {out}, and more --slots, --max-steps or --conversations may do."
            )
        task = made.task
        if publish is not None:
            task = store.publish(task, replace=replace, reserved=[lm.name])
    options.emit(_figures(made, task, publish is not None), _summary(made, task if publish is not None else None), json)


def static(task: Task) -> Task:
    """Raise UsageError for a task that holds no text at full length."""
    if task.prefix.token_ids is None or task.text is None:
        raise UsageError(
            f"task '{task.ref}' has no text at full length to distil (method {task.method}); name a version that was "
            f"published from a text, such as {task.name}@1, or give the text with --document."
        )
    return task


def _source(sources: dict[str, str | None]) -> str:
    given = {flag: value for flag, value in sources.items() if value is not None}
    if len(given) != 1:
        raise UsageError(f"give exactly one of {', '.join(sources)}; got {', '.join(given) or 'none'}.")
    return next(iter(given.values()))


def _figures(made: DistillResult, task: Task, published: bool) -> dict[str, Any]:
    return {
        **made.report.to_json(),
        "task": task.ref if published else None,
        **made.training_stats,
        "curve": [each.to_json() for each in made.curve],
        "run": str(made.folder),
    }


def _summary(made: DistillResult, task: Task | None) -> str:
    from foreword.training.distillation.curve import curve_table

    report = made.report
    lines = [
        f"gap closed {report.gap_closed:.3f} on {report.n} questions",
        f"answers: F1 with the full text's {report.f1['distilled']:.3f}, without any text {report.f1['none']:.3f}",
        f"agreement of tokens: {report.agreement['distilled']:.3f}, without any text {report.agreement['none']:.3f}",
        f"cache: {report.bytes['distilled']:,} bytes, {report.bytes_ratio:.1f} times fewer than before",
        f"decoding: {report.decode['distilled']:.0f} tokens/s, before {report.decode['full']:.0f}",
    ]
    if made.curve:
        lines += ["", curve_table(made.curve), f"picture: {made.folder / 'curve.png'}"]
    how = f"published {task.ref}" if task is not None else f"not published; foreword publish NAME --run {made.folder}"
    return "\n".join([*lines, how])
