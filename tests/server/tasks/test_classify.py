"""``POST /v1/classify`` by a verbalizer; by a head: `test_heads.py`."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from server.running_server import RunningServer


def test_classify(server: RunningServer) -> None:
    def ask(value: Any, model: str = "mood") -> httpx.Response:
        return httpx.post(f"{server.url}/v1/classify", json={"model": model, "input": value})

    single = ask("fine day").json()
    several_inputs = ask(["fine day", {"text": "awful"}]).json()
    assert single["object"] == "list"
    assert single["model"] == "mood"
    assert [row["index"] for row in several_inputs["data"]] == [0, 1]
    assert several_inputs["data"][0]["probs"] == pytest.approx(single["data"][0]["probs"], abs=1e-5)
    for row in several_inputs["data"]:
        assert list(row["probs"]) == ["good", "bad"]
        assert sum(row["probs"].values()) == pytest.approx(1)
        assert row["label"] == max(row["probs"], key=row["probs"].__getitem__)
    assert ask({"first": "a", "second": "b"}, "pair").status_code == 200
    two_fields = ask("a text", "pair")
    assert two_fields.status_code == 400
    assert "first, second" in two_fields.json()["error"]["message"]
    for model in ("tiny-llama", "poet"):
        assert ask("a text", model).status_code == 400
    missing = ask(["ok", {"other": "x"}])
    assert missing.status_code == 400
    assert "input[1]" in missing.json()["error"]["message"]
