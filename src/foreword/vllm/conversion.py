"""What Foreword's words are in vLLM's: how to answer, and what came back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.core import Constraint, SamplingParams
from foreword.engine.protocol import Chunk, FinishReason, TokenLogprob
from foreword.vllm import compat

_FINISHED: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "cancelled", "error": "error"}
_BROKEN = "vLLM could not load the prefix of this request, so it was not answered; the server's log says why."


def sampling(params: SamplingParams, transfer: Mapping[str, Any] | None = None) -> Any:
    """How to answer, in pieces as they come.

    Args:
        transfer: for the connector.
    """
    return compat.SamplingParams(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        min_p=params.min_p,
        seed=params.seed,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        ignore_eos=params.ignore_eos,
        repetition_penalty=params.repetition_penalty,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        logit_bias=dict(params.logit_bias) or None,
        logprobs=params.logprobs,
        structured_outputs=None if params.constraint is None else _structured(params.constraint),
        output_kind=compat.RequestOutputKind.DELTA,
        extra_args=None if transfer is None else {"kv_transfer_params": dict(transfer)},
    )


def scoring(token_ids: Sequence[int], transfer: Mapping[str, Any] | None) -> Any:
    """One step that says how probable some tokens are."""
    return compat.SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        logprob_token_ids=list(token_ids),
        output_kind=compat.RequestOutputKind.FINAL_ONLY,
        extra_args=None if transfer is None else {"kv_transfer_params": dict(transfer)},
    )


def reading(top: int) -> Any:
    """One step that says how probable the prompt's own tokens were; it is run as a whole."""
    return compat.SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        prompt_logprobs=top,
        output_kind=compat.RequestOutputKind.FINAL_ONLY,
    )


def chunk(output: Any, top: int | None = None) -> Chunk:
    """A piece of an answer, from a ``RequestOutput`` with what is new.

    Args:
        top: how many of the most probable tokens were asked for.
    """
    (found,) = output.outputs
    reason = None if found.finish_reason is None else _FINISHED.get(found.finish_reason, "stop")
    ids = tuple(found.token_ids)
    logprobs = ()
    if found.logprobs is not None:
        logprobs = tuple(logprob(token, entry, top or 0) for token, entry in zip(ids, found.logprobs, strict=True))
    return Chunk(found.text, ids, reason, _BROKEN if reason == "error" else None, logprobs)


def logprob(token: int, entry: Mapping[int, Any], top: int) -> TokenLogprob:
    """One token's, from vLLM's table of the most probable ones and itself."""
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)
    # The chosen one is in the table whatever its rank, and is not always among those that were asked for.
    return TokenLogprob(token, entry[token].logprob, tuple((id_, found.logprob) for id_, found in ranked[:top]))


def _structured(constraint: Constraint) -> Any:
    if constraint.kind == "json_schema":
        return compat.StructuredOutputsParams(json=constraint.text, disable_any_whitespace=True)
    if constraint.kind == "regex":
        return compat.StructuredOutputsParams(regex=constraint.text)
    return compat.StructuredOutputsParams(choice=json.loads(constraint.text))
