"""``instructor`` in its default mode, and in those of JSON."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("instructor", reason="needs the clients: make test-clients")

import instructor
import openai
from pydantic import BaseModel, Field

from on_clients.conftest import MODEL, TASK


class Person(BaseModel):
    """A person, with a friend."""

    class Friend(BaseModel):
        name: str = Field(max_length=20)

    name: str = Field(max_length=20)
    age: int = Field(ge=0, le=120)
    friend: Friend


def check(client: Any, model: str) -> None:
    """The small model may take the one for the other; the form holds."""
    found = client.chat.completions.create(
        model=model,
        response_model=Person,
        messages=[{"role": "user", "content": "Ann is 30 years old. Her friend is Bob."}],
        temperature=0,
        max_tokens=100,
        max_retries=0,
    )
    assert isinstance(found, Person)
    assert found.age == 30
    assert {found.name, found.friend.name} <= {"Ann", "Bob"}


@pytest.mark.parametrize("model", [MODEL, TASK])
def test_default_mode(url: str, model: str) -> None:
    check(instructor.from_openai(openai.OpenAI(max_retries=0)), model)


@pytest.mark.parametrize("mode", ["TOOLS_STRICT", "JSON_SCHEMA"])
def test_other_modes(url: str, mode: str) -> None:
    check(instructor.from_openai(openai.OpenAI(max_retries=0), mode=getattr(instructor.Mode, mode)), MODEL)
