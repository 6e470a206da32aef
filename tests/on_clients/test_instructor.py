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


def ask(client: Any, model: str) -> Person:
    return client.chat.completions.create(
        model=model,
        response_model=Person,
        messages=[{"role": "user", "content": "Ann is 30 years old. Her friend is Bob."}],
        temperature=0,
        max_tokens=100,
        max_retries=0,
    )


@pytest.mark.parametrize("model", [MODEL, TASK])
def test_default_mode(url: str, model: str) -> None:
    found = ask(instructor.from_openai(openai.OpenAI(max_retries=0)), model)
    assert (found.name, found.age) == ("Ann", 30)


@pytest.mark.parametrize("mode", ["TOOLS_STRICT", "JSON_SCHEMA"])
def test_other_modes(url: str, mode: str) -> None:
    client = instructor.from_openai(openai.OpenAI(max_retries=0), mode=getattr(instructor.Mode, mode))
    assert ask(client, MODEL).name == "Ann"
