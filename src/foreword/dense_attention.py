"""Attention of dense, padded rows: differentiable, for inference with its log-sum-exp, and the merge of two results.

`foreword.attention.RaggedAttention` and the engine's `PagedAttention` are made of these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from foreword.errors import TrainingError

MAX_MATH_LENGTH = 128
"""Tokens a row up to which `_MathAttention` beats PyTorch's CPU flash kernel, whose backward pass is slow on short
rows: 3.2 times at 31 tokens in bfloat16, 1.3 at 128, 0.9 at 256."""

MIN_BF16_SCORES = 1 << 14
"""Scores a key head from which `_bf16_math` beats the flash kernel."""


@dataclass(frozen=True, eq=False)
class AttentionSpec:
    """How scores of one layer are computed from products of queries and keys.

    Attributes:
        scale: multiplies the products.
        softcap: scores are bounded to between minus and plus this number by a tanh, as in Gemma 2.
        sinks: ``[heads]`` score of a key that every query sees and that has no value, as in GPT-OSS.
    """

    scale: float
    softcap: float | None = None
    sinks: Tensor | None = None

    def capped(self, scores: Tensor) -> Tensor:
        """Scores with the soft cap applied."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


def grouped_query_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: AttentionSpec
) -> Tensor:
    """Grouped-query attention without repeating keys: query heads that share a key head become rows of one product.

    Args:
        query: ``[R, heads, T, key_dim]``.
        key, value: ``[R, kv_heads, C, dim]``.
        mask: ``[R or 1, 1, T, C]``, True where a query attends; no query may be masked everywhere.

    Returns:
        ``[R, heads, T, value_dim]``.
    """
    rows, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    short = length <= MAX_MATH_LENGTH and _records_gradients_on_cpu(query, key, value)
    if group > 1:
        query = query.reshape(rows, kv_heads, group * length, -1)
        mask = mask if mask is None else mask.repeat(1, 1, group, 1)
    if spec.softcap is not None or spec.sinks is not None:
        out = _softcapped_attention(query, key, value, mask, spec)
    elif short:
        out: Tensor = _MathAttention.apply(query, key, value, mask, spec.scale)  # type: ignore[assignment]
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=spec.scale)
    return out.reshape(rows, heads, length, -1)


def _softcapped_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, spec: AttentionSpec
) -> Tensor:
    """Attention with a soft cap or sinks, which no kernel computes, in float32 or wider; differentiable by autograd."""
    wide = torch.promote_types(query.dtype, torch.float32)
    scores = spec.capped((query.to(wide) @ key.to(wide).mT) * spec.scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if spec.sinks is None:
        return scores.softmax(-1).to(value.dtype) @ value
    # A key head's rows are its query heads one after another, each with all its tokens.
    kv_heads, group = key.shape[1], len(spec.sinks) // key.shape[1]
    sinks = spec.sinks.to(wide).view(kv_heads, group, 1).expand(-1, -1, query.shape[2] // group)
    sinks = sinks.reshape(1, kv_heads, -1, 1).expand(scores.shape[0], -1, -1, -1)
    weights = torch.cat([scores, sinks], dim=-1).softmax(-1)[..., :-1]
    return weights.to(value.dtype) @ value


def _records_gradients_on_cpu(*tensors: Tensor) -> bool:
    """Whether gradients are recorded, and all tensors are on a CPU, where `_MathAttention` is faster."""
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return on_cpu and torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


class _MathAttention(torch.autograd.Function):
    """Softmax attention as plain products, with its gradients written out, for short rows on a CPU.

    Scores and softmax are in float32 or wider; weights are kept in the model's dtype for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        scores = (query.to(wide) * scale) @ key.to(wide).mT
        if mask is not None:
            scores.masked_fill_(~mask, float("-inf"))
        weights = scores.softmax(-1).to(value.dtype)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return weights @ value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override] - wrapped
        query, key, value, weights = ctx.saved_tensors
        of_query, of_key, of_value, *_ = ctx.needs_input_grad
        by_value = weights.mT @ grad if of_value else None
        if not (of_query or of_key):
            return None, None, by_value, None, None
        by_weights = grad @ value.mT
        by_scores = torch.ops.aten._softmax_backward_data(by_weights, weights, -1, weights.dtype) * ctx.scale
        by_query = by_scores @ key if of_query else None
        by_key = by_scores.mT @ query if of_key else None
        return by_query, by_key, by_value, None, None


class AttentionMask:
    """A boolean mask and the additive biases made from it, kept for all layers of a step.

    Args:
        mask: ``[R or 1, 1, T, C]``, True where a query attends. A query that is masked everywhere gets a log-sum-exp of
            minus infinity and weighs nothing in `merge_attn_states`.
    """

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask
        any_visible = mask.any(-1)
        self._any_visible = None if bool(any_visible.all()) else any_visible
        self._biases: dict[tuple[int, torch.dtype], Tensor] = {}

    def bias(self, group: int, dtype: torch.dtype) -> Tensor:
        """Added to scores: ``[R or 1, 1, group * T, C]`` of zeros and minus infinities."""
        if (group, dtype) not in self._biases:
            zeros = torch.zeros(self._mask.shape, dtype=dtype, device=self._mask.device)
            self._biases[group, dtype] = zeros.masked_fill_(~self._mask, float("-inf")).repeat(1, 1, group, 1)
        return self._biases[group, dtype]

    def zero_fully_masked(self, out: Tensor, lse: Tensor | None, group: int) -> tuple[Tensor, Tensor | None]:
        """``out [R, H, group * T, dim]`` with zeros, and ``lse [R, H, group * T]`` with minus infinity, for queries
        that are masked everywhere."""
        if self._any_visible is None:
            return out, lse
        mask = self._any_visible.repeat(1, 1, group)
        lse = lse.masked_fill(~mask, float("-inf")) if lse is not None else None
        return out.masked_fill(~mask[..., None], 0.0), lse


def inference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, spec: AttentionSpec
) -> Tensor:
    """`inference_attention_with_lse` without the log-sum-exp."""
    return _inference_attention(query, key, value, mask, spec, with_lse=False)[0]


def inference_attention_with_lse(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    """Like `grouped_query_attention`, with the log-sum-exp of the scores, for `merge_attn_states`; sinks are left to
    `apply_sinks`, since all keys of a query share one. For inference only.

    PyTorch's CPU flash kernel gives the log-sum-exp no gradient: the output would be right and the gradients
    silently wrong, so this refuses to run where gradients are recorded.

    Args:
        query: ``[R, heads, T, key_dim]``.
        key, value: ``[R, kv_heads, C, dim]``.
        mask: where the queries attend; everywhere if ``None``.

    Returns:
        ``[R, heads, T, value_dim]`` and float32 ``[R, heads, T]``.
    """
    out, lse = _inference_attention(query, key, value, mask, spec, with_lse=True)
    assert lse is not None
    return out, lse


def _inference_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask | None, spec: AttentionSpec, *, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (query, key, value)):
        raise TrainingError("attention merged by log-sum-exp has wrong gradients; it is for inference only.")
    rows, heads, length, _ = query.shape
    kv_heads = key.shape[1]
    group = heads // kv_heads
    query = query.reshape(rows, kv_heads, group * length, -1)
    bias = mask.bias(group, query.dtype) if mask is not None else None
    if _prefers_bf16_math(query, key, spec):
        out, lse = _bf16_math(query, key, value, bias, spec, with_lse)
    else:
        kernel = _flash_with_lse if _has_flash(query, value, spec) else _math_with_lse
        out, lse = kernel(query, key, value, bias, spec)
    if mask is not None:
        out, lse = mask.zero_fully_masked(out, lse, group)
    return out.reshape(rows, heads, length, -1), lse.reshape(rows, heads, length) if lse is not None else None


def _has_flash(query: Tensor, value: Tensor, spec: AttentionSpec) -> bool:
    return query.device.type == "cpu" and query.shape[-1] == value.shape[-1] and spec.softcap is None


def _prefers_bf16_math(query: Tensor, key: Tensor, spec: AttentionSpec) -> bool:
    rounds = query.device.type == "cpu" and query.dtype == torch.bfloat16 and spec.softcap is None
    return rounds and query.shape[0] * query.shape[2] * key.shape[2] >= MIN_BF16_SCORES


def _bf16_math(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, spec: AttentionSpec, with_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """Scores and weights in bfloat16, as Transformers' eager attention has its scores.

    PyTorch's CPU flash kernel keeps scores in float32 and takes 2.2 times as long over 2,000 keys. The logits of the
    built-in model are as far from those in float32 either way, since all else in it is rounded to bfloat16 too.
    """
    rows, heads, length, _ = query.shape
    queries, keys, values = (each.flatten(0, 1) for each in (query, key, value))
    scores = torch.baddbmm(query.new_zeros(()), queries, keys.mT, beta=0, alpha=spec.scale)
    if bias is not None:
        scores.view(rows, heads, length, -1).add_(bias)
    weights = scores.softmax(-1)
    out = torch.bmm(weights, values).view(rows, heads, length, -1)
    if not with_lse:
        return out, None
    # The largest score and its weight tell the sum, without another pass of exponentials.
    lse = scores.amax(-1).float() - weights.amax(-1).float().log()
    return out, lse.view(rows, heads, length)


def _flash_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, False, attn_mask=bias, scale=spec.scale
    )
    return out, lse


def _math_with_lse(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, spec: AttentionSpec
) -> tuple[Tensor, Tensor]:
    scores = spec.capped((query @ key.transpose(-1, -2)).float() * spec.scale)
    if bias is not None:
        scores = scores + bias
    lse = scores.logsumexp(-1)
    weights = torch.exp(scores - lse[..., None].clamp_min(torch.finfo(torch.float32).min))
    return weights.to(value.dtype) @ value, lse


def merge_attn_states(out: Tensor, lse: Tensor, other: Tensor, other_lse: Tensor) -> Tensor:
    """Attention over two sets of keys from attention over each: ``[..., T, dim]`` and ``[..., T]``.

    ``lse`` must be finite (a request always sees its own token); ``other_lse`` may be minus infinity.
    """
    weight = torch.sigmoid(lse - other_lse)[..., None]
    return (weight * out + (1 - weight) * other).to(out.dtype)


def apply_sinks(out: Tensor, lse: Tensor, sinks: Tensor | None) -> Tensor:
    """Attention over all keys and a sink besides: ``out [heads, N, dim]``, ``lse [heads, N]``, ``sinks [heads]``."""
    if sinks is None:
        return out
    return (torch.sigmoid(lse - sinks.float()[:, None])[..., None] * out).to(out.dtype)
