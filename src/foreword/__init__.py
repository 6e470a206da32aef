"""Foreword learns, compresses and serves what comes before every request.

The public names load on first use, so that ``import foreword`` stays quick and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from foreword.version import __version__

_HOMES = {
    "Bank": "foreword.bank.bank",
    "Engine": "foreword.engine.engine",
    "KVPrefix": "foreword.core",
    "LoRA": "foreword.prompts.lora",
    "LoRAHybrid": "foreword.prompts.lora",
    "Manual": "foreword.prompts.manual",
    "PTuning": "foreword.prompts.soft",
    "PTuningV2": "foreword.prompts.prefix",
    "PrefixTuning": "foreword.prompts.prefix",
    "PromptTuning": "foreword.prompts.soft",
    "Recipe": "foreword.training.recipe",
    "SamplingParams": "foreword.core",
    "Task": "foreword.core",
    "Template": "foreword.text.template",
    "Verbalizer": "foreword.text.verbalizer",
    "DistilRecipe": "foreword.training.distillation.recipe",
    "distill": "foreword.training.distillation.distill",
    "evaluate": "foreword.evaluation.evaluate",
    "load_model": "foreword.models",
    "lower": "foreword.prompts.lower",
    "train": "foreword.training.train",
}
__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from foreword.bank.bank import Bank as Bank
    from foreword.core import KVPrefix as KVPrefix
    from foreword.core import SamplingParams as SamplingParams
    from foreword.core import Task as Task
    from foreword.engine.engine import Engine as Engine
    from foreword.evaluation.evaluate import evaluate as evaluate
    from foreword.models import load_model as load_model
    from foreword.prompts.lora import LoRA as LoRA
    from foreword.prompts.lora import LoRAHybrid as LoRAHybrid
    from foreword.prompts.lower import lower as lower
    from foreword.prompts.manual import Manual as Manual
    from foreword.prompts.prefix import PrefixTuning as PrefixTuning
    from foreword.prompts.prefix import PTuningV2 as PTuningV2
    from foreword.prompts.soft import PromptTuning as PromptTuning
    from foreword.prompts.soft import PTuning as PTuning
    from foreword.text.template import Template as Template
    from foreword.text.verbalizer import Verbalizer as Verbalizer
    from foreword.training.distillation.distill import distill as distill
    from foreword.training.distillation.recipe import DistilRecipe as DistilRecipe
    from foreword.training.recipe import Recipe as Recipe
    from foreword.training.train import train as train


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'foreword' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
