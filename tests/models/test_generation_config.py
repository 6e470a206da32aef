"""The model's own sampling defaults, and what stands above them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from foreword.errors import ModelError
from foreword.evaluation.sampling_params import request_sampling_params, task_sampling_params
from foreword.models.generation_config import generation_config
from foreword.text.prompt import Prompt
from server.running_server import chat_model, learned_task, static_task

DEFAULTS = {"temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.1}


def folder_with(tmp_path: Path, config: object) -> str:
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({**DEFAULTS, "do_sample": True, "eos_token_id": [1, 2], "max_new_tokens": 9}, DEFAULTS),
        ({**DEFAULTS, "do_sample": False}, {"temperature": 0.0, "repetition_penalty": 1.1}),
        ({"min_p": 0.1, "top_p": None}, {"min_p": 0.1}),
        ({}, {}),
    ],
)
def test_the_file_is_read_as_vllm_reads_it(tmp_path, config, found):
    assert generation_config(folder_with(tmp_path, config)) == found


def test_models_without_the_file(tmp_path):
    assert generation_config(str(tmp_path)) == {}
    assert generation_config("somebody/never-downloaded") == {}
    assert generation_config("somewhere/model.gguf") == {}
    assert generation_config("smollm2-135m") == {"temperature": 0.2, "top_p": 0.9}  # of its card


@pytest.mark.parametrize("config", [{"temperature": -1}, {"top_p": "a"}, [1]])
def test_a_file_that_cannot_be_meant(tmp_path, config):
    with pytest.raises(ModelError, match=r"generation_config\.json of .* --generation-config none"):
        generation_config(folder_with(tmp_path, config))


def test_request_then_task_then_model_then_api():
    lm, prompt = chat_model(), Prompt((1,), None, 0)
    story = static_task(lm, "story", "prompt", "Once")

    def params(task, **request):
        return request_sampling_params(task, prompt, 100, 16, DEFAULTS, **request)

    assert (params(None).temperature, params(None).top_p, params(None).top_k) == (0.6, 0.95, 20)
    assert params(story).temperature == 0.6
    assert params(None, temperature=0.9).temperature == 0.9
    assert params(None, temperature=0.9).top_p == 0.95
    object.__setattr__(story, "generation", {"temperature": 0.1, "top_k": 3})
    assert (params(story).temperature, params(story).top_k, params(story).top_p) == (0.1, 3, 0.95)
    assert request_sampling_params(None, prompt, 100, 16).temperature == 1.0
    learned = params(learned_task(lm, "poet"))
    assert (learned.temperature, learned.top_p, learned.repetition_penalty) == (0.0, 1.0, 1.0)
    assert task_sampling_params(None, DEFAULTS).temperature == 0.6
