"""Tasks from prefix files, with a template and a verbalizer if they are given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from foreword.bank.prefix_file import read_header, read_prefix
from foreword.bank.tensor_file import TensorLoader, load_tensors
from foreword.core import Task
from foreword.errors import UsageError
from foreword.text.template import Template, decode_escapes
from foreword.text.verbalizer import Verbalizer


def prefix_task(
    name: str,
    file: Path,
    template: str | None,
    verbalizer: str | Mapping[str, object] | None,
    load: TensorLoader = load_tensors,
) -> Task:
    """The task of a ``prefix.safetensors``.

    Args:
        template: with ``\\n`` and the like escaped or not.
        verbalizer: as `Verbalizer.parse` takes it (a text may name a file); goes with a template that has a ``{mask}``.
        load: reads tensors.

    Raises:
        UsageError: no such file, a static prefix (whose text is not in the file), or parts that do not fit.
        CorruptFile: not a prefix file, or a damaged one.
    """
    if not file.is_file():
        raise UsageError(f"{file} is not a file; give a prefix.safetensors file.")
    found, header = read_prefix(file, load=load), read_header(file)
    if found.token_ids is not None:
        raise UsageError(f"{file.name} is a static prefix without its text; publish the text itself.")
    parsed = Template.parse(decode_escapes(template)) if template is not None else None
    if parsed is not None:
        parsed.require_answer()
    if (parsed is not None and parsed.has_mask) != (verbalizer is not None):
        raise UsageError("a template with {mask} and a verbalizer go together; give both, or neither.")
    if parsed is not None and parsed.num_soft_tokens:
        raise UsageError("a prefix file has no values for {soft:N}; take it out of the template.")
    source = parsed.source if parsed is not None else None
    words = dict(Verbalizer.parse(verbalizer).words) if verbalizer is not None else None
    return Task(name, header["method"], found, template=source, verbalizer=words, provenance=header["provenance"])
