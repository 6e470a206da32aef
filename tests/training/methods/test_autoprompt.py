"""AutoPrompt on tiny random models: triggers that are text, searched for exactly as they will be served."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from foreword.bank.bank import Bank
from foreword.core import Front
from foreword.engine.engine import Engine
from foreword.errors import UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel
from foreword.prompts.trigger import TriggerTokens
from foreword.text.rows import read_rows
from foreword.text.verbalizer import Verbalizer
from foreword.training import tracker
from foreword.training.methods.autoprompt.autoprompt import TrainableTrigger
from foreword.training.methods.autoprompt.candidates import candidate_losses
from foreword.training.methods.autoprompt.token_filter import SEAM, TokenFilter
from foreword.training.methods.autoprompt.trigger_search import FINAL_BATCHES, TriggerSearch, candidate_builder
from foreword.training.modules.losses import mean_loss
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import TrainResult, train
from text.small_tokenizers import TOKENIZERS
from tiny_models import byte_tokenizer, tiny_model
from training.small_data import recipe


def model(family: str) -> LanguageModel:
    """The tiny model; an encoder with a mask token."""
    lm = tiny_model(family)
    if lm.causal:
        return lm
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    return replace(lm, tokenizer=tokenizer)


def search(folder: Path, **changes) -> Recipe:
    settings = {
        "method": "autoprompt",
        "init": "auto",
        "lr": None,
        "length": 6,
        "max_steps": 8,
        "candidates": 18,
        "batch_size": 12,
    }
    return recipe(folder, **{**settings, **changes})


def started(lm: LanguageModel, folder: Path, **changes) -> tuple[TriggerSearch, TriggerTokens]:
    """A search whose first trigger is accepted."""
    run = Run.from_recipe(lm, search(folder, **changes))
    prompt = run.initial_prompt()
    found, tokens = TriggerSearch.from_run(run, prompt), prompt.encoder
    assert isinstance(tokens, TriggerTokens)
    tokens.set_tokens(found.token_filter.repaired(tokens.trigger, Random(0)))
    return found, tokens


def heldout(result: TrainResult) -> list[float]:
    """The losses on the evaluation rows."""
    log = json.loads((result.folder / "history.json").read_text())["log"]
    return [entry["eval_loss"] for entry in log if "eval_loss" in entry]


def test_a_trigger_is_found_that_is_a_static_prefix(tmp_path):
    lm = model("llama")
    settings = search(tmp_path, length=10)
    result = train(lm, settings, name="rule")
    assert result.metrics["accuracy"] >= result.before["accuracy"] + 0.2
    task = result.task
    assert (task.method, task.kind, task.template) == ("autoprompt", "prompt", SEAM + "{text}{mask}")
    assert task.text is not None
    assert task.prefix.token_ids == tuple(lm.tokenizer(task.text).input_ids)
    assert (task.prefix.length, result.trained_parameters) == (10, 10)
    with Engine(lm) as engine:
        assert evaluate(engine, task, read_rows(settings.eval)).metrics == result.metrics


def test_a_published_trigger_comes_back_from_the_bank(tmp_path):
    lm = model("llama")
    settings = search(tmp_path, max_steps=1)
    result = train(lm, settings, name="rule")
    bank = Bank(str(tmp_path / "bank"))
    bank.publish(result.task)
    loaded = bank.load("rule")
    assert (loaded.text, loaded.template, loaded.verbalizer) == (
        result.task.text,
        result.task.template,
        result.task.verbalizer,
    )
    with Engine(lm) as engine:
        assert evaluate(engine, loaded, read_rows(settings.eval)).metrics == result.metrics


def test_the_trigger_of_an_encoder_stands_in_its_template(tmp_path, capsys):
    lm = model("bert")
    settings = search(tmp_path, length=10, template="{text}{mask}.")
    result = train(lm, settings)
    assert heldout(result)[-1] < 0.95 * heldout(result)[0]
    assert "with 10 tokens in the template (autoprompt)" in capsys.readouterr().err
    task = result.task
    assert (task.kind, task.text, task.prefix.length) == ("learned", None, 0)
    assert task.template is not None
    assert task.template.endswith(SEAM + "{text}{mask}.")
    with Engine(lm) as engine:
        assert evaluate(engine, task, read_rows(settings.eval)).metrics == result.metrics


def test_braces_of_an_encoders_trigger_are_no_slots(tmp_path):
    lm = model("bert")
    found, _ = started(lm, tmp_path)
    tokens = TriggerTokens(lm, lm.tokenizer("{text}!").input_ids)
    task = TrainableTrigger(tokens, found.token_filter).to_task(
        lm, replace(found.run.task("rule"), template="\n{text}{mask}")
    )
    assert task.template == "{{text}}!\n{text}{mask}"


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_search_measures_what_the_engine_will_serve(family, tmp_path):
    """Its loss over the evaluation rows, all in one batch with other candidates, is that of the served task."""
    lm = model(family)
    found, tokens = started(lm, tmp_path, template="{text}{mask}" if lm.causal else "{text}{mask}.")
    examples = encoded_rows(found, found.run.data.eval_rows)
    other = found.token_filter.repaired(tokens.trigger[::-1], Random(1))
    measured = candidate_losses(lm, found.loss, [other, tokens.trigger, other], examples)
    assert measured[0] == pytest.approx(float(measured[2]), rel=1e-5)
    task = TrainableTrigger(tokens, found.token_filter).to_task(lm, found.run.task("rule"))
    with Engine(lm) as engine:
        report = evaluate(engine, task, found.run.data.eval_rows)
    served = sum(prediction.nll or 0.0 for prediction in report.predictions) / report.n
    assert float(measured[1]) == pytest.approx(served, rel=1e-4)
    assert float(measured[0]) != pytest.approx(served, rel=1e-4)


def encoded_rows(found: TriggerSearch, rows) -> list:
    """The rows as the search encodes them."""
    return candidate_builder(found.run).build(rows)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_candidates_of_one_batch_are_scored_as_each_alone(family, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "foreword.training.methods.autoprompt.candidates.BUDGET", 60
    )  # several forwards, several candidates in each
    lm = model(family)
    words = {"y": [" yes", " yep"], "n": [" no"]}
    found, tokens = started(lm, tmp_path, verbalizer=words, class_weights={"y": 3.0})
    examples = found.run.examples[:3]
    triggers = [tuple(tokens.trigger[at:] + tokens.trigger[:at]) for at in range(5)]
    together = candidate_losses(lm, found.loss, triggers, examples)
    for trigger, loss in zip(triggers, together, strict=True):
        tokens.set_tokens(trigger)
        alone = mean_loss(found.loss, lm, tokens.front(), examples)
        assert float(loss) == pytest.approx(float(alone), rel=1e-4)


def test_gains_are_the_slope_towards_other_tokens(tmp_path):
    """Half of a small step towards a token is worth half of what the whole step is worth."""
    lm = model("llama")
    found, tokens = started(lm, tmp_path)
    examples = found.run.examples[:6]
    scores = found._hotflip_scores(tokens, examples)
    values = tokens.front().soft
    assert values is not None
    table = lm.model.get_input_embeddings().weight

    def loss(place: int, token: int, far: float) -> float:
        moved = values.clone()
        moved[place] += far * (table[token] - moved[place])
        with torch.no_grad():
            return float(mean_loss(found.loss, lm, Front(soft=moved, bos="prefix"), examples))

    allowed = found.token_filter.allowed.tolist()
    for place, index in [(0, 3), (2, 40), (5, 71)]:
        slope = (loss(place, allowed[index], -1e-2) - loss(place, allowed[index], 1e-2)) / 2e-2
        assert float(scores[place, index]) == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_a_step_never_makes_the_loss_of_its_batches_worse(tmp_path):
    found, tokens = started(model("llama"), tmp_path)
    for number in range(4):
        before = tokens.trigger
        kept = found.step(number, tokens)
        if tokens.trigger == before:
            continue
        changed = [old != new for old, new in zip(before, tokens.trigger, strict=True)]
        assert sum(changed) == 1
        batches = found._batches[number * (2 + FINAL_BATCHES) + 2 : (number + 1) * (2 + FINAL_BATCHES)]
        assert kept < sum(float(found._losses([before], batch)) for batch in batches) / FINAL_BATCHES


def test_a_step_without_candidates_keeps_the_trigger(tmp_path):
    found, tokens = started(model("llama"), tmp_path, length=1, max_steps=1)
    only = replace(found, token_filter=replace(found.token_filter))
    only.token_filter.__dict__["allowed"] = torch.tensor([*tokens.trigger])
    before = tokens.trigger
    assert only.step(0, tokens) > 0
    assert tokens.trigger == before


def test_every_candidate_survives_being_read_again(tmp_path):
    found, tokens = started(model("llama"), tmp_path)
    for changed in found.candidates(tokens, found.run.examples[:8], Random(0)):
        assert sum(a != b for a, b in zip(changed, tokens.trigger, strict=True)) == 1
        assert found.run.lm.tokenizer(found.token_filter.decode(changed)).input_ids == list(changed)


def token_filter(kind: str, **words: str) -> TokenFilter:
    lm = replace(tiny_model("llama"), tokenizer=TOKENIZERS[kind])
    return TokenFilter.from_verbalizer(lm, Verbalizer.parse(words or {"a": " unused", "b": " neither"}))


def test_tokens_that_would_be_read_as_others_do_not_survive():
    filter_, tokenizer = token_filter("byte_level"), TOKENIZERS["byte_level"]
    letters = tokenizer.convert_tokens_to_ids([*"great"])
    assert filter_.decode(letters) == "great"
    assert not filter_.accepts(letters)
    assert filter_.accepts(tokenizer("great").input_ids)
    assert filter_.accepts(tokenizer("great film").input_ids)


def test_half_a_word_may_not_begin_a_trigger():
    filter_ = token_filter("wordpiece")
    assert not filter_.accepts(TOKENIZERS["wordpiece"].convert_tokens_to_ids(["##r"]))


def test_the_seam_may_not_change_the_trigger():
    """A colon and a line end that are one token where they meet."""
    tokenizer = TOKENIZERS["byte_level"]
    assert token_filter("byte_level").accepts(tokenizer("great:").input_ids)

    class Joining:
        """The same tokenizer, which reads ':' and a line end as one token."""

        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def encode(self, text, **options):
            ids = tokenizer.encode(text, **options)
            pair = tokenizer.encode(":\n", add_special_tokens=False)
            return [*ids[: -len(pair)], 7] if ids[-len(pair) :] == pair else ids

    joining = replace(tiny_model("llama"), tokenizer=Joining())
    assert not TokenFilter(joining, ()).accepts(tokenizer("great:").input_ids)
    assert TokenFilter(joining, ()).accepts(tokenizer("great").input_ids)


def test_neither_broken_characters_nor_special_tokens_nor_labels_are_allowed():
    tokenizer = TOKENIZERS["byte_level"]
    filter_ = token_filter("byte_level", good=" great", bad=" Awful")
    allowed = {filter_.decode([token]) for token in filter_.allowed.tolist()}
    assert "film" in {text.strip() for text in allowed}
    assert not allowed & {"<|endoftext|>", "\n", " ", " great", " awful", "great"}
    assert not any("\ufffd" in text or not text.isprintable() for text in allowed)
    assert not filter_.accepts(tokenizer("an awful film").input_ids)
    assert not filter_.accepts(tokenizer("GREAT").input_ids)
    assert not filter_.accepts(tokenizer("你").input_ids[:1])
    assert filter_.accepts(tokenizer("a bad film").input_ids)


def test_a_start_that_does_not_survive_is_drawn_anew_where_it_does_not():
    filter_, tokenizer = token_filter("byte_level", good=" great", bad=" bad"), TOKENIZERS["byte_level"]
    wanted = tokenizer("a great film").input_ids
    found = filter_.repaired(wanted, Random(0))
    assert len(found) == len(wanted)
    assert filter_.accepts(found)
    assert found[0] == wanted[0]
    assert found == filter_.repaired(wanted, Random(0))
    whole = tokenizer("a film").input_ids
    assert filter_.repaired(whole, Random(0)) == tuple(whole)


def test_init_text_is_where_the_search_starts(tmp_path, capsys):
    result = train(model("llama"), search(tmp_path, init="text", init_text="Which?", max_steps=1, candidates=1))
    assert result.task.text is not None
    assert sum(a != b for a, b in zip(result.task.text, "Which?", strict=True)) <= 1


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not(stop_at, tmp_path):
    whole = train(model("llama"), search(tmp_path, max_steps=5, out=str(tmp_path / "whole")))
    said = 0

    def stop(line: str) -> None:
        nonlocal said
        said += line.startswith("step ")
        if said == stop_at:
            raise KeyboardInterrupt

    settings = search(tmp_path, max_steps=5, out=str(tmp_path / "stopped"))
    with pytest.raises(KeyboardInterrupt):
        train(model("llama"), settings, say=stop)
    resumed = train(model("llama"), replace(settings, resume=True))
    assert resumed.task.text == whole.task.text
    assert resumed.metrics == whole.metrics
    assert heldout(resumed) == heldout(whole)


def test_a_seed_repeats_and_another_does_not(tmp_path):
    def found(seed: int, out: str) -> str | None:
        return train(model("llama"), search(tmp_path, max_steps=2, seed=seed, out=str(tmp_path / out))).task.text

    assert found(1, "a") == found(1, "b") != found(2, "c")


def test_several_templates_are_searched_for_together(tmp_path):
    said: list[str] = []
    templates = ["{text}{mask}", "Q {text}{mask}"]
    result = train(model("llama"), search(tmp_path, template=templates, max_steps=2), say=said.append)
    assert result.task.template in [SEAM + template for template in templates]
    assert sum(line.startswith("without a prefix") for line in said) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(
            ({name: value}, f"--method autoprompt does not use --{name.replace('_', '-')}")
            for name, value in [("lr", 0.1), ("epochs", 1), ("patience", 2), ("accumulate", 2), ("members", 2)]
        ),
        ({"checkpointing": True}, "does not use --checkpointing"),
        ({"report_to": "tensorboard"}, "does not use --report-to"),
        ({"init": "random"}, "use --init vocab or text"),
        ({"init": "labels"}, "would put the answers into the trigger"),
        ({"template": "{text}{target:label}"}, "give a --template with {mask}"),
        ({"template": "{soft:2}{text}{mask}"}, "take them out"),
        ({"rank": 4}, "--method autoprompt has no option --rank"),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_what_a_search_does_not_do_is_said_before_anything_is_written(changes, words, tmp_path, monkeypatch):
    monkeypatch.setattr(tracker, "find_spec", lambda name: True)
    changes = {"max_steps": None, **changes} if "epochs" in changes else changes
    with pytest.raises(UsageError, match=words.replace("{", r"\{")):
        train(model("llama"), search(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_a_search_is_not_shared_between_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="--method autoprompt runs in one process, and there are 2"):
        train(model("llama"), search(tmp_path))


def test_a_trigger_of_sentencepiece_tokens_is_found():
    """SentencePiece marks the start of a text as that of a word, so that half of its tokens cannot begin one."""
    filter_ = token_filter("metaspace")
    assert len(filter_.allowed)
    assert filter_.accepts(filter_.repaired(filter_.allowed[:4].tolist(), Random(0)))
