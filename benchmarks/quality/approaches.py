"""`Approach`: one way to solve a data set, by Foreword or by somebody else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.quality.dataset import DataSet, Files
from foreword.bench.participants import OURS, Peer

BATCH = 16
# The recipe of those who learn in their own way: it says which rows are learned, in what order and with what loss.
ROWS_OF = "p-tuning-v2"

# What PEFT's methods start from, where they can start from text.
_INSTRUCTION = "Classify the sentiment of the review as great or bad."
_EXAMPLES = (
    f"{_INSTRUCTION}\nReview: a warm and funny film from start to finish\nSentiment: great\n"
    "Review: dull , lifeless and far too long\nSentiment: bad\n"
)

PEERS = (
    Peer("majority", "the most frequent label of the training rows, always"),
    Peer("manual", "the template as it is, nothing learned"),
    Peer(
        "full",
        "all weights, by the same loss over the same ragged batches: AdamW on float32 copies of bfloat16 weights, the "
        "learning rate chosen on dev among two",
    ),
    Peer(
        "peft_lora",
        "PEFT's LoRA of rank 8 on all linear layers, by its own forward on padded batches, the learning rate chosen on "
        "dev among two; scored through Foreword's import",
        ("peft",),
    ),
    Peer(
        "peft",
        "PEFT's prompt methods of 32 virtual tokens, by its own forward on padded batches and the same loss, the "
        "learning rate chosen on dev among two; prompt tuning starts from a written instruction, P-tuning v2 from the "
        "keys and values of one with two examples (`initialize_kv_prefix_from_text`; from random values it stays at "
        "chance); scored through Foreword's import",
        ("peft",),
    ),
)


@dataclass(frozen=True)
class Approach:
    """One way to solve a data set.

    Attributes:
        name: as in the key of a cell.
        by: ``foreword``, or the key of a peer.
        module: the module of `benchmarks.quality` whose ``figures`` measures it.
        method: of the recipe.
        rates: learning rates to choose from on dev; the method's own without.
        steps: in place of the data set's, for a method whose steps are of another kind.
        patterns: it learns from all patterns of a data set, not from its template alone.
        peft: PEFT's configuration; ``prefix_text`` beside it is a text whose keys and values are the initial prefix.
    """

    name: str
    by: str = OURS
    module: str = "foreword_run"
    method: str = ROWS_OF
    rates: tuple[float, ...] = ()
    steps: int | None = None
    patterns: bool = False
    peft: Mapping[str, Any] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        return self.method != "manual"

    def recipe(self, dataset: DataSet, files: Files, rate: float | None, steps: int, seed: int) -> dict[str, Any]:
        """Arguments of `foreword.training.recipe.Recipe`."""
        learned = {"lr": rate, "max_steps": steps, "batch_size": BATCH} if self.learns else {}
        return {
            **self._wording(dataset, files),
            **learned,
            "data": files.train,
            "eval": files.dev,
            "method": self.method,
            "label_field": dataset.label_field,
            "seed": seed,
        }

    def _wording(self, dataset: DataSet, files: Files) -> dict[str, Any]:
        if dataset.head_template is not None and self.learns:
            return {"template": dataset.head_template, "head": "linear"}
        soft = dataset.soft_template if self.method == "p-tuning" else None
        patterns = [dataset.template, *dataset.patterns] if self.patterns else None
        return {"template": patterns or soft or dataset.template, "verbalizer": files.verbalizer}

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name in ("by", "method", "peft")}


def _ours(method: str, **options: Any) -> Approach:
    return Approach(method, method=method, **options)


def _peft(method: str, kind: str, rates: tuple[float, ...], **options: Any) -> Approach:
    config = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_virtual_tokens": 32, **options}
    return Approach(f"peft-{method}", "peft", "peft_run", rates=rates, peft=config)


APPROACHES: Mapping[str, Approach] = {
    approach.name: approach
    for approach in (
        Approach("majority", "majority", "majority_run", method="manual"),
        Approach("manual", "manual", method="manual"),
        *map(_ours, ("prompt-tuning", "p-tuning", "prefix-tuning", "p-tuning-v2", "lora", "lora-hybrid")),
        _ours("pet", patterns=True),
        # A step tries 16 triggers on two batches; 32 of them are what the method itself does by default.
        _ours("autoprompt", steps=32),
        Approach("full", "full", "full_run", rates=(3e-5, 1e-4)),
        Approach(
            "peft-lora",
            "peft_lora",
            "peft_run",
            rates=(3e-4, 1e-3),
            peft={
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "r": 8,
                "lora_alpha": 16,
                "target_modules": "all-linear",
            },
        ),
        _peft(
            "prompt-tuning",
            "PROMPT_TUNING",
            (2e-2, 1e-1),
            prompt_tuning_init="TEXT",
            prompt_tuning_init_text=_INSTRUCTION,
        ),
        _peft("p-tuning", "P_TUNING", (1e-3, 3e-3), encoder_reparameterization_type="LSTM"),
        _peft("prefix-tuning", "PREFIX_TUNING", (1e-3, 5e-3), prefix_projection=True),
        _peft("p-tuning-v2", "PREFIX_TUNING", (5e-3, 3e-2), prefix_text=_EXAMPLES),
    )
}
