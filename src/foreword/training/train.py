"""`train`: from rows to a task that is ready to publish."""

from __future__ import annotations

import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from foreword.core import Front, KVPrefix, Task
from foreword.engine.engine import Engine
from foreword.errors import DataError, TemplateError, TrainingError, UsageError
from foreword.evaluation.evaluate import Report, evaluate, label_of
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.base import Method, PromptEncoder
from foreword.prompts.lower import empty, lower
from foreword.prompts.registry import method as find_method
from foreword.text.rows import Row, data_digest, read_rows
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer
from foreword.training.data import Example, examples
from foreword.training.losses import Loss, answer_loss, label_loss
from foreword.training.progress import ProgressLines
from foreword.training.recipe import Recipe
from foreword.training.trainer import Learner, PrefixTrainer, arguments, batches
from foreword.version import __version__

# Rows that choose the best checkpoint; the final figures are over all of them.
EVAL_ROWS = 1000


@dataclass(frozen=True)
class Outcome:
    """What a run gives.

    Attributes:
        task: lowered, not yet published.
        n: rows evaluated.
        metrics: of the task on all evaluation rows.
        before: of the same template without a prefix.
        trained_parameters: how many numbers were learned.
        folder: the run folder.
    """

    task: Task
    n: int
    metrics: dict[str, float]
    before: dict[str, float]
    trained_parameters: int
    folder: Path


@dataclass(frozen=True)
class _Material:
    """The data of a run, read and checked."""

    template: Template
    verbalizer: Verbalizer | None
    train_rows: list[Row]
    eval_rows: list[Row]


def train(
    lm: LanguageModel,
    recipe: Recipe,
    *,
    name: str = "run",
    transfer: KVPrefix | None = None,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> Outcome:
    """Learn a prompt for a frozen model.

    Args:
        lm: the base model; its weights do not change.
        recipe: data, method and hyper-parameters.
        name: of the task.
        transfer: the prefix of the task that ``init="task:NAME"`` names.
        say: gets a line for every stage.

    Raises:
        DataError, TemplateError, VerbalizerError, UsageError: something in the recipe or the data is wrong.
        TrainingError: the run folder holds another run.
    """
    method = find_method(recipe.method)
    material = _material(recipe)
    folder = _folder(recipe, lm, method)
    task = _bare_task(lm, recipe, material, name)
    with Engine(lm, cache_bytes=256 << 20) as engine:
        before = _scored(engine, task, material.eval_rows, recipe)
        say(f"without a prefix: {_shown(before)} on {before.n} rows")
        if method.length:
            encoder = _learn(lm, recipe, method, material, task, transfer, engine, folder)
            task = replace(task, prefix=lower(lm, encoder))
            parameters = sum(p.numel() for p in encoder.parameters())
            after = _scored(engine, task, material.eval_rows, recipe)
            say(f"with {task.prefix.length} virtual tokens ({recipe.method}): {_shown(after)} on {after.n} rows")
        else:
            parameters, after = 0, before
    task = replace(task, provenance={**task.provenance, "metrics": after.metrics, "metrics_before": before.metrics})
    outcome = Outcome(task, after.n, after.metrics, before.metrics, parameters, folder)
    _write_summary(outcome)
    return outcome


def _material(recipe: Recipe) -> _Material:
    rows = read_rows(recipe.data)
    held = read_rows(recipe.eval) if recipe.eval is not None else []
    template = _template(recipe, rows)
    template.require_answer()
    verbalizer = _verbalizer(recipe, template, [*rows, *held])
    if not held:
        if len(rows) < 2:
            raise DataError(f"{recipe.data} has one example; give at least two, or --eval.")
        order = random.Random(recipe.seed).sample(range(len(rows)), len(rows))
        count = max(1, len(rows) // 10)
        held, rows = [rows[i] for i in order[:count]], [rows[i] for i in order[count:]]
    for row in [*rows, *held]:
        template.fill(row.values, row.where)
    return _Material(template, verbalizer, rows, held)


def _template(recipe: Recipe, rows: Sequence[Row]) -> Template:
    if recipe.template is not None:
        template = Template.parse(recipe.template)
        if recipe.target_field is None or template.target == recipe.target_field:
            return template
        if template.target is not None or template.has_mask:
            raise TemplateError("--target-field contradicts the template's own answer; give one of them.")
        return Template.parse(recipe.template + f"{{target:{recipe.target_field}}}")
    answer = recipe.target_field or recipe.label_field
    texts = [name for name, value in rows[0].values.items() if isinstance(value, str) and name != answer]
    if len(texts) != 1:
        raise TemplateError(
            f"{rows[0].where}: the row has {len(texts)} text fields ({', '.join(texts) or 'none'}), so the template "
            "cannot be guessed; pass --template, such as '{text}\\nLabel:{mask}'."
        )
    if recipe.target_field is not None:
        return Template.parse(f"{{{texts[0]}}}\nAnswer:{{target:{recipe.target_field}}}")
    return Template.default(texts[0])


def _verbalizer(recipe: Recipe, template: Template, rows: Sequence[Row]) -> Verbalizer | None:
    if not template.has_mask:
        if recipe.verbalizer is not None:
            raise UsageError("a verbalizer needs a template with {mask}; this one generates text.")
        return None
    if recipe.verbalizer is not None:
        return Verbalizer.parse(recipe.verbalizer)
    return Verbalizer.from_labels(sorted({label_of(row, recipe.label_field) for row in rows}))


def _folder(recipe: Recipe, lm: LanguageModel, method: Method) -> Path:
    """Make or reopen the run folder. Raises TrainingError rather than mixing two runs."""
    folder = Path(recipe.out or f"runs/{method.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    file = folder / "recipe.json"
    settings = {**recipe.to_json(), "model": lm.identity.weights, "dtype": str(lm.dtype)}
    if file.is_file():
        if not recipe.resume:
            raise TrainingError(f"{folder} holds a run already; pass --resume to go on with it, or another --out.")
        found = json.loads(file.read_text(encoding="utf-8"))
        changed = [key for key in settings if found.get(key) != json.loads(json.dumps(settings[key]))]
        if changed:
            raise TrainingError(
                f"{folder} was started with another {changed[0]} ({found.get(changed[0])!r}, now "
                f"{settings[changed[0]]!r}); resume with the same settings, or use another --out."
            )
    elif recipe.resume:
        raise TrainingError(f"{folder} holds no run to resume; leave out --resume.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise TrainingError(
            f"the run folder {folder} cannot be written: {error.strerror}; use another --out."
        ) from error
    return folder


def _bare_task(lm: LanguageModel, recipe: Recipe, material: _Material, name: str) -> Task:
    generation: dict[str, Any] = {}
    if material.template.target is not None:
        # Twice the longest answer leaves room for new ones and still ends a model that rambles.
        filled = [material.template.fill(row.values).target or "" for row in material.train_rows]
        longest = max(len(lm.tokenizer.encode(text, add_special_tokens=False)) for text in filled)
        generation["max_tokens"] = max(16, 2 * longest)
    return Task(
        name=name,
        method=recipe.method,
        prefix=empty(lm),
        template=material.template.source,
        verbalizer=dict(material.verbalizer.words) if material.verbalizer is not None else None,
        generation=generation,
        provenance={
            "foreword": __version__,
            "data_sha256": data_digest(recipe.data),
            "recipe": recipe.to_json(),
            "parents": [recipe.init.removeprefix("task:")] if recipe.init.startswith("task:") else [],
        },
    )


def _learn(
    lm: LanguageModel,
    recipe: Recipe,
    method: Method,
    material: _Material,
    task: Task,
    transfer: KVPrefix | None,
    engine: Engine,
    folder: Path,
) -> PromptEncoder:
    length = recipe.length or (transfer.length if transfer is not None else method.length)
    read = _reader(lm, recipe, material, length)
    rows, held = read(material.train_rows), material.eval_rows[:EVAL_ROWS]
    steps = recipe.steps(len(rows))
    start = _initializer(lm, recipe, method, material, transfer, length)
    encoder = method.encoder(lm, start(length, torch.Generator().manual_seed(recipe.seed)))
    loss = _loss(lm, material)
    score = _scorer(lm, encoder, loss, read(held), held, task, engine, recipe)
    trainer = PrefixTrainer(
        Learner(lm, encoder, loss),
        arguments(recipe, steps, recipe.lr or method.lr, folder, lm.device),
        rows,
        batches(rows, recipe, steps),
        held,
        score,
        [ProgressLines()],
    )
    trainer.train(resume_from_checkpoint=_checkpoint(folder) if recipe.resume else None)
    return encoder


def _reader(
    lm: LanguageModel, recipe: Recipe, material: _Material, length: int
) -> Callable[[Sequence[Row]], list[Example]]:
    def read(rows: Sequence[Row]) -> list[Example]:
        return examples(
            lm,
            material.template,
            material.verbalizer,
            rows,
            label_field=recipe.label_field,
            virtual_tokens=length,
        )

    return read


def _loss(lm: LanguageModel, material: _Material) -> Loss:
    if material.verbalizer is None:
        return answer_loss
    return label_loss(material.verbalizer.encode(lm.tokenizer, material.template.before_answer))


def _scorer(
    lm: LanguageModel,
    encoder: PromptEncoder,
    loss: Loss,
    held: list[Example],
    rows: list[Row],
    task: Task,
    engine: Engine,
    recipe: Recipe,
) -> Callable[[], dict[str, float]]:
    """Metrics of the lowered encoder; ``score`` is accuracy with ties broken by loss, or minus the loss."""

    @torch.inference_mode()
    def score() -> dict[str, float]:
        prefix = lower(lm, encoder)
        pieces = [held[i : i + recipe.batch_size] for i in range(0, len(held), recipe.batch_size)]
        if task.verbalizer is None:
            weighted = [(sum(len(e.target) for e in piece), float(loss(lm, Front(prefix), piece))) for piece in pieces]
            mean = sum(count * value for count, value in weighted) / sum(count for count, _ in weighted)
            return {"loss": mean, "score": -mean}
        report = evaluate(engine, replace(task, prefix=prefix), rows, label_field=recipe.label_field)
        surprise = [-math.log(max((p.probs or {})[p.expected], 1e-12)) for p in report.predictions]
        mean = sum(surprise) / len(surprise)
        return {**report.metrics, "loss": mean, "score": report.metrics["accuracy"] + 1e-4 / (1 + mean)}

    return score


def _initializer(
    lm: LanguageModel,
    recipe: Recipe,
    method: Method,
    material: _Material,
    transfer: KVPrefix | None,
    length: int,
) -> init.Initializer:
    kind = method.init if recipe.init == "auto" and recipe.init_text is None else recipe.init
    if recipe.init_text is not None:
        if kind not in ("auto", "text"):
            raise UsageError(f"--init-text is for --init text, not --init {kind}.")
        return init.text(lm, recipe.init_text)
    if transfer is not None:
        return init.transfer(transfer)
    makers: dict[str, Callable[[], init.Initializer]] = {
        "auto": lambda: init.text(lm, _solved(material, recipe, length)),
        "random": lambda: init.random_values,
        "vocab": lambda: init.sampled_vocabulary(lm),
        "labels": lambda: init.text(lm, _label_words(material)),
    }
    if kind not in makers:
        mend = "; give it with --init-text" if kind == "text" else f"; choose {', '.join(makers)}, text or task:NAME"
        raise UsageError(f"--init {kind} has nothing to start from{mend}.")
    return makers[kind]()


def _solved(material: _Material, recipe: Recipe, length: int) -> str:
    """Solved training examples as one text, a little longer than ``length`` tokens are likely to hold."""
    pairs: list[tuple[str, object]] = []
    for row in material.train_rows:
        filled = material.template.fill(row.values, row.where)
        if material.verbalizer is None:
            pairs.append((filled.text + (filled.target or ""), None))
        else:
            label = label_of(row, recipe.label_field)
            pairs.append((filled.text + material.verbalizer.words[label][0], label))
    return init.demonstrations(pairs, budget=6 * length)


def _label_words(material: _Material) -> str:
    if material.verbalizer is None:
        raise UsageError("--init labels needs a template with {mask}; use --init auto.")
    return "".join(word for words in material.verbalizer.words.values() for word in words)


def _checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint; ``None`` if the run was stopped before its first."""
    saved = (folder / "checkpoints").glob("checkpoint-*")
    complete = [path for path in saved if (path / "trainer_state.json").is_file()]
    newest = max(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)
    return str(newest) if newest is not None else None


def _scored(engine: Engine, task: Task, rows: list[Row], recipe: Recipe) -> Report:
    return evaluate(engine, task, rows, label_field=recipe.label_field)


def _shown(report: Report) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in report.metrics.items())


def _write_summary(outcome: Outcome) -> None:
    summary = {
        "n": outcome.n,
        "metrics": outcome.metrics,
        "metrics_before": outcome.before,
        "trained_parameters": outcome.trained_parameters,
        "prefix_bytes": outcome.task.prefix.nbytes,
    }
    (outcome.folder / "summary.json").write_text(json.dumps(summary, indent=2), encoding="utf-8")
