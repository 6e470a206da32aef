"""Models whose layers are spread over several GPUs (``device_map``), by Transformers and accelerate.

Prefixes, masks and caches stay on the device of the input embedding: each layer sends the queries, keys and values of
its tokens there (`foreword.attention.ForwardContext.device`), and takes what was attended to back.
"""

from __future__ import annotations

import os
from typing import Any

from foreword.errors import SettingError, UnsupportedModel, UsageError

DEVICE_MAPS = ("auto", "balanced", "sequential")

DeviceMap = str | dict[str, Any]


def check_device_map(device_map: DeviceMap, device: str) -> None:
    """Raise SettingError or UsageError for a map that nobody knows, or that contradicts something else."""
    if isinstance(device_map, str) and device_map not in DEVICE_MAPS:
        raise SettingError("device_map", f"unknown device map {device_map!r}; choose {', '.join(DEVICE_MAPS)}.")
    if device != "auto":
        raise UsageError("--device-map chooses the devices of all layers; leave --device out.")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError("every process of a distributed run has a GPU of its own; leave --device-map out.")


def check_placement(model: Any, name: str) -> None:
    """Raise UnsupportedModel for a model that did not fit, whose weights are read anew at every forward."""
    placed = set(getattr(model, "hf_device_map", None) or {})
    devices = {str(model.hf_device_map[part]) for part in placed}
    if len(devices) > 1 and devices & {"cpu", "disk"}:
        raise UnsupportedModel(
            f"{name} does not fit on the GPUs: some of its layers would be kept in memory and copied at every forward; "
            "load it with --quantize int8, or on more GPUs."
        )
