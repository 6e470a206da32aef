"""`distill`: from a long text to a task that answers like it from a few virtual tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foreword.core import Front, Kind, KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.errors import SettingError, TrainingError
from foreword.home import default_run
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.prompts.rotate import rotations
from foreword.training.distillation import initialization
from foreword.training.distillation.curve import draw, table
from foreword.training.distillation.document import Document
from foreword.training.distillation.evaluator import DistillationEvaluator, LikelihoodGap, score_answers
from foreword.training.distillation.kl_loss import DistillationExample, distillation_examples
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.report import DistillationReport, measure
from foreword.training.distillation.run import DistillationRun
from foreword.training.distillation.setup import DistillationSetup, SelfStudyData, load, save
from foreword.training.distillation.teacher_logits import TeacherLogits
from foreword.training.loop.distributed import require_single_process
from foreword.training.loop.run_dir import RunDir
from foreword.training.loop.trainer import fit
from foreword.version import __version__

METHOD = "distill"
# A batch of answers behind a shared text: their own keys and values are few.
CACHE_BYTES = 512 << 20


@dataclass(frozen=True)
class DistillResult:
    """What a distillation gives.

    Attributes:
        task: ready to publish.
        quality: of the task, on questions that it never learned from.
        init: where it started.
        steps: of the optimizer.
        tokens: of conversations that were learned from, passes counted.
        folder: the run folder.
        curve: of other lengths, if they were asked for; the task's own is among them.
    """

    task: Task
    quality: DistillationReport
    init: str
    steps: int
    tokens: int
    folder: Path
    curve: tuple[DistillationReport, ...] = ()

    @property
    def effort(self) -> dict[str, Any]:
        """What it took, as JSON has it."""
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
        TrainingError: the run folder holds another run, or learning went astray.
    """
    require_single_process("distilling")
    recipe = recipe or DistilRecipe()
    kind = kind or ("system" if getattr(lm.tokenizer, "chat_template", None) else "prompt")
    document = Document.read(lm, kind, text, recipe.chunk)
    _check_shorter(document, [recipe.slots, *curve])
    rotations(lm)  # a model whose keys cannot move is refused before it makes questions for minutes
    plan = DistillationSetup(lm, document, recipe)
    folder = RunDir.open(recipe.out or default_run(METHOD), plan.settings(), resume=recipe.resume)
    say(f"{document.tokens} tokens of text, {document.nbytes:,} bytes{_in_chunks(document)}")
    desk = _Desk.of(plan, folder, say)
    made = {slots: desk.distilled(_task(plan, name, parent), slots) for slots in sorted({recipe.slots, *curve})}
    chosen = made[recipe.slots]
    folder.write_summary({**chosen.quality.to_json(), **chosen.effort})
    if not curve:
        return chosen
    every = tuple(each.quality for each in made.values())
    draw(every, folder.path / "curve.png")
    (folder.path / "curve.md").write_text(table(every) + "\n", encoding="utf-8")
    return replace(chosen, curve=every)


@dataclass(frozen=True, eq=False)
class _Desk:
    """All that prefixes of any length are learned from and measured by.

    Attributes:
        plan: model, text and settings.
        folder: of the run.
        material: the conversations.
        examples: those that are learned from, with the teacher's beliefs.
        held, test: what there is to close on the others.
        say: gets a line for every stage.
    """

    plan: DistillationSetup
    folder: RunDir
    material: SelfStudyData
    examples: Sequence[DistillationExample]
    held: LikelihoodGap
    test: LikelihoodGap
    say: Say

    @classmethod
    def of(cls, plan: DistillationSetup, folder: RunDir, say: Say) -> _Desk:
        """Make it, or read back what is in the folder. Raises TrainingError for a text that is of no use."""
        material = _material(plan, folder, say)
        examples = distillation_examples(material.learned, _beliefs(plan, folder, material, say))
        held, test = (LikelihoodGap.of(plan.lm, plan.document, part) for part in (material.held, material.test))
        if not test.full.logprob > test.none.logprob:
            raise TrainingError(
                "the model answers no better with the text than without it, so there is nothing to distil; check the "
                "text, or give questions about it with --eval-questions."
            )
        return cls(plan, folder, material, examples, held, test, say)

    def distilled(self, task: Task, slots: int) -> DistillResult:
        """Learn a prefix of one length, or go on with it, and measure it."""
        prefix, init = self._start(slots)
        lesson = DistillationRun(self.plan, self.examples, self.material.held)
        learned = lesson.learned(prefix)
        folder = self.folder.subdir(f"slots-{slots}")
        fit(lesson, learned, DistillationEvaluator(lesson, learned, self.held), folder)
        steps = folder.read_history()[-1]["step"]
        tokens = sum(self.examples[item.index].num_tokens for batch in lesson.batches[:steps] for item in batch)
        task = learned.to_task(self.plan.lm, task)
        with Engine(self.plan.lm, cache_bytes=CACHE_BYTES) as engine:
            quality = measure(self.plan, engine, self.material, self.test, task)
        closed, ratio = quality.gap_closed, quality.bytes_ratio
        self.say(f"{slots} slots close {closed:.3f} of the gap, with {ratio:.1f} times fewer bytes")
        return DistillResult(with_figures(task, quality, init), quality, init, steps, tokens, self.folder.path)

    def _start(self, slots: int) -> tuple[KVPrefix, str]:
        """The initial values that are asked for, or else those that are worth most on the held-out conversations."""
        plan, wanted = self.plan, self.plan.recipe.init
        source = initialization.InitSource(plan.lm, plan.document, self.material.learned, slots)
        if wanted != "auto":
            return initialization.INITIALIZERS[wanted](source), wanted
        candidates = {name: start(source) for name, start in initialization.INITIALIZERS.items()}
        closed = {name: self._closed(prefix) for name, prefix in candidates.items()}
        best = max(closed, key=lambda name: closed[name])
        shown = ", ".join(f"{name} {value:.3f}" for name, value in closed.items())
        self.say(f"share of the gap that {slots} slots close before they learn: {shown}")
        return candidates[best], best

    def _closed(self, prefix: KVPrefix) -> float:
        fronts = [Front(prefix)] * len(self.plan.document.chunks)
        return self.held.closed(score_answers(self.plan.lm, fronts, self.material.held))


def with_figures(task: Task, quality: DistillationReport, init: str) -> Task:
    """The task with where it started, and the figures that its card shows."""
    metrics = {
        "gap_closed": quality.gap_closed,
        "agreement": quality.agreement["distilled"],
        "f1": quality.f1["distilled"],
        "bytes_ratio": quality.bytes_ratio,
        "questions": quality.n,
    }
    return replace(task, provenance={**task.provenance, "init": init, "metrics": metrics})


def _material(plan: DistillationSetup, folder: RunDir, say: Say) -> SelfStudyData:
    """The conversations, made now or read back."""
    file = folder.path / "conversations.json"
    if not file.is_file():
        with Engine(plan.lm, cache_bytes=CACHE_BYTES) as engine:
            save(plan.study(engine), file)
    material = load(file)
    say(
        f"{len(material.learned)} conversations to learn from, {len(material.held)} to choose by, "
        f"{len(material.test)} to measure by"
    )
    return material


def _beliefs(plan: DistillationSetup, folder: RunDir, material: SelfStudyData, say: Say) -> TeacherLogits:
    """What the teacher expects in them, computed now or read back."""
    file = folder.path / "beliefs.safetensors"
    if not file.is_file():
        plan.beliefs(material.learned).save(file)
    found = TeacherLogits.load(file)
    say(f"the teacher's {found.token_ids.shape[1]} most probable tokens at {found.starts[-1]:,} places")
    return found


def _task(plan: DistillationSetup, name: str, parent: str | None) -> Task:
    """The task before anything is learned; it answers as the static task of the text would."""
    document = plan.document
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
            "recipe": plan.settings(),
            "parents": [parent] if parent is not None else [],
        },
    )


def _check_shorter(document: Document, lengths: Sequence[int]) -> None:
    if max(lengths) >= document.tokens:
        raise SettingError(
            "slots",
            f"the text has {document.tokens} tokens, so {max(lengths)} slots would not be shorter; take fewer, or "
            "publish the text as it is.",
        )


def _in_chunks(document: Document) -> str:
    count = len(document.chunks)
    return f", in {count} chunks" if count > 1 else ""
