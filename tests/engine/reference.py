"""What an engine must answer, by plain Transformers: eager attention, a `DynamicCache`, one request at a time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from foreword.attention import RaggedAttention
from foreword.core import Batch, KVPrefix, SamplingParams
from foreword.engine.protocol import Chunk, Request
from tiny_models import VOCABULARY, tiny_config, tiny_model

TOLERANCE = 2e-5


@cache
def stock_model(family: str):
    """The weights of `tiny_model` in a model that never heard of Foreword."""
    model = AutoModelForCausalLM.from_config(tiny_config(family), attn_implementation="eager")
    model.load_state_dict(tiny_model(family).model.state_dict())
    return model.eval().requires_grad_(False)


def random_ids(length: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(5, VOCABULARY - 44, (length,), generator=generator).tolist())


@cache
def learned_prefix(family: str, length: int, seed: int = 0) -> KVPrefix:
    """A learned prefix: random keys and values, which no text could give."""
    identity = tiny_model(family).identity
    generator = torch.Generator().manual_seed(1000 + seed)
    keys = tuple(torch.randn(s.kv_heads, length, s.key_dim, generator=generator) for s in identity.layers)
    values = tuple(torch.randn(s.kv_heads, length, s.value_dim, generator=generator) for s in identity.layers)
    return KVPrefix(identity, keys, values, offset=length)


@cache
def static_prefix(family: str, length: int, seed: int = 0) -> KVPrefix:
    """A static prefix: keys and values of a random text."""
    lm = tiny_model(family)
    ids = random_ids(length, 2000 + seed)
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int, key: Tensor, value: Tensor) -> None:
        kept[layer] = (key, value)

    batch = Batch((length,), (None,), (None,), torch.tensor(ids))
    lm.logits(batch, torch.tensor([0]), attend=RaggedAttention(batch, keep))
    keys, values = zip(*(kept[layer] for layer in range(len(kept))), strict=True)
    return KVPrefix(lm.identity, keys, values, length, token_ids=ids)


def reference_logits(family: str, request: Request, more: Sequence[int] = ()) -> Tensor:
    """``[T + len(more), vocab]`` of the request's own tokens and ``more``, behind its prefix or its joined text."""
    model, prefix = stock_model(family), request.prefix
    own = [*request.token_ids, *more]
    if prefix is not None and prefix.token_ids is not None:
        joined = [*prefix.token_ids[: request.prefix_length], *own]
        return model(input_ids=torch.tensor([joined])).logits[0, request.prefix_length :]
    past = _past(family, prefix)
    start = prefix.length if prefix is not None else 0
    positions = torch.arange(start, start + len(own))[None]
    return model(input_ids=torch.tensor([own]), position_ids=positions, past_key_values=past).logits[0]


def greedy_reference(family: str, request: Request) -> list[int]:
    """The answer by a plain loop, a token a forward."""
    model, prefix = stock_model(family), request.prefix
    past = _past(family, prefix) or DynamicCache(config=model.config)
    at = prefix.length if prefix is not None else 0
    ids, answer = torch.tensor([request.token_ids]), []
    while len(answer) < request.sampling.max_tokens:
        positions = torch.arange(at, at + ids.shape[1])[None]
        last = model(input_ids=ids, position_ids=positions, past_key_values=past).logits[0, -1]
        at += ids.shape[1]
        answer.append(int(last.argmax()))
        ids = torch.tensor([answer[-1:]])
    return answer


def assert_greedy(family: str, request: Request, tokens: Sequence[int]) -> None:
    """Every token is the most probable one behind those before it, as a plain forward over the whole answer says."""
    assert tokens
    found = reference_logits(family, request, tokens[:-1])[-len(tokens) :]
    chosen = found.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    assert float((found.max(-1).values - chosen).max()) <= TOLERANCE, (tokens, found.argmax(-1).tolist())


def tokens_of(chunks: Iterable[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


def text_of(chunks: Iterable[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def make_request(length: int, text: int = 0, prefix: KVPrefix | None = None, **sampling) -> Request:
    """A request of random tokens, drawn with seed ``text``, behind a whole prefix; it ignores end-of-text tokens."""
    params = replace(SamplingParams(max_tokens=8, ignore_eos=True), **sampling)
    return Request(random_ids(length, text), prefix, prefix.length if prefix else 0, params)


def _past(family: str, prefix: KVPrefix | None) -> DynamicCache | None:
    if prefix is None:
        return None
    past = DynamicCache(config=stock_model(family).config)
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        past.update(key[None], value[None], layer)
    return past
