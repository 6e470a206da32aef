"""`Checkpoint`: tensors and config of a folder that another program wrote, read without executing any of it."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from foreword.bank.digests import file_sha256
from foreword.bank.json_document import FieldCheck, field_error, is_a
from foreword.bank.tensor_file import is_finite
from foreword.core import json_reader
from foreword.errors import CorruptFile, UsageError
from foreword.models import LanguageModel
from foreword.models.pickled_tensors import read_pickled_tensors
from foreword.version import __version__

_Positive = Annotated[int, Field(ge=1)]

TEXT: FieldCheck = ("a text or null", is_a(str | None))
COUNT: FieldCheck = ("a number from 1, or null", is_a(_Positive | None))
"""Fields of configurations, for `Checkpoint.check_config`."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The tensors and the config of a folder.

    Attributes:
        name: of the folder or the repository, without the path to it.
        folder: where its files are.
        config: content of its JSON configuration; empty if there is none.
        tensors: all its tensors by name, on the CPU in the stored dtype.
        sha256: of the file that holds them.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    sha256: str

    def __str__(self) -> str:
        return f"the checkpoint {self.name}"

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """The floating-point tensor ``name``; ``None`` in ``shape`` is any size. Raises CorruptFile without one."""
        expected = " x ".join("any" if size is None else str(size) for size in shape)
        if (found := self.tensors.get(name)) is None:
            raise CorruptFile(f"{self} must hold the tensor {name} ({expected}), found none; download it again.")
        if not found.is_floating_point() or not _fits(tuple(found.shape), shape):
            raise CorruptFile(
                f"{name} of {self} must be floating-point numbers {expected}, found {list(found.shape)} of "
                f"{str(found.dtype).removeprefix('torch.')}; import it for the model that it was made for."
            )
        return found

    def check_config(self, fields: Mapping[str, FieldCheck]) -> None:
        """Raise CorruptFile if one of ``fields`` is in the configuration with a value that it cannot have."""
        if error := field_error(self.config, fields):
            raise CorruptFile(f"the configuration of {self}: {error}; download it again.")

    def require_only(self, *names: str) -> None:
        """Raise UsageError if it holds other tensors: without them the task would give other answers."""
        if extra := sorted(self.tensors.keys() - set(names)):
            raise UsageError(
                f"{self} holds {extra[0]} besides its prompt, which a task has no place for; learn it again without it."
            )

    def warn_of_other_base(self, stated: str | None, lm: LanguageModel) -> None:
        """Log a warning if the configuration names another base model; of paths and Hub ids the last part counts."""
        used = {_last_part(str(name)) for name in (lm.name, lm.model.config.name_or_path) if name}
        if stated and _last_part(stated) not in used:
            logging.getLogger(__name__).warning(
                "%s was learned on %s, and is imported for %s; unless both have the same weights, it will answer "
                "otherwise.",
                self,
                stated,
                lm.name,
            )

    def provenance(self, kind: str) -> dict[str, Any]:
        """The provenance of an imported task; it contains no local path."""
        return {
            "foreword": __version__,
            "source": self.name,
            "format": kind,
            "weights_sha256": self.sha256,
            "parents": [],
        }


def read_checkpoint(
    source: str, config: str, weights: Sequence[str], *, needs_config: bool = True, beside: Sequence[str] = ()
) -> Checkpoint:
    """Read a folder, one weights file in a folder, or a Hub repository.

    Args:
        source: its path, or its Hub id.
        config: name of its JSON configuration.
        weights: names that its weights file may have; the first that is there is read.
        needs_config: refuse a folder without configuration.
        beside: names of further files that its reader may look for.

    Raises:
        UsageError: there is no such folder, repository or file.
        CorruptFile: a file is damaged, or is a pickle with more in it than tensors.
    """
    path = Path(source).expanduser()
    if not path.exists():
        folder, name = _download(source, [config, *weights, *beside]), source.split("/")[-1]
    else:
        folder = path if path.is_dir() else path.parent
        name = folder.resolve().name
    files = [path] if path.is_file() else [folder / weight for weight in weights]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UsageError(f"{source} has no file {' or '.join(weights)}; give the folder that holds the checkpoint.")
    settings = _read_config(folder / config, needs_config)
    tensors = _read_weights(file)
    if broken := next((key for key, tensor in tensors.items() if not _is_usable(tensor)), None):
        raise CorruptFile(f"{broken[:80]} of {file.name} holds NaN or infinity, or is complex; learn it again.")
    return Checkpoint(name, folder, settings, tensors, file_sha256(file))


def _is_usable(tensor: Tensor) -> bool:
    """Whether it is of real and finite numbers. Others are found here, where they can still be named."""
    return not tensor.is_complex() and (not tensor.is_floating_point() or is_finite(tensor))


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()


def _fits(found: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    return len(found) == len(shape) and all(b is None or a == b for a, b in zip(found, shape, strict=True))


def _download(source: str, files: Sequence[str]) -> Path:
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UsageError(f"there is no folder or file {source}; give one, or a Hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(source, allow_patterns=list(files)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), repr(error))
        raise UsageError(f"{source} could not be fetched ({reason}); give a folder or a Hub id.") from error


def _read_config(file: Path, needed: bool) -> dict[str, Any]:
    if not file.is_file():
        if needed:
            raise UsageError(f"{file.parent} has no {file.name}; give the folder that holds the checkpoint.")
        return {}
    return read_json_config(file)


def read_json_config(file: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object. Raises CorruptFile for any other."""
    return json_reader.read_json_object(file, error=CorruptFile, mend="download it again")


def _read_weights(file: Path) -> dict[str, Tensor]:
    if file.suffix != ".safetensors":
        return _read_pickle(file)
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(f"{file.name} is damaged ({type(error).__name__}); download it again.") from error


def _read_pickle(file: Path) -> dict[str, Tensor]:
    """Tensors of a legacy file, with ``weights_only``: an ordinary load would execute code that a pickle names."""
    try:
        return read_pickled_tensors(file)
    except pickle.UnpicklingError as error:
        raise CorruptFile(
            f"{file.name} is not a pickle of tensors alone, so nothing of it was loaded; ask its author for a "
            ".safetensors file."
        ) from error
    except ValueError as error:
        raise CorruptFile(f"{file.name} cannot be used: {error}; ask its author for a .safetensors file.") from error
    except Exception as error:  # a damaged pickle fails in any way at all
        raise CorruptFile(f"{file.name} is damaged ({type(error).__name__}); download it again.") from error
