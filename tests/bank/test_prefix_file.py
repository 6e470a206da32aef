"""``prefix.safetensors``: round trips, and one test for every malformation."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foreword.bank import prefix_file
from foreword.bank.prefix_file import read_header, read_prefix, read_prefix_metadata, write_prefix
from foreword.core import KVPrefix
from foreword.errors import BankError, CorruptFile, UsageError

Make = Callable[..., KVPrefix]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A safetensors file as its header and its tensor bytes."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(entries: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


def edit_header(data: bytes, **fields: Any) -> bytes:
    """The same file with other fields in Foreword's own header; ``...`` deletes a field."""
    entries, body = split(data)
    header = json.loads(entries["__metadata__"]["foreword"]) | fields
    entries["__metadata__"]["foreword"] = json.dumps({k: v for k, v in header.items() if v is not ...})
    return join(entries, body)


def assert_same(found: KVPrefix, expected: KVPrefix) -> None:
    assert found.digest == expected.digest
    assert (found.model, found.offset, found.token_ids, found.bos) == (
        expected.model,
        expected.offset,
        expected.token_ids,
        expected.bos,
    )
    pairs = zip((*found.keys, *found.values), (*expected.keys, *expected.values), strict=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.fixture
def path(tmp_path: Path, make_prefix: Make) -> Path:
    target = tmp_path / "prefix.safetensors"
    write_prefix(target, make_prefix(), method="p-tuning-v2", provenance={"metrics": {"accuracy": 0.9}})
    return target


@pytest.fixture
def refused(path: Path) -> Callable[[bytes], str]:
    """Write bytes over the good file and return the sentence with which it is refused."""

    def attempt(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(CorruptFile) as caught:
            read_prefix(path)
        assert str(path) in str(caught.value)
        assert str(caught.value).endswith(".")
        return str(caught.value)

    return attempt


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_keeps_every_bit(tmp_path: Path, make_prefix: Make, dtype: torch.dtype) -> None:
    prefix = make_prefix(dtype=dtype)
    write_prefix(tmp_path / "p", prefix, method="p-tuning-v2", provenance={})
    assert_same(read_prefix(tmp_path / "p"), prefix)


def test_empty_and_static_prefixes(tmp_path: Path, make_prefix: Make) -> None:
    for prefix in (
        make_prefix(length=0),
        make_prefix(length=0, token_ids=()),
        make_prefix(token_ids=(5, 6, 7)),
    ):
        write_prefix(tmp_path / "p", prefix, method="manual", provenance={})
        assert_same(read_prefix(tmp_path / "p"), prefix)


def test_views_and_gradients_are_stored_by_value(tmp_path: Path, make_prefix: Make, identity: Any) -> None:
    block = torch.randn(2, 6, 8, requires_grad=True)
    other = torch.randn(6, 1, 3).transpose(0, 1).expand(1, 6, 3)
    prefix = KVPrefix(
        identity,
        keys=(block[:, :3], other[:, :3, :1].expand(1, 3, 4)),
        values=(block[:, 3:], torch.zeros(1, 3, 6)),
        offset=3,
    )
    write_prefix(tmp_path / "p", prefix, method="x", provenance={})
    assert_same(read_prefix(tmp_path / "p"), prefix)


def test_header_is_read_without_tensors_or_torch(path: Path) -> None:
    header = read_header(path)
    assert header["dtype"] == "float32"
    assert header["provenance"] == {"metrics": {"accuracy": 0.9}}
    code = f"import sys, foreword.bank.bank as b; from foreword.bank.prefix_file import read_header; \
read_header({str(path)!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_writing_refuses_what_it_could_not_read(tmp_path: Path, make_prefix: Make, identity: Any) -> None:
    floats = make_prefix()
    keys, values = (tuple(t.to(torch.int32) for t in group) for group in (floats.keys, floats.values))
    with pytest.raises(UsageError, match="one floating dtype, found int32"):
        write_prefix(tmp_path / "p", KVPrefix(identity, keys, values, offset=3), method="x", provenance={})
    for bad in ({"metric": float("nan")}, {"set": {1}}, {"text": "\ud800"}):
        with pytest.raises(UsageError, match="JSON values"):
            write_prefix(tmp_path / "p", make_prefix(), method="x", provenance=bad)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset", [-1, 2**31, 2**63, 10**400, 1.5, None])
def test_no_prefix_has_an_offset_that_is_no_position(make_prefix: Make, offset: Any) -> None:
    with pytest.raises(UsageError, match="offset of a prefix must be a position from 0 to 2147483647, found"):
        replace(make_prefix(), offset=offset)


def test_positions_and_tokens_that_no_request_can_stand_behind_are_not_stored(
    tmp_path: Path, make_prefix: Make, identity: Any
) -> None:
    def write(prefix: KVPrefix) -> None:
        write_prefix(tmp_path / "p", prefix, method="x", provenance={})

    for offset in (0, 2, 4, 10**9):
        with pytest.raises(UsageError, match=f"offset must be 3, the number of its positions, found {offset}"):
            write(replace(make_prefix(), offset=offset))
    encoder = make_prefix(model=replace(identity, architecture="BertForMaskedLM"))
    write(replace(encoder, offset=0))
    with pytest.raises(UsageError, match="offset must be 3"):
        write(replace(encoder, offset=4))
    for tokens in ((1, 2, 100), (1, 2, -1), (1, 2, 10**30), (1, 2, True), (1, 2, "3")):
        with pytest.raises(UsageError, match="token_ids must be"):
            write(make_prefix(token_ids=tokens))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(tmp_path: Path, make_prefix: Make, monkeypatch, bad: float) -> None:
    prefix = make_prefix()
    prefix.values[1][0, 0, 0] = bad
    with pytest.raises(UsageError, match="layer 1 of the prefix holds NaN or infinity"):
        write_prefix(tmp_path / "p", prefix, method="x", provenance={})
    monkeypatch.setattr(prefix_file, "_first_nonfinite_layer", lambda prefix: None)
    write_prefix(tmp_path / "p", prefix, method="x", provenance={})
    monkeypatch.undo()
    with pytest.raises(CorruptFile, match="layer 1 must hold finite numbers"):
        read_prefix(tmp_path / "p")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BankError, match="check the path"):
        read_prefix(tmp_path / "nothing")


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, -200, -1])
def test_truncated(path: Path, refused: Callable[[bytes], str], keep: int) -> None:
    assert "truncated" in refused(path.read_bytes()[:keep])


def test_too_long(path: Path, refused: Callable[[bytes], str]) -> None:
    assert "too long" in refused(path.read_bytes() + b"!")


@pytest.mark.parametrize("data", [b"PK\x03\x04" + b"x" * 100, b"\x80\x04K\x01." * 10, b"GGUF" + bytes(60)])
def test_not_safetensors(refused: Callable[[bytes], str], data: bytes) -> None:
    assert "found another format" in refused(data)


def test_container_header_is_not_json(path: Path, refused: Callable[[bytes], str]) -> None:
    data = bytearray(path.read_bytes())
    data[20:24] = b"\xff\xfe,,"
    assert "expected JSON" in refused(bytes(data))
    deep = b'{"a":' * 50_000
    assert "expected JSON" in refused(len(deep).to_bytes(8, "little") + deep)


def test_no_foreword_header(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    del entries["__metadata__"]
    assert "expected a Foreword header" in refused(join(entries, body))
    assert "expected a Foreword header" in refused(join(entries | {"__metadata__": {"format": "pt"}}, body))
    assert "must be an object" in refused(join(entries | {"__metadata__": [1]}, body))


@pytest.mark.parametrize("text", ["{", "[]", "", "\ud800", '{"a":1,"a":2}', '{"a":NaN}', "9" * 5000])
def test_foreword_header_is_not_a_json_object(path: Path, refused: Callable[[bytes], str], text: str) -> None:
    entries, body = split(path.read_bytes())
    entries["__metadata__"]["foreword"] = text
    assert "expected" in refused(join(entries, body))


def test_missing_and_extra_tensors(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    renamed = {k.replace("layers.1.value", "layers.2.value"): v for k, v in entries.items()}
    assert "expected the tensor layers.1.value" in refused(join(renamed, body))
    extra = {**entries, "extra": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    assert "found extra" in refused(join(extra, body))


def test_wrong_shapes(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    for shape in ([3, 2, 8], [2, 24], [2, 3, 8, 1]):
        wrong = {**entries, "layers.0.value": {**entries["layers.0.value"], "shape": shape}}
        assert "layers.0.value must be [2, 3, 8]" in refused(join(wrong, body))
    wrong = {**entries, "layers.0.key": {**entries["layers.0.key"], "shape": [48]}}
    assert "layers.0.key must be" in refused(join(wrong, body))


def test_wrong_dtypes(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    for dtype, message in (
        ("I32", "must be floating point"),
        ("BF16", "must have the bytes 192 to 288 for BF16 of [2, 3, 8], found 192 to 384"),
        ("?", "must have a known dtype"),
    ):
        wrong = {**entries, "layers.0.value": {**entries["layers.0.value"], "dtype": dtype}}
        assert message in refused(join(wrong, body))
    assert "must be bfloat16 as its header says" in refused(edit_header(join(entries, body), dtype="bfloat16"))


def test_malformed_entry_and_overlap(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    for entry in (1, {}, {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}):
        assert "needs dtype, shape, data_offsets" in refused(join({**entries, "layers.0.key": entry}, body))
    overlap = {**entries, "layers.0.key": entries["layers.0.value"]}
    assert "must have the bytes 0 to 192 for F32" in refused(join(overlap, body))


def test_shapes_of_more_than_the_bytes_are_refused_before_anything_is_made_of_them(path: Path) -> None:
    entries, body = split(path.read_bytes())
    for shape in ([2, 10**12, 8], [2, 3, 8] + [1] * 40, [10**400, 3, 8]):
        path.write_bytes(join({**entries, "layers.0.key": {**entries["layers.0.key"], "shape": shape}}, body))
        with pytest.raises(CorruptFile):
            read_prefix_metadata(path)  # which allocates by the shape alone


def test_newer_format_says_upgrade(path: Path, refused: Callable[[bytes], str]) -> None:
    good = path.read_bytes()
    assert "found 2; upgrade foreword" in refused(edit_header(good, format=2))
    assert "upgrade foreword" in refused(edit_header(good, fresh_idea=1))
    for wrong in (0, True, "1", None, 1.0, ...):
        assert "expected format 1" in refused(edit_header(good, format=wrong))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("offset", -1, "offset must be a position"),
        ("offset", 4, "offset must be 3, the number of its positions, found 4"),
        ("offset", 0, "offset must be 3"),
        ("offset", True, "offset must be a position"),
        ("offset", 2**63, "offset must be 3"),
        ("token_ids", [1, 2], "needs as many token_ids"),
        ("token_ids", [1, 2, 3], "altered"),
        ("token_ids", [1, 2, 100], "token_ids must be from 0 to 99, found 1 to 100"),
        ("token_ids", [1, 2, -1], "token_ids must be"),
        ("token_ids", [True, 2, 3], "token_ids must be"),
        ("bos", "prefix", "altered"),
        ("bos", [], "bos must be one of"),
        ("method", 1, "method must be a text"),
        ("dtype", "int8", "dtype must be one of"),
        ("dtype", [], "dtype must be one of"),
        ("digest", "0" * 64, "altered"),
        ("digest", "zz", "digest must be a SHA-256"),
        ("provenance", [], "provenance must be an object"),
        ("model", {}, "model must be a model identity"),
        ("model", None, "model must be a model identity"),
        ("digest", ..., "expected the fields digest"),
    ],
)
def test_header_fields(path: Path, refused: Callable[[bytes], str], field: str, value: Any, message: str) -> None:
    assert message in refused(edit_header(path.read_bytes(), **{field: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": "16"},
        {"hidden_size": 1e999},
        {"layers": []},
        {"layers": [[2, 8]]},
        {"vocab_size": None},
        {"vocab_size": -1},
        {"hidden_size": 2**40},
    ],
)
def test_malformed_identity(path: Path, refused: Callable[[bytes], str], change: dict[str, Any]) -> None:
    data = path.read_bytes()
    model = json.loads(split(data)[0]["__metadata__"]["foreword"])["model"]
    assert refused(edit_header(data, model=model | change))


def test_other_weights_in_the_header_are_noticed(path: Path, refused: Callable[[bytes], str]) -> None:
    data = path.read_bytes()
    model = json.loads(split(data)[0]["__metadata__"]["foreword"])["model"]
    assert "altered" in refused(edit_header(data, model=model | {"weights": "c" * 64}))


def test_swapped_tensors_are_noticed(path: Path, refused: Callable[[bytes], str]) -> None:
    entries, body = split(path.read_bytes())
    a, b = entries["layers.0.key"], entries["layers.0.value"]
    assert "altered" in refused(join({**entries, "layers.0.key": b, "layers.0.value": a}, body))


def test_every_single_byte_matters_or_changes_nothing(path: Path, make_prefix: Make) -> None:
    """Flip bits all over the file: it is refused, or only the provenance changed."""
    good, digest = path.read_bytes(), make_prefix().digest
    draw = random.Random(7)
    for place in range(0, len(good), 3):
        data = bytearray(good)
        data[place] ^= 1 << draw.randrange(8)
        path.write_bytes(data)
        with suppress(CorruptFile):
            assert read_prefix(path).digest == digest


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_garbage_is_refused_or_the_same(path: Path, make_prefix: Make, data: st.DataObject) -> None:
    write_prefix(path, make_prefix(), method="p-tuning-v2", provenance={})
    good = path.read_bytes()
    start = data.draw(st.integers(0, len(good)))
    stop = data.draw(st.integers(start, min(len(good), start + 40)))
    path.write_bytes(good[:start] + data.draw(st.binary(max_size=40)) + good[stop:])
    with suppress(CorruptFile):
        assert read_prefix(path).digest == make_prefix().digest
    with suppress(CorruptFile):
        read_header(path)


def test_large_numbers_whose_sum_overflows_are_finite(tmp_path, make_prefix):
    prefix = make_prefix(dtype=torch.float32)
    prefix.keys[0].fill_(3e38)
    write_prefix(tmp_path / "p", prefix, method="test", provenance={})
    assert torch.equal(read_prefix(tmp_path / "p").keys[0], prefix.keys[0])


def test_what_becomes_of_the_file_does_not_change_what_was_read(tmp_path, make_prefix):
    prefix = make_prefix()
    write_prefix(tmp_path / "p", prefix, method="test", provenance={})
    found = read_prefix(tmp_path / "p")
    with open(tmp_path / "p", "r+b") as file:
        file.write(bytes((tmp_path / "p").stat().st_size))
    assert found.keys[0].ne(0).any()
    assert_same(found, prefix)
