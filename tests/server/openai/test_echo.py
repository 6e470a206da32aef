"""``echo``: prompts in front of their completions, with their own log-probabilities."""

from __future__ import annotations

import codecs

import pytest
import torch

from engine.reference import stock_model
from foreword.text.token_bytes import token_bytes


@pytest.mark.parametrize("prompt", ["Once more", [72, 105, 33]])
def test_an_echo_is_the_prompt_in_front_of_the_answer(server, client, prompt):
    name = server.lm.name
    text = prompt if isinstance(prompt, str) else server.lm.tokenizer.decode(prompt)
    options = {"model": name, "prompt": prompt, "max_tokens": 5, "temperature": 0}
    plain = client.completions.create(**options)
    assert client.completions.create(**options, echo=True).choices[0].text == text + plain.choices[0].text
    assert client.completions.create(**options, echo=False).choices[0].text == plain.choices[0].text
    events = list(client.completions.create(**options, echo=True, stream=True))
    assert "".join(event.choices[0].text for event in events) == text + plain.choices[0].text
    both = client.completions.create(**{**options, "prompt": [prompt, prompt]}, echo=True, n=2)
    assert [choice.text for choice in both.choices] == [text + plain.choices[0].text] * 4


@pytest.mark.parametrize("stream", [False, True])
def test_the_logprobs_of_an_echo_are_those_of_the_model(server, client, stream):
    lm = server.lm
    token_ids = [72, 105, 33, 72, 105]
    options = {"model": lm.name, "prompt": token_ids, "max_tokens": 2, "temperature": 0, "logprobs": 3, "echo": True}
    if stream:
        events = list(client.completions.create(**options, stream=True))
        chunks = [event.choices[0].logprobs for event in events if event.choices[0].logprobs is not None]
        tokens, logprobs, tops, offsets = (
            [each for part in chunks for each in getattr(part, name)]
            for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        )
    else:
        whole = client.completions.create(**options).choices[0].logprobs
        tokens, logprobs, tops, offsets = whole.tokens, whole.token_logprobs, whole.top_logprobs, whole.text_offset
    assert len(tokens) == len(logprobs) == len(tops) == len(offsets) == 7
    assert logprobs[0] is None
    assert tops[0] is None
    with torch.no_grad():
        expected = stock_model("llama")(torch.tensor([token_ids])).logits[0].float().log_softmax(-1)
    for place, token in enumerate(token_ids[1:]):
        assert logprobs[place + 1] == pytest.approx(float(expected[place, token]), abs=1e-4)
        best = float(expected[place].max())
        assert max(tops[place + 1].values()) == pytest.approx(best, abs=1e-4)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a character counts when it is whole
    lengths = [len(decoder.decode(token_bytes(lm.tokenizer, token))) for token in token_ids]
    assert offsets[:6] == [sum(lengths[:place]) for place in range(6)]


def test_a_learned_prefix_is_in_front_of_an_echo(server, client):
    options = {"prompt": [72, 105, 33], "max_tokens": 1, "logprobs": 0, "echo": True}
    one, other = (
        client.completions.create(model=name, **options).choices[0].logprobs.token_logprobs
        for name in ("poet", server.lm.name)
    )
    assert one[1] != pytest.approx(other[1], abs=1e-3)
