"""Static tasks: a text that stands in front of every request, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from foreword.core import Kind, KVPrefix, Task
from foreword.prompts.lower import lower_tokens, of_text
from foreword.text.request import static_ids
from foreword.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from foreword.models import LanguageModel


def static_task(lm: LanguageModel, name: str, kind: Kind, text: str) -> Task:
    """A task of kind ``system`` (a system turn of the chat template) or ``prompt`` (raw text in front).

    Raises:
        UsageError: the text is empty.
        PromptTooLong: the text leaves no room for a request.
        TemplateError: the model has no chat template to render a system turn with.
    """
    return _task(name, kind, text, lower_tokens(lm, static_ids(lm.tokenizer, kind, text)))


def prefilled_task(
    tokenizer: PreTrainedTokenizerBase,
    prefill: Callable[[Sequence[int]], KVPrefix],
    name: str,
    kind: Kind,
    text: str,
) -> Task:
    """The same where somebody else has the model.

    Args:
        prefill: keys and values of tokens that run alone, such as an engine's.
    """
    token_ids = static_ids(tokenizer, kind, text)
    return _task(name, kind, text, of_text(prefill(token_ids), token_ids))


def _task(name: str, kind: Kind, text: str, prefix: KVPrefix) -> Task:
    digest = hashlib.sha256(text.encode()).hexdigest()
    provenance = {"foreword": __version__, "text_sha256": digest, "parents": []}
    return Task(name, "static", prefix, kind, text, provenance=provenance)
