"""`generation_config`: how a model's makers want its answers sampled, from its ``generation_config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreword.core import SamplingParams
from foreword.core.json_reader import parse_json, read_document
from foreword.errors import ModelError, UsageError
from foreword.home import default_model
from foreword.models.gguf import BUILTIN

FILE = "generation_config.json"
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What is read of the file, as vLLM does; tokens that end a text are the model's own in any case."""

_BUILTIN: Mapping[str, Any] = {"temperature": 0.2, "top_p": 0.9}
"""Of the model card of SmolLM2-135M-Instruct; the GGUF file that it comes in has none."""


def generation_config(name: str | None = None) -> dict[str, Any]:
    """Defaults of sampling parameters, named as in `SamplingParams`.

    ``do_sample: false`` makes them greedy. A GGUF file has none, and neither has a model without the file.

    Args:
        name: of a model that was loaded already, as `foreword.load_model` takes it.

    Raises ModelError for a file that cannot be read, or a value outside its range.
    """
    name = name or default_model()
    if name == BUILTIN:
        return dict(_BUILTIN)
    if name.endswith(".gguf") or (file := _find(name)) is None:
        return {}
    try:
        config = parse_json(read_document(file))
        found: dict[str, Any] = {key: config[key] for key in SAMPLING if config.get(key) is not None}
        if config.get("do_sample") is False:
            penalty = {key: value for key, value in found.items() if key == "repetition_penalty"}
            found = {**penalty, "temperature": 0.0}
        SamplingParams(**found)
    except (OSError, ValueError, TypeError, AttributeError, UsageError) as error:
        why = str(error).rstrip(".")
        raise ModelError(
            f"the {FILE} of {name} cannot be used ({why}); mend it, or give --generation-config none."
        ) from error
    return found


def _find(name: str) -> Path | None:
    folder = Path(name).expanduser()
    if folder.is_dir():
        file = folder / FILE
    else:
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, FILE)
        file = Path(cached) if isinstance(cached, str) else folder / FILE
    return file if file.is_file() else None
