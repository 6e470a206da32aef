"""PEFT's sides: `generate` for one prefix at a time, or for all rows at once with an own LoRA for each."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from foreword.errors import BenchError

RANK = 8


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The prefixes of the exported folders; a `generate` for the requests of each."""
    first, *others = settings["folders"]
    model: Any = peft.PeftModel.from_pretrained(_base(settings), first, adapter_name="t0")
    for index, folder in enumerate(others, 1):
        model.load_adapter(folder, adapter_name=f"t{index}")
    _check_prefix(model, settings["prompts"][0])
    return {"run": _Prefixes(model.eval(), settings).run}


def start_lora(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Random adapters, one for every prefix of the other sides: what they answer is of no interest, only how fast."""
    return {"run": _Mixed(_adapted(settings).eval(), settings).run}


def start_saving(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """The same adapters as folders, for others who run them."""

    def save(folder: str) -> list[str]:
        _adapted(settings).save_pretrained(folder)
        return [str(Path(folder) / f"t{index}") for index in range(settings["prefixes"])]

    return {"save": save}


def _adapted(settings: Mapping[str, Any]) -> Any:
    torch.manual_seed(settings["seed"])
    # Not the untrained zeros: whatever might be skipped for them would not be skipped for learned ones.
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear", init_lora_weights=False)
    model: Any = peft.get_peft_model(_base(settings), config, adapter_name="t0")
    for index in range(1, settings["prefixes"]):
        model.add_adapter(f"t{index}", config)
    return model


def _base(settings: Mapping[str, Any]) -> Any:
    return AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["dtype"]))


class _Prefixes:
    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._model = model
        self._prompts = settings["prompts"]
        self._groups = [range(index, len(self._prompts), settings["prefixes"]) for index in range(settings["prefixes"])]
        self._how = _how(settings)

    def run(self) -> dict[str, Any]:
        answers: dict[int, list[int]] = {}
        began = time.perf_counter()
        with torch.inference_mode():
            for index, group in enumerate(self._groups):
                self._model.set_adapter(f"t{index}")
                found = _generate(self._model, [self._prompts[row] for row in group], self._how)
                answers |= dict(zip(group, found, strict=True))
        return {"seconds": time.perf_counter() - began, "tokens": [answers[row] for row in range(len(self._prompts))]}


class _Mixed:
    def __init__(self, model: Any, settings: Mapping[str, Any]) -> None:
        self._model = model
        self._prompts = settings["prompts"]
        self._names = [f"t{row % settings['prefixes']}" for row in range(len(self._prompts))]
        self._how = _how(settings)

    def run(self) -> dict[str, Any]:
        began = time.perf_counter()
        with torch.inference_mode():
            answers = _generate(self._model, self._prompts, self._how, adapter_names=self._names)
        return {"seconds": time.perf_counter() - began, "tokens": answers}


@torch.inference_mode()
def _check_prefix(model: Any, prompt: list[int]) -> None:
    """Raise BenchError unless `generate` answers as the forward of the same model does, prefix included."""
    how = GenerationConfig(
        max_new_tokens=2,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    ids = torch.tensor([prompt])
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how)
    read = found.sequences[:, :-1]
    seen = torch.stack(found.logits, dim=1)
    expected = model(input_ids=read, attention_mask=torch.ones_like(read)).logits[:, -2:]
    bare = model.get_base_model()(input_ids=read).logits[:, -2:]
    # Rounding is far less than what a prefix does.
    if (seen - expected).norm() > 0.1 * (bare - expected).norm():
        raise BenchError(
            f"PEFT {peft.__version__} loses its prefix in `generate` of Transformers {transformers.__version__}; "
            "install transformers below 5.24."
        )


def _how(settings: Mapping[str, Any]) -> GenerationConfig:
    """Greedy, and on past the end of text."""
    return GenerationConfig(
        max_new_tokens=settings["output_tokens"], do_sample=False, eos_token_id=None, pad_token_id=0
    )


def _generate(model: Any, rows: list[list[int]], how: GenerationConfig, **more: Any) -> list[list[int]]:
    # What a configuration leaves at None, `generate` takes from the model's own: an answer would end with its text.
    model.generation_config.eos_token_id = None
    ids = torch.tensor(rows)
    found = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=how, **more)
    return found[:, ids.shape[1] :].tolist()
