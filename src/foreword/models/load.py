"""`load_model`: a Hub id, a folder, a ``.gguf`` file or the built-in name -> a probed `LanguageModel`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
)
from transformers.utils import logging

from foreword import attention
from foreword.core import Batch, Front
from foreword.errors import ModelError, SettingError, UnknownModel, UnsupportedModel, UsageError
from foreword.home import default_model
from foreword.models import gguf
from foreword.models.attention_implementation import of_text, set_attention_implementation
from foreword.models.cached_model import CachedModel, cache_layout
from foreword.models.device_map import DeviceMap, check_device_map, check_placement
from foreword.models.embedded_adapter import refuse_adapter
from foreword.models.encoder_decoder import EncoderDecoder
from foreword.models.encoder_decoder_prefixes import with_prefixes
from foreword.models.encoder_decoder_probe import (
    decoder_layer_shapes,
    decoder_start_token_id,
    embed_scale,
    forced_bos_token_id,
    probe_encoder_decoder,
)
from foreword.models.fingerprint import compute_identity
from foreword.models.gradient_probe import check_gradients
from foreword.models.hub import local_copy
from foreword.models.language_model import LanguageModel, has_lm_head
from foreword.models.model_name import NAME_FORMS, check_model_name
from foreword.models.packed_linear import pack_linear_layers
from foreword.models.placeholder_layers import check_placeholders, find_neighbours, find_projections, shapes
from foreword.models.placeholder_model import PlaceholderModel
from foreword.models.pooling import default_pooling, model_pooling
from foreword.models.probe import FORWARD_ERRORS, NotFinite, prove
from foreword.models.quantization import quantization_options
from foreword.models.quantized_linear import keep_gradients
from foreword.models.ragged_layers import RaggedLayers
from foreword.models.stock_cache import fault_of_stock_cache
from foreword.models.text_side import drop_other_towers, processor_chat_template

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


def wrap_model(model: Any, tokenizer: Any, *, name: str, folder: Path | None = None) -> LanguageModel:
    """Probe and fingerprint a Transformers model.

    Args:
        model: frozen; loaded with ``attn_implementation="foreword"`` unless it is an encoder-decoder.
        folder: where it was loaded from.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return _wrap_encoder_decoder(model, tokenizer, name, folder)
    if not isinstance(model.get_input_embeddings(), nn.Module):
        raise UnsupportedModel(
            f"{type(model).__name__} does not read its tokens from a table of embeddings, so a prefix has no place."
        )
    keep_gradients(model)
    lm = _first_proved(model, tokenizer, name, folder)
    token = Batch.from_rows(Front(), [[0]], device=lm.device)
    with torch.no_grad():
        width = lm.hidden_states(token, token.token_ids).shape[-1]
    if width != lm.identity.hidden_size:
        lm = replace(lm, identity=replace(lm.identity, output_size=width))
    pack_linear_layers(model, lambda: (lm.logits if lm.has_lm_head else lm.hidden_states)(token, token.token_ids))
    return lm


def _first_proved(model: Any, tokenizer: Any, name: str, folder: Path | None) -> LanguageModel:
    """The model carried in the first way whose proof holds. Raises UnsupportedModel with the reason of the last one."""
    refusal = None
    for assemble in _ways(model):
        try:
            lm = assemble(model, tokenizer, name, folder)
            return replace(lm, proof=prove(lm))
        except NotFinite:
            raise
        except UnsupportedModel as error:
            refusal = error
    assert refusal is not None
    try:
        fault = fault_of_stock_cache(model) if _is_causal(model) else None
    except FORWARD_ERRORS:
        fault = None
    if fault is None:
        raise refusal
    raise UnsupportedModel(fault) from refusal


def _ways(model: Any) -> tuple[Callable[[Any, Any, str, Path | None], LanguageModel], ...]:
    """The ways that a model may be carried in, fastest first: each assembles a `LanguageModel` that is not proved yet.

    An assembler raises UnsupportedModel for a model that it cannot run, and finds it with the attention that it was
    loaded with (``foreword``) or the one that an earlier way has set.
    """
    if not _is_causal(model):
        return _on_ragged_rows, _through_placeholders
    # Batches first, then what only some models need: fronts of one length at a time, tokens one at a time.
    cached = [
        partial(_through_cache, mixes_lengths=mixes, one_by_one=one) for one in (False, True) for mixes in (True, False)
    ]
    return (_on_ragged_rows, *cached)


def _through_cache(
    model: Any, tokenizer: Any, name: str, folder: Path | None, *, mixes_lengths: bool, one_by_one: bool
) -> CachedModel:
    # Without a mask, sdpa asks the layers for the direction; in PaliGemma they name another than the model's masks.
    directed = all(getattr(module, "is_causal", True) for module in model.modules())
    set_attention_implementation(model, "sdpa" if model._supports_sdpa and directed else "eager")
    try:
        layout = cache_layout(model)
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot carry a prefix: its forward failed with {error!r}."
        ) from error
    return CachedModel(
        name,
        model,
        tokenizer,
        compute_identity(model, tokenizer, layout.shapes, folder),
        layers={},
        causal=True,
        context=max_positions(model.config.get_text_config()),
        has_lm_head=has_lm_head(model),
        pooling=default_pooling(causal=True),
        layout=layout,
        mixes_lengths=mixes_lengths,
        one_by_one=one_by_one,
    )


def _on_ragged_rows(model: Any, tokenizer: Any, name: str, folder: Path | None) -> LanguageModel:
    first_position = _first_position(model)
    layers = RaggedLayers.find(model, first_position)
    limit = max_positions(model.config.get_text_config())
    return LanguageModel(
        name,
        model,
        tokenizer,
        compute_identity(model, tokenizer, layers.shapes, folder),
        layers.numbers,
        layers.causal,
        limit - first_position if limit else None,
        first_position=first_position,
        has_lm_head=has_lm_head(model),
        pooling=default_pooling(causal=layers.causal),
    )


def _through_placeholders(model: Any, tokenizer: Any, name: str, folder: Path | None) -> PlaceholderModel:
    set_attention_implementation(model, "sdpa" if model._supports_sdpa else "eager")
    try:
        hooks = find_projections(model)
        neighbours = find_neighbours(model, hooks)
        first_position = _first_position(model)
        limit = max_positions(model.config.get_text_config())
        # Keys are kept as they leave their projections, before any rotation.
        identity = replace(compute_identity(model, tokenizer, shapes(hooks, neighbours), folder), rope="null")
        return check_placeholders(
            PlaceholderModel(
                name,
                model,
                tokenizer,
                identity,
                layers={},
                causal=False,
                context=limit - first_position if limit else None,
                first_position=first_position,
                has_lm_head=has_lm_head(model),
                pooling=default_pooling(causal=False),
                hooks=hooks,
                neighbours=neighbours,
            )
        )
    except FORWARD_ERRORS as error:
        raise UnsupportedModel(
            f"{type(model).__name__} cannot carry a prefix: its forward failed with {error!r}."
        ) from error


def _wrap_encoder_decoder(model: Any, tokenizer: Any, name: str, folder: Path | None) -> EncoderDecoder:
    keep_gradients(model)
    try:
        lm = EncoderDecoder(
            name,
            model,
            tokenizer,
            compute_identity(model, tokenizer, decoder_layer_shapes(model), folder),
            layers={},
            causal=False,
            context=getattr(model.config, "max_position_embeddings", None),
            decoder_start_token_id=decoder_start_token_id(model),
            forced_bos_token_id=forced_bos_token_id(model),
            embed_scale=embed_scale(model),
        )
        return with_prefixes(replace(lm, proof=probe_encoder_decoder(lm)))
    except FORWARD_ERRORS as error:
        kind = type(model).__name__
        raise UnsupportedModel(f"{kind} cannot take soft tokens: its forward failed with {error!r}.") from error


def max_positions(config: Any) -> int | None:
    """Number of positions whose rotations do not depend on the rest of the batch; ``None`` without a limit.

    LongRoPE changes the frequencies of all tokens as soon as one stands beyond the original length: a long request
    would change the others' answers, and the keys of a stored prefix would no longer fit.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if all(isinstance(kind, dict) for kind in rope.values()) else [rope]
    limits = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    limits.append(getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if limit), default=None)


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
    if _is_multimodal(config):
        drop_other_towers(model)
    return model, tokenizer


def _from_pretrained(auto: Any, config: Any, source: str, name: str, options: dict[str, Any]) -> tuple[Any, list[str]]:
    """The model, and the names of its tensors that the checkpoint lacks."""

    def load(**attention: Any) -> tuple[Any, dict[str, Any]]:
        # The towers of a model that reads images too are left in the file; Transformers would list their tensors.
        return _quietly(auto.from_pretrained, warnings=not _is_multimodal(config))(
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
            model, found = load(**registered)
        except KeyError:  # a model that has a class for each attention, and none for the registered one
            model, found = load(attn_implementation="eager")
    except (KeyError, ValueError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        raise UnsupportedModel(f"{name} ({type(config).__name__}) cannot be used: {_first_line(error)}") from error
    return model, sorted(found["missing_keys"])


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
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
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
    if not tokenizer.chat_template and _is_multimodal(config):
        tokenizer.chat_template = processor_chat_template(source)
    return config, tokenizer


def auto_class(config: Any) -> Any:
    """The ``AutoModel...`` class that most checkpoints with this configuration are for."""
    return auto_classes(config)[0]


def auto_classes(config: Any) -> tuple[Any, ...]:
    """The ``AutoModel...`` classes that may load a model with this configuration.

    A checkpoint belongs to the first whose weights it has all: of one that reads images too, the text side alone may
    have a class; a sentence encoder or a classifier has hidden states that are whole, and no output matrix for words.
    """
    if getattr(config, "is_encoder_decoder", False):
        return (AutoModelForSeq2SeqLM,)
    encoder = (AutoModelForMaskedLM, AutoModel)
    names = getattr(config, "architectures", None) or []
    if any(name.endswith("ForMaskedLM") for name in names):
        return encoder
    own_code = getattr(config, "auto_map", None) or {}
    causal = type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in own_code
    multimodal = _is_multimodal(config)
    if not (causal or multimodal) or _is_encoder(config):
        named = getattr(transformers, names[0], None) if names else None
        # The text side alone of some models has a class and is in no list (Emu3).
        listed = type(config) in AutoModel._model_mapping
        return (named,) if not listed and getattr(named, "config_class", None) is type(config) else encoder
    return (*[AutoModelForCausalLM] * causal, *[AutoModelForMultimodalLM] * multimodal)


def _is_multimodal(config: Any) -> bool:
    """Whether a configuration is that of a model that writes, and reads images, video or sound beside text."""
    known = type(config) in AutoModelForMultimodalLM._model_mapping
    return known and not getattr(config, "is_encoder_decoder", False)


def _is_encoder(config: Any) -> bool:
    """BERT-like configs are registered for both heads and say by ``is_decoder`` which one they are."""
    return type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)


def _is_causal(model: Any) -> bool:
    """Whether a loaded model writes: by its configuration, or by its class where that is the text side's alone."""
    config = model.config
    if AutoModelForMaskedLM not in auto_classes(config):
        return True
    return model.can_generate() and type(config) not in AutoModelForMaskedLM._model_mapping


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


def _first_position(model: Any) -> int:
    """RoBERTa and its kin count positions from ``padding_idx + 1``."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
