"""`DistilRecipe`: settings of ``foreword distill``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foreword.errors import SettingError
from foreword.training.recipe import check_numbers

INITS = ("auto", "attention", "even", "first")


@dataclass(frozen=True)
class DistilRecipe:
    """Flags of ``foreword distill``.

    Attributes:
        slots: virtual tokens.
        init: initial values: ``attention``, ``even`` or ``first``; ``auto`` takes the best of them on validation
            conversations.
        questions: file of training questions in place of generated ones: rows with ``question``.
        eval_questions: file of test questions, likewise; their ``answers``, if any, are references for F1.
        conversations: number of training conversations.
        held: number of validation conversations, which select the checkpoint, and again of test conversations.
        answer_tokens: maximum tokens of an answer.
        chunk: maximum tokens of a chunk of the text; by default it is split only if it does not fit into the context.
        lr: peak learning rate.
        max_steps: optimizer steps.
        batch_size: conversations a step.
        accumulate: gradient accumulation: parts that a step's conversations are run in, for less memory.
        checkpointing: gradient checkpointing: recompute activations in the backward pass, for less memory still.
        patience: early stopping after so many evaluations without a better one.
        seed: of everything that is drawn.
        resume: go on from the run in ``out``.
        report_to: passed to the Transformers Trainer.
        out: run folder; by default ``runs/distill-TIME``.
    """

    slots: int = 64
    init: str = "auto"
    questions: str | None = None
    eval_questions: str | None = None
    conversations: int = 256
    held: int = 48
    answer_tokens: int = 64
    chunk: int | None = None
    lr: float = 1e-2
    max_steps: int = 300
    batch_size: int = 4
    accumulate: int = 1
    checkpointing: bool = False
    patience: int | None = None
    seed: int = 0
    resume: bool = False
    report_to: str = "none"
    out: str | None = None

    def __post_init__(self) -> None:
        check_numbers(self, "conversations", "held", "answer_tokens", "chunk", "lr", "max_steps", "patience")
        if self.slots < 2:
            raise SettingError(
                "slots", f"--slots must be at least 2, of which the first stays as it is, got {self.slots}."
            )
        if self.init not in INITS:
            raise SettingError("init", f"--init must be one of {', '.join(INITS)}, got {self.init!r}.")

    def to_json(self) -> dict[str, Any]:
        """The settings that determine the result: all but ``resume``, ``report_to`` and ``out``."""
        return {name: value for name, value in asdict(self).items() if name not in ("resume", "report_to", "out")}
