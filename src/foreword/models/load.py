"""`load_model`: a Hub id, a folder, a ``.gguf`` file or the built-in name becomes a proved `LanguageModel`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

from foreword import attention
from foreword.core import ModelIdentity
from foreword.errors import ModelError, UnknownModel, UnsupportedModel, UsageError
from foreword.home import default_model
from foreword.models import gguf
from foreword.models.fingerprint import (
    rope_parameters,
    stored_tensors,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from foreword.models.language_model import LanguageModel
from foreword.models.probe import prove

_NAMES = f"give a folder, a .gguf file, a Hub id or {gguf.BUILTIN}"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> LanguageModel:
    """Load a base model and prove that it can carry prefixes.

    Args:
        name: a Hub id, a folder, a ``.gguf`` file, or ``smollm2-135m`` (built in); by default ``$FOREWORD_MODEL``,
            else the built-in one.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        trust_remote_code: run code that comes with the model.
        progress: gets a line for every slow step.

    Raises:
        UnknownModel: there is no such model.
        UnsupportedModel: the model cannot carry a prefix; the sentence says why.
    """
    name = name or default_model()
    source = _source(name, progress)
    target = _device(device)
    if dtype not in ("auto", *DTYPES):
        raise UsageError(f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}.")
    attention.register()
    model, tokenizer = _load(source, name, DTYPES.get(dtype, "auto"), trust_remote_code)
    model.to(target).eval().requires_grad_(False)
    return wrap(model, tokenizer, name=name, folder=_folder(source, model))


def pull(name: str, progress: Callable[[str], None]) -> Path:
    """Make a model's folder ready and return it. Raises UnknownModel."""
    source = _source(name, progress)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UnknownModel(f"model {name!r} could not be fetched ({_first_line(error)}); {_NAMES}.") from error


def wrap(model: Any, tokenizer: Any, *, name: str, folder: Path | None = None) -> LanguageModel:
    """Prove and fingerprint a Transformers model that was loaded with ``attn_implementation="foreword"``."""
    start = _first_position(model)
    proof = prove(model, start)
    stored = stored_tensors(folder) if folder is not None and any(folder.glob("*.safetensors")) else None
    embeddings = model.get_input_embeddings().weight
    identity = ModelIdentity(
        architecture=type(model).__name__,
        hidden_size=embeddings.shape[1],
        vocab_size=embeddings.shape[0],
        layers=proof.shapes,
        rope=rope_parameters(model.config),
        tokenizer=tokenizer_fingerprint(tokenizer),
        weights=weights_fingerprint(stored if stored is not None else model.state_dict().items()),
        lineage=gguf.lineage(folder) if folder is not None else (),
    )
    limit = getattr(model.config, "max_position_embeddings", None)
    context = limit - start if limit else None
    return LanguageModel(name, model, tokenizer, identity, proof.layers, proof.causal, context, proof.difference, start)


def _source(name: str, progress: Callable[[str], None]) -> str:
    if name == gguf.BUILTIN:
        return str(gguf.builtin_folder(progress))
    if name.endswith(".gguf"):
        return str(gguf.gguf_folder(Path(name), progress))
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UnknownModel(f"there is no model folder {name}; {_NAMES}.")
    return name


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in available:
        raise UsageError(f"unknown device {device!r}; choose auto, cpu, cuda or mps.")
    if not available[device]:
        raise UsageError(f"this machine has no {device} device; use --device cpu.")
    return device


def _load(source: str, name: str, dtype: Any, trust_remote_code: bool) -> tuple[Any, Any]:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise UnknownModel(f"model {name!r} could not be loaded ({_first_line(error)}); {_NAMES}.") from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{name} is an encoder-decoder ({type(config).__name__}): its cross-attention must not receive a prefix; "
            "use a causal model or an encoder."
        )
    auto = _auto_class(config)
    try:
        return auto.from_pretrained(
            source, dtype=dtype, attn_implementation=attention.NAME, trust_remote_code=trust_remote_code
        ), tokenizer
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise UnsupportedModel(
            f"{name} ({type(config).__name__}) cannot carry a prefix: {_first_line(error)}"
        ) from error


def _auto_class(config: Any) -> Any:
    names = getattr(config, "architectures", None) or []
    if any(name.endswith("ForMaskedLM") for name in names):
        return AutoModelForMaskedLM
    known = AutoModelForCausalLM._model_mapping
    decoder = type(config) in known and not _is_encoder(config)
    return AutoModelForCausalLM if decoder else AutoModelForMaskedLM


def _is_encoder(config: Any) -> bool:
    """BERT-like configs are registered for both heads and say by ``is_decoder`` which one they are."""
    return type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)


def _folder(source: str, model: Any) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, local_files_only=True, allow_patterns=["*.safetensors", "*.json"]))
    except (OSError, ValueError) as error:
        raise ModelError(f"the cached files of {source} could not be found to fingerprint them: {error}") from error


def _first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
