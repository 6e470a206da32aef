"""What the layers of a model keep of a text: the activations that a prefix is made of."""

from __future__ import annotations

from collections.abc import Sequence

from foreword.core import Batch, Front, KVPrefix
from foreword.core.token_rows import check_token_ids
from foreword.errors import PromptTooLong, UsageError
from foreword.models.language_model import LanguageModel


def activations(lm: LanguageModel, token_ids: Sequence[int], past: KVPrefix | None = None) -> KVPrefix:
    """What all layers keep of a text, as a prefix (initialization by activations of real words, Li and Liang 2021).

    An encoder's are an approximation: in front of a request the text would see the request too.

    Args:
        past: a prefix that the text is run behind; the result includes it.

    Raises:
        PromptTooLong: the tokens leave no room for a request.
        UsageError: there are no tokens, or one has no row in the embedding.
    """
    check_context_length(lm.name, lm.context, len(token_ids), past)
    check_token_ids(lm.tokenizer, lm.identity.vocab_size, token_ids)
    batch = Batch.from_rows(Front(past), [tuple(token_ids)], device=lm.device)
    return lm.kept(batch)


def check_context_length(name: str, context: int | None, tokens: int, past: KVPrefix | None) -> None:
    """Raise UsageError for a text without tokens, PromptTooLong for one that leaves no room for a request."""
    if not tokens:
        raise UsageError("the text has no tokens; a static prefix needs at least one.")
    used = tokens + (past.length if past is not None else 0)
    if context is not None and used >= context:
        raise PromptTooLong(
            f"the text has {used} tokens, the context of {name} is {context}; shorten it so that a request fits."
        )
