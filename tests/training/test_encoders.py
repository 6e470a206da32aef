"""P-tuning v2 with a head on encoders of every kind: it learns, is published, and is served beside another task."""

from __future__ import annotations

import random
from pathlib import Path

import httpx
import pytest
import torch

from foreword.bank.bank import Bank
from foreword.engine.engine import Engine
from foreword.evaluation.predict import make_prompt
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text.label_scorers import head_scorer
from foreword.training.train import train
from tiny_encoders import tiny_encoder
from training.small_data import recipe, write_jsonl

TEXTS = ["aaaaxy", "bbxbb", "zaaaa"]


def more_of(letters: str, count: int, seed: int) -> list[dict[str, str]]:
    """Texts with more of one letter than of others, labelled by it."""
    source = random.Random(seed)
    rows = []
    for _ in range(count):
        letter = source.choice(letters)
        text = [*letter * 4, *source.choices("xyz", k=source.randint(1, 4))]
        rows.append({"text": "".join(source.sample(text, len(text))), "label": letter})
    return rows


def settings(folder: Path, seed: int, **changes):
    data = {
        "data": write_jsonl(folder / f"train{seed}.jsonl", more_of("ab", 48, seed)),
        "eval": write_jsonl(folder / f"eval{seed}.jsonl", more_of("ab", 16, seed + 1)),
    }
    return recipe(folder, **{**data, "template": "{text}", "head": "linear", "max_steps": 16, "length": 6, **changes})


@pytest.mark.parametrize("family", ["modernbert", "distilbert", "deberta-v3", "albert", "mpnet"])
def test_a_prefix_and_a_head_learn_and_are_served_beside_another_task(family, tmp_path):
    lm = tiny_encoder(family)
    learned = train(lm, settings(tmp_path, 1, out=str(tmp_path / "one")), name="one")
    assert learned.metrics["accuracy"] > max(0.9, learned.before["accuracy"])
    other = train(lm, settings(tmp_path, 3, out=str(tmp_path / "two"), length=3, max_steps=2), name="two")
    bank = Bank(tmp_path / "bank")
    for result in (learned, other):
        bank.publish(result.task)
    tasks = [bank.load(name) for name in ("one", "two")]
    with Engine(lm, cache_bytes=1 << 20) as engine:
        prompts = [make_prompt(engine, task, {"text": text}) for text in TEXTS for task in tasks]
        scorer = head_scorer(learned.task.head)
        alone = torch.cat([engine.score([prompt], scorer) for prompt in prompts])
        torch.testing.assert_close(engine.score(prompts, scorer), alone, atol=1e-5, rtol=0)
        assert not torch.allclose(alone[::2], alone[1::2], atol=1e-2)
        with serve_in_background(create_app(engine, bank)) as url:
            data = httpx.post(f"{url}/v1/classify", json={"model": "one", "input": TEXTS}).json()["data"]
            body = {"model": "one", "input": TEXTS[:1], "pooling": "mean"}
            vectors = httpx.post(f"{url}/v1/embeddings", json=body).json()["data"]
    assert [each["label"] for each in data] == ["a", "b", "a"]
    for each, scores in zip(data, alone[::2], strict=True):
        assert list(each["probs"].values()) == pytest.approx(scores.softmax(-1).tolist(), abs=1e-5)
    assert len(vectors[0]["embedding"]) == lm.identity.head_size


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "lora"])
def test_other_methods_learn_through_placeholders(method, tmp_path):
    changes = {"lora": {"length": None, "init": "auto", "lr": 0.02}, "prefix-tuning": {"lr": 0.01}, "prompt-tuning": {}}
    result = train(tiny_encoder("mpnet"), settings(tmp_path, 1, method=method, max_steps=30, **changes[method]))
    assert result.metrics["accuracy"] > 0.8
