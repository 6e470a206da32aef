"""Soft tokens in front of a text, as PEFT's PROMPT_TUNING: of models where they see the text and stay soft tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from foreword.bank.adapter_file import CONFIG, WEIGHTS
from foreword.core import Task
from foreword.models import LanguageModel
from foreword.text.template import SoftSlot, Template


def inside(lm: LanguageModel, task: Task) -> int:
    """Soft tokens of a task's template that stand in its rows, as PEFT has no place for them: not all in front."""
    if task.template is None:
        return 0
    template = Template.parse(task.template)
    pieces = template.constant_pieces
    leading = not lm.causal and all(isinstance(piece, SoftSlot) for piece in pieces)
    in_front = sum(piece.length for piece in pieces if isinstance(piece, SoftSlot)) if leading else 0
    return template.num_inner_soft_tokens(lm.causal) - in_front


def placed(task: Task) -> Tensor | None:
    """The soft tokens that the template of an encoder's task has places for: the last ones of those learned."""
    count = Template.parse(task.template).num_soft_tokens if task.template is not None else 0
    return task.soft[-count:] if task.soft is not None and count else None


def write_soft(lm: LanguageModel, soft: Tensor, folder: Path, base: str, task_type: str) -> str:
    """Write soft tokens that stand in front of a text and return their PEFT type.

    Args:
        lm: the model that they were learned for.
        soft: ``[P, hidden]``.
        base: where Transformers finds the model.
        task_type: what PEFT calls its work.
    """
    length, width = soft.shape
    config: dict[str, Any] = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        # PEFT's choice for encoder-decoders is 2, more soft tokens in front of the decoder.
        "num_transformer_submodules": 1,
        "num_attention_heads": lm.identity.layers[0].kv_heads,
        "num_layers": len(lm.identity.layers),
        "num_virtual_tokens": length,
        "peft_type": "PROMPT_TUNING",
        "prompt_tuning_init": "RANDOM",
        "task_type": task_type,
        "token_dim": width,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"prompt_embeddings": soft.contiguous().cpu()}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return "PROMPT_TUNING"
