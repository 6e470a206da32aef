"""`PVPRun`: one of PET's runs, on rows with labels, with soft labels, or with none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.training.data.examples import Example
from foreword.training.loop.losses import Loss
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.pet.unlabeled_text import AuxiliaryLMLoss, UnlabeledTexts, with_unlabeled
from foreword.training.run import Run

# How much modelling texts without labels counts beside the labels.
LM_WEIGHT = 1e-2


@dataclass(frozen=True)
class PVPRun(Run):
    """A run on given examples.

    Attributes:
        given: what is learned from.
        lm_weight: how much the passages count that they bring along; 0 if they bring none.
    """

    given: tuple[Example, ...] = ()
    lm_weight: float = 0.0

    @classmethod
    def labelled(cls, run: Run, templates: Sequence[Template], unlabeled: Sequence[Row]) -> PVPRun:
        """The training rows through some of the patterns, with the rows without labels as passages along."""
        some = cls._through(run, templates)
        weight = run.recipe.lm_weight if run.recipe.lm_weight is not None else LM_WEIGHT
        examples = some.reader.read(some.material.train_rows)
        if not unlabeled or not weight:
            return replace(some, given=tuple(examples))
        passages = UnlabeledTexts.of(run.lm, some.reader.ask(unlabeled), run.recipe.seed)
        return replace(some, given=tuple(with_unlabeled(examples, passages)), lm_weight=weight)

    @classmethod
    def taught(
        cls, run: Run, template: Template, unlabeled: Sequence[Row], soft: Sequence[tuple[float, ...]]
    ) -> PVPRun:
        """The training rows and those without labels through one pattern; ``soft`` are the labels of the latter."""
        some = cls._through(run, [template])
        known = [_certain(example, len(run.material.labels)) for example in some.reader.read(some.material.train_rows)]
        asked = some.reader.ask(unlabeled)
        told = [Example(question, soft_labels=labels) for question, labels in zip(asked, soft, strict=True)]
        return replace(some, given=(*known, *told))

    @classmethod
    def _through(cls, run: Run, templates: Sequence[Template]) -> PVPRun:
        material = replace(run.material, templates=tuple(templates))
        return cls(run.lm, run.recipe, material, run.transfer)

    @cached_property
    def _examples(self) -> list[Example]:
        return list(self.given)

    def loss(self, learned: TrainablePrompt) -> Loss:
        answers = super().loss(learned)
        return AuxiliaryLMLoss(answers, self.lm_weight) if self.lm_weight else answers


def _certain(example: Example, labels: int) -> Example:
    """The label as probabilities, so that it may stand in a batch with soft ones."""
    (right,) = example.labels
    return Example(example.question, soft_labels=tuple(float(label == right) for label in range(labels)))
