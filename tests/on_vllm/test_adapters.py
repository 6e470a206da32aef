"""LoRA beside prefixes, on one vLLM of its own: it does not take both LoRA and embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

pytest.importorskip("vllm", reason="needs vLLM: make test-vllm-full")

from foreword.core import Adapter, LowRank, SamplingParams
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import RequestError
from foreword.text.label_scorers import WordScorer
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import WordTrie
from on_vllm.running_engine import vllm_engine
from served_model import ServedModel, make_served_model, save_model, tokens

pytestmark = pytest.mark.slow

IDS = (5, 17, 90, 200, 31)
PLAIN = SamplingParams(max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> ServedModel:
    place = tmp_path_factory.mktemp("lora")
    return make_served_model(save_model("llama", place / "model"), place / "bank", (40, 40, 40, 40))


@pytest.fixture(scope="module")
def engine(llama) -> Iterator:
    with vllm_engine(llama, "--enable-lora", "--max-lora-rank", "8", "--max-loras", "2") as running:
        yield running


def test_adapters_go_with_their_prefixes(llama, engine):
    one, other = adapter(1), adapter(2)
    requests = []
    for task in (*llama.tasks[:4], None):
        front = {"prefix": task.prefix, "prefix_length": task.prefix.length} if task is not None else {}
        requests += [Request(IDS, adapter=each, sampling=PLAIN, **front) for each in (one, other, None)]
    expected = llama.expected(requests)
    assert expected[0] != expected[1] != expected[2]
    assert tokens(engine, requests) == expected
    trie = WordTrie.build([(0, (40,)), (1, (41, 43))], 2)
    prompts = [Prompt(IDS, None, 0, adapter=each) for each in (one, other, None)]
    with Engine(llama.lm) as embedded:
        scores = embedded.score(prompts, WordScorer(trie))
    assert torch.allclose(engine.score(prompts, WordScorer(trie)), scores, atol=1e-3)


def adapter(seed: int) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    names = [f"model.layers.{index}.self_attn.{name}" for index in range(3) for name in ("q_proj", "k_proj", "v_proj")]
    outs = {"q_proj": 128, "k_proj": 64, "v_proj": 64}
    pairs = {
        name: LowRank(
            torch.randn(4, 64, generator=draw) * 0.3, torch.randn(outs[name.split(".")[-1]], 4, generator=draw) * 0.3
        )
        for name in names
    }
    return Adapter(pairs, scale=0.5)


def test_many_adapters_take_turns(llama, engine):
    requests = [Request(IDS, adapter=adapter(seed), sampling=PLAIN) for seed in range(6)] * 2
    assert tokens(engine, requests) == llama.expected(requests)


def test_embeddings_and_adapters_together_are_refused(llama):
    from foreword.errors import UnsupportedModel

    with (
        pytest.raises(UnsupportedModel, match="--enable-prompt-embeds and --enable-lora"),
        vllm_engine(llama, "--enable-lora", "--enable-prompt-embeds"),
    ):
        pass


def test_soft_tokens_need_their_flag(llama, engine):
    with pytest.raises(RequestError, match="soft tokens"):
        engine.submit(Request((-1, *IDS), soft=torch.zeros(1, llama.lm.identity.hidden_size)))
