"""Foreword learns, compresses and serves what comes before every request.

    >>> lm = foreword.load_model()
    >>> rows = [{"text": "a fine film", "label": "good"}, {"text": "dull and long", "label": "bad"}] * 8
    >>> recipe = foreword.Recipe(data=rows, template="{text}\\nMood:{mask}", max_steps=2)
    >>> result = foreword.train(lm, recipe, publish="mood")
    >>> with foreword.Engine(lm) as engine:
    ...     answer = engine.classify(["a fine film"], "mood")[0]
    >>> answer.label in ("good", "bad")
    True

The public names load on first use, so that ``import foreword`` stays quick and imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from foreword.version import __version__

_HOMES = {
    "Bank": "foreword.bank.bank",
    "Client": "foreword.api.client",
    "DistilRecipe": "foreword.training.distillation.recipe",
    "Engine": "foreword.api.local_engine",
    "ForewordError": "foreword.errors",
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
    "compose": "foreword.api.compose",
    "connect": "foreword.api.client",
    "distill": "foreword.api.distill",
    "evaluate": "foreword.api.evaluate",
    "export_peft": "foreword.api.peft",
    "import_peft": "foreword.api.peft",
    "load_model": "foreword.models",
    "lower": "foreword.prompts.lower",
    "publish": "foreword.api.publish",
    "search": "foreword.api.search",
    "train": "foreword.api.train",
    "train_many": "foreword.api.train_many",
}
_RENAMED = {"Engine": "LocalEngine"}
"""Public names of classes that are called otherwise inside."""
__all__ = [
    "Bank",
    "Client",
    "DistilRecipe",
    "Engine",
    "ForewordError",
    "KVPrefix",
    "LoRA",
    "LoRAHybrid",
    "Manual",
    "PTuning",
    "PTuningV2",
    "PrefixTuning",
    "PromptTuning",
    "Recipe",
    "SamplingParams",
    "Task",
    "Template",
    "Verbalizer",
    "__version__",
    "compose",
    "connect",
    "distill",
    "evaluate",
    "export_peft",
    "import_peft",
    "load_model",
    "lower",
    "publish",
    "search",
    "train",
    "train_many",
]

if TYPE_CHECKING:
    from foreword.api.client import Client as Client
    from foreword.api.client import connect as connect
    from foreword.api.compose import compose as compose
    from foreword.api.distill import distill as distill
    from foreword.api.evaluate import evaluate as evaluate
    from foreword.api.local_engine import LocalEngine as Engine
    from foreword.api.peft import export_peft as export_peft
    from foreword.api.peft import import_peft as import_peft
    from foreword.api.publish import publish as publish
    from foreword.api.search import search as search
    from foreword.api.train import train as train
    from foreword.api.train_many import train_many as train_many
    from foreword.bank.bank import Bank as Bank
    from foreword.core import KVPrefix as KVPrefix
    from foreword.core import SamplingParams as SamplingParams
    from foreword.core import Task as Task
    from foreword.errors import ForewordError as ForewordError
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
    from foreword.training.distillation.recipe import DistilRecipe as DistilRecipe
    from foreword.training.recipe import Recipe as Recipe
else:  # to type checkers a misspelt name is an error, not whatever this returns

    def __getattr__(name: str) -> object:
        if name in _HOMES:
            return getattr(import_module(_HOMES[name]), _RENAMED.get(name, name))
        from difflib import get_close_matches

        near = get_close_matches(name, __all__, n=3)
        mend = f"did you mean {' or '.join(near)}?" if near else "dir(foreword) lists the names."
        raise AttributeError(f"module 'foreword' has no attribute {name!r}; {mend}", name=name)


def __dir__() -> list[str]:
    return sorted(__all__)
