"""PEFT: `generate` for one prefix at a time, or for all rows at once with an own LoRA for each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig

from foreword.bench.worker import Handlers
from foreword.errors import BenchError

RANK = 8


def start(settings: Mapping[str, Any]) -> Handlers:
    """The prefixes of the exported folders; a `generate` for the requests of each."""
    first, *others = settings["folders"]
    model: Any = peft.PeftModel.from_pretrained(_base(settings), first, adapter_name="t0")
    for index, folder in enumerate(others, 1):
        model.load_adapter(folder, adapter_name=f"t{index}")
    _check_prefix(model, settings["prompts"][0])
    prompts, how = settings["prompts"], _how(settings)
    groups = [range(index, len(prompts), settings["prefixes"]) for index in range(settings["prefixes"])]

    @torch.inference_mode()
    def run() -> dict[str, Any]:
        answers: dict[int, list[int]] = {}
        began = time.perf_counter()
        for index, group in enumerate(groups):
            model.set_adapter(f"t{index}")
            answers |= dict(zip(group, _generate(model, [prompts[row] for row in group], how), strict=True))
        return {"seconds": time.perf_counter() - began, "tokens": [answers[row] for row in range(len(prompts))]}

    model.eval()
    return {"run": run}


def start_lora(settings: Mapping[str, Any]) -> Handlers:
    """Random adapters, one for every prefix of the others: what they answer is of no interest, only how fast."""
    model, prompts, how = _adapted(settings).eval(), settings["prompts"], _how(settings)
    names = [f"t{row % settings['prefixes']}" for row in range(len(prompts))]

    @torch.inference_mode()
    def run() -> dict[str, Any]:
        began = time.perf_counter()
        answers = _generate(model, prompts, how, adapter_names=names)
        return {"seconds": time.perf_counter() - began, "tokens": answers}

    return {"run": run}


def start_saving(settings: Mapping[str, Any]) -> Handlers:
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
