"""What cannot be learned for an encoder-decoder: everything but soft tokens in its text."""

from __future__ import annotations

from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts.base import Method
from foreword.training.data.training_data import TrainingData


def check_encoder_decoder(lm: LanguageModel, method: Method, material: TrainingData) -> None:
    """Raise UsageError, with the mend, for a method or a head that an encoder-decoder does not take."""
    if method.learns and not method.soft:
        raise UsageError(
            f"{lm.name} is an encoder-decoder, which takes soft tokens in front of its text and not what --method "
            f"{method.name} learns; use --method prompt-tuning or p-tuning."
        )
    if material.head_labels:
        raise UsageError(
            f"{lm.name} is an encoder-decoder, which writes its answers, so no head reads its states; use --head "
            "verbalizer with {mask} at the end of the template, or --target-field."
        )
