"""`check_model_name`: what can be said about a model's name before PyTorch is loaded."""

from __future__ import annotations

from pathlib import Path

from foreword.errors import UnknownModel
from foreword.models.gguf import BUILTIN

NAME_FORMS = f"give a folder, a .gguf file, a Hub id or {BUILTIN}"


def check_model_name(name: str) -> None:
    """Raise UnknownModel for a path where nothing is. Whether a Hub id exists, only the Hub knows."""
    try:
        path = Path(name).expanduser()
        is_file, exists = path.is_file(), path.exists()
    except (OSError, RuntimeError) as error:  # longer than names are, or of an unknown user
        raise UnknownModel(f"{name[:80]!r} names no model ({error}); {NAME_FORMS}.") from error
    if name.endswith(".gguf") and not is_file:
        raise UnknownModel(f"{path} is not a file; give the path of a .gguf file.")
    if (name.startswith((".", "/", "~")) or name.count("/") > 1) and not exists:
        raise UnknownModel(f"there is no model folder {name}; {NAME_FORMS}.")
