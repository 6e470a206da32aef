"""``foreword key``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from foreword.cli.options import Json, emit, say
from foreword.errors import UsageError


def key(
    name: Annotated[str, typer.Argument(help="Name of the key, for logs.")],
    file: Annotated[
        Path, typer.Option("--api-keys", help="File that the key is added to.", envvar="FOREWORD_API_KEYS")
    ] = Path("keys.jsonl"),
    task: Annotated[
        list[str] | None, typer.Option(help="Pattern of names that it reaches, such as 'support*'; may be repeated.")
    ] = None,
    admin: Annotated[bool, typer.Option("--admin", help="It may publish, change and remove tasks.")] = False,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="How often it may ask.")] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1, help="Tokens of prompts and answers.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Its quota, from midnight to midnight UTC.")] = None,
    json: Json = False,
) -> None:
    """Make an API key for foreword serve and print it, this once: the file holds its SHA-256 alone.

    Example: foreword key shop --task 'support*' --requests-per-minute 60
    """
    from foreword.server.operations.api_keys import ApiKey, digest_of, new_key, read_keys

    _drop_torn_line(file)
    known = read_keys(file) if file.exists() and file.stat().st_size else []
    if any(other.name == name for other in known):
        raise UsageError(f"{file} has a key '{name}' already; choose another name, or delete its line.")
    if not 1 <= len(name) <= 64:
        raise UsageError("the name of a key has 1 to 64 characters.")
    secret = new_key()
    made = ApiKey(
        name=name,
        sha256=digest_of(secret),
        tasks=task or ["*"],
        admin=admin,
        requests_per_minute=requests_per_minute,
        tokens_per_minute=tokens_per_minute,
        tokens_per_day=tokens_per_day,
    )
    try:
        handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(handle, "a", encoding="utf-8") as lines:
            lines.write(made.model_dump_json(exclude_none=True) + "\n")
            lines.flush()
            os.fsync(handle)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}; check the path.") from error
    say(f"added '{name}' to {file}; foreword serve --api-keys {file} takes it from its next start on")
    emit({"name": name, "key": secret, "file": str(file)}, secret, json)


def _drop_torn_line(file: Path) -> None:
    """Cut off half a last line: the command that wrote it was killed before it printed the key."""
    data = file.read_bytes() if file.is_file() else b""
    whole = data.rfind(b"\n") + 1
    if data[whole:].strip() and not data.rstrip().endswith(b"}"):
        os.truncate(file, whole)
    elif data[whole:]:  # written by hand, without the end of its line
        with file.open("ab") as lines:
            lines.write(b"\n")
