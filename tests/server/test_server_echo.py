"""Prompts in front of their answers, and tokens of a request."""

from __future__ import annotations

import httpx
import pytest
import torch

from engine.reference import stock_model


@pytest.mark.parametrize("prompt", ["Once more", [72, 105, 33]])
def test_an_echo_is_the_prompt_in_front_of_the_answer(house, client, prompt):
    name = house.lm.name
    text = prompt if isinstance(prompt, str) else house.lm.tokenizer.decode(prompt)
    asked = {"model": name, "prompt": prompt, "max_tokens": 5, "temperature": 0}
    plain = client.completions.create(**asked)
    assert client.completions.create(**asked, echo=True).choices[0].text == text + plain.choices[0].text
    assert client.completions.create(**asked, echo=False).choices[0].text == plain.choices[0].text
    events = list(client.completions.create(**asked, echo=True, stream=True))
    assert "".join(event.choices[0].text for event in events) == text + plain.choices[0].text
    both = client.completions.create(**{**asked, "prompt": [prompt, prompt]}, echo=True, n=2)
    assert [choice.text for choice in both.choices] == [text + plain.choices[0].text] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_the_logprobs_of_an_echo_are_those_of_the_model(house, client, stream):
    lm = house.lm
    given = [72, 105, 33, 72, 105]
    asked = {"model": lm.name, "prompt": given, "max_tokens": 2, "temperature": 0, "logprobs": 3, "echo": True}
    if stream:
        events = list(client.completions.create(**asked, stream=True))
        parts = [event.choices[0].logprobs for event in events if event.choices[0].logprobs is not None]
        tokens, logprobs, tops, offsets = (
            [each for part in parts for each in getattr(part, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        )
    else:
        whole = client.completions.create(**asked).choices[0].logprobs
        tokens, logprobs, tops, offsets = whole.tokens, whole.token_logprobs, whole.top_logprobs, whole.text_offset
    assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == 7
    assert logprobs[0] is None
    assert tops[0] is None
    with torch.no_grad():
        expected = stock_model("llama")(torch.tensor([given])).logits[0].float().log_softmax(-1)
    for place, token in enumerate(given[1:]):
        assert logprobs[place + 1] == pytest.approx(float(expected[place, token]), abs=1e-4)
        best = float(expected[place].max())
        assert max(tops[place + 1].values()) == pytest.approx(best, abs=1e-4)
    assert offsets == [sum(map(len, tokens[:place])) for place in range(7)]


def test_a_learned_prefix_is_in_front_of_an_echo(house, client):
    asked = {"prompt": [72, 105, 33], "max_tokens": 1, "logprobs": 0, "echo": True}
    one, other = (
        client.completions.create(model=name, **asked).choices[0].logprobs.token_logprobs
        for name in ("poet", house.lm.name)
    )
    assert one[1] != pytest.approx(other[1], abs=1e-3)


def test_tokens_of_a_request(house):
    def tokenize(**body: object) -> dict:
        return httpx.post(f"{house.url}/v1/tokenize", json=body).json()

    tokenizer, name = house.lm.tokenizer, house.lm.name
    plain = tokenize(model=name, prompt="Once")
    assert plain["tokens"] == tokenizer("Once").input_ids
    assert plain["count"] == len(plain["tokens"])
    assert plain["prefix_length"] == 0
    assert plain["max_model_len"] == house.engine.context
    behind = tokenize(model="poet", prompt="Once")
    assert behind["count"] == behind["prefix_length"] + len(behind["tokens"]) == 5 + len(behind["tokens"])
    chat = tokenize(model=name, messages=[{"role": "user", "content": "Once"}])
    assert tokenizer.decode(chat["tokens"]).endswith("<|im_start|>assistant\n")
    assert "good" in tokenizer.decode(tokenize(model="mood", inputs={"text": "good"})["tokens"])
    for wrong in ({}, {"prompt": "a", "messages": [{}]}):
        assert "one of prompt, messages and inputs" in tokenize(model=name, **wrong)["error"]["message"]
    assert tokenize(model="nobody", prompt="a")["error"]["code"] == "model_not_found"
