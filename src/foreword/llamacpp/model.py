"""`GgufModel`: a GGUF file with what Foreword has to know of it: identity, tokenizer, context, rotary parameters."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreword.core import LayerShape, ModelIdentity
from foreword.core.json_reader import read_json_object
from foreword.errors import ModelError, UnknownModel, UnsupportedModel
from foreword.home import default_model
from foreword.llamacpp.tokenizer import FileTokenizer
from foreword.models.gguf import BUILTIN, builtin_file, converted_folder, sha256
from foreword.models.gguf_file import GgufFile
from foreword.models.tokenizer_fingerprint import tokenizer_fingerprint

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""Supported architectures and their names in Transformers. Each was compared with the embedded engine."""


@dataclass(frozen=True, eq=False)
class GgufModel:
    """A model for llama.cpp.

    Attributes:
        name: what the user called it; it is served under this name.
        file: where it is.
        tokenizer: of the model.
        identity: what a prefix must agree with. Its weights are the file's digest, which a folder that Foreword
            converted from the file has in its lineage.
        context: positions that a request can take, prefix included.
        eos_token_ids: tokens that end a text.
        rotary_dim: numbers of a key's head that are rotated.
        rope_theta: base of their angles.
        dtype: of the cache.
    """

    name: str
    file: Path
    tokenizer: FileTokenizer
    identity: ModelIdentity
    context: int
    eos_token_ids: frozenset[int]
    rotary_dim: int
    rope_theta: float
    dtype: np.dtype


def gguf_model(
    name: str | None = None, *, progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr)
) -> GgufModel:
    """Describe a GGUF file.

    Args:
        name: its path, or ``smollm2-135m`` (built in); by default ``$FOREWORD_MODEL``, else the built-in one.
        progress: gets a line for every slow step.

    Raises:
        UnknownModel: there is no such file.
        UnsupportedModel: its architecture, its rotation or its tokenizer is not known here.
    """
    name = name or default_model()
    file = GgufFile.read(_find_file(name, progress))
    if file.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name} is a model of the architecture {file.architecture!r}; on llama.cpp Foreword runs "
            f"{', '.join(ARCHITECTURES)}; use --engine embedded."
        )
    digest = sha256(file.path)
    folder = _tokenizer_folder(file.path, name, digest)
    tokenizer = FileTokenizer.from_gguf(file) if folder is None else FileTokenizer.from_folder(folder)
    rope_theta = float(file.get("rope.freq_base", 10000.0))
    layers = _layer_shapes(file)
    identity = ModelIdentity(
        architecture=ARCHITECTURES[file.architecture],
        hidden_size=int(file.require("embedding_length")),
        vocab_size=file.shapes["token_embd.weight"][1],
        layers=layers,
        rope=_rope_parameters(file, rope_theta),
        tokenizer=tokenizer_fingerprint(tokenizer),
        weights=digest,
        lineage=(digest,),
    )
    return GgufModel(
        name=name,
        file=file.path,
        tokenizer=tokenizer,
        identity=identity,
        context=int(file.require("context_length")),
        eos_token_ids=_eos_token_ids(file, tokenizer, folder),
        rotary_dim=int(file.get("rope.dimension_count", layers[0].key_dim)),
        rope_theta=rope_theta,
        dtype=file.dtype,
    )


def _find_file(name: str, progress: Callable[[str], None]) -> Path:
    if name == BUILTIN:
        return builtin_file(progress)
    if not name.endswith(".gguf"):
        raise UnknownModel(f"llama.cpp reads GGUF files, got {name}; give a .gguf file or {BUILTIN}.")
    return Path(name).expanduser()


def _tokenizer_folder(file: Path, name: str, digest: str) -> Path | None:
    """The folder with the tokenizer's files: the model's, or the one that Foreword converted it to."""
    if name == BUILTIN:
        return None  # the tokenizer in the file is the same, and loads faster
    places = [file.parent, converted_folder(digest)]
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def _layer_shapes(file: GgufFile) -> tuple[LayerShape, ...]:
    count, heads, width = (int(file.require(n)) for n in ("block_count", "attention.head_count", "embedding_length"))
    kv_heads = file.get("attention.head_count_kv", heads)
    by_layer = [int(n) for n in kv_heads] if isinstance(kv_heads, list | tuple) else [int(kv_heads)] * count
    key_dim = int(file.get("attention.key_length", width // heads))
    value_dim = int(file.get("attention.value_length", key_dim))
    return tuple(LayerShape(n, key_dim, value_dim) for n in by_layer)


def _rope_parameters(file: GgufFile, rope_theta: float) -> str:
    """As `foreword.models.fingerprint.rope_parameters` writes them.

    Raises UnsupportedModel for scaled angles, which the file describes otherwise than the model's configuration.
    """
    scaled = file.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in file.shapes
    if scaled:
        raise UnsupportedModel(
            f"{file.path.name} scales its rotary angles, which its file does not say as the bank does; use --engine "
            "embedded."
        )
    return json.dumps({"rope_theta": rope_theta, "rope_type": "default"}, sort_keys=True)


def _eos_token_ids(file: GgufFile, tokenizer: FileTokenizer, folder: Path | None) -> frozenset[int]:
    """As `foreword.models.LanguageModel.eos_token_ids`: the tokenizer's, and those of the generation config."""
    configured: Any = file.fields.get("tokenizer.ggml.eos_token_id")
    if folder is not None and (config := folder / "generation_config.json").is_file():
        found = read_json_object(config, error=ModelError, mend="download it again")
        configured = found.get("eos_token_id", configured)
    ids = [tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
    return frozenset(token for token in ids if isinstance(token, int))
