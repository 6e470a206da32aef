"""Files of static prompts, as rtp-llm writes them."""

from __future__ import annotations

import json
import time

import pytest

from foreword.errors import DataError
from foreword.text.static_prompts import StaticPrompt, read_prompts

ROWS = [{"task_id": 1, "prompt": "Translate:\u2028\n"}, {"task_id": "faq", "system": "Be kind.\u0085"}]
READ = [StaticPrompt("1", "prompt", "Translate:\u2028\n"), StaticPrompt("faq", "system", "Be kind.\u0085")]


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        file = tmp_path / "prompts.json"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize("ascii_only", [True, False])
def test_an_array_or_lines(write, ascii_only):
    # U+2028 and U+0085 end a line for Python's splitlines, but not in JSON.
    assert read_prompts(write(json.dumps(ROWS, ensure_ascii=ascii_only, indent=1))) == READ
    assert read_prompts(write("\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in ROWS))) == READ
    assert read_prompts(write("\ufeff" + "\r\n\r\n".join(json.dumps(row) for row in ROWS))) == READ


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no prompts; give at least one row"),
        ("[]", "has no prompts"),
        ('{"task_id": 1, "prompt": "x"}\n{"task_id": 2, "prompt"}', r"is not JSON \(.*, line 2 column 24\)"),
        ('[\n{"task_id": 1,}]', r"is not JSON \(.*, line 2 column 1\d\)"),
        ('[{"task_id": 1}]', "row 1 needs task_id and either prompt or system"),
        ('[{"task_id": 1, "prompt": "x", "system": "y"}]', "row 1 needs task_id and either prompt or system"),
        ('[{"task_id": 1, "prompt": "x"}, "y"]', "row 2 needs task_id"),
        ('[{"task_id": true, "prompt": "x"}]', "row 1 has task_id True, expected an integer or a string"),
        ('[{"task_id": 1.5, "prompt": "x"}]', "row 1 has task_id 1.5"),
        ('[{"task_id": 1, "prompt": ""}]', "row 1 has no text for its prompt"),
        ('[{"task_id": 1, "system": null}]', "row 1 has no text for its system"),
        ('[{"task_id": 1, "prompt": "x"}, {"task_id": "1", "prompt": "y"}]', "has task_id '1' twice"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(write, text, message):
    with pytest.raises(DataError, match=message) as caught:
        read_prompts(write(text))
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file or directory; check the path"):
        read_prompts(tmp_path / "nothing.json")


def test_thousands_are_read_quickly(write):
    file = write(json.dumps([{"task_id": i, "prompt": "x"} for i in range(20_000)]))
    start = time.perf_counter()
    assert len(read_prompts(file)) == 20_000
    assert time.perf_counter() - start < 5
