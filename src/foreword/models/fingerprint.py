"""`compute_identity`: the fingerprints that tell whether a prefix was made for this model and tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from foreword.core import LayerShape, ModelIdentity
from foreword.core.json_reader import read_json_object
from foreword.errors import ModelError
from foreword.models.gguf import lineage
from foreword.models.pickled_tensors import read_pickled_tensors
from foreword.models.tokenizer_fingerprint import tokenizer_fingerprint

SAMPLES = 64


def weights_fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over tensor names, shapes and up to 64 evenly spaced stored values of each, in order of name."""
    digests = sorted((name, list(tensor.shape), _samples(tensor)) for name, tensor in tensors)
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _samples(tensor: Tensor) -> list[float]:
    flat = tensor.detach().reshape(-1)
    if flat.numel() == 0:
        return []
    steps = torch.linspace(0, flat.numel() - 1, min(SAMPLES, flat.numel()), dtype=torch.float64).long()
    return flat[steps].double().tolist()


def stored_tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a model folder as they are stored, whatever the shards and the dtype they are loaded in."""
    for file in weight_files(folder):
        if file.suffix == ".bin":
            yield from read_pickled_tensors(file).items()
            continue
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - safe_open is not a dict
                yield name, shard.get_tensor(name)


def weight_files(folder: Path) -> list[Path]:
    """The files that Transformers loads, in its order of preference; copies in other layouts may lie beside them."""
    for single in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{single}.index.json"
        if (folder / single).is_file():
            return [folder / single]
        if index.is_file():
            return sorted({folder / shard for shard in _weight_map(index).values()})
    return []


def _weight_map(index: Path) -> dict[str, str]:
    """The shard of every tensor. Raises ModelError unless each is a file's name, beside the index."""
    found = read_json_object(index, error=ModelError, mend="download it again").get("weight_map")
    files = found.values() if isinstance(found, dict) else [None]
    if not isinstance(found, dict) or not all(isinstance(file, str) and Path(file).name == file for file in files):
        raise ModelError(f"{index}: weight_map must be an object of tensor and file name; download it again.")
    return found


def rope_parameters(config: Any) -> str:
    """Rotary parameters as canonical JSON; ``null`` for models without."""
    rope = getattr(config, "rope_parameters", None)
    return json.dumps(_without_nulls(rope), sort_keys=True, default=str)


def compute_identity(
    model: Any, tokenizer: Any, layers: tuple[LayerShape, ...], folder: Path | None = None
) -> ModelIdentity:
    """The identity that prefixes of a model are checked against.

    Args:
        layers: cache shapes of its self-attention.
        folder: where it was loaded from; the fingerprint is of the weights as stored there, not as loaded.
    """
    stored = stored_tensors(folder) if folder is not None and weight_files(folder) else model.state_dict().items()
    embeddings = model.get_input_embeddings().weight
    return ModelIdentity(
        architecture=type(model).__name__,
        hidden_size=embeddings.shape[1],
        vocab_size=embeddings.shape[0],
        layers=layers,
        rope=rope_parameters(model.config.get_text_config()),
        tokenizer=tokenizer_fingerprint(tokenizer),
        weights=weights_fingerprint(stored),
        lineage=lineage(folder) if folder is not None else (),
    )


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return value
