"""Conversations are learned in the tokens that serving sends, and answered over chat with their whole history."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path

import openai
import pytest
from tokenizers import processors

from foreword.bank.bank import Bank
from foreword.core import Task
from foreword.engine.engine import Engine
from foreword.errors import DataError, SettingError, TemplateError, UsageError
from foreword.evaluation.baseline import baseline_task
from foreword.evaluation.evaluate import evaluate
from foreword.models import LanguageModel
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text import task_prompts
from foreword.text.conversation import Conversation
from foreword.text.rows import Row, read_rows
from foreword.training.loop.run_dir import RunDir
from foreword.training.recipe import Recipe
from foreword.training.run import Run
from foreword.training.train import train
from tiny_models import byte_tokenizer, tiny_model
from training.small_data import ANSWERS, write_jsonl

TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}[s]be<eos>{% endif %}"
    "{% for m in messages %}[{{ m['role'][0] }}]{{ m['content'] }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}[a]{% endif %}"
)
NO_END = TEMPLATE.replace("<eos>\n", "\n")


def chat_model(template: str | None = TEMPLATE, family: str = "llama") -> LanguageModel:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return dataclasses.replace(tiny_model(family), tokenizer=tokenizer)


def talks(count: int, seed: int, turns: int = 2) -> list[dict]:
    """The last letter of the user's message decides the answer; some rows have a system turn."""
    source = random.Random(seed)
    rows = []
    for number in range(count):
        messages = [{"role": "system", "content": "so"}] if number % 3 == 0 else []
        for _ in range(source.randint(1, turns)):
            letter = source.choice("ab")
            noise = "".join(source.choices("xyz", k=source.randint(1, 4)))
            messages += [
                {"role": "user", "content": noise + letter},
                {"role": "assistant", "content": ANSWERS[letter] * 2},
            ]
        rows.append({"messages": messages})
    return rows


def recipe(folder: Path, rows: list[dict] | None = None, held: list[dict] | None = None, **changes) -> Recipe:
    files = {
        "data": write_jsonl(folder / "talks.jsonl", rows or talks(40, 1)),
        "eval": write_jsonl(folder / "held.jsonl", held or talks(12, 2)),
    }
    settings = {"init": "random", "length": 16, "max_steps": 30, "lr": 0.1, "batch_size": 8}
    return Recipe(**{**files, **settings, "out": str(folder / "run"), **changes})


@pytest.mark.parametrize(
    ("changes", "template"),
    [
        ({}, TEMPLATE),
        ({"method": "prompt-tuning"}, TEMPLATE),
        ({"method": "prefix-tuning", "lr": None}, TEMPLATE),
        ({"method": "p-tuning", "length": 4, "lr": 0.03}, TEMPLATE),
        ({"method": "lora", "length": None, "init": "auto", "lr": 0.03}, TEMPLATE),
        ({"method": "lora-hybrid", "length": 4, "lr": 0.03}, TEMPLATE),
        ({}, NO_END),
    ],
    ids=["p-tuning-v2", "prompt-tuning", "prefix-tuning", "p-tuning", "lora", "lora-hybrid", "no-end-of-turn"],
)
def test_learns_and_answers_with_a_history(changes, template, tmp_path):
    lm = chat_model(template)
    result = train(lm, recipe(tmp_path, **changes), name="rule")
    assert result.task.template is None
    assert result.metrics["perplexity"] < result.before["perplexity"] / 5
    bank = Bank(tmp_path / "bank")
    bank.publish(result.task)
    with Engine(lm) as engine, serve_in_background(create_app(engine, bank)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        rows = read_rows(tmp_path / "held.jsonl")
        for row, prediction in zip(rows, evaluate(engine, result.task, rows).predictions, strict=True):
            *history, last = row.values["messages"]
            answer = client.chat.completions.create(model="rule", messages=history).choices[0].message.content or ""
            assert (last["content"], answer.strip()) == (prediction.expected, prediction.predicted)


def serving_ids(lm: LanguageModel, task: Task, row: Row) -> list[tuple[int, ...]]:
    """What a request for every answer of a row runs behind the prefix."""
    conversation = Conversation.read(row.values)
    return [
        task_prompts.from_messages(lm.tokenizer, task, conversation.before(answer)).token_ids
        for answer in conversation.answers
    ]


@pytest.mark.parametrize("bos", ["request", "prefix"])
def test_training_sees_the_tokens_of_serving(bos, tmp_path):
    lm = chat_model("<pad>" + TEMPLATE)
    lm.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<pad> $A", special_tokens=[("<pad>", lm.tokenizer.convert_tokens_to_ids("<pad>"))]
    )
    settings = recipe(tmp_path, talks(12, 1, turns=4), max_steps=1)
    run = Run.from_recipe(lm, settings)
    task = run.initial_prompt().to_task(lm, run.task("rule"))
    if bos == "prefix":  # a task to start from whose prefix begins the text
        parent = dataclasses.replace(task, prefix=dataclasses.replace(task.prefix, bos="prefix"))
        run = Run.from_recipe(lm, dataclasses.replace(settings, init="task:rule"), transfer=parent)
        task = run.initial_prompt().to_task(lm, run.task("rule"))
    assert task.prefix.bos == bos
    examples = iter(run.examples)
    for row in run.data.train_rows:
        example = next(examples)
        places = example.encoded.output_indices
        begins = [place for index, place in enumerate(places) if not index or places[index - 1] != place - 1]
        assert [example.encoded.token_ids[: place + 1] for place in begins] == serving_ids(lm, task, row)
        answers = [m["content"] for m in row.values["messages"] if m["role"] == "assistant"]
        assert lm.tokenizer.decode(example.target) == "<eos>".join([*answers, ""])
    assert next(examples, None) is None


def test_a_mask_that_is_off_by_one_would_be_seen(tmp_path):
    """The loss that training reports is the perplexity that serving measures, token for token."""
    lm = chat_model()
    result = train(lm, recipe(tmp_path, max_steps=3), name="rule")
    rows = read_rows(tmp_path / "held.jsonl")
    losses = [entry["eval_loss"] for entry in RunDir(tmp_path / "run").read_history() if "eval_loss" in entry]
    with Engine(lm) as engine:
        report = evaluate(engine, result.task, rows)
        last = evaluate(engine, result.task, rows, learn_turns="last")
        base = evaluate(engine, baseline_task(result.task, lm.name, lm.identity), rows)
    assert math.log(report.metrics["perplexity"]) == pytest.approx(min(losses), rel=1e-4)
    assert base.metrics == pytest.approx(result.before)
    assert last.metrics["perplexity"] != pytest.approx(report.metrics["perplexity"], rel=1e-3)
    assert [prediction.expected for prediction in report.predictions] == [
        row.values["messages"][-1]["content"] for row in rows
    ]


def test_the_last_turn_alone_is_learned(tmp_path):
    run = Run.from_recipe(chat_model(), recipe(tmp_path, talks(8, 1, turns=4), learn_turns="last"))
    assert {len(example.target) for example in run.examples} == {3}  # two letters and the end
    assert run.task("rule").provenance["recipe"]["learn_turns"] == "last"
    assert run.task("rule").generation == {"max_tokens": 16}


def test_turns_that_end_with_a_token_the_model_goes_on_after(tmp_path):
    """The task then says to stop there: base models are taught chat templates that they were not made for."""
    run = Run.from_recipe(chat_model(TEMPLATE.replace("<eos>", "<pad>")), recipe(tmp_path, talks(4, 1)))
    assert run.task("rule").generation["stop_token_ids"] == [run.lm.tokenizer.pad_token_id]


def test_plain_prompt_and_completion_are_a_template(tmp_path):
    rows = [{"prompt": row["messages"][-2]["content"], "completion": "y"} for row in talks(8, 1)]
    run = Run.from_recipe(chat_model(), recipe(tmp_path, rows, rows))
    assert run.data.template is not None
    assert run.data.template.source == "{prompt}{target:completion}"
    assert run.lm.tokenizer.decode(run.examples[0].target) == "y<eos>"


WRONG = [*talks(3, 1), {"messages": [{"role": "user", "content": "x"}]}]


@pytest.mark.parametrize(
    ("lm", "changes", "kind", "said"),
    [
        (chat_model(None), {}, TemplateError, "tiny-llama has no chat template, so conversations cannot become text"),
        (chat_model(family="bert"), {}, UsageError, "tiny-bert is an encoder, and conversations are learned"),
        (chat_model(), {"method": "pet"}, SettingError, "--method pet learns to fill"),
        (chat_model(), {"method": "autoprompt"}, SettingError, "--method autoprompt searches"),
        (chat_model(), {"template": "{messages}{mask}"}, SettingError, "line 1 holds a conversation.*so --template"),
        (chat_model(), {"target_field": "messages"}, SettingError, "so --target-field has no use; leave it out"),
        (chat_model(), {"head": "linear"}, SettingError, "so --head has no use"),
        (chat_model(), {"members": 2}, SettingError, "--members combines the labels of prefixes"),
        (chat_model(), {"calibrate": True}, SettingError, "--calibrate is for labels"),
        (chat_model(), {"data": WRONG}, DataError, "talks.jsonl line 4: no turn of the assistant follows"),
        (chat_model(), {"data": [*talks(3, 1), {"text": "a"}]}, DataError, "line 4: the row holds no conversation"),
        (chat_model(), {"data": [{"text": "a", "label": "b"}], "learn_turns": "last"}, SettingError, "--learn-turns"),
        (chat_model(), {"learn_turns": "first"}, SettingError, "--learn-turns must be all or last"),
        (
            chat_model(TEMPLATE.replace("[a]{%", "[assistant]{%")),
            {},
            DataError,
            r"line \d+: message \d cannot be lined up",
        ),
    ],
)
def test_what_cannot_be_learned_is_one_sentence(lm, changes, kind, said, tmp_path):
    changes = {"length": None, "max_steps": None, "lr": None, "init": "auto", **changes}
    rows = changes.pop("data", None)
    with pytest.raises(kind, match=said):
        train(lm, recipe(tmp_path, rows, **changes))
    assert not (tmp_path / "run").exists()
