"""Models that are run through Transformers' cache give the joined text's logits, in mixed batches, with gradients."""

import random
from dataclasses import replace

import pytest
import torch

from foreword.bank.prefix_file import read_prefix, write_prefix
from foreword.core import Batch, Front, KVPrefix, Task
from foreword.errors import CorruptFile, UnsupportedModel, UsageError
from foreword.interop.flat_prefix import flatten
from foreword.models import cached_model
from foreword.models.activations import activations
from foreword.prompts.compose import compose
from foreword.prompts.lower import lower
from foreword.prompts.prefix import PrefixValues
from foreword.prompts.rotate import rotate
from foreword.text import task_prompts
from tiny_cached_models import CONFIGS, KINDS, WITH_STATES, tiny_cached_model

TOLERANCE = 3e-5
STEP = 1e-2


def tokens(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(5, 250), k=length)


def joined(lm, front, row):
    """Logits of a row behind a text, by Transformers alone."""
    return lm.model(torch.tensor([[*front, *row]]), use_cache=False).logits[0, len(front) :]


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_a_mixed_batch_behind_several_fronts_is_the_joined_text(family):
    lm = tiny_cached_model(family)
    assert lm.carried == "through Transformers' cache"
    assert lm.identity.keeps_states == (family in WITH_STATES)
    fronts = [tokens(11, 1), tokens(4, 2), [], tokens(11, 1)]
    rows = [tokens(7, 3), tokens(1, 4), tokens(3, 5), tokens(18, 6)]
    prefixes = [activations(lm, front) if front else None for front in fronts]
    batch = Batch.concat([Batch.from_rows(Front(p), [row]) for p, row in zip(prefixes, rows, strict=True)])
    found = lm.logits(batch, torch.arange(batch.starts[-1]))
    expected = torch.cat([joined(lm, front, row) for front, row in zip(fronts, rows, strict=True)])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("family", KINDS)
def test_sequences_that_continue_others(family):
    """A soft prompt that all rows share, a row behind it, and two words behind the row."""
    lm = tiny_cached_model(family)
    front, soft, row, words = tokens(5, 1), tokens(3, 2), tokens(4, 3), [tokens(2, 4), tokens(3, 5)]
    embedded = lm.model.get_input_embeddings()(torch.tensor(soft))
    batch = Batch.from_rows(Front(activations(lm, front), embedded), [row, *words], [None, 0, 0])
    places = torch.arange(len(soft) + len(row), batch.starts[-1])
    expected = torch.cat([joined(lm, [*front, *soft, *row], word) for word in words])
    torch.testing.assert_close(lm.logits(batch, places), expected, atol=TOLERANCE, rtol=0)
    lowered = lower(lm, Front(activations(lm, front), embedded))
    kept = activations(lm, [*front, *soft])
    for found, wanted in zip(lowered.tensors, kept.tensors, strict=True):
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", ["falcon_h1", "mamba", "lfm2", "rwkv"])
def test_gradients_through_keys_and_states(family):
    """Against finite differences in float64, with a row of one token, which some layers write in place."""
    lm = tiny_cached_model(family, torch.float64)
    prefix = activations(lm, tokens(4, 1)).map(torch.Tensor.double)
    values = PrefixValues(prefix, torch.float64)
    rows = [tokens(3, 2), tokens(1, 3)]
    batch_of = lambda: Batch.from_rows(values.front(), rows)  # noqa: E731

    def loss() -> torch.Tensor:
        return lm.logits(batch_of(), torch.arange(4)).square().mean()

    value = loss()
    assert torch.equal(value, loss())
    parameters = [parameter for parameter in values.parameters() if parameter.numel()]
    for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
        length = float(gradient.norm())
        around = []
        for change in (STEP, -2 * STEP, STEP):
            parameter.data += change * gradient / length
            with torch.no_grad():
                around.append(float(loss()))
        # Models round some of their sums to float32, whatever their dtype.
        assert (around[0] - around[1]) / (2 * STEP) == pytest.approx(length, rel=2e-2)


def test_without_copies_a_gradient_would_meet_an_overwritten_state(monkeypatch):
    lm = tiny_cached_model("mamba")
    monkeypatch.setattr(cached_model, "_saved_before_writing", lambda cache: torch.enable_grad())
    values = PrefixValues(activations(lm, tokens(4, 1)), torch.float32)
    with pytest.raises(RuntimeError, match="modified by an inplace"):
        lm.logits(Batch.from_rows(values.front(), [tokens(2, 2)]), torch.arange(2)).sum().backward()


@pytest.mark.parametrize("family", ["mamba", "falcon_h1"])
def test_a_file_holds_states(family, tmp_path):
    lm = tiny_cached_model(family)
    prefix = replace(activations(lm, tokens(6, 1)), token_ids=tuple(tokens(6, 1)), bos="prefix")
    write_prefix(tmp_path / "p", prefix, method="static", provenance={})
    found = read_prefix(tmp_path / "p")
    assert found.digest == prefix.digest
    assert found.length == 6
    for mine, theirs in zip(found.tensors, prefix.tensors, strict=True):
        assert torch.equal(mine, theirs)
    changed = [{name: state + 1 for name, state in layer.items()} for layer in prefix.states]
    assert replace(prefix, states=tuple(changed)).digest != prefix.digest


def test_a_file_without_some_states_is_refused(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    lm = tiny_cached_model("falcon_h1")
    write_prefix(tmp_path / "p", activations(lm, tokens(6, 1)), method="static", provenance={})
    with safe_open(tmp_path / "p", framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        header = file.metadata()
    lost = tensors.pop("layers.1.conv_states.0")
    save_file(tensors, tmp_path / "q", metadata=header)
    with pytest.raises(CorruptFile, match=r"expected the tensor layers.1.conv_states.0"):
        read_prefix(tmp_path / "q")
    save_file({**tensors, "layers.1.conv_states.0": lost + 1}, tmp_path / "q", metadata=header)
    with pytest.raises(CorruptFile, match="was altered"):
        read_prefix(tmp_path / "q")


def test_states_are_neither_cut_nor_moved_nor_put_behind_others():
    lm = tiny_cached_model("lfm2")
    prefix = replace(activations(lm, tokens(6, 1)), token_ids=tuple(tokens(6, 1)), bos="prefix")
    with pytest.raises(UsageError, match="cannot be cut to 3"):
        prefix.head(3)
    with pytest.raises(UnsupportedModel, match="keeps states, which have no position"):
        rotate(lm, prefix, 4)
    with pytest.raises(UsageError, match="needs the states of its layers"):
        KVPrefix(prefix.model, prefix.keys, prefix.values, prefix.offset)
    learned = [Task(name, "p-tuning-v2", replace(prefix, token_ids=None, bos="request")) for name in "ab"]
    with pytest.raises(UsageError, match="hold nothing of what would stand in front of it"):
        compose(lm, "both", learned)


def test_states_are_not_lost_in_a_file_of_peft():
    lm = tiny_cached_model("falcon_h1")
    with pytest.raises(UsageError, match="layers of FalconH1ForCausalLM keep states besides"):
        flatten(activations(lm, tokens(6, 1)), "a PEFT file")


def test_where_the_tokens_differ_at_the_seam_the_joined_text_is_run():
    lm = tiny_cached_model("lfm2")
    ids = tuple(lm.tokenizer("Be brief.").input_ids)
    task = Task("a", "static", replace(activations(lm, ids), token_ids=ids, bos="prefix"), "prompt", "Be brief.")
    whole = task_prompts.from_rendered(lm.tokenizer, task, [*ids, 65, 66])
    assert (whole.prefix_length, whole.token_ids) == (len(ids), (65, 66))
    other = [*ids[:-1], 70, 65]
    apart = task_prompts.from_rendered(lm.tokenizer, task, other)
    assert (apart.prefix, apart.prefix_length, apart.token_ids) == (None, 0, tuple(other))


@torch.no_grad()
def test_rows_of_one_token_run_alone_where_states_are_a_list():
    """Transformers' RWKV mixes them up: behind states, two rows of one token give four."""
    lm = tiny_cached_model("rwkv")
    front = tokens(5, 1)
    states = lm.model(torch.tensor([front, front]), use_cache=True).state
    assert lm.model(torch.tensor([[7], [9]]), state=states, use_cache=True).logits.shape[1] == 2
    found = lm.logits(Batch.from_rows(Front(activations(lm, front)), [[7], [9]]), torch.arange(2))
    expected = torch.cat([joined(lm, front, [token]) for token in (7, 9)])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert lm.limits[-1].startswith("rows of one token run one after another")


def test_fronts_of_one_length_at_a_time_where_a_model_reads_no_mask():
    """BART's decoder counts positions from the length of its cache."""
    from transformers import AutoModelForCausalLM, BartConfig

    from foreword.models.ways import wrap_model
    from tiny_models import byte_tokenizer

    config = BartConfig(vocab_size=300, d_model=48, decoder_layers=2, decoder_ffn_dim=64, decoder_attention_heads=4)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.12) if parameter.dim() > 1 else None
        lm = wrap_model(model, byte_tokenizer(), name="bart")
        fronts, rows = [tokens(9, 1), tokens(3, 2)], [tokens(4, 3), tokens(6, 4)]
        parts = [Batch.from_rows(Front(activations(lm, f)), [row]) for f, row in zip(fronts, rows, strict=True)]
        found = lm.logits(Batch.concat(parts), torch.arange(10))
        expected = torch.cat([joined(lm, front, row) for front, row in zip(fronts, rows, strict=True)])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
