"""`connect` with API keys: errors of access, and a key that reaches some tasks alone."""

from __future__ import annotations

import pytest

import foreword
from foreword import errors
from foreword.engine.engine import Engine
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.auth import Authenticator


def test_errors_of_access(lm, bank, monkeypatch: pytest.MonkeyPatch):
    authenticator = Authenticator(ApiKeys.load(None, "secret"))
    with (
        Engine(lm, cache_bytes=1 << 24) as running,
        serve_in_background(create_app(running, bank, authenticator=authenticator)) as url,
    ):
        with foreword.connect(url) as client, pytest.raises(errors.AccessError) as caught:
            client.generate("a", task="poet")
        assert type(caught.value) is errors.AccessError
        with foreword.connect(url, api_key="secret") as client:
            assert client.generate("a", max_tokens=1, ignore_eos=True).finish_reason == "length"
        monkeypatch.setenv("FOREWORD_API_KEY", "secret")
        with foreword.connect(url + "/v1/") as client:
            assert "poet" in client.tasks()
