"""`PVPRun`: one training run of PET through pattern-verbalizer pairs, on labels or on soft labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from foreword.text.rows import Row
from foreword.text.template import Template
from foreword.training.data.examples import Example
from foreword.training.methods.pet.unlabeled_text import AuxiliaryLMLoss, UnlabeledTexts, with_unlabeled
from foreword.training.modules.losses import Loss
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Weight of the auxiliary language modelling loss.
LM_WEIGHT = 1e-2


@dataclass(frozen=True)
class PVPRun(Run):
    """A run on the examples of some patterns.

    Attributes:
        lm_weight: weight of the auxiliary loss; 0 if the examples bring no unlabeled texts.
    """

    lm_weight: float = 0.0

    @classmethod
    def on_labels(cls, run: Run, templates: Sequence[Template], unlabeled: Sequence[Row]) -> PVPRun:
        """The training rows through some of the patterns, with the unlabeled rows for the auxiliary loss."""
        pvp_run = cls._with_templates(run, templates)
        weight = run.recipe.lm_weight if run.recipe.lm_weight is not None else LM_WEIGHT
        examples = pvp_run.example_builder.build(run.data.train_rows)
        if not unlabeled or not weight:
            return replace(pvp_run, examples=examples)
        encoded = pvp_run.example_builder.encode_unlabeled(unlabeled)
        texts = UnlabeledTexts.for_model(run.lm, encoded, run.recipe.seed)
        return replace(pvp_run, examples=with_unlabeled(examples, texts), lm_weight=weight)

    @classmethod
    def on_soft_labels(
        cls, run: Run, template: Template, unlabeled: Sequence[Row], soft_labels: Sequence[tuple[float, ...]]
    ) -> PVPRun:
        """The training rows and the unlabeled ones, with their soft labels, through one pattern."""
        pvp_run = cls._with_templates(run, [template])
        labels, builder = len(run.data.labels), pvp_run.example_builder
        labeled = [_with_one_hot_label(example, labels) for example in builder.build(run.data.train_rows)]
        encoded = builder.encode_unlabeled(unlabeled)
        softly = [Example(row, soft_labels=soft) for row, soft in zip(encoded, soft_labels, strict=True)]
        return replace(pvp_run, examples=[*labeled, *softly])

    @classmethod
    def _with_templates(cls, run: Run, templates: Sequence[Template]) -> PVPRun:
        return cls(run.lm, run.recipe, replace(run.data, templates=tuple(templates)), run.transfer)

    def loss(self, prompt: TrainablePrompt) -> Loss:
        label_loss = super().loss(prompt)
        return AuxiliaryLMLoss(label_loss, self.lm_weight) if self.lm_weight else label_loss


def _with_one_hot_label(example: Example, labels: int) -> Example:
    """The label as probabilities, so that it may stand in a batch with soft ones."""
    (right,) = example.labels
    return Example(example.encoded, soft_labels=tuple(float(label == right) for label in range(labels)))
