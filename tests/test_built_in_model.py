"""The whole way on the real built-in model: what is served is what plain Transformers computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import openai
import pytest
import torch
from transformers import DynamicCache

from foreword.attention import ATTN_IMPLEMENTATION
from foreword.bank.bank import Bank
from foreword.cli import main
from foreword.core import Batch, Front, KVPrefix, SamplingParams, Task
from foreword.demo import corpus, demo
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.models import LanguageModel, load_model
from foreword.prompts.compose import compose
from foreword.prompts.lower import lower, lower_tokens
from foreword.prompts.static import static_task
from foreword.samples import sample
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text import task_prompts

DATA = Path(__file__).parents[2] / "shared" / "data"
SST2 = DATA / "sst2"
needs_data = pytest.mark.skipif(not SST2.is_dir(), reason="needs the data sets in ../shared/data")
TOKENS = 6


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("smollm2-135m", dtype="float32", progress=lambda line: None)


def test_the_built_in_model_is_the_same_everywhere(lm):
    """Whatever release of Transformers converted it: a prefix made on one machine is served on another."""
    assert lm.identity.weights == "abc6b0a2600115c6bf2732ab2dff6d8f9e12cbdcd835315e5b782d56a989a32f"
    assert lm.identity.tokenizer == "f4c705a95cab1284b8bb974fe960494099bb0947ee8efdc821a4dbe3178eb949"
    assert lm.eos_token_ids == {2}


def plain_greedy(lm: LanguageModel, ids: list[int], prefix: KVPrefix | None, count: int) -> list[int]:
    """Token ids by a Transformers loop, with the prefix as ``past_key_values``."""
    lm.model.set_attn_implementation("sdpa")
    try:
        cache = DynamicCache(config=lm.model.config)
        start = 0
        if prefix is not None:
            start = prefix.length
            for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
                cache.update(key[None], value[None], layer)
        tokens, chosen = torch.tensor([ids]), []
        while len(chosen) < count and (not chosen or chosen[-1] not in lm.eos_token_ids):
            positions = torch.arange(start, start + tokens.shape[1])[None]
            with torch.inference_mode():
                logits = lm.model(tokens, position_ids=positions, past_key_values=cache).logits[0, -1]
            start += tokens.shape[1]
            chosen.append(int(logits.argmax()))
            tokens = torch.tensor([chosen[-1:]])
        return chosen
    finally:
        lm.model.set_attn_implementation(ATTN_IMPLEMENTATION)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """``foreword ARGUMENTS...`` in this process; fails unless it succeeds."""
    monkeypatch.setattr(sys, "argv", ["foreword", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def learned_prefix(lm: LanguageModel) -> KVPrefix:
    """Activations of a text, moved a little: keys and values that no text has."""
    static = lower_tokens(lm, lm.tokenizer("Answer in one short sentence, kindly and in plain words.").input_ids)
    torch.manual_seed(0)
    keys, values = (
        tuple(tensor + 0.05 * tensor.std() * torch.randn_like(tensor) for tensor in group)
        for group in (static.keys, static.values)
    )
    return KVPrefix(lm.identity, keys, values, static.length)


def prompts() -> list[str]:
    messages = [row.message for row in corpus.generate(46, seed=3)]
    return [*messages, "The capital of France is", "Once upon a time ", "你好，", "🙂 means"]


def test_greedy_tokens_equal_transformers_over_fifty_prompts(lm):
    learned = Task("learned", "p-tuning-v2", learned_prefix(lm))
    static = static_task(lm, "static", "prompt", "You are a careful assistant of a small shop.\n\n")
    tasks = [learned, static, None]
    asked = [(tasks[i % 3], text) for i, text in enumerate(prompts())]
    assert len(asked) == 50
    made = [task_prompts.from_text(lm.tokenizer, task, text) for task, text in asked]
    params = SamplingParams(max_tokens=TOKENS)
    with Engine(lm, cache_bytes=1 << 28) as engine:
        answers = list(engine.generate(Request.from_prompt(prompt, params) for prompt in made))
    for (task, text), prompt, answer in zip(asked, made, answers, strict=True):
        found = [token for chunk in answer for token in chunk.token_ids]
        if task is static:
            joined = lm.tokenizer((task.text or "") + text).input_ids
            expected = plain_greedy(lm, joined, None, TOKENS)
        else:
            expected = plain_greedy(lm, list(prompt.token_ids), prompt.prefix, TOKENS)
        assert found == expected, text


def test_the_command_line_gives_the_same_tokens(lm, tmp_path, monkeypatch, capsys):
    task = Task("learned", "p-tuning-v2", learned_prefix(lm))
    Bank(tmp_path).publish(task)
    text = "Once upon a time"
    arguments = ("--max-tokens", TOKENS, "--bank", tmp_path, "--dtype", "float32", "--json")
    command(monkeypatch, "generate", "learned", text, *arguments)
    found = json.loads(capsys.readouterr().out)
    assert found["token_ids"] == plain_greedy(lm, lm.tokenizer(text).input_ids, task.prefix, TOKENS)


def test_a_stack_answers_as_its_joined_parts(lm):
    """Texts behind a learned prefix: the logits and the greedy tokens of plain Transformers over both."""
    front = Task("learned", "p-tuning-v2", learned_prefix(lm))
    texts = [static_task(lm, name, "prompt", text) for name, text in (("a", "You know Europe."), ("b", " Be brief.\n"))]
    stack = compose(lm, "stack", [front, *texts])
    assert stack.exact
    for text in ("The capital of France is", "The highest mountain is"):
        ids = lm.tokenizer(text).input_ids
        joined = lm.tokenizer(f"You know Europe. Be brief.\n{text}").input_ids
        expected = plain_greedy(lm, joined, front.prefix, TOKENS)
        assert plain_greedy(lm, ids, stack.task.prefix, TOKENS) == expected
        with Engine(lm, cache_bytes=1 << 26) as engine:
            prompt = task_prompts.from_text(lm.tokenizer, stack.task, text)
            (answer,) = engine.generate([Request.from_prompt(prompt, SamplingParams(max_tokens=TOKENS))])
            assert [token for chunk in answer for token in chunk.token_ids] == expected
    both = compose(lm, "both", [texts[0], front])
    assert (both.exact, both.task.prefix.length) == (False, texts[0].prefix.length + front.prefix.length)


def test_logits_behind_a_long_policy_equal_the_uncached_prompt(lm):
    policy = static_task(lm, "support", "system", sample("policy"))
    messages = [{"role": "user", "content": "How long do I have to send something back?"}]
    prompt = task_prompts.from_messages(lm.tokenizer, policy, messages)
    whole = task_prompts.from_messages(lm.tokenizer, None, [{"role": "system", "content": sample("policy")}, *messages])
    assert (*policy.prefix.token_ids[: prompt.prefix_length], *prompt.token_ids) == whole.token_ids
    assert prompt.prefix_length > 1000
    lm.model.set_attn_implementation("sdpa")
    with torch.inference_mode():
        expected = lm.model(torch.tensor([whole.token_ids])).logits[0, -len(prompt.token_ids) :]
    lm.model.set_attn_implementation(ATTN_IMPLEMENTATION)
    front = Front(policy.prefix.head(prompt.prefix_length))
    batch = Batch.from_rows(front, [prompt.token_ids])
    with torch.inference_mode():
        found = lm.logits(batch, torch.arange(len(prompt.token_ids)))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_the_openai_client_streams_a_static_task(lm, tmp_path):
    bank = Bank(tmp_path)
    bank.publish(static_task(lm, "support", "system", sample("policy")))
    question = {"role": "user", "content": "How long do I have to send something back?"}
    system = {"role": "system", "content": sample("policy")}
    with Engine(lm) as engine, serve_in_background(create_app(engine, bank)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answers = []
        for model, messages in (("support", [question]), (lm.name, [system, question])):
            stream = client.chat.completions.create(
                model=model,
                messages=messages,
                temperature=0,
                max_tokens=24,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = list(stream)
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            answers.append((text, chunks[-1].usage))
    (cached, usage), (uncached, plain_usage) = answers
    assert cached == uncached != ""
    assert usage.prompt_tokens == plain_usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens > 1000


@needs_data
@pytest.mark.parametrize("method", ["p-tuning-v2", "prompt-tuning"])
def test_a_few_real_steps_lower_the_loss(method, tmp_path):
    from foreword.text.rows import read_rows
    from foreword.training.recipe import Recipe
    from foreword.training.train import train

    rows = [row.values for row in read_rows(SST2 / "train.jsonl")[:120]]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(
        data=str(file),
        method=method,
        template="Review: {text}\nSentiment:{mask}",
        verbalizer={"positive": " great", "negative": " bad"},
        length=16,
        max_steps=12,
        batch_size=8,
        out=str(tmp_path / "run"),
    )
    model = load_model("smollm2-135m", progress=lambda line: None)
    outcome = train(model, recipe, say=lambda line: None)
    newest = max((tmp_path / "run" / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    log = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert outcome.task.prefix.length == 16
    again = lower(model, Front(outcome.task.prefix))
    assert again.digest == outcome.task.prefix.digest


@pytest.mark.slow
@needs_data
def test_sst2_from_the_defaults(tmp_path, monkeypatch, capsys):
    """The issue's own commands: accuracy on the test set of at least 0.88, from the defaults."""
    bank = str(tmp_path / "bank")
    template, verbalizer = r"Review: {text}\nSentiment:{mask}", '{"positive": " great", "negative": " bad"}'
    learn = ["train", "--method", "p-tuning-v2", "--data", SST2 / "train.jsonl", "--eval", SST2 / "dev.jsonl"]
    learn += ["--template", template, "--verbalizer", verbalizer, "--length", 32]
    learn += ["--publish", "sst2", "--bank", bank, "--out", tmp_path / "run"]
    command(monkeypatch, *learn)
    command(monkeypatch, "eval", "sst2", "--bank", bank, "--data", SST2 / "test.jsonl", "--json")
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["n"] == 1821
    assert report["metrics"]["accuracy"] >= 0.88


@pytest.mark.slow
def test_demo(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "demo_folder", lambda: tmp_path / "demo")
    command(monkeypatch, "demo", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["accuracy_after"] >= found["accuracy_before"] + 0.2
    assert found["ttft_cached_s"] < found["ttft_uncached_s"]
    assert Bank(tmp_path / "demo" / "bank").names() == ["customer-care", "shop-assistant", "shop-policy"]
    assert found["shop"]["perplexity_after"] < found["shop"]["perplexity_before"] / 3


@pytest.mark.slow
@needs_data
def test_a_search_learns_what_its_winner_learns_alone(tmp_path):
    """Real rows and the real model in float32: four trials in one batch, two of which stop early."""
    from dataclasses import replace

    from foreword.text.rows import read_rows
    from foreword.training.recipe import Recipe
    from foreword.training.search.config import SearchConfig
    from foreword.training.search.search import search
    from foreword.training.train import train

    files = {}
    for name, part, count in (("data", "train", 64), ("eval", "dev", 24)):
        file = tmp_path / f"{part}.jsonl"
        file.write_text("".join(json.dumps(row.values) + "\n" for row in read_rows(SST2 / f"{part}.jsonl")[:count]))
        files[name] = str(file)
    recipe = Recipe(
        **files,
        template="Review: {text}\nSentiment:{mask}",
        verbalizer={"positive": " great", "negative": " bad"},
        max_steps=5,
        batch_size=4,
        out=str(tmp_path / "search"),
    )
    model = load_model("smollm2-135m", dtype="float32", progress=lambda line: None)
    plan = SearchConfig.of({"lr": [2e-3, 1e-2], "length": [4, 12]}, halving=2)
    found = search(model, recipe, plan, say=lambda line: None)
    assert {trial.state for trial in found.trials} == {"complete", "dropped"}
    alone = train(model, replace(found.recipe, out=str(tmp_path / "alone")), say=lambda line: None)
    assert found.metrics == pytest.approx(alone.metrics, abs=1e-4)
    ours, theirs = found.task.prefix, alone.task.prefix
    for one, other in zip((*ours.keys, *ours.values), (*theirs.keys, *theirs.values), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
