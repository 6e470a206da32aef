"""Heads of PEFT folders: the linear layer that SEQ_CLS and TOKEN_CLS adapters keep in ``modules_to_save``.

PEFT adds the names ``classifier`` and ``score`` to ``modules_to_save`` by itself, and saves whichever of them the model
has. Transformers' classifiers of causal models read the last token through one linear layer, which is a `Head`; those
of encoders stand behind a pooler or further layers, which is not. Token classifiers are one linear layer everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from foreword.core import Head, ProblemType
from foreword.errors import CorruptFile, ModelMismatch, UsageError
from foreword.interop.checkpoint import Checkpoint, read_json_config
from foreword.models import LanguageModel

SEQUENCE, TOKENS = "SEQ_CLS", "TOKEN_CLS"
_ANSWERS = "QUESTION_ANS"
_CLASSES = {SEQUENCE: AutoModelForSequenceClassification, TOKENS: AutoModelForTokenClassification}
# What PEFT adds to `modules_to_save` by itself.
_MODULES = ("classifier", "score")
_PART = re.compile(rf"base_model\.(?:model\.)?(?:[\w.]+\.)?({'|'.join(_MODULES)})\.([\w.]+)")
_CONFIG = "config.json"


@dataclass(frozen=True)
class HeadModule:
    """The linear layer of a class of Transformers that classifies.

    Attributes:
        name: of the layer in the model, such as ``score``.
        has_bias: whether it adds a bias.
    """

    name: str
    has_bias: bool


def check_saved_modules(checkpoint: Checkpoint) -> None:
    """Raise UsageError for an adapter whose answers come from more than the model and one linear head."""
    config = checkpoint.config
    task_type, saved = config.get("task_type"), list(dict.fromkeys(map(str, config.get("modules_to_save") or ())))
    if task_type == _ANSWERS:
        raise UsageError(
            f"{checkpoint} is for {_ANSWERS}: its qa_outputs score where an answer begins and ends in a text, and a "
            "task labels texts and words; learn to write the answer with --target-field instead."
        )
    others = [name for name in saved if task_type not in _CLASSES or name not in _MODULES]
    if others:
        raise UsageError(
            f"{checkpoint} replaces whole modules ({', '.join(others)}), which a task has no place for; learn it again "
            f"without {others[0]} in modules_to_save."
        )
    if task_type not in _CLASSES:
        return
    parts = _parts(checkpoint)
    if not parts:
        raise UsageError(
            f"{checkpoint} is for {task_type} and holds no head ({' or '.join(_MODULES)}), so its labels would be read "
            "from random numbers; save it again with the head in modules_to_save."
        )
    if further := sorted({name for name in parts if name.partition(".")[2] not in ("weight", "bias")}):
        raise UsageError(
            f"{checkpoint} labels by several layers ({', '.join(further)}), and the head of a task is one linear layer "
            "over the hidden states; learn it again here with --head linear."
        )


def split_head(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """The checkpoint without its head, and the head's tensors as ``weight`` and ``bias``; none without a head."""
    task_type = checkpoint.config.get("task_type")
    if task_type not in _CLASSES:
        return checkpoint, {}
    parts = _parts(checkpoint)
    rest = {name: tensor for name, tensor in checkpoint.tensors.items() if name not in parts.values()}
    body = replace(checkpoint, tensors=rest, config={**checkpoint.config, "modules_to_save": None})
    return body, {name.partition(".")[2]: checkpoint.tensors[key] for name, key in parts.items()}


def read_head(lm: LanguageModel, checkpoint: Checkpoint) -> Head | None:
    """The head of a checkpoint for its base model, ``None`` for an adapter without one.

    Labels are those of ``id2label`` in the folder's or the base model's config, else their numbers as text.

    Raises:
        UsageError: the classifier of this base model is no linear layer over one hidden state.
        ModelMismatch, CorruptFile: tensors that do not fit the base model or each other.
    """
    task_type = str(checkpoint.config.get("task_type"))
    _, tensors = split_head(checkpoint)
    if not tensors:
        return None
    _check_reads_states(lm, task_type, str(checkpoint))
    weight = tensors.get("weight")
    hidden = lm.identity.head_size
    if weight is None or weight.dim() != 2 or not weight.is_floating_point():
        raise CorruptFile(f"the head of {checkpoint} must have a weight [labels, {hidden}]; download it again.")
    if weight.shape[1] != hidden:
        raise ModelMismatch(
            f"{checkpoint} has a head over {weight.shape[1]} numbers, {lm.name} has hidden states of {hidden}; give "
            "the model it was made for with --model."
        )
    bias = tensors.get("bias", torch.zeros(len(weight), dtype=weight.dtype))
    if tuple(bias.shape) != (len(weight),) or not bias.is_floating_point():
        raise CorruptFile(
            f"the bias of the head of {checkpoint} must have {len(weight)} numbers, found {list(bias.shape)}; download "
            "it again."
        )
    settings = _head_config(lm, checkpoint)
    problem_type = _problem_type(settings, len(weight), task_type, str(checkpoint))
    bias = bias.to(weight.dtype)
    return Head(_labels(settings, len(weight), problem_type), weight, bias, task_type == TOKENS, problem_type)


def head_module(lm: LanguageModel, task_type: str) -> HeadModule:
    """The layer that holds a head in the class of Transformers that classifies with this model.

    Raises UsageError if there is none, or it is more than a linear layer.
    """
    _check_reads_states(lm, task_type, f"{lm.name} in Transformers")
    try:
        with torch.device("meta"):
            model = _CLASSES[task_type].from_config(deepcopy(lm.model.config), attn_implementation="eager")
    except ValueError as error:
        raise UsageError(f"Transformers has no {task_type} class for {lm.identity.architecture}.") from error
    for name, module in model.named_children():
        if name in _MODULES and isinstance(module, nn.Linear):
            return HeadModule(name, module.bias is not None)
    raise UsageError(
        f"{type(model).__name__} has no linear layer {' or '.join(_MODULES)}, so PEFT cannot hold the task's head."
    )


def head_config(lm: LanguageModel, head: Head) -> dict[str, Any]:
    """The ``config.json`` with which Transformers makes the base model of an exported head."""
    config = lm.model.config.to_dict()
    del config["architectures"]
    names = {str(index): label for index, label in enumerate(head.labels)}
    labels = {"id2label": names, "label2id": {label: index for index, label in enumerate(head.labels)}}
    return {**config, **labels, **({} if head.per_token else {"problem_type": head.problem_type})}


def _parts(checkpoint: Checkpoint) -> dict[str, str]:
    """Tensors of the head: ``score.weight`` -> its name in the file. Low-rank factors of a layer are none of them."""
    found = ((name, _PART.fullmatch(name)) for name in checkpoint.tensors if ".lora_" not in name)
    return {f"{part[1]}.{part[2]}": name for name, part in found if part is not None}


def _check_reads_states(lm: LanguageModel, task_type: str, what: str) -> None:
    if lm.is_encoder_decoder:
        raise UsageError(
            f"{what} labels by the states of an encoder-decoder, which no head here reads; learn it again here with "
            "--head verbalizer."
        )
    if task_type == SEQUENCE and not lm.causal:
        raise UsageError(
            f"{what} labels whole texts with an encoder, whose classifier in Transformers stands behind a pooler or "
            "further layers and not over the hidden states, so a linear head cannot hold it; learn it again here with "
            "--head linear."
        )


def _head_config(lm: LanguageModel, checkpoint: Checkpoint) -> Mapping[str, Any]:
    """The fields of a model's config that say what the outputs of a head mean."""
    own = read_json_config(checkpoint.folder / _CONFIG) if (checkpoint.folder / _CONFIG).is_file() else {}
    names = ("id2label", "problem_type")
    base = {name: getattr(lm.model.config, name, None) for name in names}
    given = {name: value for source in (checkpoint.config, own) for name, value in source.items() if name in names}
    return {**base, **{name: value for name, value in given.items() if value}}


def _problem_type(config: Mapping[str, Any], outputs: int, task_type: str, what: str) -> ProblemType:
    """What the outputs mean, as Transformers decides it: by ``problem_type``, or a number where there is one output.

    Raises UsageError for a regression of several numbers.
    """
    found = config.get("problem_type")
    if task_type == TOKENS:
        return "single_label_classification"
    if found == "regression" or (found is None and outputs == 1):
        if outputs > 1:
            raise UsageError(f"{what} answers {outputs} numbers, and a task answers one; learn each by itself.")
        return "regression"
    return "multi_label_classification" if found == "multi_label_classification" else "single_label_classification"


def _labels(config: Mapping[str, Any], count: int, problem_type: ProblemType) -> tuple[str, ...]:
    """Names of the labels: ``id2label`` if it names as many different ones and is not Transformers' default, else their
    numbers; of a regression ``value``."""
    names = config.get("id2label")
    found = {str(key): str(value) for key, value in names.items()} if isinstance(names, dict) else {}
    labels = tuple(found.get(str(index), f"LABEL_{index}") for index in range(count))
    named = len(found) == count and len(set(labels)) == count
    if not named or all(label == f"LABEL_{index}" for index, label in enumerate(labels)):
        return ("value",) if problem_type == "regression" else tuple(map(str, range(count)))
    return labels
