"""Static tasks: the keys and values of a fixed text in front of every request, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from foreword.core import Kind, KVPrefix, Task
from foreword.prompts.lower import lower_tokens, static_prefix
from foreword.text.task_prompts import static_token_ids
from foreword.version import __version__

if TYPE_CHECKING:
    from foreword.models import LanguageModel


def static_task(lm: LanguageModel, name: str, kind: Kind, text: str) -> Task:
    """A task of kind ``system`` (a system turn of the chat template) or ``prompt`` (raw text in front).

    Raises:
        UsageError: the text is empty.
        PromptTooLong: the text leaves no room for a request.
        TemplateError: the model has no chat template to render a system turn with.
    """
    return _task(name, kind, text, lower_tokens(lm, static_token_ids(lm.tokenizer, kind, text)), lm.origin)


def prefilled_task(name: str, kind: Kind, text: str, token_ids: Sequence[int], prefix: KVPrefix) -> Task:
    """`static_task` from keys and values that an engine without this process's model has computed.

    Args:
        token_ids: of the text, as `static_token_ids` gives them.
        prefix: keys and values of these tokens.
    """
    return _task(name, kind, text, static_prefix(prefix, token_ids))


def _task(name: str, kind: Kind, text: str, prefix: KVPrefix, origin: Mapping[str, str] = MappingProxyType({})) -> Task:
    digest = hashlib.sha256(text.encode()).hexdigest()
    provenance = {"foreword": __version__, "text_sha256": digest, "parents": [], **origin}
    return Task(name, "static", prefix, kind, text, provenance=provenance)
