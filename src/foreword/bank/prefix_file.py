"""``prefix.safetensors``: one `KVPrefix` with the identity of its model. Specified in ``SPEC.md``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from foreword.bank.durable import durable_write
from foreword.bank.json_document import (
    FORMAT,
    MEND,
    Count,
    FieldCheck,
    Sha256,
    dump,
    field_error,
    is_a,
    is_identity,
    is_provenance,
    parse_fields,
)
from foreword.bank.safetensors_header import SafetensorsHeader, TensorInfo, read_safetensors_header
from foreword.bank.tensor_file import DTYPES, TensorLoader, detach, is_finite, load_tensors, open_file, serialize
from foreword.core import Bos, KVPrefix, LayerShape, ModelIdentity
from foreword.errors import CorruptFile, UsageError

if TYPE_CHECKING:
    import torch

_METADATA_KEY = "foreword"

_FIELDS: dict[str, FieldCheck] = {
    "format": ("the format version", is_a(Count)),
    "model": ("a model identity with at least one layer", is_identity),
    "offset": ("a position, 0 or more", is_a(Count)),
    "token_ids": ("a list of token ids, or null", is_a(list[Count] | None)),
    "bos": (f"one of {', '.join(get_args(Bos))}", is_a(Bos)),
    "method": ("a text", is_a(str)),
    "dtype": (f"one of {', '.join(DTYPES.values())}", lambda value: value in list(DTYPES.values())),
    "digest": ("a SHA-256", is_a(Sha256)),
    "provenance": ("an object, with objects as metrics and recipe and a list as parents", is_provenance),
}


def write_prefix(path: str | os.PathLike[str], prefix: KVPrefix, *, method: str, provenance: Mapping[str, Any]) -> None:
    """Write one prefix, fsynced, whole or not at all.

    Args:
        path: the file; what is there is replaced.
        prefix: all keys and values in one floating dtype, on any device; states may have others.
        method: the training method, such as ``p-tuning-v2``.
        provenance: JSON values only.

    Raises:
        UsageError: mixed or integer dtypes, values that are not finite, or provenance that JSON cannot hold.
        OSError: the disk is full or not writable.
    """
    if (broken := _first_nonfinite_layer(prefix)) is not None:
        raise UsageError(f"layer {broken} of the prefix holds NaN or infinity; train it again with a smaller --lr.")
    header = {
        "format": FORMAT,
        "model": prefix.model.to_json(),
        "offset": prefix.offset,
        "token_ids": None if prefix.token_ids is None else list(prefix.token_ids),
        "bos": prefix.bos,
        "method": method,
        "dtype": _dtype_of(prefix),
        "digest": prefix.digest,
        "provenance": dict(provenance),
    }
    metadata = {_METADATA_KEY: dump(header, "the header of a prefix")}
    error = field_error(header, _FIELDS) or _position_error(
        prefix.model, prefix.length, prefix.offset, prefix.token_ids
    )
    if error:
        raise UsageError(f"the prefix cannot be stored: {error}; mend it, and publish it again.")
    durable_write(Path(path), serialize(_named_tensors(prefix), metadata))


def read_prefix(path: str | os.PathLike[str], source: str = "", load: TensorLoader = load_tensors) -> KVPrefix:
    """Read and check one prefix; its tensors are on the CPU in the stored dtype.

    Args:
        source: becomes `KVPrefix.source`.
        load: reads the tensors.

    Raises `CorruptFile` for whatever is wrong with the file, `BankError` if it cannot be opened.
    """
    where = str(path)
    with open_file(path) as stream:
        header = _read_header(read_safetensors_header(stream, where), where)
    tensors = load(path)
    prefix = _make_prefix(header, tensors, where, source)
    if prefix.digest != header["digest"]:
        raise CorruptFile(
            f"{where} was altered: expected prefix digest {header['digest'][:12]}, found {prefix.digest[:12]}; {MEND}."
        )
    if (broken := _first_nonfinite_layer(prefix)) is not None:
        raise CorruptFile(f"{where}: layer {broken} must hold finite numbers, found NaN or infinity; {MEND}.")
    return prefix


def read_prefix_metadata(path: str | os.PathLike[str], source: str = "") -> KVPrefix:
    """A prefix whose keys and values are on the meta device, with the digest that the header states.

    Code that reads the values later, by ``source``, checks them against that digest. Raises as `read_prefix` does,
    unless the error is in the values.
    """
    import torch

    where = str(path)
    with open_file(path) as stream:
        container = read_safetensors_header(stream, where)
    header = _read_header(container, where)
    # Layers of one shape share a tensor: there is nothing in it, and a thousand tasks have sixty thousand of them.
    kinds = {(tensor.shape, tensor.dtype) for tensor in container.tensors.values()}
    empty = {
        (shape, dtype): torch.empty(shape, dtype=getattr(torch, DTYPES[dtype]), device="meta") for shape, dtype in kinds
    }
    prefix = _make_prefix(
        header, {name: empty[each.shape, each.dtype] for name, each in container.tensors.items()}, where, source
    )
    vars(prefix)["digest"] = header["digest"]  # the cached property
    return prefix


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked header of a prefix file, without loading tensors. Raises as `read_prefix` does."""
    with open_file(path) as stream:
        return _read_header(read_safetensors_header(stream, str(path)), str(path))


def _dtype_of(prefix: KVPrefix) -> str:
    found = sorted({str(t.dtype).removeprefix("torch.") for t in (*prefix.keys, *prefix.values)})
    if len(found) > 1 or found[0] not in DTYPES.values():
        raise UsageError(
            f"a prefix file holds one floating dtype, found {', '.join(found)}; convert with "
            "prefix.to(dtype=torch.float32) first."
        )
    if others := {str(t.dtype).removeprefix("torch.") for t in prefix.tensors} - set(DTYPES.values()):
        raise UsageError(f"the states of a prefix are floating point, found {min(others)}; convert them first.")
    return found[0]


def _first_nonfinite_layer(prefix: KVPrefix) -> int | None:
    """The first layer with NaN or infinity; ``None`` if there is none. Attention kernels may treat such keys as masked,
    and the task would then answer almost like the base model."""
    bad = (i for i, layer in enumerate(_layers(prefix)) if not all(map(is_finite, layer.values())))
    return next(bad, None)


def _layers(prefix: KVPrefix) -> Iterator[dict[str, torch.Tensor]]:
    """The tensors of every layer by their names in it."""
    for index, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        yield {"key": key, "value": value, **(prefix.states[index] if prefix.states else {})}


def _named_tensors(prefix: KVPrefix) -> dict[str, torch.Tensor]:
    layers = enumerate(_layers(prefix))
    return {f"layers.{index}.{name}": detach(tensor) for index, layer in layers for name, tensor in layer.items()}


def _read_header(container: SafetensorsHeader, where: str) -> dict[str, Any]:
    """Foreword's header, checked against the names, dtypes and shapes of the tensors."""
    text = container.metadata.get(_METADATA_KEY)
    if not isinstance(text, str):
        raise CorruptFile(
            f"{where}: expected a Foreword header in the safetensors metadata, found none; give a file "
            f"written by Foreword, or {MEND}."
        )
    # A lone surrogate can be escaped in JSON but not encoded; the strict parser then refuses its bytes.
    header = parse_fields(text.encode(errors="surrogatepass"), _FIELDS, f"{where}, header")
    first = container.tensors.get("layers.0.key")
    length = first.shape[1] if first and len(first.shape) == 3 else 0
    model = ModelIdentity.from_json(header["model"])
    keys_values, states = _key_value_shapes(model.layers, length), _state_shapes(model.layers)
    found = container.tensors.keys()
    # A prefix without positions, as tasks have that are a template or an adapter alone, has no states either.
    expected = {**keys_values, **(states if length or found & states.keys() else {})}
    _check_names(expected.keys() - found, found - expected.keys(), where)
    for name, tensor in container.tensors.items():
        _check_tensor(name, tensor, expected[name], header["dtype"] if name in keys_values else None, where)
    _check_length(header["token_ids"], length, where)
    if error := _position_error(model, length, header["offset"], header["token_ids"]):
        raise CorruptFile(f"{where}: {error}; {MEND}.")
    return header


def _position_error(model: ModelIdentity, length: int, offset: int, token_ids: Sequence[int] | None) -> str | None:
    """A clause for an error about positions or token ids that a prefix cannot have, for one that engines are to
    trust; ``None`` without one."""
    # Behind an encoder's keys a request may count from 0 again; one that writes would see two tokens at one position.
    if offset > length or (model.writes and offset != length):
        return f"offset must be {length}, the number of its positions, found {offset}"
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < model.vocab_size:
        return f"token_ids must be from 0 to {model.vocab_size - 1}, found {min(token_ids)} to {max(token_ids)}"
    return None


def _key_value_shapes(layers: Sequence[LayerShape], length: int) -> dict[str, tuple[int, ...]]:
    """``[kv_heads, P, dim]`` of every key and value."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(layers):
        shapes[f"layers.{index}.key"] = (layer.kv_heads, length, layer.key_dim)
        shapes[f"layers.{index}.value"] = (layer.kv_heads, length, layer.value_dim)
    return shapes


def _state_shapes(layers: Sequence[LayerShape]) -> dict[str, tuple[int, ...]]:
    named = ((index, state) for index, layer in enumerate(layers) for state in layer.states)
    return {f"layers.{index}.{state.name}": state.shape for index, state in named}


def _check_names(missing: set[str], extra: set[str], where: str) -> None:
    if missing:
        raise CorruptFile(f"{where}: expected the tensor {min(missing)}, found none; {MEND}.")
    if extra:
        raise CorruptFile(f"{where}: expected keys, values and states of its layers only, found {min(extra)}; {MEND}.")


def _check_tensor(name: str, tensor: TensorInfo, shape: tuple[int, ...], dtype: str | None, where: str) -> None:
    """Raise `CorruptFile` for another shape, or a dtype that is not floating point or not ``dtype`` if given."""
    if tensor.shape != shape:
        raise CorruptFile(f"{where}: {name} must be {list(shape)} for its model, found {list(tensor.shape)}; {MEND}.")
    if tensor.dtype not in DTYPES:
        raise CorruptFile(f"{where}: {name} must be floating point, found {tensor.dtype}; {MEND}.")
    if dtype is not None and DTYPES[tensor.dtype] != dtype:
        raise CorruptFile(f"{where}: {name} must be {dtype} as its header says, found {tensor.dtype}; {MEND}.")


def _check_length(token_ids: list[int] | None, length: int, where: str) -> None:
    if token_ids is not None and len(token_ids) != length:
        raise CorruptFile(
            f"{where}: a static prefix of {length} positions needs as many token_ids, found {len(token_ids)}; {MEND}."
        )


def _states(layers: Sequence[LayerShape], tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], ...]:
    """The states of every layer; none at all if the file holds none."""
    if not any(name in tensors for name in _state_shapes(layers)):
        return ()
    return tuple(
        {state.name: tensors[f"layers.{index}.{state.name}"] for state in layer.states}
        for index, layer in enumerate(layers)
    )


def _make_prefix(header: dict[str, Any], tensors: dict[str, torch.Tensor], where: str, source: str) -> KVPrefix:
    model = ModelIdentity.from_json(header["model"])
    layers = range(len(model.layers))
    token_ids = header["token_ids"]
    try:
        return KVPrefix(
            model=model,
            keys=tuple(tensors[f"layers.{i}.key"] for i in layers),
            values=tuple(tensors[f"layers.{i}.value"] for i in layers),
            offset=header["offset"],
            token_ids=None if token_ids is None else tuple(token_ids),
            bos=header["bos"],
            source=source,
            states=_states(model.layers, tensors),
        )
    except (KeyError, UsageError) as error:
        raise CorruptFile(f"{where}: the tensors do not make a prefix ({error}); {MEND}.") from error
