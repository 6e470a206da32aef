"""Every parser of outside data takes anything: a result or a `ForewordError`, in two seconds and half a gigabyte."""

from __future__ import annotations

import random
import re
import resource
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from foreword.errors import ForewordError
from trust.conftest import Scale
from trust.outside_parsers import PARSERS, OutsideParser

CORPUS = Path(__file__).parent / "corpus"
"""Inputs that once broke a parser: ``PARSER/NAME``."""
SECONDS, GROWTH = 2.0, 500 << 20

WILD: tuple[bytes, ...] = (
    *(b"9" * digits for digits in (19, 309, 4301, 50_000)),
    *(b"-1", b"0", b"1.5", b"1e999", b"1e308", b"NaN", b"-Infinity", b"9223372036854775808", b"-9223372036854775809"),
    *(b"true", b"null", b"[]", b"{}", b'""', b"[[]]", b'{"": {}}', b'"x"', b'["x"]', b"[1]", b'{"a": 1}', b"[null]"),
    *(b"[" * depth + b"]" * depth for depth in (100, 129, 900, 5000)),
    *(b'{"a":' * depth + b"1" + b"}" * depth for depth in (100, 129, 900)),
    *(b'"\\ud800"', b'"\\u0000"', b"\xff\xfe", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\r"),
    *(b'"' + b"x" * 70_000 + b'"', b'"../../../etc/passwd"', b'"' + b"\\" * 9, b"'", b"${HOME}", b"{{", b"{%", b"%s"),
    *(b"2024-13-45", b"!!int x", b"!!python/object:os.system x", b"&a [*a]", b"<<: *a", b"1:30", b"0x_", b"? [", b"|9"),
    *(b"</tool_call>" * 300, b"<parameter=" * 300, b"[TOOL_CALLS]" * 50, b"{mask}" * 20, b"{soft:999999}", b"," * 5000),
)  # fmt: skip
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\w.+-]*|\w+|[^\w\s]|\s+', re.DOTALL)


def mutated(sample: bytes, seed: int, changes: int) -> bytes:
    """A sample with some of its tokens, bytes or lengths changed."""
    chance = random.Random(seed)
    head, body = (sample[:8], sample[8:]) if _is_safetensors(sample) else (b"", sample)
    for _ in range(changes):
        body = chance.choice((_token, _token, _token, _repeat, _cut, _bytes, _number))(body, chance)
    if head and chance.random() < 0.8:  # the length of a header that may have changed
        end = body.rfind(b"}") + 1
        head = (end if chance.random() < 0.9 else chance.getrandbits(chance.choice((8, 31, 63, 64)))).to_bytes(
            8, "little"
        )
    return head + body


def _is_safetensors(sample: bytes) -> bool:
    return sample[8:9] == b"{" and 0 < int.from_bytes(sample[:8], "little") < len(sample)


def _spans(data: bytes) -> list[tuple[int, int]]:
    return [match.span() for match in _TOKEN.finditer(data[:20_000])]


def _token(data: bytes, chance: random.Random) -> bytes:
    """Another token or a wild one in the place of one."""
    if not (spans := _spans(data)):
        return chance.choice(WILD)
    start, end = chance.choice(spans)
    other = chance.choice(spans)
    return data[:start] + (chance.choice(WILD) if chance.random() < 0.8 else data[slice(*other)]) + data[end:]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    """A part once more, such as a key that stands twice; or taken out."""
    start, end = sorted(chance.randrange(min(len(data), 20_000) + 1) for _ in range(2))
    return data[:end] + data[start:end] * chance.choice((0, 1, 1, 2, 30)) + data[chance.choice((start, end)) :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] if chance.random() < 0.7 else data[at:]


def _bytes(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + chance.randbytes(chance.choice((1, 2, 8, 100))) + data[at + chance.choice((0, 1, 8)) :]


def _number(data: bytes, chance: random.Random) -> bytes:
    """A binary number of 4 or 8 bytes in place of some bytes, as lengths of formats are."""
    size = chance.choice((4, 8))
    at = chance.randrange(max(1, len(data) - size + 1))
    value = chance.choice((0, 1, 255, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, chance.getrandbits(20)))
    return data[:at] + (value % 2 ** (8 * size)).to_bytes(size, "little") + data[at + size :]


def inputs(parser: OutsideParser) -> st.SearchStrategy[bytes]:
    """Changed samples, and now and then bytes of no shape at all."""
    changed = st.builds(mutated, st.sampled_from(parser.samples), st.integers(0, 2**63), st.integers(0, 6))
    return st.one_of(changed, changed, changed, changed, st.binary(max_size=300))


def check(parser: OutsideParser, data: bytes, folder: Path) -> None:
    """Parse one input and hold what is promised."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        parser.parse(data, folder)
    except (ForewordError, *parser.refuses) as error:
        sentence = str(error)
        assert len(sentence) < 100_000
        sentence.encode("utf-8", "surrogatepass")
    seconds = time.process_time() - began
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert seconds < SECONDS, f"{seconds:.1f} s"
    assert growth < GROWTH, f"{growth:,} bytes"


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as name:
        yield Path(name)


@pytest.mark.parametrize("name", PARSERS)
def test_samples_are_accepted(name: str, folder: Path) -> None:
    """Else nothing behind the first check would be tried."""
    if name in ("soft", "head", "P-tuning config"):
        pytest.skip("one of its samples is another kind of file")
    for index, sample in enumerate(PARSERS[name].samples):
        place = folder / f"{name.replace(' ', '-').replace('/', '-')}-{index}"
        place.mkdir()
        try:
            PARSERS[name].parse(sample, place)
        except ForewordError as error:
            if index == 0:
                raise AssertionError(f"sample {index}: {error}") from error


@pytest.mark.parametrize("name", PARSERS)
def test_what_broke_it_once(name: str, folder: Path) -> None:
    for file in sorted((CORPUS / name.replace("/", "-")).glob("*")):
        check(PARSERS[name], file.read_bytes(), _place(folder))


@pytest.mark.parametrize("name", PARSERS)
def test_anything(name: str, folder: Path, scale: Scale) -> None:
    parser, place = PARSERS[name], _place(folder)
    warnings.simplefilter("ignore")

    @settings(
        max_examples=scale(20_000, 1_000_000) // len(PARSERS) + 1,
        deadline=None,
        database=None,
        derandomize=scale(True, False),
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example),
    )
    @given(inputs(parser))
    def holds(data: bytes) -> None:
        check(parser, data, place)

    holds()


def _place(folder: Path) -> Path:
    place = folder / f"{random.getrandbits(60):x}"
    place.mkdir()
    return place
