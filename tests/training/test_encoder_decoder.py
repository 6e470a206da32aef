"""Prompts, prefixes and adapters of encoder-decoders: learned, and measured as they are learned."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tokenizers import processors

from foreword.bank.bank import Bank
from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.errors import EngineError, RequestError, TemplateError, UsageError
from foreword.evaluation.evaluate import evaluate
from foreword.evaluation.predict import classify
from foreword.models.ways import wrap_model
from foreword.prompts.lower import empty_prefix
from foreword.text import task_prompts
from foreword.text.encoded_example import ExampleEncoder
from foreword.text.rows import Row, read_rows
from foreword.text.template import Template
from foreword.text.verbalizer import Verbalizer
from foreword.training.data.examples import ExampleBuilder
from foreword.training.data.training_data import TrainingData
from foreword.training.train import train
from tiny_encoder_decoders import END, FAMILIES, PAD, learned_prefix, random_model, tiny_encoder_decoder
from tiny_models import byte_tokenizer
from training.small_data import examples, recipe, write_jsonl

SEQ2SEQ = {"causal": False, "is_encoder_decoder": True}

TEXT = "xya"


def soft_task(lm, **changes) -> Task:
    """A published soft prompt with random values."""
    soft = torch.randn(4, lm.identity.hidden_size, generator=torch.Generator().manual_seed(1))
    wording = {"template": "{soft:4}{text}{mask}", "verbalizer": {"y": ("yes", "yeah"), "n": ("no",)}}
    return Task("rule", "prompt-tuning", empty_prefix(lm), soft=soft, **{**wording, **changes})


def framed(frame: str):
    """A model whose tokenizer puts special tokens around a text, as those of T5 and BART do."""
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<eos>", END), ("<pad>", PAD)]
    )
    return wrap_model(random_model("t5"), tokenizer, name="tiny")


@torch.no_grad()
def by_hand(lm, soft: torch.Tensor, written: list[int], text: str = TEXT) -> torch.Tensor:
    """Log-probabilities ``[1 + written, vocab]`` behind one text by Transformers alone."""
    ids = torch.tensor(lm.tokenizer.encode(text))
    embedded = torch.cat([soft, lm.model.get_input_embeddings()(ids)])[None]
    begun = torch.tensor([[PAD, *written]])
    return lm.model(inputs_embeds=embedded, decoder_input_ids=begun, use_cache=False).logits[0].log_softmax(-1)


def probability(lm, task: Task, word: str) -> float:
    ids = lm.tokenizer.encode(word)
    return float(by_hand(lm, task.soft, ids)[range(len(ids)), ids].sum().exp())


@pytest.mark.parametrize(("family", "method"), [("t5", "prompt-tuning"), ("t5", "p-tuning"), ("bart", "prompt-tuning")])
def test_learns_labels_and_is_measured_as_it_was_learned(family, method, tmp_path):
    lm = tiny_encoder_decoder(family)
    settings = recipe(tmp_path, method=method, lr=0.3 if method == "prompt-tuning" else 0.03, max_steps=60)
    result = train(lm, settings, name="rule")
    assert result.before["accuracy"] < 0.8
    assert result.metrics["accuracy"] > 0.95
    assert result.task.prefix.length == 0
    assert result.task.soft.shape == (16, 48)
    assert result.task.template == "{soft:16}{text}{mask}"
    bank = Bank(tmp_path / "bank")
    bank.publish(result.task)
    with Engine(lm) as engine:
        served = evaluate(engine, bank.load("rule"), read_rows(settings.eval))
    assert served.metrics == result.metrics


def test_learns_to_write_answers(tmp_path):
    answers = {"a": "yes", "b": "no"}
    settings = recipe(
        tmp_path,
        method="prompt-tuning",
        template="{text}{target:label}",
        data=write_jsonl(tmp_path / "words.jsonl", examples(48, 1, answers)),
        eval=write_jsonl(tmp_path / "held.jsonl", examples(24, 2, answers)),
        lr=0.3,
        max_steps=120,
    )
    result = train(tiny_encoder_decoder("t5"), settings)
    assert result.before["exact_match"] == 0.0
    assert result.metrics["exact_match"] > 0.8
    assert result.metrics["perplexity"] < result.before["perplexity"]


def test_gradient_checkpointing_learns_the_same(tmp_path):
    settings = recipe(tmp_path, method="prompt-tuning", max_steps=3)
    lm = tiny_encoder_decoder("t5")
    once = train(lm, settings)
    again = train(lm, replace(settings, checkpointing=True, out=str(tmp_path / "again")))
    torch.testing.assert_close(again.task.soft, once.task.soft, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_scored_by_the_words_that_the_decoder_writes(family):
    lm = tiny_encoder_decoder(family)
    task = soft_task(lm)
    yes = probability(lm, task, "yes") + probability(lm, task, "yeah")
    no = probability(lm, task, "no")
    with Engine(lm) as engine:
        found, longer = classify(engine, task, [{"text": TEXT}, {"text": TEXT * 7}])
    assert found["y"] == pytest.approx(yes / (yes + no), rel=1e-4)
    assert found != longer


@pytest.mark.parametrize("frame", ["$A", "$A <eos>", "<pad> $A <eos>"], ids=["bytes", "t5", "bart"])
def test_perplexity_is_that_of_the_answer_as_it_is_written(frame):
    lm = framed(frame)
    task = soft_task(lm, template="{soft:4}{text}{target:label}", verbalizer=None, generation={"max_tokens": 3})
    with Engine(lm) as engine:
        report = evaluate(engine, task, [Row({"text": TEXT, "label": "yes"}, "row 1")])
    written = [token for token in lm.tokenizer.encode("yes") if token != END]
    logprobs = by_hand(lm, task.soft, written)[range(len(written)), written]
    assert report.metrics["perplexity"] == pytest.approx(float(logprobs.mean().neg().exp()), rel=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_are_greedy_whatever_waits_beside_them(family):
    lm = tiny_encoder_decoder(family)
    task = soft_task(lm, template="{soft:4}{text}{target:label}", verbalizer=None)
    texts = [TEXT, TEXT * 5, "b"]
    with Engine(lm) as engine:
        prompts = [task_prompts.from_fields(lm.tokenizer, task, {"text": t}, **SEQ2SEQ) for t in texts]
        params = SamplingParams(max_tokens=6, ignore_eos=True)
        other = replace(prompts[0], soft=-task.soft)
        streams = [engine.submit(Request.from_prompt(prompt, params)) for prompt in (*prompts, other)]
        answers = [list(stream) for stream in streams]
        assert engine.statistics()["tokens_generated"] == 24
    for answer, text, soft in zip(answers, (*texts, TEXT), (*[task.soft] * 3, -task.soft), strict=True):
        greedy: list[int] = []
        for _ in range(6):
            greedy.append(int(by_hand(lm, soft, greedy, text)[-1].argmax()))
        assert [token for chunk in answer for token in chunk.token_ids] == greedy
    assert {answer[-1].finish_reason for answer in answers} == {"length"}


def test_answers_end_where_they_should():
    lm = tiny_encoder_decoder("t5")
    task = soft_task(lm, template="{soft:4}{text}{target:label}", verbalizer=None)
    prompt = task_prompts.from_fields(lm.tokenizer, task, {"text": TEXT}, **SEQ2SEQ)
    first = int(by_hand(lm, task.soft, [])[-1].argmax())
    letter = lm.tokenizer.decode([first])
    with Engine(lm) as engine:
        stopped = engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=5, stop_token_ids=(first,))))
        said = engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=5, stop=(letter,))))
        broken = engine.submit(
            Request.from_prompt(replace(prompt, soft=task.soft * math.nan), SamplingParams(max_tokens=5))
        )
        dropped = engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=5)))
        dropped.cancel()
        chunks = [list(stream) for stream in (stopped, said, broken, dropped)]
        unread = engine.submit(Request.from_prompt(prompt, SamplingParams(max_tokens=200, ignore_eos=True)))
    assert ["".join(chunk.text for chunk in each) for each in chunks[:3]] == ["", "", ""]
    assert [each[-1].finish_reason for each in chunks] == ["stop", "stop", "error", "cancelled"]
    assert "no finite logits" in chunks[2][-1].error
    assert [chunk.finish_reason for chunk in unread][-1] == "cancelled"


def test_what_is_not_answered_is_refused():
    lm = tiny_encoder_decoder("t5")
    prompt = task_prompts.from_fields(lm.tokenizer, soft_task(lm), {"text": TEXT}, **SEQ2SEQ)
    with (
        Engine(lm) as engine,
        pytest.raises(TemplateError, match="never seen by a model that writes its answers"),
    ):
        classify(engine, soft_task(lm, template="{soft:4}{text}{mask}!"), [{"text": TEXT}])
    with pytest.raises(EngineError, match="is closed"):
        engine.submit(Request.from_prompt(prompt, SamplingParams()))
    with pytest.raises(EngineError, match="closed"):
        classify(engine, soft_task(lm), [{"text": TEXT}])


def test_a_prompt_is_measured_from_where_the_decoder_begins():
    lm = tiny_encoder_decoder("t5")
    prompt = task_prompts.from_fields(lm.tokenizer, soft_task(lm), {"text": TEXT}, **SEQ2SEQ)
    with (
        Engine(lm) as engine,
        pytest.raises(RequestError, match="name the place that its decoder begins at"),
    ):
        engine.token_logprobs([replace(prompt, output_indices=())])


@pytest.mark.parametrize(
    ("family", "method", "lr"),
    [
        ("t5", "p-tuning-v2", 0.1),
        ("bart", "p-tuning-v2", 0.1),
        ("t5", "prefix-tuning", 0.005),
        ("t5", "lora", 0.02),
        ("bart", "lora-hybrid", 0.02),
    ],
)
def test_prefixes_and_adapters_learn_and_are_measured_as_they_were_learned(family, method, lr, tmp_path):
    lm = tiny_encoder_decoder(family)
    length = None if method == "lora" else 6
    settings = recipe(tmp_path, method=method, lr=lr, length=length, init="auto" if length else "random", max_steps=40)
    result = train(lm, settings, name="rule")
    assert result.metrics["accuracy"] > result.before["accuracy"]
    assert result.metrics["accuracy"] > 0.8
    assert len(result.task.prefix.keys) == (8 if length else 3)
    bank = Bank(tmp_path / "bank")
    bank.publish(result.task)
    with Engine(lm) as engine:
        assert evaluate(engine, bank.load("rule"), read_rows(settings.eval)).metrics == result.metrics


def test_a_prefix_of_the_decoder_alone_is_learned_on(tmp_path):
    """As PEFT has it: what starts from such a task stays in front of the decoder."""
    lm = tiny_encoder_decoder("bart")
    start = Task("rule", "prefix-tuning", learned_prefix(lm, 6, decoder_only=True), template="{text}{mask}")
    settings = recipe(tmp_path, method="p-tuning-v2", init="task:rule", length=None, max_steps=3)
    result = train(lm, settings, name="rule", transfer=start)
    assert len(result.task.prefix.keys) == 3
    assert not torch.equal(result.task.prefix.keys[0], start.prefix.keys[0])


def test_members_of_an_ensemble_are_prefixes(tmp_path):
    lm = tiny_encoder_decoder("t5")
    result = train(lm, recipe(tmp_path, method="p-tuning-v2", members=2, length=4, max_steps=4), name="rule")
    assert len(result.task.members) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "pet", "length": None}, "encoder-decoder, .* --method pet does not combine; use --method lora"),
        ({"method": "autoprompt", "init": "vocab"}, "encoder-decoder, .* use --method prompt-tuning"),
        ({"method": "p-tuning-v2", "checkpointing": True}, "checkpointing forgets it; leave out --checkpointing"),
    ],
)
def test_what_does_not_learn_here_is_refused_by_name(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(tiny_encoder_decoder("t5"), recipe(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "linear", "template": "{text}"}, "so no head reads its states; use --head verbalizer"),
        ({"members": 2}, "--members is for prefixes alone"),
    ],
)
def test_other_settings_that_do_not_fit_are_refused(changes, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        train(tiny_encoder_decoder("t5"), recipe(tmp_path, method="prompt-tuning", **changes))


@pytest.mark.parametrize("frame", ["$A <eos>", "<pad> $A <eos>"], ids=["t5", "bart"])
def test_text_and_answer_are_tokenized_as_the_model_was_trained(frame):
    """Both are whole texts with the tokenizer's own special tokens; the words of labels begin as answers do."""
    lm = framed(frame)
    tokenizer = lm.tokenizer
    data = TrainingData((Template.parse("{soft:2}{text} is{target:label}"),), None, (), False, "label", [], [])
    builder = ExampleBuilder(lm, data, ExampleEncoder(tokenizer, **SEQ2SEQ))
    (example,) = builder.build([Row({"text": "it", "label": "no"}, "row 1")])
    assert example.prompt_ids == (-1, -2, *tokenizer("it is").input_ids)
    assert example.target == tuple(tokenizer("no").input_ids)
    words = Verbalizer({"y": ("yes",), "n": ("no",)}).token_sequences(tokenizer, None)
    assert list(words) == [tuple(tokenizer(word).input_ids[:-1]) for word in ("yes", "no")]
