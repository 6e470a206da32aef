"""`distill`: compresses a long text into a task with a short learned prefix that answers like the text in context."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.core import Front, Kind, KVPrefix, Task
from foreword.core.overview import Overview, WithOverview
from foreword.engine.engine import Engine
from foreword.errors import SettingError
from foreword.home import default_run_dir
from foreword.models import LanguageModel
from foreword.models.gradient_probe import check_gradients
from foreword.progress import Say
from foreword.prompts.rotate import rotations
from foreword.training.distillation.answer_scores import score_answers
from foreword.training.distillation.curve import curve_table, plot_curve
from foreword.training.distillation.document import Document
from foreword.training.distillation.evaluator import DistillationEvaluator
from foreword.training.distillation.initialization import INITIALIZERS, InitSource
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.report import DistillationReport, distillation_report
from foreword.training.distillation.run import CACHE_BYTES, DistillationRun, run_settings
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import fit
from foreword.version import __version__

METHOD = "distill"


@dataclass(frozen=True, repr=False)
class DistillResult(WithOverview):
    """A distilled task and its metrics.

    Attributes:
        task: ready to publish.
        report: metrics on questions that it never learned from.
        init: name of its initializer.
        steps: optimizer steps.
        tokens: of the conversations that were learned from, over all steps.
        folder: the run folder.
        curve: reports of further lengths and its own, if others were asked for.
    """

    task: Task
    report: DistillationReport
    init: str
    steps: int
    tokens: int
    folder: Path
    curve: tuple[DistillationReport, ...] = ()

    def overview(self) -> Overview:
        """How much of the full text's effect it keeps, its size, and where the run is."""
        return Overview(
            f"DistillResult of task {self.task.ref!r}",
            {
                "gap closed": f"{self.report.gap_closed:.3f} on {self.report.n} questions",
                "size": f"{self.task.prefix.length} positions, {self.report.bytes_ratio:.1f} times fewer bytes",
                "run": self.folder,
            },
        )

    @property
    def training_stats(self) -> dict[str, Any]:
        """Initializer, steps and tokens, as JSON values."""
        return {"init": self.init, "steps": self.steps, "tokens": self.tokens}


def distill(
    lm: LanguageModel,
    text: str,
    recipe: DistilRecipe | None = None,
    *,
    kind: Kind | None = None,
    name: str = "run",
    parent: str | None = None,
    curve: Sequence[int] = (),
    say: Say = lambda line: print(line, file=sys.stderr),
) -> DistillResult:
    """Learn a short prefix that acts like a long text in context.

    Args:
        lm: the base model; its weights are the same afterwards.
        text: system prompt, policy, manual, chapter; longer than the context, too.
        recipe: settings.
        kind: ``system`` makes it the system turn of every conversation, ``prompt`` puts it in front as it is; by
            default the first if the model has a chat template.
        name: of the task.
        parent: the task, ``name@version``, that served the text at full length.
        curve: further lengths to learn and measure.
        say: gets a line for every stage.

    Raises:
        UnsupportedModel: an encoder, an encoder-decoder, or a model whose keys cannot move to other positions.
        UsageError, DataError: something in the settings or the files of questions is wrong.
        TrainingError: the run folder holds another run, or the loss is no longer finite.
    """
    require_single_process("distilling")
    recipe = recipe or DistilRecipe()
    kind = kind or ("system" if getattr(lm.tokenizer, "chat_template", None) else "prompt")
    document = Document.prefill(lm, kind, text, recipe.chunk)
    lengths = sorted({recipe.slots, *curve})
    if lengths[-1] >= document.tokens:
        raise SettingError(
            "slots",
            f"the text has {document.tokens} tokens, so {lengths[-1]} slots would not be shorter; take fewer, or "
            "publish the text as it is.",
        )
    check_gradients(lm)
    rotations(lm)  # a model whose keys cannot move is refused before it makes questions for minutes
    settings = run_settings(lm, document, recipe)
    folder = RunDir.open(recipe.out or default_run_dir(METHOD), settings, resume=recipe.resume)
    chunks = f", in {len(document.chunks)} chunks" if len(document.chunks) > 1 else ""
    say(f"{document.tokens} tokens of text, {document.nbytes:,} bytes{chunks}")
    run = DistillationRun.prepare(lm, document, recipe, folder.path, say)
    task = _static_task(document, settings, name, parent)
    results = {slots: _distill_to(slots, run, task, folder, say) for slots in lengths}
    result = results[recipe.slots]
    folder.write_summary({**result.report.to_json(), **result.training_stats})
    if not curve:
        return result
    reports = tuple(each.report for each in results.values())
    plot_curve(reports, folder.path / "curve.png")
    (folder.path / "curve.md").write_text(curve_table(reports) + "\n", encoding="utf-8")
    return replace(result, curve=reports)


def _distill_to(slots: int, run: DistillationRun, task: Task, folder: RunDir, say: Say) -> DistillResult:
    """Learn a prefix of one length, or resume it, and measure it."""
    initial, init = _initial_prefix(slots, run, say)
    prompt = run.initial_prompt(initial)
    own_folder = folder.subdir(f"slots-{slots}")
    fit(run, prompt, DistillationEvaluator(run, prompt), own_folder)
    steps = max((int(entry.get("step", 0)) for entry in own_folder.read_history()), default=0)
    tokens = sum(run.examples[item.index].num_tokens for batch in run.batches[:steps] for item in batch)
    task = prompt.to_task(run.lm, task)
    with Engine(run.lm, cache_bytes=CACHE_BYTES) as engine:
        report = distillation_report(run, engine, task)
    say(f"{slots} slots close {report.gap_closed:.3f} of the gap, with {report.bytes_ratio:.1f} times fewer bytes")
    provenance = {**task.provenance, "init": init, "metrics": report.headline_metrics, **run.lm.origin}
    return DistillResult(replace(task, provenance=provenance), report, init, steps, tokens, folder.path)


def _initial_prefix(slots: int, run: DistillationRun, say: Say) -> tuple[KVPrefix, str]:
    """The prefix of the recipe's initializer, or for ``auto`` that which scores best on the validation conversations;
    and the initializer's name."""
    source = InitSource(run.lm, run.document, run.data.train, slots)
    if run.recipe.init != "auto":
        return INITIALIZERS[run.recipe.init](source), run.recipe.init
    prefixes = {name: initializer(source) for name, initializer in INITIALIZERS.items()}
    closed = {
        name: run.validation_gap.share_closed(score_answers(run.lm, Front(prefix), run.validation_set))
        for name, prefix in prefixes.items()
    }
    best = max(closed, key=lambda name: closed[name])
    shares = ", ".join(f"{name} {value:.3f}" for name, value in closed.items())
    say(f"share of the gap that {slots} slots close before they learn: {shares}")
    return prefixes[best], best


def _static_task(document: Document, settings: dict[str, Any], name: str, parent: str | None) -> Task:
    """The task before a prefix is learned: that of the document's first chunk."""
    return Task(
        name,
        METHOD,
        document.chunks[0].prefix,
        document.kind,
        document.text,
        provenance={
            "foreword": __version__,
            "text_sha256": document.digest,
            "text_tokens": document.tokens,
            "recipe": settings,
            "parents": [parent] if parent is not None else [],
        },
    )
