"""Sequence states, key layouts, GGUF files and tokenizers: read field by field, and refused where one differs."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from benchmarks.conformance.gguf import write_gguf
from foreword.core import LayerShape
from foreword.errors import EngineError, ModelMismatch, UnknownModel, UnsupportedModel, UsageError
from foreword.llamacpp import compat
from foreword.llamacpp.compat import Session
from foreword.llamacpp.engine import LlamaCppEngine
from foreword.llamacpp.key_layout import KeyLayout
from foreword.llamacpp.model import gguf_model
from foreword.llamacpp.sequence_state import SequenceState
from foreword.llamacpp.tokenizer import FileTokenizer
from foreword.models import load_model
from foreword.models.activations import activations
from foreword.models.gguf import builtin_file
from foreword.models.gguf_file import GgufFile
from foreword.models.tokenizer_fingerprint import tokenizer_fingerprint
from on_llamacpp.gguf_models import IDS, gguf_file, llamacpp_engine
from served_model import learned

WIDTHS = (64, 64, 64)


def state_of(engine, sequence: int = 200) -> bytes:
    """Of a short text, run by the library itself."""
    session = engine._session
    batch = session.tokens
    for row, token in enumerate(IDS):
        batch.token_ids[row], batch.positions[row], batch.seq_ids[row] = token, row, sequence
        batch.outputs[row] = row == 4
    batch.count = len(IDS)
    session.decode(batch)
    data = session.get_state(sequence)
    session.clear(sequence)
    return data


@pytest.fixture(scope="module", params=["served", "served_float16"], ids=["float32", "float16"])
def idle_engine(request):
    """An engine without a thread, so that the test can use its session."""
    with llamacpp_engine(request.getfixturevalue(request.param), cells=256, start=False) as engine:
        yield engine


def read(engine, data: bytes) -> SequenceState:
    return SequenceState.from_bytes(data, 200, WIDTHS, WIDTHS, engine._session.dtype)


def test_a_state_is_read_and_written_byte_by_byte(idle_engine):
    data = state_of(idle_engine)
    state = read(idle_engine, data)
    assert {rows.dtype for rows in (*state.keys, *state.values)} == {idle_engine._session.dtype}
    assert state.positions.tolist() == [0, 1, 2, 3, 4]
    assert state.to_bytes(200) == data


def test_keys_and_values_of_a_text_are_transformers_own(served, idle_engine):
    """The bank's reference: what the embedded model computes of the same tokens, in the bank's layout of numbers."""
    state = read(idle_engine, state_of(idle_engine))
    close = 1e-5 if idle_engine._session.dtype == np.float32 else 2e-2
    prefix = activations(served.lm, IDS)
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        np.testing.assert_allclose(
            idle_engine.key_layout.from_cache(state.keys[layer], 2), key.numpy(), atol=close, rtol=close
        )
        rows = value.numpy().swapaxes(0, 1).reshape(len(IDS), -1)
        np.testing.assert_allclose(state.values[layer], rows, atol=close, rtol=close)


def test_a_cache_has_the_precision_of_its_file(served, served_float16):
    assert gguf_model(str(gguf_file(served))).dtype == np.float32
    assert gguf_model(str(gguf_file(served_float16))).dtype == gguf_model("smollm2-135m").dtype == np.float16


def test_what_is_written_is_what_is_there(served, idle_engine):
    prefix = learned(served.lm, 70, 5)
    state = idle_engine.allocator._state(prefix)
    idle_engine._session.set_state(201, state.to_bytes(201))
    assert idle_engine._session.get_state(201) == state.to_bytes(201)
    idle_engine._session.clear(201)


# Where the fields of a state of five cells lie: head, cells, transposition and layers, type and width of the first. Of
# values: behind so many numbers of keys, and so many bytes of all else.
FIELDS = {
    "magic": (0, 0, "<I"),
    "sequence": (0, 4, "<i"),
    "streams": (0, 8, "<I"),
    "cells": (0, 12, "<I"),
    "sequences of a cell": (0, 20, "<I"),
    "sequence of a cell": (0, 24, "<i"),
    "transposition": (0, 16 + 5 * 12, "<I"),
    "layers": (0, 20 + 5 * 12, "<I"),
    "type": (0, 24 + 5 * 12, "<i"),
    "bytes of a cell": (0, 28 + 5 * 12, "<Q"),
    "type of values": (5 * sum(WIDTHS), 24 + 5 * 12 + 3 * 12, "<i"),
    "size of values": (5 * sum(WIDTHS), 28 + 5 * 12 + 3 * 12, "<I"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_that_is_another_is_refused(idle_engine, field):
    data = bytearray(state_of(idle_engine))
    numbers, others, form = FIELDS[field]
    at = numbers * idle_engine._session.dtype.itemsize + others
    struct.pack_into(form, data, at, struct.unpack_from(form, data, at)[0] + 1)
    with pytest.raises(EngineError, match="not as it is known here"):
        read(idle_engine, bytes(data))


def test_a_state_that_is_cut_or_too_long_is_refused(idle_engine):
    data = state_of(idle_engine)
    for wrong in (data[:10], data[:-1], data + b"\0"):
        with pytest.raises((EngineError, struct.error)):
            read(idle_engine, wrong)


def test_the_library_refuses_what_it_cannot_take(idle_engine):
    with pytest.raises(EngineError, match="did not take a prefix"):
        idle_engine._session.set_state(202, state_of(idle_engine)[:-4])


@pytest.mark.parametrize("rotary", [32, 16])
@pytest.mark.parametrize("interleaved", [True, False])
def test_orders_of_keys_are_inverse(rotary, interleaved):
    layout = KeyLayout((LayerShape(2, 32, 32),), rotary, 10000.0, interleaved)
    key = np.random.default_rng(0).normal(size=(2, 7, 32)).astype(np.float16)
    rows = layout.to_cache(key)
    assert rows.shape == (7, 64)
    assert np.array_equal(layout.from_cache(rows, 2), key)
    assert np.array_equal(rows, key.swapaxes(0, 1).reshape(7, 64)) == (not interleaved)


@pytest.mark.parametrize("wrong", ["theta", "layout", "rotary"])
def test_keys_that_are_rotated_otherwise_are_refused(served, idle_engine, wrong):
    layout = idle_engine.key_layout
    spoilt = {
        "theta": replace(layout, rope_theta=layout.rope_theta * 1.5),
        "layout": replace(layout, interleaved=not layout.interleaved),
        "rotary": replace(layout, rotary_dim=layout.rotary_dim // 2),
    }[wrong]
    assert layout.verify(idle_engine._session, 40, 255) < 0.005
    with pytest.raises(UnsupportedModel, match="not rotated as the bank's are"):
        spoilt.verify(idle_engine._session, 40, 255)


def test_a_version_that_is_not_known_is_refused(monkeypatch):
    for version in ("0.3.20", "0.3.37", "0.4.0", "1.0"):
        monkeypatch.setattr(metadata, "version", lambda name, found=version: found)
        with pytest.raises(UsageError, match=f"{version} is not known here"):
            compat.check_version()


def test_a_file_that_is_no_model_is_refused(served, tmp_path):
    with pytest.raises(UnknownModel, match="cannot be read"):
        gguf_model(str(tmp_path / "absent.gguf"))
    with pytest.raises(UnknownModel, match="reads GGUF files"):
        gguf_model(str(tmp_path))
    whole = gguf_file(served).read_bytes()
    for wrong in (b"", b"GGUF", b"nothing at all", whole[:200]):
        (tmp_path / "wrong.gguf").write_bytes(wrong)
        with pytest.raises(UnsupportedModel, match="cannot be read as a GGUF model"):
            gguf_model(str(tmp_path / "wrong.gguf"))


def small(file: Path, architecture: str, **more) -> Path:
    writer = GGUFWriter(file, architecture)
    for name, value in {
        "block_count": 2,
        "embedding_length": 8,
        "attention.head_count": 2,
        "context_length": 64,
    }.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    for name, value in more.items():
        writer.add_string(name.replace("__", "."), value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_models_that_were_never_tried_are_refused(served, tmp_path):
    with pytest.raises(UnsupportedModel, match="architecture 'gemma3'"):
        gguf_model(str(small(tmp_path / "gemma.gguf", "gemma3")))
    with pytest.raises(UnsupportedModel, match=r"put the model's tokenizer\.json"):
        gguf_model(str(small(tmp_path / "llama.gguf", "llama", tokenizer__ggml__model="llama")))
    served.lm.tokenizer.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModel, match="scales its rotary angles"):
        gguf_model(str(small(tmp_path / "yarn.gguf", "llama", llama__rope__scaling__type="yarn")))


@pytest.mark.parametrize("rules", [None, "qwen2", "llama-bpe"])
def test_a_tokenizer_that_cuts_texts_otherwise_is_not_guessed(served, tmp_path, rules):
    """`"\n\n"` is one token for some rules and two for others, and the file only names them."""
    head = GgufFile.read(gguf_file(served))
    assert FileTokenizer.from_gguf(head).encode("a b")
    fields = {name: value for name, value in head.fields.items() if name != "tokenizer.ggml.pre"}
    other = replace(head, fields={**fields, **({} if rules is None else {"tokenizer.ggml.pre": rules})})
    with pytest.raises(UnsupportedModel, match=f"rules {rules}.*put the model's tokenizer"):
        FileTokenizer.from_gguf(other)


def test_sliding_windows_are_refused(served, tmp_path, monkeypatch):
    """As llama.cpp itself says it of a model."""
    library = compat.library()
    monkeypatch.setattr(library, "llama_model_n_swa", lambda model: 48)
    with pytest.raises(UnsupportedModel, match="sliding windows"):
        Session(gguf_file(served), dtype=np.dtype(np.float16), num_cells=256, batch_size=8, max_outputs=8)


def test_a_file_with_keys_in_another_order_is_never_served(served, tmp_path):
    """The library would run it, wrongly; a converter that forgot to put numbers side by side is not our doing, but keys
    in the bank are of the model that was converted."""
    write_gguf(served.lm, tmp_path / "model.gguf", interleaved=False)
    served.lm.tokenizer.save_pretrained(tmp_path)
    with LlamaCppEngine(gguf_model(str(tmp_path / "model.gguf")), start=False, cells=256) as engine:
        state = read(engine, state_of(engine))
        theirs = activations(served.lm, IDS).keys[0].numpy()
        assert np.abs(engine.key_layout.from_cache(state.keys[0], 2) - theirs).max() > 0.5


def test_a_file_is_what_its_folder_is(served):
    """But for the weights: the file's own digest."""
    model = gguf_model(str(gguf_file(served)))
    served.lm.identity.check(model.identity, "a prefix", allow_other_weights=True)
    assert model.context == 512
    assert model.eos_token_ids == served.lm.eos_token_ids


def test_rotary_parameters_are_compared_as_numbers(served):
    identity = replace(served.lm.identity, rope='{"rope_theta": 10000.0, "rope_type": "default"}')
    replace(identity, rope='{"rope_type": "default", "rope_theta": 10000}').check(identity, "a prefix")
    for other in ('{"rope_theta": 10001, "rope_type": "default"}', "null", "no JSON"):
        with pytest.raises(ModelMismatch, match="rope is"):
            replace(identity, rope=other).check(identity, "a prefix")


@pytest.fixture(scope="module")
def built_in():
    return gguf_model("smollm2-135m", progress=lambda line: None)


def test_the_built_in_file_and_its_conversion_are_one_model(built_in):
    lm = load_model("smollm2-135m", progress=lambda line: None)
    lm.identity.check(built_in.identity, "a prefix")
    assert built_in.identity.rope == lm.identity.rope
    assert built_in.eos_token_ids == lm.eos_token_ids
    assert built_in.context == lm.context


CHATS = [
    [{"role": "user", "content": "Hello?"}],
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "  Hé\n你好 "}],
]


def test_the_built_in_tokenizer_is_read_from_its_file(built_in):
    lm = load_model("smollm2-135m", progress=lambda line: None)
    mine, theirs = FileTokenizer.from_gguf(GgufFile.read(builtin_file(print))), lm.tokenizer
    assert tokenizer_fingerprint(mine) == tokenizer_fingerprint(theirs)
    for text in ("", " a  b\n", "naïve 1234567 你好 🙂", "<|im_start|>user\nx<|im_end|>"):
        ids = theirs.encode(text)
        assert mine.encode(text) == ids
        for skip in (True, False):
            options = {"skip_special_tokens": skip, "clean_up_tokenization_spaces": False}
            assert mine.decode(ids, **options) == theirs.decode(ids, **options)
        assert mine.convert_ids_to_tokens(ids) == theirs.convert_ids_to_tokens(ids)
    for chat in CHATS:
        for prompt in (True, False):
            options = {"tokenize": False, "add_generation_prompt": prompt}
            assert mine.apply_chat_template(chat, **options) == theirs.apply_chat_template(chat, **options)
    assert len(mine) == len(theirs)


def test_chat_templates_have_the_names_that_transformers_gives_them(tmp_path, served):
    from jinja2 import TemplateError

    template = (
        "{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
        "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}"
        "{% if messages[0].content == 'no' %}{{ raise_exception('never') }}{% endif %}"
    )
    tokenizer = served.lm.tokenizer.__class__(tokenizer_object=served.lm.tokenizer.backend_tokenizer, bos_token="<s>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    mine = FileTokenizer.from_folder(tmp_path)
    assert tokenizer_fingerprint(mine) == tokenizer_fingerprint(tokenizer)
    options = {"tokenize": False, "add_generation_prompt": True}
    chat = [
        {"role": "user", "content": "é<&>"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert mine.apply_chat_template(chat, **options) == tokenizer.apply_chat_template(chat, **options)
    with pytest.raises(TemplateError, match="never"):
        mine.apply_chat_template([{"role": "user", "content": "no"}], **options)


def test_a_tokenizer_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UnsupportedModel, match=r"tokenizer in .* cannot be read"):
        FileTokenizer.from_folder(tmp_path)


def test_bfloat16_and_float16_are_read_as_pytorch_reads_them(served, tmp_path):
    from foreword.bank.arrays import load_arrays
    from foreword.bank.prefix_file import read_prefix, write_prefix

    prefix = learned(served.lm, 9, 1)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2):
        file = tmp_path / "prefix.safetensors"
        write_prefix(file, prefix.to(dtype=dtype), method="test", provenance={})
        mine, theirs = read_prefix(file, load=load_arrays), read_prefix(file)
        assert mine.digest == theirs.digest
        assert np.array_equal(mine.keys[0].astype(np.float64), theirs.keys[0].double().numpy())
        written = tmp_path / "again.safetensors"
        write_prefix(written, mine, method="test", provenance={})
        assert written.read_bytes() == file.read_bytes()
