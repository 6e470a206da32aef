"""Import of PEFT folders: the task gives the answers of `PeftModel.from_pretrained`.

PEFT saves the output of projections and prompt encoders, so a prompt is one tensor. Adapters that label bring a head
(`foreword.interop.peft_head`). Folders with anything that a task cannot represent are refused with an error that names
it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from foreword.adapters import check_adapter
from foreword.bank.adapter_file import make_adapter
from foreword.bank.json_document import FieldCheck, is_a
from foreword.core import Front, Task
from foreword.errors import ModelMismatch, UsageError
from foreword.interop.checkpoint import COUNT, TEXT, Checkpoint, read_checkpoint
from foreword.interop.flat_prefix import check_past_key_values, check_room, unflatten
from foreword.interop.peft_head import SEQUENCE, TOKENS, check_saved_modules, read_head, split_head
from foreword.interop.prompt_format import PromptFormat
from foreword.models import LanguageModel
from foreword.prompts.lower import lower

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_PROMPT = "prompt_embeddings"
_SEQ_2_SEQ = "SEQ_2_SEQ_LM"
_TASK_TYPES = (None, "CAUSAL_LM", "FEATURE_EXTRACTION", _SEQ_2_SEQ, SEQUENCE, TOKENS)
# Of an encoder-decoder, where PEFT's default is 2: encoder and decoder.
_SUBMODULES = "num_transformer_submodules"

_FIELDS: dict[str, FieldCheck] = {
    **dict.fromkeys(("task_type", "revision", "base_model_name_or_path"), TEXT),
    **dict.fromkeys(("num_virtual_tokens", "num_layers", _SUBMODULES), COUNT),
    "modules_to_save": ("a list of texts, or null", is_a(list[str] | None)),
}

FrontReader = Callable[[LanguageModel, Checkpoint, int | None], Front]


def read_peft(source: str) -> Checkpoint:
    """Read a folder or a Hub repository that PEFT saved, and refuse what no task can hold.

    Raises:
        UsageError: there is none, or it is of a kind that would answer otherwise here.
        CorruptFile: a file is damaged, or is a pickle with more in it than tensors.
    """
    checkpoint = read_checkpoint(source, CONFIG, WEIGHTS, beside=["config.json"])
    checkpoint.check_config(_FIELDS)
    config = checkpoint.config
    if (peft_type := str(config.get("peft_type"))) not in _PEFT_TYPES:
        raise UsageError(
            f"{checkpoint} is of PEFT's type {peft_type}; what can be imported is {', '.join(_PEFT_TYPES)}."
        )
    check_saved_modules(checkpoint)
    submodules = config.get(_SUBMODULES)
    if config.get("task_type") not in _TASK_TYPES:
        raise UsageError(
            f"{checkpoint} is for {config.get('task_type')}, whose answers do not come from the language model alone; "
            f"what can be imported is {' or '.join(filter(None, _TASK_TYPES))}."
        )
    if submodules not in (None, 1) and (submodules, config.get("task_type")) != (2, _SEQ_2_SEQ):
        raise UsageError(
            f"{checkpoint} has {_SUBMODULES} {submodules!r}, more prompts than its model has places for; save it again "
            "with 1."
        )
    if submodules == 2 and peft_type == "MULTITASK_PROMPT_TUNING":
        raise UsageError(
            f"{checkpoint} puts soft tokens of MULTITASK_PROMPT_TUNING in front of the decoder too; learn it again "
            f"with {_SUBMODULES}=1, in front of the encoder alone."
        )
    return checkpoint


def base_model(checkpoint: Checkpoint) -> str | None:
    """The base model that the config names. Raises UsageError if it names a revision other than main."""
    revision = checkpoint.config.get("revision")
    if revision not in (None, "main"):
        raise UsageError(
            f"{checkpoint} was learned on revision {revision} of its base model; fetch that one and give its folder "
            "with --model."
        )
    return checkpoint.config.get("base_model_name_or_path")


def import_peft(
    lm: LanguageModel,
    checkpoint: Checkpoint,
    name: str,
    *,
    task_id: int | None = None,
    prompt_format: PromptFormat | None = None,
) -> Task:
    """A task that answers as the checkpoint does; a warning is logged if that names another base model.

    Args:
        lm: the model that it was made for.
        checkpoint: from `read_peft`.
        name: of the task.
        task_id: which task of MULTITASK_PROMPT_TUNING; not needed if there is one.
        prompt_format: template and verbalizer, which PEFT does not save.

    Raises:
        ModelMismatch: made for another model.
        PromptTooLong: it leaves no room for a request.
        UsageError: a task id that is missing, unknown or meaningless, or a head that a task cannot hold.
        CorruptFile: tensors that are not what the configuration says.
    """
    peft_type = str(checkpoint.config["peft_type"])
    method, read = _PEFT_TYPES[peft_type]
    if task_id is not None and read is not _multitask:
        raise UsageError(f"{checkpoint} is {peft_type}, which has no task ids; leave --task-id out.")
    head = read_head(lm, checkpoint)
    checkpoint.warn_of_other_base(checkpoint.config.get("base_model_name_or_path"), lm)
    _check_decoder(lm, checkpoint)
    front = read(lm, split_head(checkpoint)[0], task_id)
    prompt_format = prompt_format or PromptFormat()
    if head is not None:
        prompt_format = prompt_format.for_head(per_token=head.per_token)
    provenance = {**checkpoint.provenance("peft"), "peft_type": peft_type}
    if task_id is not None:
        provenance["task_id"] = task_id
    # An encoder's soft tokens attend to the request, so their keys and values cannot be computed ahead.
    soft = None if lm.causal else front.soft
    if soft is not None:
        prompt_format, front = prompt_format.with_soft_tokens(soft.shape[0]), Front()
    return Task(
        name,
        method,
        lower(lm, front),
        template=prompt_format.template,
        verbalizer=prompt_format.verbalizer,
        provenance=provenance,
        soft=soft,
        adapter=front.adapter,
        head=head,
    )


def _check_decoder(lm: LanguageModel, checkpoint: Checkpoint) -> None:
    """Raise ModelMismatch for a checkpoint whose base model is of another kind."""
    found = checkpoint.config.get("task_type")
    if lm.is_encoder_decoder != (found == _SEQ_2_SEQ):
        raise ModelMismatch(
            f"{checkpoint} is for {found}, {lm.name} is {lm.identity.architecture}; give the model it was made for "
            "with --model."
        )


def _soft_prompt(lm: LanguageModel, checkpoint: Checkpoint, task_id: int | None) -> Front:
    """PROMPT_TUNING, P_TUNING and CPT: soft tokens in front of the beginning-of-text token.

    For an encoder-decoder PEFT saves as many rows again for the decoder and feeds the encoder's alone.
    """
    del task_id
    checkpoint.require_only(_PROMPT)
    length = _length(checkpoint)
    copies = checkpoint.config.get(_SUBMODULES) or 1
    return _soft(lm, checkpoint, checkpoint.tensor(_PROMPT, copies * length, None)[:length])


def _multitask(lm: LanguageModel, checkpoint: Checkpoint, task_id: int | None) -> Front:
    """MULTITASK_PROMPT_TUNING (Wang et al. 2023, arXiv:2303.02861): a shared prompt times the task's low-rank one."""
    cols, rows = "prefix_task_cols", "prefix_task_rows"
    checkpoint.require_only(_PROMPT, cols, rows)
    shared = checkpoint.tensor(_PROMPT, _length(checkpoint), None)
    left = checkpoint.tensor(cols, None, shared.shape[0], None)
    right = checkpoint.tensor(rows, left.shape[0], left.shape[2], shared.shape[1])
    if task_id is None and left.shape[0] > 1:
        raise UsageError(f"{checkpoint} holds {left.shape[0]} tasks; say which with --task-id, from 0.")
    if not 0 <= (chosen := task_id or 0) < left.shape[0]:
        raise UsageError(f"{checkpoint} has no task {chosen}; --task-id goes from 0 to {left.shape[0] - 1}.")
    return _soft(lm, checkpoint, shared.float() * (left[chosen].float() @ right[chosen].float()))


def _prefix(lm: LanguageModel, checkpoint: Checkpoint, task_id: int | None) -> Front:
    """PREFIX_TUNING and CARTRIDGE: keys and values, positions ``0..P-1``; of an encoder-decoder, its decoder's."""
    del task_id
    check_past_key_values(lm, str(checkpoint))
    checkpoint.require_only(_PROMPT)
    flat = checkpoint.tensor(_PROMPT, _length(checkpoint), None)
    return Front(unflatten(lm, _decoder_rows(lm, checkpoint, flat) if lm.is_encoder_decoder else flat, str(checkpoint)))


def _decoder_rows(lm: LanguageModel, checkpoint: Checkpoint, flat: Tensor) -> Tensor:
    """The layers of a flat prefix that PEFT feeds to the decoder's self-attention, in its order.

    PEFT lays the saved layers out twice, gives every decoder layer two of them in turn, one for its self-attention and
    one for its cross-attention, and takes the latter out again.
    """
    layers, saved = len(lm.identity.decoder_only.layers), checkpoint.config.get("num_layers")
    if checkpoint.config.get(_SUBMODULES) == 1:
        raise UsageError(
            f"{checkpoint} has {_SUBMODULES} 1, with which PEFT mixes the keys of a decoder's self-attention and "
            "cross-attention; learn it again with 2."
        )
    if not isinstance(saved, int) or saved < layers or flat.shape[1] % saved:
        raise ModelMismatch(
            f"{checkpoint} has num_layers {saved!r} and {flat.shape[1]} numbers a position, {lm.name} has {layers} "
            "layers in its decoder; give the model it was made for with --model."
        )
    return flat.unflatten(1, (saved, -1))[:, [2 * layer % saved for layer in range(layers)]].flatten(1)


def _lora(lm: LanguageModel, checkpoint: Checkpoint, task_id: int | None) -> Front:
    del task_id
    adapter = make_adapter(checkpoint.config, checkpoint.tensors, str(checkpoint))
    check_adapter(adapter, lm.model, str(checkpoint))
    return Front(adapter=adapter)


def _soft(lm: LanguageModel, checkpoint: Checkpoint, values: Tensor) -> Front:
    hidden = lm.identity.hidden_size
    if values.shape[1] != hidden:
        raise ModelMismatch(
            f"{checkpoint} has soft tokens of {values.shape[1]} numbers, {lm.name} has embeddings of {hidden}; give "
            "the model it was made for with --model."
        )
    check_room(lm, values.shape[0], str(checkpoint))
    return Front(soft=values.to(device=lm.device, dtype=lm.dtype))


def _length(checkpoint: Checkpoint) -> int:
    length = checkpoint.config.get("num_virtual_tokens")
    if not isinstance(length, int) or length < 1:
        raise UsageError(f"{CONFIG} of {checkpoint} must say num_virtual_tokens, 1 or more; found {length!r}.")
    return length


_PEFT_TYPES: Mapping[str, tuple[str, FrontReader]] = {
    "PROMPT_TUNING": ("prompt-tuning", _soft_prompt),
    "P_TUNING": ("p-tuning", _soft_prompt),
    "CPT": ("cpt", _soft_prompt),
    "MULTITASK_PROMPT_TUNING": ("multitask-prompt-tuning", _multitask),
    "PREFIX_TUNING": ("prefix-tuning", _prefix),
    "CARTRIDGE": ("cartridge", _prefix),
    "LORA": ("lora", _lora),
}
"""PEFT's types, with the method of the task and the function that reads the checkpoint."""
