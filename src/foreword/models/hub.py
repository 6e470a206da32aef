"""`local_copy`: whether the Hub answers for a model, asked once and quickly, before a library tries for a minute."""

from __future__ import annotations

from pathlib import Path

import httpx
from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

from foreword.errors import UnknownModel
from foreword.models.model_name import NAME_FORMS

# Seconds to wait for the Hub.
TIMEOUT = 10.0


def local_copy(name: str) -> Path | None:
    """The folder of a Hub model in the cache, if the Hub cannot be reached; ``None`` if it can, or is not to be asked.

    Raises UnknownModel if it cannot be reached and the model is not in the cache.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        httpx.head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=TIMEOUT)
    except httpx.TransportError as error:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return Path(snapshot_download(name, local_files_only=True))
        raise UnknownModel(
            f"model {name!r} is not on this machine, and {constants.ENDPOINT} cannot be reached ({error}); "
            f"{NAME_FORMS}."
        ) from error
    return None
