"""`GgufModel`: what a GGUF file is for Foreword: identity, tokenizer, context, and how its keys lie."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foreword.core import LayerShape, ModelIdentity
from foreword.errors import UnknownModel, UnsupportedModel
from foreword.home import default_model
from foreword.llamacpp.gguf_file import GgufFile
from foreword.llamacpp.tokenizer import FileTokenizer
from foreword.models.gguf import BUILTIN, builtin_file, converted_folder, sha256
from foreword.models.tokenizer_fingerprint import tokenizer_fingerprint

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
"""What Transformers calls the models of a GGUF file. Each was run here beside the embedded engine."""


@dataclass(frozen=True, eq=False)
class GgufModel:
    """A model that llama.cpp is to run.

    Attributes:
        name: what the user called it; it is served under this name.
        file: where it is.
        tokenizer: of the model.
        identity: what a prefix must agree with. Its weights are the file's digest, which the folder that Foreword
            converts from the file has in its lineage.
        context: positions that a request can take, prefix included.
        end_ids: tokens that end a text.
        rotary: numbers of a key's head that are rotated.
        theta: base of their angles.
        dtype: of its cache.
    """

    name: str
    file: Path
    tokenizer: FileTokenizer
    identity: ModelIdentity
    context: int
    end_ids: frozenset[int]
    rotary: int
    theta: float
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
    head = GgufFile.read(_located(name, progress))
    if head.architecture not in ARCHITECTURES:
        raise UnsupportedModel(
            f"{name} is a model of the architecture {head.architecture!r}; on llama.cpp Foreword runs "
            f"{', '.join(ARCHITECTURES)}; use --engine embedded."
        )
    digest = sha256(head.path)
    folder = _folder(head.path, name, digest)
    tokenizer = FileTokenizer.of_gguf(head) if folder is None else FileTokenizer.of_folder(folder)
    theta = float(head.get("rope.freq_base", 10000.0))
    layers = _layers(head)
    identity = ModelIdentity(
        architecture=ARCHITECTURES[head.architecture],
        hidden_size=int(head.need("embedding_length")),
        vocab_size=head.shapes["token_embd.weight"][1],
        layers=layers,
        rope=_rope(head, theta),
        tokenizer=tokenizer_fingerprint(tokenizer),
        weights=digest,
        lineage=(digest,),
    )
    rotary = int(head.get("rope.dimension_count", layers[0].key_dim))
    context, ends = int(head.need("context_length")), _ends(head, tokenizer, folder)
    return GgufModel(name, head.path, tokenizer, identity, context, ends, rotary, theta, head.dtype)


def _located(name: str, progress: Callable[[str], None]) -> Path:
    if name == BUILTIN:
        return builtin_file(progress)
    if not name.endswith(".gguf"):
        raise UnknownModel(f"llama.cpp reads GGUF files, got {name}; give a .gguf file or {BUILTIN}.")
    return Path(name).expanduser()


def _folder(file: Path, name: str, digest: str) -> Path | None:
    """Where the tokenizer's own files are: beside the model, or where Foreword has converted it to."""
    places = [file.parent, converted_folder(digest)]
    if name == BUILTIN:
        places = []  # what is in the file is the same, and reads faster than a conversion
    return next((place for place in places if (place / "tokenizer.json").is_file()), None)


def _layers(head: GgufFile) -> tuple[LayerShape, ...]:
    count, heads, width = (int(head.need(n)) for n in ("block_count", "attention.head_count", "embedding_length"))
    shared = head.get("attention.head_count_kv", heads)
    every = [int(n) for n in shared] if isinstance(shared, list | tuple) else [int(shared)] * count
    key = int(head.get("attention.key_length", width // heads))
    return tuple(LayerShape(n, key, int(head.get("attention.value_length", key))) for n in every)


def _rope(head: GgufFile, theta: float) -> str:
    """As `foreword.models.fingerprint.rope_parameters` writes it. Raises UnsupportedModel for angles that are scaled:
    how is not in the file as it was in the model's configuration."""
    scaled = head.get("rope.scaling.type", "none") != "none" or "rope_freqs.weight" in head.shapes
    if scaled:
        raise UnsupportedModel(
            f"{head.path.name} scales its rotary angles, which its file does not say as the bank does; use --engine "
            "embedded."
        )
    return json.dumps({"rope_theta": theta, "rope_type": "default"}, sort_keys=True)


def _ends(head: GgufFile, tokenizer: FileTokenizer, folder: Path | None) -> frozenset[int]:
    """As `foreword.models.LanguageModel` has them: of the tokenizer, and of the configuration of generation."""
    configured: Any = head.fields.get("tokenizer.ggml.eos_token_id")
    if folder is not None and (file := folder / "generation_config.json").is_file():
        configured = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id", configured)
    ends = {tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
    return frozenset(end for end in ends if end is not None)
