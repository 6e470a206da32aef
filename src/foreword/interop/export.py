"""Export of tasks as PEFT folders: `PeftModel.from_pretrained(model, folder)` gives the logits of the task.

PEFT need not be installed. A prefix becomes PREFIX_TUNING whatever the method, since lowered soft tokens are keys and
values, too; soft tokens that are not lowered become PROMPT_TUNING, low-rank changes LORA. A head goes along as the
module of a classifier (SEQ_CLS, TOKEN_CLS). Other tasks are refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import indent

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from foreword.bank.adapter_file import CONFIG, WEIGHTS, write_adapter
from foreword.core import Head, KVPrefix, Task
from foreword.errors import UsageError
from foreword.interop.checkpoint import read_json_config
from foreword.interop.export_folder import check_empty, exported_folder
from foreword.interop.flat_prefix import check_past_key_values, flatten, uniform_layer_shape
from foreword.interop.peft_head import SEQUENCE, TOKENS, HeadModule, head_config, head_module
from foreword.interop.soft_prompt import inner_soft_tokens, template_soft_tokens
from foreword.models import LanguageModel

_PEFT = "PEFT's prefix tuning"
_MODEL_CONFIG = "config.json"

_HEAD = """
The labels and their head belong to the model of this folder's `config.json`:

    config = AutoConfig.from_pretrained(folder)
    model = AutoModelFor{kind}.from_pretrained({base}, config=config)
    model = PeftModel.from_pretrained(model, folder)"""


def export_peft(lm: LanguageModel, task: Task, folder: Path) -> str:
    """Write a task as a PEFT folder and return its PEFT type.

    Args:
        lm: the task's own model; the folder names it as its base model.
        task: checked against ``lm``.
        folder: must not exist, or be empty.

    Raises:
        ModelMismatch: ``lm`` is another model.
        UsageError: the task has something that PEFT cannot hold, or the folder is not empty.
        OSError: the disk is full or not writable.
    """
    task.prefix.model.check(lm.identity, f"task '{task.name}'")
    _check_exportable(lm, task)
    module = _head_module(lm, task.name, task.head) if task.head is not None else None
    check_empty(folder)
    with exported_folder(folder, last=CONFIG) as partial:
        soft = None if lm.causal else template_soft_tokens(task)
        if soft is not None:
            peft_type = _write_soft(lm, soft, partial)
        elif task.adapter is None:
            peft_type = _write_prefix(lm, task.prefix, partial)
        else:
            peft_type = _write_lora(lm, task, partial)
        if task.head is not None and module is not None:
            _add_head(lm, task.head, module, partial)
        (partial / "README.md").write_text(_model_card(task, _base_model(lm)), encoding="utf-8")
    return peft_type


def _check_exportable(lm: LanguageModel, task: Task) -> None:
    """Raise UsageError, which names the part, for a task with parts that a PEFT folder cannot hold."""
    soft = not lm.causal and template_soft_tokens(task) is not None  # those of a causal model are in its prefix
    lost = {
        "soft tokens inside its template": inner_soft_tokens(lm, task) > 0,
        "soft tokens and more beside them": soft and (task.adapter is not None or task.prefix.length > 0),
        "scores that are calibrated by a bias": task.bias is not None and task.head is not None,
        "several prefixes whose answers are combined": bool(task.members),
        "a prefix in front of its encoder, where PEFT's stands in front of the decoder alone": any(
            layer.part for layer in task.prefix.model.layers
        ),
        "a prefix and low-rank changes at once": task.adapter is not None and task.prefix.length > 0,
    }
    if missing := next((what for what, there in lost.items() if there), None):
        raise UsageError(f"task '{task.name}' has {missing}, which a PEFT folder cannot hold.")
    if task.adapter is None and not task.prefix.length and not soft:
        if task.head is not None:
            raise UsageError(f"task '{task.name}' has a head alone, and PEFT holds one only beside a prompt or a LoRA.")
        raise UsageError(f"task '{task.name}' has nothing learned in it, only a template; there is nothing to export.")
    if task.prefix.length:
        check_past_key_values(lm, f"the prefix of task '{task.name}'")
    if task.prefix.length and task.prefix.offset != task.prefix.length:
        raise UsageError(
            f"task '{task.name}' starts its requests at position {task.prefix.offset} behind {task.prefix.length} "
            "positions; PEFT starts them right behind."
        )


def _write_prefix(lm: LanguageModel, prefix: KVPrefix, folder: Path) -> str:
    shape = uniform_layer_shape(prefix.model, _PEFT)
    width = shape.kv_heads * shape.key_dim
    config: dict[str, object] = {"encoder_hidden_size": width, "prefix_projection": False, "token_dim": width}
    rows = flatten(prefix, _PEFT)
    if lm.is_encoder_decoder:
        # Every second layer that PEFT reads is the cross-attention's, which it takes out again.
        layers = rows.unflatten(1, (len(prefix.keys), 1, -1))
        rows = torch.cat([layers, torch.zeros_like(layers)], dim=2).flatten(1)
        config |= {"num_layers": 2 * len(prefix.keys), "num_transformer_submodules": 2}
    return _write_prompt(lm, folder, "PREFIX_TUNING", rows, config)


def _write_soft(lm: LanguageModel, soft: Tensor, folder: Path) -> str:
    config = {"prompt_tuning_init": "RANDOM", "token_dim": soft.shape[1]}
    return _write_prompt(lm, folder, "PROMPT_TUNING", soft.contiguous().cpu(), config)


def _write_prompt(
    lm: LanguageModel, folder: Path, peft_type: str, embeddings: Tensor, config: Mapping[str, object]
) -> str:
    """Write ``prompt_embeddings [P, width]`` and a config with the fields that all prompts of PEFT have."""
    layers = lm.identity.decoder_only.layers
    config = {
        "base_model_name_or_path": _base_model(lm),
        "inference_mode": True,
        "num_attention_heads": layers[0].kv_heads,
        "num_layers": len(layers),
        # PEFT's default for encoder-decoders is 2: more soft tokens in front of the decoder.
        "num_transformer_submodules": 1,
        "num_virtual_tokens": len(embeddings),
        "peft_type": peft_type,
        "task_type": _task_type(lm),
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"prompt_embeddings": embeddings}, folder / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
    (folder / CONFIG).write_text(text, encoding="utf-8")
    return peft_type


def _write_lora(lm: LanguageModel, task: Task, folder: Path) -> str:
    assert task.adapter is not None
    modules = dict(lm.model.named_modules())
    write_adapter(
        folder,
        task.adapter,
        base_model=_base_model(lm),
        task_type=_task_type(lm),
        fan_in_fan_out=all(isinstance(modules[name], Conv1D) for name in task.adapter.layers),
    )
    return "LORA"


def _head_module(lm: LanguageModel, name: str, head: Head) -> HeadModule:
    """The module of Transformers that holds a task's head. Raises UsageError if none does."""
    task_type = TOKENS if head.per_token else SEQUENCE
    module = head_module(lm, task_type)
    if not module.has_bias and bool(head.bias.any()):
        raise UsageError(
            f"task '{name}' has a head with a bias, and {task_type} in Transformers has none for "
            f"{lm.identity.architecture} ({module.name}), so PEFT would answer otherwise; learn it with --no-head-bias."
        )
    return module


def _add_head(lm: LanguageModel, head: Head, module: HeadModule, folder: Path) -> None:
    """Add a head to a written folder, and the ``config.json`` of the classifier that it belongs to."""
    config = read_json_config(folder / CONFIG)
    config |= {"task_type": TOKENS if head.per_token else SEQUENCE, "modules_to_save": [module.name]}
    root = "base_model.model" if config["peft_type"] == "LORA" else "base_model"
    tensors = {"weight": head.weight, **({"bias": head.bias} if module.has_bias else {})}
    named = {f"{root}.{module.name}.{name}": tensor.contiguous().cpu() for name, tensor in tensors.items()}
    save_file(load_file(folder / WEIGHTS) | named, folder / WEIGHTS, metadata={"format": "pt"})
    for file, content in ((CONFIG, config), (_MODEL_CONFIG, head_config(lm, head))):
        text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n"
        (folder / file).write_text(text, encoding="utf-8")


def _base_model(lm: LanguageModel) -> str:
    """The name for `from_pretrained`: the folder of the model, or its Hub id."""
    return lm.model.config.name_or_path or lm.name


def _task_type(lm: LanguageModel) -> str:
    if lm.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if lm.causal else "FEATURE_EXTRACTION"


def _model_card(task: Task, base: str) -> str:
    """The model card: the template, the verbalizer, and whether requests begin with a beginning-of-text token."""
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        "---",
        f"# {task.name}",
        "",
        f"Exported by Foreword (method {task.method}).",
    ]
    if task.prefix.length and task.prefix.bos == "prefix":
        lines.append("\nThe beginning-of-text token is inside: tokenize requests with `add_special_tokens=False`.")
    if task.template is not None:
        lines.append("\nRequests are worded by this template:\n\n" + indent(task.template, "    "))
    if task.head is not None:
        kind = "TokenClassification" if task.head.per_token else "SequenceClassification"
        lines.append(_HEAD.format(kind=kind, base=json.dumps(base, ensure_ascii=False)))
    if task.verbalizer is not None:
        words = json.dumps({label: list(group) for label, group in task.verbalizer.items()}, ensure_ascii=False)
        lines.append(f"\nLabels and their words:\n\n    {words}")
    return "\n".join(lines) + "\n"
