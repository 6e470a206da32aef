"""`DistilRecipe`: everything that a distilled prefix is made from, as the command line's flags name it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from foreword.errors import SettingError
from foreword.training.recipe import check_numbers

STARTS = ("auto", "attention", "even", "first")


@dataclass(frozen=True)
class DistilRecipe:
    """Flags of ``foreword distill``.

    Attributes:
        slots: virtual tokens.
        init: where they start: ``attention``, ``even`` or ``first``; ``auto`` takes the best of them on dev.
        questions: file of questions to learn from, in place of self-made ones: rows with ``question``.
        eval_questions: file of questions to measure by, likewise; their ``answers``, if any, are measured by, too.
        conversations: how many self-made ones to learn from.
        held: how many self-made ones to choose by on the way, and how many again to measure by in the end.
        answer_tokens: of an answer at most.
        chunk: tokens that the text is cut into; by default it is cut only if it does not fit into the context.
        lr: peak learning rate.
        max_steps: optimizer steps.
        batch_size: conversations a step.
        accumulate: parts that a step's conversations are run in, with the same result in less memory.
        checkpointing: recompute activations in the backward pass, for less memory still.
        patience: stop after so many looks at dev without a better one.
        seed: of everything that is drawn.
        resume: go on from what is in ``out``.
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
        if self.init not in STARTS:
            raise SettingError("init", f"--init must be one of {', '.join(STARTS)}, got {self.init!r}.")

    def to_json(self) -> dict[str, Any]:
        """What determines the result: neither where it is written nor whether it was interrupted."""
        return {name: value for name, value in asdict(self).items() if name not in ("resume", "report_to", "out")}
