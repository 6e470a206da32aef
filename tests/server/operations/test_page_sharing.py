"""Nobody reads another tenant's prompt off ``cached_tokens``."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import httpx
import pytest

from foreword.server.openai.serialization import CACHED_TOKENS_STEP
from foreword.server.operations.api_keys import ApiKeys
from foreword.server.operations.auth import Authenticator
from foreword.server.operations.page_sharing import SHARE_PAGES, share_within_tenant
from server.operations.test_auth import key, secured_server

FRONT = "The price per share that we agreed on is exactly "
TEXT = f"{FRONT}47 dollars and must not be disclosed to anybody before May."
PAGES = len(TEXT.encode()) // CACHED_TOKENS_STEP * CACHED_TOKENS_STEP


def test_tenants_and_salts_are_never_taken_for_each_other():
    names = ("", "a", "ab", "b", '"', "/", ",", '","', "[", "\ud800")
    salts = {share_within_tenant(tenant, salt) for tenant, salt in product(names, names)}
    assert len(salts) == len(names) ** 2


@pytest.mark.parametrize(
    ("share", "across_keys", "again", "across_salts"),
    [("all", PAGES, PAGES, 0), ("tenant", 0, PAGES, 0), ("none", 0, 0, 0)],
)
def test_cached_tokens_tell_of_those_alone_who_share(tmp_path: Path, share, across_keys, again, across_salts):
    keys = ApiKeys([key("a", "fw-a"), key("b", "fw-b"), key("ab", "fw-ab")])
    authenticator = Authenticator(keys, share_pages=SHARE_PAGES[share])
    with secured_server(tmp_path / "bank", authenticator) as server:

        def cached(secret: str, route: str = "completions", **more: object) -> int:
            asked = {"prompt": TEXT} if route == "completions" else {"input": TEXT}
            bound = {"max_tokens": 1} if route == "completions" else {"max_output_tokens": 1}
            answer = httpx.post(
                f"{server.url}/v1/{route}",
                json={"model": server.lm.name, "temperature": 0} | asked | bound | more,
                headers={"Authorization": f"Bearer {secret}"},
            )
            assert answer.status_code == 200, answer.text
            usage = answer.json()["usage"]
            details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
            return details["cached_tokens"]

        assert cached("fw-a") == 0
        assert cached("fw-b") == across_keys
        assert cached("fw-a") == again
        assert cached("fw-a", cache_salt="b") == across_salts
        assert cached("fw-a", cache_salt="b") == again
        assert cached("fw-ab") == across_keys  # neither key "a" with salt "b", nor key "ab"
        assert cached("fw-a", "responses", cache_salt="c") == 0
        assert (cached("fw-b", "responses", cache_salt="c") > 0) == (share == "all")


def test_those_who_share_a_key_cannot_try_out_words(tmp_path: Path):
    """Pages are of 16 tokens: a guess that goes on one page further must look like all others."""
    with secured_server(tmp_path / "bank", Authenticator(ApiKeys([key("a", "fw-a")]))) as server:

        def cached(price: int) -> int:
            text = f"{FRONT}{price}" + TEXT.partition("47")[2][: 58 - len(FRONT)]
            body = {"model": server.lm.name, "prompt": text, "max_tokens": 1}
            answer = httpx.post(f"{server.url}/v1/completions", json=body, headers={"Authorization": "Bearer fw-a"})
            return answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert {cached(price) for price in (47, 45, 46, 47, 48)} == {0}


def test_a_salt_is_a_text(tmp_path: Path):
    with secured_server(tmp_path / "bank", Authenticator(ApiKeys())) as server:
        for salt in ("", "x" * 257, 3):
            body = {"model": server.lm.name, "prompt": "a", "cache_salt": salt}
            answer = httpx.post(f"{server.url}/v1/completions", json=body)
            assert answer.status_code == 400
            assert "cache_salt" in answer.text
