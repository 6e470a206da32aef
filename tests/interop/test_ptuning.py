"""THUDM's checkpoints answer here as the loops do that made them: positions, keys, projections and heads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import DynamicCache

from foreword.core import Batch, Front
from foreword.errors import CorruptFile, ModelMismatch, UnsupportedModel, UsageError
from foreword.interop.prompt_format import PromptFormat
from foreword.interop.ptuning import base_model, import_ptuning, read_ptuning
from interop.conftest import ROWS, assert_same, by_task

P, LAYERS = 9, 3
LABELS = {"0": "O", "1": "B-PER", "2": "I-PER"}


def values(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def flat(width: int) -> dict[str, Tensor]:
    """A prefix encoder without projection."""
    return {"embedding.weight": values(P, width)}


def projected(table: int, hidden: int, width: int) -> dict[str, Tensor]:
    """One with its network."""
    return {
        "embedding.weight": values(P, table),
        "trans.0.weight": values(hidden, table, seed=3),
        "trans.0.bias": values(hidden, seed=4),
        "trans.2.weight": values(width, hidden, seed=5),
        "trans.2.bias": values(width, seed=6),
    }


def rows_of(encoder: dict[str, Tensor]) -> Tensor:
    """What the authors' `PrefixEncoder` gives: ``[P, layers * 2 * heads * dim]``."""
    table = nn.Embedding.from_pretrained(encoder["embedding.weight"])
    found = table(torch.arange(P))
    if "trans.0.weight" not in encoder:
        return found
    hidden = torch.tanh(F.linear(found, encoder["trans.0.weight"], encoder["trans.0.bias"]))
    return F.linear(hidden, encoder["trans.2.weight"], encoder["trans.2.bias"])


def past_of(encoder: dict[str, Tensor], heads: int, dim: int) -> DynamicCache:
    """What the authors' `get_prompt` gives, as today's cache."""
    past = rows_of(encoder).view(1, P, LAYERS * 2, heads, dim).permute(2, 0, 3, 1, 4).split(2)
    cache = DynamicCache()
    for layer, (key, value) in enumerate(past):
        cache.update(key, value, layer)
    return cache


def write(folder: Path, stem: str, encoder: dict[str, Tensor], config: dict, **more: Tensor) -> Path:
    """A checkpoint folder as the authors' trainers leave it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{stem}{name}": tensor for name, tensor in encoder.items()}
    torch.save({**tensors, **more}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def bert_config(made, **more) -> dict:
    return {
        "_name_or_path": str(made.folder),
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "hidden_size": 48,
        "pre_seq_len": P,
        **more,
    }


GLM = {"num_layers": LAYERS, "multi_query_group_num": 2, "kv_channels": 16, "pre_seq_len": P}
BERT_WIDTH, GLM_WIDTH = LAYERS * 2 * 48, LAYERS * 2 * 2 * 16


@pytest.mark.parametrize("name", ["bert", "roberta"])
@pytest.mark.parametrize("encoder", [flat(BERT_WIDTH), projected(48, 20, BERT_WIDTH)], ids=["flat", "projected"])
def test_encoders_answer_as_the_authors_loop(base, tmp_path, name, encoder):
    made = base(name)
    checkpoint = read_ptuning(str(write(tmp_path, "prefix_encoder.", encoder, bert_config(made))))
    task = import_ptuning(made.lm, checkpoint, "imported")
    assert base_model(checkpoint) == str(made.folder)
    assert (task.method, task.prefix.offset) == ("p-tuning-v2", P)
    model = made.fresh()
    expected = [
        model(input_ids=torch.tensor([row]), past_key_values=past_of(encoder, 4, 12)).logits[0].detach() for row in ROWS
    ]
    assert_same(by_task(made.lm, task), expected)


@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral"])
def test_grouped_key_heads_answer_as_the_authors_loop(base, tmp_path, name):
    made = base(name)
    config = bert_config(made, num_key_value_heads=2, head_dim=16)
    folder = write(tmp_path, "prefix_encoder.", flat(GLM_WIDTH), config)
    task = import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    past = [past_of(flat(GLM_WIDTH), 2, 16) for _ in ROWS]
    model = made.fresh()
    expected = [
        model(input_ids=torch.tensor([row]), past_key_values=cache).logits[0].detach()
        for row, cache in zip(ROWS, past, strict=True)
    ]
    assert_same(by_task(made.lm, task), expected, 2e-5)
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 4}))
    with pytest.raises(ModelMismatch, match=r"is for 3 layers of 4 x 16 keys, tiny-.* has 3 of 2 x 16"):
        import_ptuning(made.lm, read_ptuning(str(folder)), "imported")


def test_what_was_learned_on_a_quantized_model_is_taken_if_asked(base, tmp_path, caplog):
    made = base("llama")
    folder = write(tmp_path, "transformer.prefix_encoder.", flat(GLM_WIDTH), {**GLM, "quantization_bit": 4})
    with pytest.raises(UsageError, match=r"quantized to 4 bits .* pass --allow-quantized-origin to import it"):
        read_ptuning(str(folder))
    checkpoint = read_ptuning(str(folder), allow_quantized_origin=True)
    assert "quantized to 4 bits (quantization_bit); for the model here its answers may differ" in caplog.text
    plain = write(tmp_path / "plain", "transformer.prefix_encoder.", flat(GLM_WIDTH), GLM)
    same = import_ptuning(made.lm, read_ptuning(str(plain)), "imported")
    assert import_ptuning(made.lm, checkpoint, "imported").prefix.digest == same.prefix.digest


@pytest.mark.parametrize("stem", ["transformer.prefix_encoder.", "prefix_encoder."])
@pytest.mark.parametrize("encoder", [flat(GLM_WIDTH), projected(20, 20, GLM_WIDTH)], ids=["flat", "projected"])
def test_weights_alone_are_enough(base, tmp_path, stem, encoder):
    made = base("llama")
    whole = import_ptuning(
        made.lm,
        read_ptuning(str(write(tmp_path / "whole", stem, encoder, GLM))),
        "imported",
    )
    folder = write(tmp_path / "bare", stem, encoder, {})
    (folder / "config.json").unlink()
    for length in (P, None):
        checkpoint = read_ptuning(str(folder), length=length)
        assert base_model(checkpoint) is None
        assert import_ptuning(made.lm, checkpoint, "imported").prefix.digest == whole.prefix.digest
    with pytest.raises(CorruptFile, match=r"must be floating-point numbers 8 x any, found \[9,"):
        import_ptuning(made.lm, read_ptuning(str(folder), length=8), "imported")
    with pytest.raises(UsageError, match=r"has 9 virtual tokens \(pre_seq_len\), not 8; leave --length out"):
        read_ptuning(str(write(tmp_path / "stated", stem, encoder, GLM)), length=8)


def test_another_base_model_is_warned_of(base, tmp_path, caplog):
    made = base("llama")
    config = {**GLM, "_name_or_path": "THUDM/chatglm2-6b"}
    folder = write(tmp_path, "transformer.prefix_encoder.", flat(GLM_WIDTH), config)
    import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    assert "was learned on THUDM/chatglm2-6b, and is imported for tiny-llama" in caplog.text


@torch.no_grad()
def chatglm_loop(model, encoder: dict[str, Tensor], request: tuple[int, ...], steps: int) -> tuple[Tensor, list[int]]:
    """Greedy decoding as ChatGLM2 does it: raw keys in the cache, the request at positions from 0."""
    cache, at, tokens, logits, answer = past_of(encoder, 2, 16), 0, list(request), [], []
    for _ in range(steps):
        positions = torch.arange(at, at + len(tokens))[None]
        out = model(input_ids=torch.tensor([tokens]), position_ids=positions, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0])
        at += len(tokens)
        tokens = [int(out.logits[0, -1].argmax())]
        answer += tokens
    return torch.cat(logits), answer


@pytest.mark.parametrize("name", ["glm", "glm4", "llama", "qwen3"])
@pytest.mark.parametrize("encoder", [flat(GLM_WIDTH), projected(GLM_WIDTH, 20, GLM_WIDTH)], ids=["flat", "projected"])
def test_chatglm_answers_as_its_loop_that_counts_requests_from_zero(base, tmp_path, name, encoder):
    made = base(name)
    folder = write(tmp_path, "transformer.prefix_encoder.", encoder, {**GLM, "_name_or_path": str(made.folder)})
    task = import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    for request in ROWS:
        expected, answer = chatglm_loop(made.fresh(), encoder, request, 6)
        joined = [*request, *answer[:-1]]
        found = made.lm.logits(Batch.from_rows(Front(task.prefix), [joined]), torch.arange(len(joined)))
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
        assert found[len(request) - 1 :].argmax(-1).tolist() == answer


def test_chatglm_on_a_model_without_rotary_positions_is_refused(base, tmp_path):
    made = base("gpt2")
    config = {**GLM, "multi_query_group_num": 4, "kv_channels": 12}
    folder = write(tmp_path, "transformer.prefix_encoder.", flat(BERT_WIDTH), config)
    with pytest.raises(UnsupportedModel, match="tiny-gpt2 has learned absolute positions"):
        import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    with pytest.raises(UnsupportedModel, match="is of ChatGLM, tiny-bert is an encoder"):
        import_ptuning(base("bert").lm, read_ptuning(str(folder)), "imported")


def with_classifier(made, folder: Path, architecture: str, *, body: bool = True) -> Path:
    """A checkpoint of the whole model, as the Trainer saves it."""
    model = made.fresh()
    stem = model.base_model_prefix
    own = {f"{stem}.{name}": tensor for name, tensor in model.base_model.state_dict().items()} if body else {}
    head = {"classifier.weight": values(3, 48, seed=8), "classifier.bias": values(3, seed=9)}
    config = bert_config(made, architectures=[architecture], id2label=LABELS)
    return write(folder, "prefix_encoder.", flat(BERT_WIDTH), config, **own, **head)


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_a_classifier_of_words_becomes_a_head(base, tmp_path, name):
    made = base(name)
    folder = with_classifier(made, tmp_path, "BertPrefixForTokenClassification")
    task = import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    assert task.head is not None
    assert task.head.per_token
    assert task.labels == ("O", "B-PER", "I-PER")
    assert task.template == "{tokens}"
    model = made.fresh()
    for row in ROWS:
        out = model.base_model(input_ids=torch.tensor([row]), past_key_values=past_of(flat(BERT_WIDTH), 4, 12))
        expected = F.linear(out.last_hidden_state[0], values(3, 48, seed=8), values(3, seed=9))
        states = made.lm.hidden_states(Batch.from_rows(Front(task.prefix), [row]), torch.arange(len(row)))
        found = F.linear(states, task.head.weight, task.head.bias)
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


def test_other_heads_are_refused_or_left_out(base, tmp_path):
    made = base("bert")
    folder = with_classifier(made, tmp_path, "BertPrefixForSequenceClassification")
    checkpoint = read_ptuning(str(folder))
    with pytest.raises(
        UsageError, match=r"\(BertPrefixForSequenceClassification\) answers with classifier.bias, a head"
    ):
        import_ptuning(made.lm, checkpoint, "imported")
    task = import_ptuning(made.lm, checkpoint, "imported", prefix_only=True)
    assert task.head is None
    assert task.prefix.length == P
    plain = read_ptuning(str(write(tmp_path / "plain", "prefix_encoder.", flat(BERT_WIDTH), bert_config(made))))
    with pytest.raises(UsageError, match="has no head of its own; leave --prefix-only out"):
        import_ptuning(made.lm, plain, "imported", prefix_only=True)


def test_prompt_format_beside_a_head(base, tmp_path):
    made = base("bert")
    checkpoint = read_ptuning(str(with_classifier(made, tmp_path, "BertPrefixForTokenClassification")))
    assert import_ptuning(made.lm, checkpoint, "a", prompt_format=PromptFormat("{words}")).template == "{words}"
    with pytest.raises(UsageError, match="must be one field to tag its words"):
        import_ptuning(made.lm, checkpoint, "a", prompt_format=PromptFormat("Tag {words}"))
    worded = PromptFormat.parse("{text} It was {mask}.", '{"good": "great", "bad": "poor"}')
    with pytest.raises(UsageError, match="has a head of its own; leave --verbalizer out, or add --prefix-only"):
        import_ptuning(made.lm, checkpoint, "a", prompt_format=worded)
    task = import_ptuning(made.lm, checkpoint, "a", prefix_only=True, prompt_format=worded)
    assert task.labels == ("good", "bad")


def test_another_model_than_the_frozen_one_is_refused(base, tmp_path):
    made = base("bert")
    folder = with_classifier(made, tmp_path, "BertPrefixForTokenClassification")
    tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
    tensors["bert.encoder.layer.1.output.dense.weight"][0, 0] += 0.1
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(
        ModelMismatch, match=r"other weights than those of tiny-bert: bert.encoder.layer.1.output.dense"
    ):
        import_ptuning(made.lm, read_ptuning(str(folder)), "imported")
    half = {name: tensor.half() if "bert." in name else tensor for name, tensor in tensors.items()}
    half["bert.encoder.layer.1.output.dense.weight"][0, 0] -= 0.1
    torch.save(half, folder / "pytorch_model.bin")
    assert import_ptuning(made.lm, read_ptuning(str(folder)), "imported").head is not None


@pytest.mark.parametrize(
    ("stem", "config", "says"),
    [
        ("transformer.prefix_encoder.", {**GLM, "quantization_bit": 4}, r"quantized to 4 bits \(quantization_bit\)"),
        ("transformer.prefix_encoder.", {**GLM, "position_encoding_2d": True}, "is of the first ChatGLM, which reads"),
        ("transformer.prefix_encoder.", {"pre_seq_len": P}, "is of the first ChatGLM, which reads requests in both"),
        ("encoder.", {}, "so it is not of P-tuning v2"),
    ],
)
def test_kinds_that_would_answer_otherwise_are_refused(tmp_path, stem, config, says):
    folder = write(tmp_path, stem, flat(GLM_WIDTH), config)
    with pytest.raises(UsageError, match=says):
        read_ptuning(str(folder))


def test_prompts_in_the_embeddings_alone_are_refused(tmp_path):
    folder = write(tmp_path, "prefix_encoder.", {"weight": values(P, 48)}, {})
    with pytest.raises(UsageError, match="prompts that were added to the embeddings alone cannot be imported"):
        read_ptuning(str(folder))


@pytest.mark.parametrize(
    ("config", "width", "error", "says"),
    [
        # The same width, other heads: read as they are, all keys would be wrong.
        (
            {**GLM, "multi_query_group_num": 4, "kv_channels": 8},
            GLM_WIDTH,
            ModelMismatch,
            "of 4 x 8 keys, tiny-glm has",
        ),
        ({**GLM, "num_layers": 4}, GLM_WIDTH, ModelMismatch, "is for 4 layers of 2 x 16 keys"),
        (GLM, GLM_WIDTH + 2, ModelMismatch, "must have 192 numbers a position for tiny-glm"),
        ({**GLM, "pre_seq_len": 8}, GLM_WIDTH, CorruptFile, "must be floating-point numbers 8 x any"),
    ],
)
def test_shapes_that_do_not_fit(base, tmp_path, config, width, error, says):
    folder = write(tmp_path, "transformer.prefix_encoder.", flat(width), config)
    with pytest.raises(error, match=says):
        import_ptuning(base("glm").lm, read_ptuning(str(folder)), "imported")


def test_projections_that_do_not_fit(base, tmp_path):
    encoder = {**projected(48, 20, BERT_WIDTH), "trans.2.weight": values(BERT_WIDTH, 21)}
    folder = write(tmp_path, "prefix_encoder.", encoder, bert_config(base("bert")))
    with pytest.raises(
        CorruptFile, match=r"prefix_encoder.trans.2.weight of .* must be floating-point numbers any x 20"
    ):
        import_ptuning(base("bert").lm, read_ptuning(str(folder)), "imported")
    del encoder["trans.2.weight"]
    write(tmp_path, "prefix_encoder.", encoder, bert_config(base("bert")))
    with pytest.raises(CorruptFile, match=r"must hold the tensor prefix_encoder.trans.2.weight"):
        import_ptuning(base("bert").lm, read_ptuning(str(folder)), "imported")


def test_one_file_and_safetensors_are_read_too(base, tmp_path):
    made = base("bert")
    folder = write(tmp_path / "ner", "prefix_encoder.", flat(BERT_WIDTH), bert_config(made))
    one = read_ptuning(str(folder / "pytorch_model.bin"))
    assert one.name == "ner"
    (folder / "pytorch_model.bin").unlink()
    save_file({"prefix_encoder.embedding.weight": values(P, BERT_WIDTH)}, folder / "model.safetensors")
    other = read_ptuning(str(folder))
    tasks = [import_ptuning(made.lm, checkpoint, "imported") for checkpoint in (one, other)]
    assert tasks[0].prefix.digest == tasks[1].prefix.digest
    assert tasks[0].provenance["source"] == "ner"
    assert tasks[0].provenance["weights_sha256"] != tasks[1].provenance["weights_sha256"]


def test_a_pickle_with_code_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = write(tmp_path / "evil", "prefix_encoder.", flat(BERT_WIDTH), {})
    torch.save({"prefix_encoder.embedding.weight": Malicious()}, folder / "pytorch_model.bin")
    with pytest.raises(CorruptFile, match=r"pytorch_model.bin is not a pickle of tensors alone"):
        read_ptuning(str(folder))
    assert not Path("ran-it").exists()


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("ran-it"),))
