"""Import of checkpoints of THUDM's P-tuning v2 repository, and of ChatGLM2/3's ``ptuning``.

Both keep a ``prefix_encoder``: a flat prefix, or one behind a small network that is run here once. They differ in
where requests stand. BERT and RoBERTa count past keys, so a request starts at ``P`` as everywhere here. ChatGLM starts
it at 0 and uses the keys as they are, turned by nothing: seen from there, each key stands at position 0. Rotary
positions are relative, so keys and request move by ``P`` together.
"""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from foreword.bank.json_document import FieldCheck, is_a
from foreword.core import Head, KVPrefix, Task
from foreword.errors import ModelMismatch, UnsupportedModel, UsageError
from foreword.interop.checkpoint import COUNT, TEXT, Checkpoint, read_checkpoint
from foreword.interop.flat_prefix import unflatten, uniform_layer_shape
from foreword.interop.prompt_format import PromptFormat
from foreword.models import LanguageModel
from foreword.prompts.rotate import rotate

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")

_CHATGLM = "transformer.prefix_encoder."
_THUDM = "prefix_encoder."
_CLASSIFIER = {"classifier.weight", "classifier.bias"}


_FIELDS: dict[str, FieldCheck] = {
    "_name_or_path": TEXT,
    "architectures": ("a list of texts, or null", is_a(list[str] | None)),
    "quantization_bit": ("a number or null", is_a(int | None)),
    **dict.fromkeys(("pre_seq_len", "num_key_value_heads", "head_dim"), COUNT),
}


def read_ptuning(source: str, *, length: int | None = None, allow_quantized_origin: bool = False) -> Checkpoint:
    """Read a folder, a weights file, or a Hub repository; its ``config.json`` may be missing.

    Args:
        source: its path, or its Hub id.
        length: virtual tokens, checked against the tensors; by default what the config says, else what they have.
        allow_quantized_origin: take prompts that were learned on a quantized model, with a warning.

    Raises:
        UsageError: there is none, or it is of a kind that would answer otherwise here.
        CorruptFile: a file is damaged, or is a pickle with more in it than tensors.
    """
    checkpoint = read_checkpoint(source, CONFIG, WEIGHTS, needs_config=False)
    checkpoint.check_config(_FIELDS)
    if f"{_key_prefix(checkpoint)}embedding.weight" not in checkpoint.tensors:
        raise UsageError(
            f"{checkpoint} has no {_THUDM}embedding.weight, so it is not of P-tuning v2; prompts that were added to "
            "the embeddings alone cannot be imported."
        )
    _check_quantized(checkpoint, allow_quantized_origin)
    if length is not None:
        stated = checkpoint.config.get("pre_seq_len", length)
        if stated != length:
            raise UsageError(
                f"{checkpoint} has {stated} virtual tokens (pre_seq_len), not {length}; leave --length out."
            )
        checkpoint = replace(checkpoint, config={**checkpoint.config, "pre_seq_len": length})
    described = (checkpoint.folder / CONFIG).is_file()
    first = checkpoint.config.get("position_encoding_2d") or not _chatglm_shape(checkpoint)
    if _is_chatglm(checkpoint) and described and first:
        raise UsageError(
            f"{checkpoint} is of the first ChatGLM, which reads requests in both directions at positions of two "
            "dimensions; what can be imported is ChatGLM2 and later, with kv_channels in config.json."
        )
    return checkpoint


def _check_quantized(checkpoint: Checkpoint, allowed: bool) -> None:
    """Raise UsageError, or warn if it is allowed, for prompts that were learned on a quantized model."""
    if not (bits := checkpoint.config.get("quantization_bit")):
        return
    what = f"{checkpoint} was learned on a model quantized to {bits} bits (quantization_bit)"
    if not allowed:
        raise UsageError(
            f"{what}, and the model here answers a little otherwise; pass --allow-quantized-origin to import it for "
            "the model in full, and measure it with foreword eval."
        )
    logging.getLogger(__name__).warning(
        "%s; for the model here its answers may differ, so measure it with foreword eval.", what
    )


def base_model(checkpoint: Checkpoint) -> str | None:
    """The base model that the config names; ``None`` if it names none."""
    return checkpoint.config.get("_name_or_path") or None


def import_ptuning(
    lm: LanguageModel,
    checkpoint: Checkpoint,
    name: str,
    *,
    prefix_only: bool = False,
    prompt_format: PromptFormat | None = None,
) -> Task:
    """A task that answers as the checkpoint does.

    Args:
        lm: the model that it was made for.
        checkpoint: from `read_ptuning`.
        name: of the task.
        prefix_only: leave the checkpoint's own head out.
        prompt_format: template and verbalizer, in place of a head.

    Raises:
        ModelMismatch: made for another model.
        PromptTooLong: it leaves no room for a request.
        UnsupportedModel: keys of ChatGLM for a model whose keys cannot move.
        UsageError: a head that a task cannot hold.
        CorruptFile: tensors of shapes that do not fit together.
    """
    if not _check_body(lm, checkpoint):
        checkpoint.warn_of_other_base(base_model(checkpoint), lm)
    head = _head(lm, checkpoint, prefix_only)
    prompt_format = prompt_format or PromptFormat()
    if head is not None:
        if prompt_format.verbalizer is not None:
            raise UsageError(f"{checkpoint} has a head of its own; leave --verbalizer out, or add --prefix-only.")
        prompt_format = prompt_format.for_head(per_token=True)
    return Task(
        name,
        "p-tuning-v2",
        _prefix(lm, checkpoint),
        template=prompt_format.template,
        verbalizer=prompt_format.verbalizer,
        provenance=checkpoint.provenance("ptuning-v2"),
        head=head,
    )


def _key_prefix(checkpoint: Checkpoint) -> str:
    return _CHATGLM if _is_chatglm(checkpoint) else _THUDM


def _is_chatglm(checkpoint: Checkpoint) -> bool:
    return any(name.startswith(_CHATGLM) for name in checkpoint.tensors)


def _chatglm_shape(checkpoint: Checkpoint) -> tuple[object, ...] | None:
    """Number of layers, number of key heads and head dimension in the config; ``None`` if one is missing."""
    names = ("num_layers", "multi_query_group_num", "kv_channels")
    return tuple(checkpoint.config[name] for name in names) if checkpoint.config.keys() >= set(names) else None


def _thudm_shape(checkpoint: Checkpoint) -> tuple[object, ...] | None:
    """Number of layers, of key heads and head dimension in a config of Transformers; ``None`` if one is missing."""
    config = checkpoint.config
    names = ("num_hidden_layers", "num_attention_heads", "hidden_size")
    if not all(isinstance(config.get(name), int) for name in names):
        return None
    layers, heads, hidden = (config[name] for name in names)
    # With grouped-query attention only the key and value heads are in the cache.
    return layers, config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // max(1, heads)


def _prefix(lm: LanguageModel, checkpoint: Checkpoint) -> KVPrefix:
    shape = uniform_layer_shape(lm.identity, str(checkpoint))
    found = (len(lm.identity.layers), shape.kv_heads, shape.key_dim)
    chatglm = _is_chatglm(checkpoint)
    stated = _chatglm_shape(checkpoint) if chatglm else _thudm_shape(checkpoint)
    if stated is not None and stated != found:
        raise ModelMismatch(
            f"{checkpoint} is for {stated[0]} layers of {stated[1]} x {stated[2]} keys, {lm.name} has {found[0]} of "
            f"{found[1]} x {found[2]}; give the model it was made for with --model."
        )
    prefix = unflatten(lm, _flat_prefix(checkpoint), str(checkpoint))
    if not chatglm:
        return prefix
    if not lm.causal:
        raise UnsupportedModel(f"{checkpoint} is of ChatGLM, {lm.name} is an encoder; give the model it was made for.")
    return rotate(lm, prefix, prefix.length)


def _flat_prefix(checkpoint: Checkpoint) -> Tensor:
    """``[P, layers * 2 * kv_heads * dim]``: the embedding table, or the output of the projection network on it."""
    key_prefix = _key_prefix(checkpoint)
    table = checkpoint.tensor(f"{key_prefix}embedding.weight", checkpoint.config.get("pre_seq_len"), None)
    if f"{key_prefix}trans.0.weight" not in checkpoint.tensors:
        return table
    first = checkpoint.tensor(f"{key_prefix}trans.0.weight", None, table.shape[1])
    second = checkpoint.tensor(f"{key_prefix}trans.2.weight", None, first.shape[0])
    biases = [
        checkpoint.tensor(f"{key_prefix}trans.{index}.bias", weight.shape[0]).float()
        for index, weight in ((0, first), (2, second))
    ]
    hidden = torch.tanh(F.linear(table.float(), first.float(), biases[0]))
    return F.linear(hidden, second.float(), biases[1])


def _head(lm: LanguageModel, checkpoint: Checkpoint, prefix_only: bool) -> Head | None:
    """The checkpoint's classifier over words. Raises UsageError for any other head that is not left out."""
    rest = {name for name in checkpoint.tensors if not name.startswith((_key_prefix(checkpoint), _body_key_prefix(lm)))}
    if prefix_only and not rest:
        raise UsageError(f"{checkpoint} has no head of its own; leave --prefix-only out.")
    if prefix_only or not rest:
        return None
    architecture = next(iter(checkpoint.config.get("architectures") or ()), "unknown")
    if rest != _CLASSIFIER or not str(architecture).endswith("ForTokenClassification"):
        # THUDM's classifiers of whole texts stand behind BERT's pooler: no linear head over hidden states.
        raise UsageError(
            f"{checkpoint} ({architecture}) answers with {min(rest)}, a head that a task cannot hold: only one that "
            "labels words lies directly over the hidden states; import its keys alone with --prefix-only."
        )
    weight = checkpoint.tensor("classifier.weight", None, lm.identity.head_size)
    bias = checkpoint.tensor("classifier.bias", weight.shape[0])
    names = checkpoint.config.get("id2label")
    names = names if isinstance(names, dict) else {}
    labels = tuple(str(names.get(str(index), f"LABEL_{index}")) for index in range(weight.shape[0]))
    return Head(labels, weight.to(lm.dtype), bias.to(lm.dtype), per_token=True)


def _body_key_prefix(lm: LanguageModel) -> str:
    """The key prefix of the base model's weights in a checkpoint with a head, such as ``bert.``."""
    return f"{lm.model.base_model_prefix}."


def _check_body(lm: LanguageModel, checkpoint: Checkpoint) -> bool:
    """Whether the checkpoint has weights of its base model, as THUDM saves them. Raises ModelMismatch for others."""
    body, key_prefix, compared = lm.model.base_model.state_dict(), _body_key_prefix(lm), False
    for name, tensor in checkpoint.tensors.items():
        own = body.get(name.removeprefix(key_prefix)) if name.startswith(key_prefix) else None
        if own is not None and not _equal_weights(tensor, own.cpu()):
            raise ModelMismatch(
                f"{checkpoint} was learned in front of other weights than those of {lm.name}: {name} differs; give the "
                "model it was made for with --model."
            )
        compared = compared or own is not None
    return compared


def _equal_weights(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal up to the precision of the coarser dtype."""
    if a.shape != b.shape or not (a.is_floating_point() and b.is_floating_point()):
        return a.shape == b.shape and bool((a == b).all())
    coarse = max(torch.finfo(a.dtype).eps, torch.finfo(b.dtype).eps)
    return torch.allclose(a.float(), b.float(), rtol=2 * coarse, atol=1e-6)
