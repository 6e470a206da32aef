"""Learning on models that are run through Transformers' cache."""

import pytest

from foreword.errors import UsageError
from foreword.training.train import train
from tiny_cached_models import CONFIGS, WITH_STATES, tiny_cached_model
from training.small_data import recipe


def quiet(line: str) -> None:
    del line


@pytest.mark.parametrize("family", ["gptj", "lfm2", "rwkv"])
def test_p_tuning_v2_learns_keys_and_states(family, tmp_path):
    result = train(tiny_cached_model(family), recipe(tmp_path, method="p-tuning-v2"), say=quiet)
    assert result.metrics["accuracy"] > result.before["accuracy"]
    assert bool(result.task.prefix.states) == (family in WITH_STATES)


@pytest.mark.parametrize("method", ["prefix-tuning", "prompt-tuning", "p-tuning", "lora", "lora-hybrid"])
def test_every_method_learns_on_a_model_with_states(method, tmp_path):
    lm = tiny_cached_model("lfm2")
    adapts = {"length": None} if method == "lora" else {}
    settings = recipe(tmp_path, method=method, max_steps=4, **{"init": "auto", **adapts})
    task = train(lm, settings, say=quiet).task
    assert task.prefix.length == (0 if method == "lora" else 16)
    assert (task.adapter is not None) == method.startswith("lora")


def test_checkpointing_is_refused(tmp_path):
    """A layer that runs again in the backward pass would be run without its cache."""
    with pytest.raises(UsageError, match="would not see when they run again"):
        train(tiny_cached_model("bloom"), recipe(tmp_path, method="p-tuning-v2", checkpointing=True), say=quiet)


@pytest.mark.slow
@pytest.mark.parametrize("family", CONFIGS)
def test_forty_steps_beat_the_start(family, tmp_path):
    result = train(tiny_cached_model(family), recipe(tmp_path, method="p-tuning-v2"), say=quiet)
    assert result.metrics["accuracy"] > result.before["accuracy"]
