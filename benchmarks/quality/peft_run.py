"""PEFT: its own model, forward and padded batches; the same rows, steps and loss; scored through Foreword's import."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.quality.loop import learn
from benchmarks.quality.scoring import evaluated, model_size
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import BenchError
from foreword.evaluation.evaluate import evaluate
from foreword.interop.peft import import_peft, read_peft
from foreword.models import LanguageModel
from foreword.models.load import load_model, pull
from foreword.text.label_scorers import WordScorer
from foreword.training.data.examples import Example, examples_of
from foreword.training.loop.evaluator import EVAL_CACHE_BYTES
from foreword.training.recipe import Recipe
from foreword.training.run import Run


def figures(settings: Mapping[str, Any]) -> dict[str, Any]:
    lm = load_model(settings["model"], device="cpu")
    run = Run.from_recipe(lm, Recipe(**settings["recipe"]))
    torch.manual_seed(run.recipe.seed)
    model = _model(lm, str(pull(settings["model"], print)), settings["peft"])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        _learn(run, model, trained, Path(folder))
        seconds = time.perf_counter() - began
        task = _imported(run, Path(folder) / "best")
        task_bytes = (Path(folder) / "best" / "adapter_model.safetensors").stat().st_size
    return {
        **evaluated(lm, task, settings),
        "trained_parameters": sum(parameter.numel() for parameter in trained),
        "model_parameters": model_size(lm),
        "task_bytes": task_bytes,
        "seconds": seconds,
    }


def _model(lm: LanguageModel, folder: str, config: Mapping[str, Any]) -> Any:
    """The stock model with PEFT around it, in the dtype of ours."""
    options = dict(config)
    text = options.pop("prefix_text", None)
    if options.get("prompt_tuning_init") == "TEXT":
        options["tokenizer_name_or_path"] = folder
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=lm.dtype)
    model = peft.get_peft_model(model, peft.get_peft_config(options))
    if text is not None:
        peft.initialize_kv_prefix_from_text(model, lm.tokenizer, text=text, use_chat_template=False)
    return model


def _learn(run: Run, model: Any, trained: Sequence[Tensor], folder: Path) -> None:
    """Leave what is best on dev in ``folder/best``."""
    batches = run.batches

    def backward(step: int) -> None:
        examples = examples_of(run.examples, batches[step])
        _loss(run, model, examples).backward()

    def score() -> float:
        model.save_pretrained(folder / "now")
        return _score(run, _imported(run, folder / "now"))

    learn(
        [(trained, run.lr)],
        run.steps,
        backward=backward,
        changed=lambda: None,
        score=score,
        keep=lambda: model.save_pretrained(folder / "best"),
    )


def _loss(run: Run, model: Any, examples: Sequence[Example]) -> Tensor:
    """Cross-entropy over the labels' words, each a single token: the loss that Foreword learns by."""
    scorer = run.word_scorer
    if not isinstance(scorer, WordScorer) or scorer.trie.inner_nodes:
        raise BenchError("the peers of PEFT are measured where every label is a word of one token.")
    width = max(len(example.prompt_ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, example in enumerate(examples):
        ids[row, : len(example.prompt_ids)] = torch.tensor(example.prompt_ids)
        mask[row, : len(example.prompt_ids)] = 1
    # Soft tokens come back as further positions in front.
    logits = model(input_ids=ids, attention_mask=mask).logits[:, -width:]
    last = logits[torch.arange(len(examples)), mask.sum(1) - 1]
    return F.cross_entropy(scorer.scores(last), torch.tensor([example.labels[0] for example in examples]))


def _score(run: Run, task: Task) -> float:
    """As Foreword's own runs are scored: accuracy, with ties broken by the loss."""
    with Engine(run.lm, cache_bytes=EVAL_CACHE_BYTES) as engine:
        report = evaluate(engine, task, run.validation_set, label_field=run.data.label_field)
    loss = sum(prediction.nll or 0.0 for prediction in report.predictions) / report.n
    return report.metrics["accuracy"] + 1e-4 / (1 + loss)


def _imported(run: Run, folder: Path) -> Task:
    task = import_peft(run.lm, read_peft(str(folder)), "bench")
    asked = run.task("bench")
    return replace(task, template=asked.template, verbalizer=asked.verbalizer)
