"""`DistilRecipe`: settings of ``foreword distill``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any

from foreword.training.recipe import SEEDS, Accumulate, Checkpointing, Out, ReportTo, Resume, check_consistent
from foreword.training.setting import DATA, METHOD, OPTIMISATION, Setting, check_settings

INITS = ("auto", "attention", "even", "first")


@dataclass(frozen=True)
class DistilRecipe:
    """Hyper-parameters of a distillation, as ``foreword distill`` takes them; each is a flag of it.

    >>> foreword.DistilRecipe(slots=32, max_steps=200).slots
    32
    """

    slots: Annotated[int, Setting("Virtual tokens.", low=2, group=METHOD)] = 64
    """The first of them stays as it is."""
    init: Annotated[
        str,
        Setting(
            "Where they start: attention, even or first, or auto for the best of them.", choices=INITS, group=METHOD
        ),
    ] = "auto"
    questions: Annotated[
        str | None, Setting("Questions to learn from: rows with question.", default="self-made", group=DATA)
    ] = None
    eval_questions: Annotated[
        str | None,
        Setting("Questions to measure by: rows with question, and answers if known.", default="self-made", group=DATA),
    ] = None
    conversations: Annotated[int, Setting("Self-made conversations to learn from.", above=0, group=DATA)] = 256
    held: Annotated[
        int, Setting("Self-made questions to choose by, and as many to measure by.", above=0, group=DATA)
    ] = 48
    answer_tokens: Annotated[int, Setting("Tokens of an answer at most.", above=0, group=DATA)] = 64
    chunk: Annotated[
        int | None,
        Setting("Tokens that the text is cut into.", default="cut only if it has to be", above=0, group=DATA),
    ] = None
    """By default it is cut only if it does not fit into the context."""
    lr: Annotated[float, Setting("Peak learning rate.", above=0, group=OPTIMISATION)] = 1e-2
    max_steps: Annotated[int, Setting("Optimizer steps.", above=0, group=OPTIMISATION)] = 300
    batch_size: Annotated[int, Setting("Conversations a step.", above=0, group=OPTIMISATION)] = 4
    accumulate: Accumulate = 1
    checkpointing: Checkpointing = False
    patience: Annotated[
        int | None,
        Setting("Stop after so many looks without a better one.", default="never", above=0, group=OPTIMISATION),
    ] = None
    seed: Annotated[int, Setting("Of everything that is drawn.", low=0, high=SEEDS - 1, group=OPTIMISATION)] = 0
    resume: Resume = False
    report_to: ReportTo = "none"
    out: Out = None

    def __post_init__(self) -> None:
        check_settings(self)
        check_consistent(self)

    def to_json(self) -> dict[str, Any]:
        """The settings that determine the result: all but ``resume``, ``report_to`` and ``out``."""
        return {name: value for name, value in asdict(self).items() if name not in ("resume", "report_to", "out")}
