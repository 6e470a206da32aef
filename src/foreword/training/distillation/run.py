"""`DistillationRun`: model, text, settings, conversations and teacher logits, for prefixes of any length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.core import KVPrefix
from foreword.engine.engine import Engine
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.prompts.prefix import PrefixValues
from foreword.text.rows import data_digest
from foreword.training.data.examples import BatchItem, batch_schedule
from foreword.training.distillation.answer_scores import LikelihoodGap
from foreword.training.distillation.document import Document
from foreword.training.distillation.kl_loss import DistillationExample, KLDistillationLoss, distillation_examples
from foreword.training.distillation.recipe import DistilRecipe
from foreword.training.distillation.self_study import SelfStudyConversation
from foreword.training.distillation.self_study_data import SelfStudyData
from foreword.training.distillation.teacher_logits import TeacherLogits, teacher_logits
from foreword.training.modules.trainable_prompt import TrainablePrompt

# A batch of answers behind a shared text: their own keys and values are few.
CACHE_BYTES = 512 << 20


def run_settings(lm: LanguageModel, document: Document, recipe: DistilRecipe) -> dict[str, Any]:
    """Settings that must be the same for a run to be resumed: digests of files, not their paths."""
    return {
        **recipe.to_json(),
        "questions": data_digest(recipe.questions) if recipe.questions is not None else None,
        "eval_questions": data_digest(recipe.eval_questions) if recipe.eval_questions is not None else None,
        "text": document.digest,
        "kind": document.kind,
        "model": lm.identity.weights,
        "dtype": str(lm.dtype),
        **lm.origin,
    }


@dataclass(frozen=True, eq=False)
class DistillationRun:
    """A `foreword.training.loop.inputs.TrainerInputs`, the same for prefixes of every length.

    Attributes:
        lm: the base model, frozen: the teacher behind the text, the student behind the prefix.
        document: the text.
        recipe: the settings.
        data: conversations about the text.
        examples: the training conversations with the teacher's logits.
        validation_gap: between no text and the text, on the validation conversations.
        test_gap: the same on the test conversations.
    """

    lm: LanguageModel
    document: Document
    recipe: DistilRecipe
    data: SelfStudyData
    examples: Sequence[DistillationExample]
    validation_gap: LikelihoodGap
    test_gap: LikelihoodGap

    @classmethod
    def prepare(
        cls, lm: LanguageModel, document: Document, recipe: DistilRecipe, folder: Path, say: Say
    ) -> DistillationRun:
        """Generate the conversations and compute the teacher's logits, or read both from the run folder.

        Raises:
            DataError: a file of questions that cannot be used.
            TrainingError: the model asks nothing about the text, or answers no better with it; or a file of the run
                folder is damaged.
        """
        data = _self_study_data(lm, document, recipe, folder / "conversations.json", say)
        logits = _teacher_logits(lm, document, data.train, folder / "beliefs.safetensors", say)
        validation_gap, test_gap = (LikelihoodGap.measure(lm, document, each) for each in (data.validation, data.test))
        if not test_gap.full.logprob > test_gap.none.logprob:
            raise TrainingError(
                "the model answers no better with the text than without it, so there is nothing to distil; check the "
                "text, or give questions about it with --eval-questions."
            )
        return cls(lm, document, recipe, data, distillation_examples(data.train, logits), validation_gap, test_gap)

    @property
    def validation_set(self) -> Sequence[SelfStudyConversation]:
        return self.data.validation

    @property
    def steps(self) -> int:
        return self.recipe.max_steps

    @property
    def lr(self) -> float:
        return self.recipe.lr

    @property
    def batch_size(self) -> int:
        return min(self.recipe.batch_size, len(self.examples))

    @property
    def batches(self) -> list[list[BatchItem]]:
        return batch_schedule(
            [each.num_tokens for each in self.examples], self.batch_size, self.steps, self.recipe.seed
        )

    def loss(self, prompt: TrainablePrompt) -> KLDistillationLoss:
        return KLDistillationLoss()

    def initial_prompt(self, initial: KVPrefix) -> TrainablePrompt:
        """All of a prefix at its initial values; the first position, an attention sink, stays as it is."""
        return TrainablePrompt(PrefixValues(initial, self.lm.dtype, num_frozen=1))


def _self_study_data(
    lm: LanguageModel, document: Document, recipe: DistilRecipe, file: Path, say: Say
) -> SelfStudyData:
    if not file.is_file():
        with Engine(lm, cache_bytes=CACHE_BYTES) as engine:
            SelfStudyData.generate(engine, document, recipe).save(file)
    data = SelfStudyData.load(file)
    counts = f"{len(data.train)} conversations to learn from, {len(data.validation)} to choose by, "
    say(f"{counts}{len(data.test)} to measure by")
    return data


def _teacher_logits(
    lm: LanguageModel, document: Document, conversations: Sequence[SelfStudyConversation], file: Path, say: Say
) -> TeacherLogits:
    if not file.is_file():
        teacher_logits(lm, document, conversations).save(file)
    logits = TeacherLogits.load(file)
    say(f"the teacher's {logits.token_ids.shape[1]} most probable tokens at {logits.starts[-1]:,} places")
    return logits
