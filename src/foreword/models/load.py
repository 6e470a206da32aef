"""`load_model`: a Hub id, a folder, a ``.gguf`` file or the built-in name -> a probed `LanguageModel`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from foreword import attention
from foreword.errors import ModelError, SettingError, UnknownModel, UnsupportedModel, UsageError
from foreword.home import default_model
from foreword.models import gguf
from foreword.models.attention_implementation import of_text
from foreword.models.auto_classes import auto_classes, is_multimodal
from foreword.models.config_bounds import check_config
from foreword.models.device_map import DeviceMap, check_device_map, check_placement
from foreword.models.embedded_adapter import refuse_adapter
from foreword.models.fingerprint import weight_files
from foreword.models.gradient_probe import check_gradients
from foreword.models.hub import local_copy
from foreword.models.language_model import LanguageModel
from foreword.models.model_name import NAME_FORMS, check_model_name
from foreword.models.pickled_tensors import check_packed_size
from foreword.models.pooling import model_pooling
from foreword.models.quantization import quantization_options
from foreword.models.size_bound import SizeBound
from foreword.models.text_side import drop_other_towers, processor_chat_template
from foreword.models.ways import wrap_model

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    name: str | None = None,
    *,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
    quantize: str | None = None,
    device_map: DeviceMap | None = None,
    is_trainable: bool = True,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> LanguageModel:
    """Load a base model and probe that it carries prefixes.

    >>> lm = foreword.load_model()
    >>> lm.causal
    True

    Args:
        name: a Hub id, a folder, a ``.gguf`` file, or ``smollm2-135m`` (built in); by default ``$FOREWORD_MODEL``,
            else the built-in one.
        dtype: ``auto`` (the checkpoint's own), ``float32``, ``bfloat16`` or ``float16``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        trust_remote_code: run code that comes with the model.
        quantize: ``int8`` or ``int4``, to round the linear layers' weights as they are loaded (torchao). The model
            keeps its identity: a task learned on it says so, and is served on the plain weights as well.
        device_map: spread the layers over several GPUs as Transformers' and accelerate's ``device_map`` says (``auto``,
            ``balanced``, ``sequential`` or a mapping), in place of ``device``. Prefixes and caches stay where the
            input embedding is; on models that run on ragged rows alone.
        is_trainable: prove that gradients reach a prefix; a model that only serves does without.
        progress: gets a line for every slow step.

    Raises:
        UnknownModel: there is no such model.
        UnsupportedModel: the model cannot carry a prefix; the sentence says why.
    """
    name = name or default_model()
    target = _device(device)
    if dtype not in ("auto", *DTYPES):
        raise SettingError("dtype", f"unknown dtype {dtype!r}; choose auto, {', '.join(DTYPES)}.")
    if device_map is not None:
        check_device_map(device_map, device)
    source = resolve_source(name, progress)
    attention.register()
    options = {"dtype": DTYPES.get(dtype, "auto"), "trust_remote_code": trust_remote_code}
    options |= {"device_map": device_map} if device_map is not None else {}
    model, tokenizer = _load_model_and_tokenizer(source, name, options, quantize)
    if device_map is None:
        model.to(target)
    check_placement(model, name)
    model.eval().requires_grad_(False)
    try:
        lm = wrap_model(model, tokenizer, name=name, folder=_weights_folder(source, model))
    except UnsupportedModel as error:
        if not _runs_own_code(model):
            raise
        raise UnsupportedModel(
            f"the code that comes with {name} is run, but it computes its attention by itself and would never see a "
            f"prefix ({str(error).rstrip('.')}); give a checkpoint of an architecture that Transformers has."
        ) from error
    if device_map is not None and type(lm) is not LanguageModel:
        raise UnsupportedModel(f"{name} is carried {lm.carries}, which takes one device; leave --device-map out.")
    if is_trainable:
        check_gradients(lm)
    return lm if lm.is_encoder_decoder else replace(lm, pooling=model_pooling(source, causal=lm.causal))


def pull(name: str, progress: Callable[[str], None]) -> Path:
    """The folder of a model, downloaded or converted if needed. Raises UnknownModel."""
    source = resolve_source(name, progress)
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source))
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UnknownModel(f"model {name!r} could not be fetched ({_first_line(error)}); {NAME_FORMS}.") from error


def resolve_source(name: str, progress: Callable[[str], None]) -> str:
    """The folder of a local or built-in model, or a Hub id unchanged. Raises UnknownModel."""
    check_model_name(name)
    if name == gguf.BUILTIN:
        return str(gguf.builtin_folder(progress))
    if name.endswith(".gguf"):
        return str(gguf.gguf_folder(Path(name).expanduser(), progress))
    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser())
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise UnknownModel(f"{name} is no model folder; {NAME_FORMS}.")
    cached = local_copy(name)
    if cached is not None:
        progress(f"the Hub cannot be reached; {name} is loaded from the cache")
    return str(cached or name)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _device(device: str) -> str:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device not in available:
        raise SettingError("device", f"unknown device {device!r}; choose auto, cpu, cuda or mps.")
    if not available[device]:
        raise UsageError(f"this machine has no {device} device; use --device cpu.")
    # Under torchrun or accelerate launch every process has a GPU of its own.
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if device == "cuda" else device


def _load_model_and_tokenizer(source: str, name: str, options: dict[str, Any], quantize: str | None) -> tuple[Any, Any]:
    """Load both; ``options`` are those of ``from_pretrained``."""
    config, tokenizer = load_config_and_tokenizer(source, name, options["trust_remote_code"])
    options = {**options, **quantization_options(quantize, config, name)}
    first, *others = auto_classes(config)
    model, missing = _from_pretrained(first, config, source, name, options)
    for auto in others:
        if missing:
            model, missing = _from_pretrained(auto, config, source, name, options)
            missing = [key for key in missing if auto is not AutoModel or not key.startswith("pooler.")]
    if missing:
        raise UnsupportedModel(
            f"{name} has no weights for {missing[0]} of {type(model).__name__}, which would be random; give a "
            "checkpoint with its language model head."
        )
    if is_multimodal(config):
        drop_other_towers(model)
    return model, tokenizer


def _from_pretrained(auto: Any, config: Any, source: str, name: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of its tensors that the checkpoint lacks."""

    def load(**attention: Any) -> tuple[Any, dict[str, Any]]:
        # The towers of a model that reads images too are left in the file; Transformers would list their tensors.
        return _quietly(auto.from_pretrained, warnings=not is_multimodal(config))(
            source, output_loading_info=True, **options, **attention
        )

    try:
        try:
            # Soft tokens are all that an encoder-decoder takes: its attention stays Transformers' own.
            registered = (
                {}
                if auto is AutoModelForSeq2SeqLM
                else {"attn_implementation": of_text(config, attention.ATTN_IMPLEMENTATION)}
            )
            with _bound(source, name, options["trust_remote_code"]):
                model, found = load(**registered)
        except KeyError:  # a model that has a class for each attention, and none for the registered one
            with _bound(source, name, options["trust_remote_code"]):
                model, found = load(attn_implementation="eager")
    except ModelError:
        raise
    except Exception as error:  # a damaged configuration or file makes the libraries raise anything
        raise UnsupportedModel(f"{name} ({type(config).__name__}) cannot be used: {_first_line(error)}") from error
    return model, sorted(found["missing_keys"])


def _bound(source: str, name: str, trust_remote_code: bool) -> AbstractContextManager[Any]:
    """Within it no larger model is built than the weights in a folder fill; nothing where they are not there yet, or
    where code that is trusted anyway builds it."""
    files = weight_files(Path(source)) if Path(source).is_dir() and not trust_remote_code else []
    for file in files:
        if file.suffix == ".bin":
            check_packed_size(file)
    # A byte holds two numbers where a checkpoint is quantized to 4 bits, else one or less.
    return SizeBound(2 * sum(file.stat().st_size for file in files), name) if files else nullcontext()


def _quietly(load: Callable[..., Any], *, warnings: bool) -> Callable[..., Any]:
    """A function of Transformers without the progress bar that it writes to stderr, and without its warnings or not."""

    @wraps(load)
    def quiet(*args: Any, **options: Any) -> Any:
        shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        if not warnings:
            logging.set_verbosity_error()
        try:
            return load(*args, **options)
        finally:
            logging.set_verbosity(verbosity)
            if shown:
                logging.enable_progress_bar()

    return quiet


def load_config_and_tokenizer(source: str, name: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Transformers' configuration and tokenizer.

    Raises UnknownModel, or UnsupportedModel for a model with code of its own that is not trusted, or with an adapter.
    """
    refuse_adapter(source, name)
    if Path(source).is_dir():
        check_config(Path(source), name)
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged configuration or tokenizer makes the libraries raise anything
        if "trust_remote_code" in str(error):
            raise UnsupportedModel(
                f"{name} comes with its own code, which is not run unless asked; pass --trust-remote-code "
                "(trust_remote_code=True in Python) if you trust it."
            ) from error
        if trust_remote_code and isinstance(error, ImportError):
            raise UnsupportedModel(
                f"the code that comes with {name} cannot be imported ({_first_line(error)}); install what it needs."
            ) from error
        raise UnknownModel(f"model {name!r} could not be loaded ({_first_line(error)}); {NAME_FORMS}.") from error
    if not tokenizer.chat_template and is_multimodal(config):
        tokenizer.chat_template = processor_chat_template(source)
    return config, tokenizer


def _runs_own_code(model: Any) -> bool:
    """Whether the model's class comes with its checkpoint (``auto_map``)."""
    return type(model).__module__.startswith("transformers_modules.")


def _weights_folder(source: str, model: Any) -> Path | None:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(source, local_files_only=True, allow_patterns=["*.safetensors", "*.json", "*.bin"])
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"the cached files of {source} could not be found to fingerprint them: {error}") from error
