"""Default places of converted models, the bank and run folders, and the default model."""

import os
import time
from pathlib import Path


def home() -> Path:
    """``$FOREWORD_HOME``, else ``foreword`` in the user's XDG cache folder."""
    if configured := os.environ.get("FOREWORD_HOME"):
        return Path(configured).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "foreword"


def default_bank() -> str:
    """``$FOREWORD_BANK`` (a path or an fsspec URL), else ``bank`` in `home`."""
    return os.environ.get("FOREWORD_BANK") or str(home() / "bank")


def default_model() -> str:
    """``$FOREWORD_MODEL``, else the built-in model."""
    return os.environ.get("FOREWORD_MODEL") or "smollm2-135m"


def default_run_dir(name: str) -> str:
    """``runs/NAME-TIME``, with a number behind it where a run of the same second has that folder."""
    plain = f"runs/{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    found, number = plain, 2
    while Path(found).exists():
        found, number = f"{plain}-{number}", number + 1
    return found
