"""Converts sampling parameters to vLLM's, and vLLM's outputs to chunks and log-probabilities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from foreword.core import Constraint, SamplingParams
from foreword.core.json_reader import parse_json
from foreword.engine.protocol import Chunk, FinishReason, TokenLogprob
from foreword.vllm import compat

_FINISH_REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "abort": "cancelled",
    "error": "error",
}
_LOAD_FAILED = "vLLM could not load the prefix of this request, so it was not answered; the server's log says why."


def to_sampling_params(params: SamplingParams, kv_transfer_params: Mapping[str, Any] | None = None) -> Any:
    """vLLM's ``SamplingParams`` for an answer that is streamed as deltas.

    Args:
        kv_transfer_params: for the connector, or ``None`` without a prefix.
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
        skip_special_tokens=params.skip_special_tokens,
        include_stop_str_in_output=params.include_stop_str_in_output,
        structured_outputs=None if params.constraint is None else _structured_outputs(params.constraint),
        output_kind=compat.RequestOutputKind.DELTA,
        extra_args=_extra_args(kv_transfer_params),
    )


def scoring_params(token_ids: Sequence[int], kv_transfer_params: Mapping[str, Any] | None) -> Any:
    """``SamplingParams`` of one step that returns the log-probabilities of the given next tokens."""
    return _one_step_params(logprob_token_ids=list(token_ids), extra_args=_extra_args(kv_transfer_params))


def prompt_logprobs_params(top: int) -> Any:
    """``SamplingParams`` of one step that returns the log-probabilities of the prompt's own tokens, and of the ``top``
    most probable ones in their places. vLLM then runs the whole prompt, whatever is cached of it.
    """
    return _one_step_params(prompt_logprobs=top)


def _one_step_params(**more: Any) -> Any:
    return compat.SamplingParams(
        max_tokens=1,
        temperature=0.0,
        ignore_eos=True,
        detokenize=False,
        output_kind=compat.RequestOutputKind.FINAL_ONLY,
        **more,
    )


def _extra_args(kv_transfer_params: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if kv_transfer_params is None else {"kv_transfer_params": dict(kv_transfer_params)}


def _structured_outputs(constraint: Constraint) -> Any:
    if constraint.kind == "json_schema":
        return compat.StructuredOutputsParams(json=constraint.text, disable_any_whitespace=True)
    if constraint.kind == "regex":
        return compat.StructuredOutputsParams(regex=constraint.text)
    if constraint.kind == "tagged":
        return compat.StructuredOutputsParams(structural_tag=json.dumps(_structural_tag(parse_json(constraint.text))))
    return compat.StructuredOutputsParams(choice=parse_json(constraint.text))


def _structural_tag(tags: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    structures = [{name: tag[name] for name in ("begin", "schema", "end")} for tag in tags]
    return {
        "type": "structural_tag",
        "structures": structures,
        "triggers": list(dict.fromkeys(tag["trigger"] for tag in tags)),
    }


def to_chunk(output: Any, top: int | None = None) -> Chunk:
    """The chunk of a ``RequestOutput`` that holds what one step added.

    Args:
        top: how many of the most probable tokens were asked for.
    """
    (completion,) = output.outputs
    reason = None if completion.finish_reason is None else _FINISH_REASONS.get(completion.finish_reason, "stop")
    ids = tuple(completion.token_ids)
    logprobs = ()
    if completion.logprobs is not None:
        entries = zip(ids, completion.logprobs, strict=True)
        logprobs = tuple(to_token_logprob(token, entry, top or 0) for token, entry in entries)
    return Chunk(completion.text, ids, reason, _LOAD_FAILED if reason == "error" else None, logprobs)


def to_token_logprob(token_id: int, entry: Mapping[int, Any], top: int) -> TokenLogprob:
    """The log-probabilities of a token and of the ``top`` most probable ones.

    Args:
        entry: vLLM's ``Logprob`` by token id. The token itself is there whatever its rank.
    """
    ranked = sorted(entry.items(), key=lambda item: item[1].rank)[:top]
    return TokenLogprob(token_id, entry[token_id].logprob, tuple((id_, found.logprob) for id_, found in ranked))
