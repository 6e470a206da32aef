"""``POST /v1/tokenize``: texts, conversations and filled templates."""

from __future__ import annotations

import httpx


def test_tokens_of_a_request(server):
    def tokenize(**body: object) -> dict:
        return httpx.post(f"{server.url}/v1/tokenize", json=body).json()

    tokenizer, name = server.lm.tokenizer, server.lm.name
    plain = tokenize(model=name, prompt="Once")
    assert plain["tokens"] == tokenizer("Once").input_ids
    assert plain["count"] == len(plain["tokens"])
    assert plain["prefix_length"] == 0
    assert plain["max_model_len"] == server.engine.context
    behind = tokenize(model="poet", prompt="Once")
    assert behind["count"] == behind["prefix_length"] + len(behind["tokens"]) == 5 + len(behind["tokens"])
    chat = tokenize(model=name, messages=[{"role": "user", "content": "Once"}])
    assert tokenizer.decode(chat["tokens"]).endswith("<|im_start|>assistant\n")
    assert "good" in tokenizer.decode(tokenize(model="mood", inputs={"text": "good"})["tokens"])
    for wrong in ({}, {"prompt": "a", "messages": [{}]}):
        assert "one of prompt, messages and inputs" in tokenize(model=name, **wrong)["error"]["message"]
    assert tokenize(model="nobody", prompt="a")["error"]["code"] == "model_not_found"
