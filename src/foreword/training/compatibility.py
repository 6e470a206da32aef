"""Which settings a method, a model and a data set allow together."""

from __future__ import annotations

from foreword.errors import SettingError, TemplateError, UsageError
from foreword.models import LanguageModel
from foreword.prompts.base import Method
from foreword.training.data.training_data import TrainingData
from foreword.training.recipe import Recipe
from foreword.training.setting import flag_of

# Flags that a method without trainable values does not use.
TRAINING_FLAGS = ("length", "init_text", "lr", "epochs", "max_steps", "patience", "class_weights", "warm_start")


def check_compatible(lm: LanguageModel, recipe: Recipe, method: Method, data: TrainingData) -> None:
    """Raise UsageError or TemplateError, with the mend, for settings that contradict each other."""
    if data.conversations:
        _check_conversations(lm)
    if lm.is_encoder_decoder:
        _check_encoder_decoder(lm, recipe, method, data)
    ignored = [name for name in TRAINING_FLAGS if getattr(recipe, name) is not None]
    if not (method.learns or data.head_labels) and (ignored or recipe.init != "auto"):
        key = (ignored or ["init"])[0]
        raise SettingError(
            key, f"--method {method.name} learns nothing, so {flag_of(key)} would be ignored; leave it out."
        )
    if recipe.length is not None and not method.length:
        raise SettingError("length", f"--method {method.name} has no virtual tokens, so leave --length out.")
    if data.num_soft_tokens and not method.soft:
        instead = " and give their number as --length" if method.length else ""
        raise TemplateError(
            f"the template has {{soft:N}} slots, soft tokens at the input, which --method {method.name} does not "
            f"learn; use --method p-tuning, or take them out{instead}."
        )
    if recipe.calibrate and data.problem_type != "single_label_classification":
        raise SettingError("calibrate", "--calibrate is for one label a row; leave it out.")
    if recipe.head_bias is not None and not data.head_labels:
        raise SettingError("head_bias", "--head-bias is for linear heads, and this run has none; leave it out.")
    if recipe.calibrate and not data.labels:
        raise SettingError("calibrate", "--calibrate is for labels, and this run generates text; leave it out.")


def _check_conversations(lm: LanguageModel) -> None:
    """Conversations need a causal model with a chat template."""
    if not lm.causal or not lm.has_lm_head:
        kind = "an encoder-decoder" if lm.is_encoder_decoder else "an encoder" if not lm.causal else "without words"
        raise UsageError(
            f"{lm.name} is {kind}, and conversations are learned and answered by causal models; choose one with "
            "--model, or give rows of texts."
        )
    if not lm.tokenizer.chat_template:
        raise TemplateError(
            f"{lm.name} has no chat template, so conversations cannot become text; choose an instruct model with "
            "--model, or write rows of plain prompt and completion."
        )


def _check_encoder_decoder(lm: LanguageModel, recipe: Recipe, method: Method, data: TrainingData) -> None:
    """An encoder-decoder takes prompts and adapters, and no heads."""
    if recipe.checkpointing and method.length and not method.soft:
        raise SettingError(
            "checkpointing",
            f"{lm.name} is an encoder-decoder, which takes a prefix through its decoder's cache, and checkpointing "
            "forgets it; leave out --checkpointing.",
        )
    if data.head_labels:
        raise UsageError(
            f"{lm.name} is an encoder-decoder, which writes its answers, so no head reads its states; use --head "
            "verbalizer with {mask} at the end of the template, or --target-field."
        )
