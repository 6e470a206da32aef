"""Static tasks: a text that stands in front of every request, computed once."""

from __future__ import annotations

import hashlib

from foreword.core import Kind, Task
from foreword.models import LanguageModel
from foreword.prompts.lower import lower_tokens
from foreword.text.request import static_ids
from foreword.version import __version__


def static_task(lm: LanguageModel, name: str, kind: Kind, text: str) -> Task:
    """A task of kind ``system`` (a system turn of the chat template) or ``prompt`` (raw text in front).

    Raises:
        UsageError: the text is empty.
        PromptTooLong: the text leaves no room for a request.
        TemplateError: the model has no chat template to render a system turn with.
    """
    prefix = lower_tokens(lm, static_ids(lm.tokenizer, kind, text))
    digest = hashlib.sha256(text.encode()).hexdigest()
    provenance = {"foreword": __version__, "text_sha256": digest, "parents": []}
    return Task(name, "static", prefix, kind, text, provenance=provenance)
