"""Encoder-decoders on the embedded engine: the answers of plain Transformers, whatever runs beside them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from foreword.core import Adapter, Constraint, LowRank, SamplingParams, soft_id
from foreword.engine.beam_search import beam_search
from foreword.engine.decoder_cache import DecoderCache
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import PromptTooLong, UnsupportedModel
from foreword.text.label_scorers import WordScorer
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import Verbalizer
from tiny_encoder_decoders import CONFIGS, FAMILIES, learned_prefix, random_model, stock_logits, tiny_encoder_decoder


def soft_prompt(lm, seed: int, length: int = 3) -> Tensor:
    return torch.randn(length, lm.identity.hidden_size, generator=torch.Generator().manual_seed(seed))


def make_requests(lm, count: int = 14, max_tokens: int = 9) -> list[Request]:
    """Texts of many lengths, two in three behind one of two soft prompts, with answers of many lengths."""
    softs = (None, soft_prompt(lm, 1), soft_prompt(lm, 2, length=5))
    generator = torch.Generator().manual_seed(0)
    requests = []
    for index in range(count):
        text, answer = (int(torch.randint(1, most, (1,), generator=generator)) for most in (40, max_tokens + 1))
        ids = tuple(torch.randint(5, 250, (text,), generator=generator).tolist())
        soft = softs[index % 3]
        front = tuple(map(soft_id, range(0 if soft is None else len(soft))))
        params = SamplingParams(max_tokens=answer, ignore_eos=True)
        requests.append(Request((*front, *ids), sampling=params, soft=soft))
    return requests


def embedded(model, request: Request) -> Tensor:
    """Input embeddings ``[1, T, hidden]`` of a request."""
    own = model.get_input_embeddings()(torch.tensor([[t for t in request.token_ids if t >= 0]]))
    own = own * getattr(model.get_encoder(), "embed_scale", 1.0)  # Marian and Pegasus, on tokens alone
    return own if request.soft is None else torch.cat([request.soft[None], own], dim=1)


def adapted(model, adapter: Adapter):
    """A copy of a model with an adapter in its weights."""
    changed = deepcopy(model)
    for name, pair in adapter.layers.items():
        changed.get_submodule(name).weight.data += adapter.scale * pair.up @ pair.down
    return changed


def greedy(family: str, request: Request) -> list[int]:
    """The answer by Transformers alone."""
    model = random_model(family) if request.adapter is None else adapted(random_model(family), request.adapter)
    answer: list[int] = []
    while len(answer) < request.sampling.max_tokens:
        logits = stock_logits(family, model, embedded(model, request), answer, request.prefix)
        answer.append(int(logits[-1].argmax()))
    return answer


def tokens(answers: Sequence[Sequence]) -> list[list[int]]:
    return [[token for chunk in answer for token in chunk.token_ids] for answer in answers]


@pytest.mark.parametrize("family", CONFIGS)
def test_mixed_requests_get_the_answers_of_plain_transformers(family):
    """More requests than a step takes, so that they join and leave between steps."""
    lm = tiny_encoder_decoder(family)
    requests = make_requests(lm)
    with Engine(lm, max_batch=5, step_tokens=40) as engine:
        found = tokens(engine.generate(requests))
        engine.cache.check()
        assert engine.statistics()["free_positions"] == engine.statistics()["positions"]
    assert found == [greedy(family, each) for each in requests]


def random_adapter(lm, seed: int) -> Adapter:
    """Changes of two layers in the encoder, two in the decoder and two of the cross-attention."""
    generator = torch.Generator().manual_seed(seed)
    names = [
        name for name in lm.model.state_dict() if re.search(r"[^.]*\.1\..*\.(q|v|fc1|wi|q_proj|v_proj)\.weight", name)
    ]

    def pair(weight: Tensor) -> LowRank:
        out, width = weight.shape
        return LowRank(torch.randn(2, width, generator=generator), torch.randn(out, 2, generator=generator))

    weights = {name.removesuffix(".weight"): pair(lm.model.state_dict()[name]) for name in names}
    assert len(weights) >= 6
    return Adapter(weights, 0.05)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefixes_adapters_and_soft_prompts_share_a_batch(family):
    """In front of the whole model and of its decoder alone, of several lengths, with and without an adapter."""
    lm = tiny_encoder_decoder(family)
    fronts = [
        {"prefix": learned_prefix(lm, 4, 1)},
        {"prefix": learned_prefix(lm, 7, 2), "adapter": random_adapter(lm, 1)},
        {"prefix": learned_prefix(lm, 3, 3, decoder_only=True)},
        {"adapter": random_adapter(lm, 2)},
        {},
    ]
    requests = [
        replace(each, prefix_length=front["prefix"].length if "prefix" in front else 0, **front)
        for index, each in enumerate(make_requests(lm, 20))
        for front in (fronts[index % len(fronts)],)
    ]
    with Engine(lm, max_batch=7, step_tokens=60) as engine:
        found = tokens(engine.generate(requests))
        engine.cache.check()
        places = [Prompt(r.token_ids, r.prefix, r.prefix_length, (), r.soft, r.adapter) for r in requests]
        trie = Verbalizer({"y": ("yes", "yeah"), "n": ("no",)}).build_trie(lm.tokenizer, None)
        scores = engine.score(places, WordScorer(trie))
    assert found == [greedy(family, each) for each in requests]
    yes, no = (lm.tokenizer.encode(word) for word in ("yeah", "no"))
    for request, row in zip(requests[:5], scores[:5].tolist(), strict=True):
        model = random_model(family) if request.adapter is None else adapted(random_model(family), request.adapter)
        at = [stock_logits(family, model, embedded(model, request), word, request.prefix) for word in (yes, no)]
        logprobs = [logits.log_softmax(-1)[range(len(w)), w].sum() for logits, w in zip(at, (yes, no), strict=True)]
        assert row[1] == pytest.approx(float(logprobs[1]), abs=1e-4)
        assert row[0] >= float(logprobs[0]) - 1e-4  # two words share the label


def test_generate_of_transformers_says_the_same():
    lm = tiny_encoder_decoder("bart")
    model = random_model("bart")
    ends = SamplingParams(max_tokens=9)
    requests = [replace(each, sampling=ends) for each in make_requests(lm, 6)]
    with Engine(lm) as engine:
        found = tokens(engine.generate(requests))
    for request, answer in zip(requests, found, strict=True):
        length = request.sampling.max_tokens
        expected = model.generate(
            inputs_embeds=embedded(model, request), max_new_tokens=length, do_sample=False, forced_eos_token_id=None
        )
        assert answer == expected[0, 1:].tolist()


def test_the_first_token_is_forced_without_anything_learned():
    """As ``generate`` does for BART, mBART and NLLB; behind a soft prompt the first token was learned."""
    lm = replace(tiny_encoder_decoder("bart"), forced_bos_token_id=7)
    alone, behind = make_requests(lm, 2)[0], next(each for each in make_requests(lm) if each.soft is not None)
    alone = replace(alone, prefix=None, prefix_length=0, soft=None, token_ids=(9, 10, 11), sampling=alone.sampling)
    with Engine(lm) as engine:
        found = tokens(engine.generate([alone, behind]))
    model = random_model("bart")
    length = {"max_new_tokens": alone.sampling.max_tokens, "do_sample": False, "forced_eos_token_id": None}
    expected = model.generate(torch.tensor([alone.token_ids]), forced_bos_token_id=7, **length)
    ended = expected[0, 1:].tolist()
    assert found[0][: len(ended)] == ended
    assert found[0][0] == 7
    assert found[1] == greedy("bart", behind)


@pytest.mark.parametrize("family", FAMILIES)
def test_preempted_sequences_go_on_where_they_were(family):
    lm = tiny_encoder_decoder(family)
    requests = [replace(each, sampling=SamplingParams(max_tokens=30, ignore_eos=True)) for each in make_requests(lm, 6)]
    positions = max(len(each.token_ids) for each in requests) + 40
    room = positions * DecoderCache.bytes_per_position(lm.identity.layers, lm.dtype)
    with Engine(lm, cache_bytes=room) as engine:
        found = tokens(engine.generate(requests))
        assert engine.statistics()["preempted"] > 0
    with Engine(lm) as engine:
        assert tokens(engine.generate(requests)) == found


@pytest.mark.parametrize("family", FAMILIES)
def test_deterministic_answers_are_the_same_bit_by_bit_in_any_batch(family):
    lm = tiny_encoder_decoder(family)
    params = SamplingParams(max_tokens=6, ignore_eos=True, logprobs=3)
    requests = [replace(each, sampling=params) for each in make_requests(lm, 7)]
    with Engine(lm, deterministic=True) as engine:
        together = [[chunk.logprobs for chunk in answer] for answer in engine.generate(requests)]
        alone = [[chunk.logprobs for chunk in answer] for each in requests for answer in engine.generate([each])]
    assert together == alone


def test_options_of_an_answer_work_as_on_other_models():
    lm = tiny_encoder_decoder("t5")
    request = make_requests(lm, 1)[0]

    def ask(**options) -> Request:
        options = {"max_tokens": 8, "ignore_eos": "constraint" not in options, **options}
        return replace(request, sampling=SamplingParams(**options))

    with Engine(lm) as engine:
        asked = [
            ask(),
            ask(constraint=Constraint.choice(["yes", "no"])),
            ask(logit_bias={65: 100.0}),
            ask(temperature=1.0, seed=3),
            ask(temperature=1.0, seed=3),
            ask(temperature=1.0, seed=4),
            ask(repetition_penalty=100.0),
        ]
        plain, chosen, biased, sampled, again, other, penalized = tokens(engine.generate(asked))
        streamed = list(engine.submit(ask()))
    assert lm.tokenizer.decode(chosen) in ("yes", "no")
    assert biased == [65] * 8
    assert sampled == again != other
    assert len(set(penalized)) == 8
    assert [len(chunk.token_ids) for chunk in streamed] == [1] * 8
    assert [token for chunk in streamed for token in chunk.token_ids] == plain


def test_a_cancelled_answer_leaves_the_batch():
    lm = tiny_encoder_decoder("bart")
    first, second = (
        replace(each, sampling=SamplingParams(max_tokens=5, ignore_eos=True)) for each in make_requests(lm, 2)
    )
    engine = Engine(lm, start=False)
    gone, kept = engine.submit(first), engine.submit(second)
    engine.step()
    gone.cancel()
    while engine.step():
        engine.cache.check()
    assert next(iter(gone)).finish_reason is None
    assert tokens([list(kept)]) == [greedy("bart", second)]
    assert engine.statistics()["cancelled"] == 1
    engine.close()


def test_text_and_answer_have_a_context_each():
    lm = tiny_encoder_decoder("bart")
    text = (7,) * 250
    with Engine(lm) as engine:
        (answer,) = tokens(engine.generate([Request(text, sampling=SamplingParams(max_tokens=20, ignore_eos=True))]))
        assert len(answer) == 20
        with pytest.raises(PromptTooLong, match="257 tokens with its prefix, more than the context of 256"):
            engine.submit(Request((7,) * 257))
        with pytest.raises(PromptTooLong, match=r"an answer of 257 tokens .* ask for at most 256"):
            engine.submit(Request(text, sampling=SamplingParams(max_tokens=257)))
    assert Prompt(text, None, 0).cap_max_tokens(100, 256, is_encoder_decoder=True) == 100


def test_what_an_encoder_decoder_has_not_is_refused_by_name():
    lm = tiny_encoder_decoder("t5")
    prompt = Prompt((5, 6), None, 0)
    with Engine(lm) as engine:
        with pytest.raises(UnsupportedModel, match="embeds nothing here; use an encoder"):
            engine.embed([prompt])
        with pytest.raises(UnsupportedModel, match="leave echo and prompt_logprobs out"):
            engine.prompt_logprobs(prompt, 1)
        with pytest.raises(UnsupportedModel, match="an encoder-decoder, whose text sees the request too"):
            engine.prefill([5, 6])
        with pytest.raises(UnsupportedModel, match="not searched with beams"):
            beam_search(engine, Request((5,)), 2)
