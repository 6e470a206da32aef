"""Lowering: soft tokens, an encoder or plain text become a `KVPrefix` by running the frozen model once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from foreword.core import Batch, Bos, Front, KVPrefix
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.openmp import release_openmp_threads

if TYPE_CHECKING:
    from foreword.prompts.base import PromptEncoder


def lower(lm: LanguageModel, source: PromptEncoder | Front) -> KVPrefix:
    """The prefix of a trained encoder, in the model's dtype, without gradients.

    Soft tokens run with the front's adapter on, as they did in training. Soft tokens inside rows are not part of the
    prefix. A learned prefix has no token ids.

    >>> from foreword.core import Front
    >>> import torch
    >>> soft = torch.zeros(4, lm.identity.hidden_size)  # [positions, hidden]
    >>> foreword.lower(lm, Front(soft=soft)).length
    4

    Raises:
        UsageError: soft tokens in front of an encoder, which see the request.
    """
    front = source if isinstance(source, Front) else source.front()
    if front.soft is None:
        return _detached(lm, front.prefix) if front.prefix is not None else empty_prefix(lm)
    if not lm.causal:
        raise UsageError(
            f"{lm.identity.architecture} reads in both directions, so soft tokens in front change with every request; "
            "put them inside the rows."
        )
    batch = Batch.from_rows(front, [], device=lm.device)
    return replace(lm.kept(batch), bos=_bos(front))


def lower_tokens(lm: LanguageModel, token_ids: Sequence[int], past: KVPrefix | None = None) -> KVPrefix:
    """A static prefix from token ids, exact to slice; behind another prefix it becomes a learned one.

    Raises:
        PromptTooLong: the tokens leave no room for a request.
        UsageError: there are no tokens, or the model is an encoder, whose text sees the request too.
    """
    if not lm.causal:
        mend = "learn a prefix instead."
        if lm.is_encoder_decoder:
            mend = "put it into a --template (foreword train --method manual), which is run with every request."
        raise UsageError(
            f"{lm.identity.architecture} reads in both directions, so text in front changes with every request; {mend}"
        )
    prefix = activations(lm, token_ids, past)
    release_openmp_threads()  # an engine may be running in another thread
    return static_prefix(prefix, token_ids, past)


def static_prefix(prefix: KVPrefix, token_ids: Sequence[int], past: KVPrefix | None = None) -> KVPrefix:
    """A text's keys and values with its token ids: a static prefix, or behind another prefix a learned one."""
    # The ids hold the beginning-of-text token, if there is one; a request behind them must not bring another.
    known = None if past is not None and past.length else tuple(token_ids)
    return replace(prefix, token_ids=known, bos="prefix")


def empty_prefix(lm: LanguageModel) -> KVPrefix:
    """A prefix without positions, as tasks have that are a template or an adapter alone."""
    identity = lm.identity.decoder_only
    keys = tuple(torch.zeros(s.kv_heads, 0, s.key_dim, dtype=lm.dtype) for s in identity.layers)
    values = tuple(torch.zeros(s.kv_heads, 0, s.value_dim, dtype=lm.dtype) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=0)


def _bos(front: Front) -> Bos:
    """`KVPrefix.bos` of a front with soft tokens: the prefix before them may have the token already."""
    behind = front.prefix is not None and front.prefix.length > 0 and front.prefix.bos == "prefix"
    return "prefix" if behind else front.bos


def _detached(lm: LanguageModel, prefix: KVPrefix) -> KVPrefix:
    # Copies: the encoder may go on learning, and a prefix never changes.
    return replace(prefix.map(lambda t: t.detach().to(lm.dtype, copy=True), lambda s: s.detach().clone()), source="")
