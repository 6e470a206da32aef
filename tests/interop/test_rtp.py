"""rtp-llm's programs run with other import lines, and answer as plain Transformers over the same keys and tokens."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from foreword.bank.bank import Bank
from foreword.core import KVPrefix, Task
from foreword.errors import (
    DataError,
    EngineError,
    ForewordError,
    RequestError,
    UnknownTask,
    UnsupportedModel,
    UnsupportedOption,
    UsageError,
)
from foreword.evaluation.predict import classify
from foreword.interop.export import export_peft
from foreword.interop.rtp import GenerateResponse, Model, ModelConfig, ModelFactory, Pipeline
from foreword.interop.rtp.task_prefixes import StackedPrompt
from foreword.text.static_prompts import StaticPrompt
from interop.conftest import Base, random_prefix
from interop.test_ptuning import GLM, GLM_WIDTH, flat, past_of, write
from server.running_server import chat_model, label_task
from text.small_tokenizers import TOKENIZERS
from tiny_encoder_decoders import tiny_encoder_decoder
from tiny_models import tiny_model

ROWS = [
    {"task_id": 1, "prompt": " <|im_start|>system\nYou answer in one word.<|im_end|>\n<|im_start|>"},
    {"task_id": 2, "prompt": "你是一位细心的客服，请回答下面的问题："},
    {"task_id": "code-review", "prompt": "Review this:\n"},
]
TEXTS = {str(row["task_id"]): str(row["prompt"]) for row in ROWS}
QUESTIONS = ["hello, what's your name", "你是谁？", "x"]
STEPS = 12
GREEDY = {"top_k": 1, "max_new_tokens": STEPS}
Load = Callable[..., Pipeline]


@pytest.fixture(scope="module")
def load(base: Callable[[str], Base], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Loads the tiny Llama as rtp-llm's programs load a model; all engines stop in the end."""
    pipelines = []

    def load(rows: Any = None, **config: Any) -> Pipeline:
        with pytest.MonkeyPatch.context() as environment:
            environment.delenv("MULTI_TASK_PROMPT", raising=False)
            if rows is not None:
                file = tmp_path_factory.mktemp("rows") / "prompts.json"
                file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
                environment.setenv("MULTI_TASK_PROMPT", str(file))
            model = ModelFactory.from_huggingface(str(base("llama").folder), ModelConfig(**config))
        pipelines.append(Pipeline(model, model.tokenizer))
        return pipelines[-1]

    yield load
    for pipeline in pipelines:
        pipeline.stop()


@pytest.fixture(scope="module")
def pipeline(load: Load) -> Pipeline:
    """One with static prompts, for all tests that only ask."""
    return load(ROWS)


@torch.no_grad()
def plain(made: Base, text: str, past: DynamicCache | None = None, start: int = 0, steps: int = STEPS) -> str:
    """The greedy answer of plain Transformers, a token a forward; ``start`` is the position of the first token."""
    model, tokenizer = made.fresh(), made.lm.tokenizer
    past = past if past is not None else DynamicCache(config=model.config)
    ids, answer, at = torch.tensor([tokenizer.encode(text)]), [], start
    while len(answer) < steps:
        positions = torch.arange(at, at + ids.shape[1])[None]
        last = int(model(input_ids=ids, position_ids=positions, past_key_values=past).logits[0, -1].argmax())
        if last in made.lm.eos_token_ids:
            break
        at += ids.shape[1]
        answer.append(last)
        ids = torch.tensor([[last]])
    return tokenizer.decode(answer, skip_special_tokens=True)


def past_with(prefix: KVPrefix) -> DynamicCache:
    past = DynamicCache()
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        past.update(key[None], value[None], layer)
    return past


def last(results: Iterator[GenerateResponse]) -> list[Any]:
    """The answers once all of them are complete."""
    *_, result = results
    assert result.finished
    return list(result.batch_response)


def test_the_documented_program(base, tmp_path, monkeypatch, capsys):
    """As in rtp-llm's tutorial on system prompts, with other import lines and paths."""
    made = base("llama")
    (tmp_path / "file.json").write_text(json.dumps(ROWS), encoding="utf-8")
    program = f"""
import os
from foreword.interop.rtp import Pipeline
from foreword.interop.rtp import ModelFactory, ModelConfig

os.environ["MULTI_TASK_PROMPT"] = {str(tmp_path / "file.json")!r}
model_name = {str(made.folder)!r}
model_config = ModelConfig()
model = ModelFactory.from_huggingface(model_name, model_config)
pipeline = Pipeline(model, model.tokenizer)

generate_config = {{
    "top_k": 1,
    "max_new_tokens": {STEPS},
    "task_id": "1"
}}

for res in pipeline(["hello, what's your name"], generate_config = generate_config):
    print(res.batch_response)
print("---")
generate_config = {{
    "top_k": 1,
    "max_new_tokens": {STEPS},
}}

for res in pipeline(["hello, what's your name"], generate_config = generate_config):
    print(res.batch_response)

pipeline.stop()
"""
    monkeypatch.setenv("MULTI_TASK_PROMPT", "")  # put back when the test ends
    exec(compile(program, "program", "exec"), {})
    behind, alone = (part.strip().splitlines() for part in capsys.readouterr().out.split("---"))
    assert behind[-1] == str([plain(made, TEXTS["1"] + QUESTIONS[0])])
    assert alone[-1] == str([plain(made, QUESTIONS[0])])
    assert len(behind) > 1


def test_static_prompts_and_the_base_model(base, pipeline):
    made = base("llama")
    answers = {None: [plain(made, question) for question in QUESTIONS]}
    for task, text in TEXTS.items():
        answers[task] = [plain(made, text + question) for question in QUESTIONS]
    for asked, named in [("1", "1"), (1, "1"), (2, "2"), ("code-review", "code-review"), (None, None), ("", None)]:
        assert last(pipeline(QUESTIONS, generate_config={**GREEDY, "task_id": asked})) == answers[named]
    assert len({tuple(found) for found in answers.values()}) == len(answers), "a prompt made no difference"


def peft_prefix(made: Base, folder: Path) -> tuple[Path, DynamicCache, int]:
    """A folder of PEFT's prefix tuning, its keys as a past, and where requests start."""
    prefix = random_prefix(made.lm)
    export_peft(made.lm, Task("p", "prefix-tuning", prefix), folder / "peft")
    return folder / "peft", past_with(prefix), prefix.length


def chatglm(made: Base, folder: Path) -> tuple[Path, DynamicCache, int]:
    """A checkpoint as ChatGLM2's trainer leaves it, where requests start at 0 behind raw keys."""
    encoder = flat(GLM_WIDTH)
    write(folder / "glm", "transformer.prefix_encoder.", encoder, {**GLM, "_name_or_path": str(made.folder)})
    return folder / "glm", past_of(encoder, 2, 16), 0


@pytest.mark.parametrize("made_by", [peft_prefix, chatglm])
def test_both_together_are_one_forward_over_both(base, load, tmp_path, made_by):
    made = base("llama")
    pipeline = load(ROWS, ptuning_path=str(made_by(made, tmp_path / "given")[0]))
    expected = {}
    for task, text in {**TEXTS, None: ""}.items():
        _, past, start = made_by(made, tmp_path / f"past-{task}")  # a past grows, so each answer takes its own
        expected[task] = plain(made, text + QUESTIONS[1], past, start)
        assert last(pipeline([QUESTIONS[1]], {**GREEDY, "task_id": task})) == [expected[task]]
    without = [plain(made, text + QUESTIONS[1]) for text in TEXTS.values()]
    assert not set(without) & set(expected.values()), "the P-tuning prefix made no difference"
    assert len(set(expected.values())) == len(expected), "a static prompt made no difference"


def test_penalties_know_the_static_text_behind_a_learned_prefix(base, load, tmp_path):
    made = base("llama")
    text = "".join(map(chr, range(32, 127)))  # what an answer could hold
    pipeline = load([{"task_id": 1, "prompt": text}], ptuning_path=str(peft_prefix(made, tmp_path)[0]))
    options = {**GREEDY, "repetition_penalty": 5.0}
    stacked = last(pipeline(QUESTIONS, options, task_id=1))
    assert stacked == last(pipeline([text + question for question in QUESTIONS], options))
    assert not any(map(str.isprintable, filter(str.isascii, "".join(stacked))))
    assert any(map(str.isascii, "".join(last(pipeline(QUESTIONS, GREEDY, task_id=1)))))


def test_where_texts_share_a_token_the_joined_text_is_run():
    """A request may begin in the middle of a token: no learned position is lost, and no token is split."""
    tokenizer = TOKENIZERS["byte_level"]
    lm = dataclasses.replace(tiny_model("llama"), tokenizer=tokenizer)
    front, both = Task("front", "p-tuning-v2", random_prefix(lm)), random_prefix(lm, 11)
    stack = StackedPrompt(front, "a grea", tuple(tokenizer.encode("a grea")), both)
    apart = stack.prompt(tokenizer, "\nfilm", all_ids=False)
    assert (apart.prefix, apart.prefix_length) == (both, 11)
    assert [*stack.token_ids, *apart.token_ids] == tokenizer.encode("a grea\nfilm")
    merged = stack.prompt(tokenizer, "t film, a bad film, 你好", all_ids=False)
    assert (merged.prefix, merged.prefix_length) == (front.prefix, 9)
    assert list(merged.token_ids) == tokenizer.encode("a great film, a bad film, 你好")
    assert len(merged.token_ids) > len(stack.token_ids)
    assert tuple(merged.token_ids[: len(stack.token_ids)]) != stack.token_ids
    for whole in (stack.prompt(tokenizer, "\nfilm", all_ids=True), stack.prompt(tokenizer, "", all_ids=False)):
        assert whole.prefix is front.prefix
        assert whole.token_ids[: len(stack.token_ids)] == stack.token_ids


def test_a_system_row_is_the_models_own_system_turn(base, tmp_path):
    made, lm = base("llama"), chat_model()
    _, past, start = peft_prefix(made, tmp_path)
    model = Model(lm, Task("p", "prefix-tuning", random_prefix(lm)), [StaticPrompt("1", "system", "Be brief.")])
    try:
        found = last(Pipeline(model)(["hi"], {**GREEDY, "task_id": 1}))
    finally:
        model.stop()
    assert found == [plain(made, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi", past, start)]


def test_answers_grow(pipeline):
    results = list(pipeline(QUESTIONS, GREEDY))
    assert len(results) == STEPS
    assert [result.finished for result in results] == [False] * (STEPS - 1) + [True]
    for before, after in pairwise(results):
        assert all(b.startswith(a) for a, b in zip(before.batch_response, after.batch_response, strict=True))
    assert len({tuple(result.batch_response) for result in results}) > STEPS // 2
    pieces = [result.batch_response for result in pipeline(QUESTIONS, GREEDY, return_incremental=True)]
    assert ["".join(column) for column in zip(*pieces, strict=True)] == results[-1].batch_response
    for name in ("is_streaming", "yield_generator"):
        assert list(pipeline(QUESTIONS, {**GREEDY, name: False, "return_incremental": True})) == results[-1:]


def test_one_text_is_a_batch_of_one(pipeline):
    assert last(pipeline(QUESTIONS[0], GREEDY, task_id=1)) == last(pipeline(QUESTIONS[:1], GREEDY, task_id=1))


def test_who_stops_listening_stops_the_answer(pipeline):
    engine = pipeline.model.engine
    before = engine.statistics()["cancelled"]
    results = pipeline(QUESTIONS, top_k=1, max_new_tokens=150)
    next(results)
    del results
    assert last(pipeline("x", GREEDY))
    assert engine.statistics()["cancelled"] == before + len(QUESTIONS)
    pipeline(QUESTIONS, GREEDY)  # never read
    assert last(pipeline("x", GREEDY))


def test_sampling(pipeline):
    options = {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.95, "random_seed": 7}
    first = last(pipeline(QUESTIONS, options))
    assert first == last(pipeline(QUESTIONS, options))
    assert first != last(pipeline(QUESTIONS, {**options, "random_seed": 8}))
    greedy = last(pipeline(QUESTIONS, GREEDY))
    for same in ({"temperature": 0}, {"top_p": 0}, {"top_k": 1, "temperature": 3.0, "top_p": 0.5}):
        assert last(pipeline(QUESTIONS, {"max_new_tokens": STEPS, **same})) == greedy
    assert options == {"max_new_tokens": 8, "temperature": 1.5, "top_p": 0.95, "random_seed": 7}, "it was changed"


def test_several_answers(pipeline):
    options = {"max_new_tokens": 6, "random_seed": 7, "num_return_sequences": 3}
    rows = last(pipeline(QUESTIONS, options))
    assert [len(row) for row in rows] == [3, 3, 3]
    assert len(set(rows[0])) == 3
    assert last(pipeline(QUESTIONS[0], options)) == rows[0]
    assert last(pipeline(QUESTIONS[:1], {**options, "num_return_sequences": 1})) == [rows[0][:1]]


def test_stop_words_end_an_answer_and_are_no_part_of_it(base, pipeline):
    made = base("llama")
    question = QUESTIONS[0]
    whole = plain(made, question, steps=40)
    at = next(i for i in range(6, len(whole)) if whole[i : i + 2].isascii() and whole.find(whole[i : i + 2]) == i)
    word = whole[at : at + 2]
    options = {"top_k": 1, "max_new_tokens": 40}
    assert last(pipeline(question, {**options, "stop_words_str": [word]})) == [whole[:at]]
    ids = made.lm.tokenizer.encode(word)
    assert len(ids) == 2
    assert last(pipeline(question, {**options, "stop_words_list": [ids]})) == [whole[:at]]
    one = made.lm.tokenizer.encode(whole[0])
    assert last(pipeline(question, {**options, "stop_words_list": [one]})) == [""]
    longer = last(pipeline(question, {**options, "stop_words_list": [one], "min_new_tokens": 4}))
    assert longer != [""]


def test_an_answer_ends_where_the_context_does(base, load):
    """rtp-llm's default of 1000 tokens is no error in front of a smaller context."""
    made, pipeline = base("llama"), load(max_seq_len=40)
    assert last(pipeline("x" * 30, top_k=1)) == [plain(made, "x" * 30, steps=10)]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"num_beams": 4}, UnsupportedOption, "num_beams=4 is not supported"),
        ({"return_logits": True}, UnsupportedOption, "return_logits=True"),
        ({"adapter_name": "lora_1"}, UnsupportedOption, "adapter_name='lora_1'"),
        ({"bad_words_list": [[5]]}, UnsupportedOption, "bad_words_list"),
        ({"max_tokens": 5}, RequestError, "no option max_tokens; did you mean max_new_tokens"),
        ({"warp": 5}, RequestError, "no option warp; there are max_new_tokens"),
        ({"top_k": [1, 2, 3]}, RequestError, r"top_k must be a whole number, 0 or more, .*found \[1, 2, 3\]"),
        ({"top_k": True}, RequestError, "top_k must be a whole number"),
        ({"top_p": 1.5}, RequestError, "top_p must be a number from 0 to 1"),
        ({"temperature": float("nan")}, RequestError, "temperature must be a number"),
        ({"max_new_tokens": 0}, RequestError, "max_new_tokens must be a whole number, 1 or more"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, RequestError, "min_new_tokens 4 is more than"),
        ({"stop_words_str": "end"}, RequestError, "stop_words_str must be a list of texts"),
        ({"stop_words_list": [5]}, RequestError, "stop_words_list must be a list of lists of token ids"),
        ({"stop_words_list": [[256, 257]]}, RequestError, "which is no text that an answer could hold"),
        ({"task_id": True}, RequestError, "task_id must be a whole number or a text"),
        ({"task_id": 1.0}, RequestError, "task_id must be"),
        ({"task_id": "code-reviews"}, UnknownTask, "no task_id 'code-reviews'; did you mean code-review?"),
        ({"task_id": 3}, UnknownTask, "no task_id '3'; there are 1, 2, code-review"),
    ],
)
def test_what_cannot_be_answered_is_said_before_anything_runs(pipeline, options, error, says):
    before = pipeline.model.engine.statistics()["requests"]
    with pytest.raises(error, match=says):
        pipeline(QUESTIONS, options)
    assert pipeline.model.engine.statistics()["requests"] == before


def test_what_does_nothing_is_taken(pipeline):
    nothing = {
        "num_beams": 1,
        "return_logits": False,
        "timeout_ms": -1,
        "adapter_name": None,
        "using_hf_sampling": True,
    }
    assert last(pipeline("x", {**GREEDY, **nothing})) == last(pipeline("x", GREEDY))


@pytest.mark.parametrize("prompt", [[], None, 3, ["a", 3], {"a": "b"}])
def test_a_prompt_is_a_text_or_a_list_of_texts(pipeline, prompt):
    with pytest.raises(RequestError, match="a text or a list of texts"):
        pipeline(prompt)


def test_without_static_prompts_a_task_id_says_how_to_give_them(load):
    with pytest.raises(UnknownTask, match="set MULTI_TASK_PROMPT"):
        load()("x", task_id=1)


def test_rows_in_the_environment_itself(base, load, monkeypatch):
    monkeypatch.setenv("MULTI_TASK_PROMPT_STR", '[{"task_id": 1, "prompt": "line\nline"}]')  # a bare line break
    found = last(load()("x", {**GREEDY, "task_id": 1}))
    assert found == [plain(base("llama"), "line\nlinex")]
    monkeypatch.setenv("MULTI_TASK_PROMPT_STR", '[{"task_id": 1}]')
    with pytest.raises(DataError, match=r"\$MULTI_TASK_PROMPT_STR row 1 needs"):
        load()


def test_a_stopped_pipeline_says_so(load):
    pipeline = load()
    results = pipeline("x", top_k=1, max_new_tokens=200)
    next(results)
    pipeline.stop()
    with pytest.raises(EngineError, match="stopped while it answered"):
        list(results)
    with pytest.raises(EngineError, match="closed"):
        pipeline("x", GREEDY)


def test_what_cannot_be_loaded_is_said(base, tmp_path):
    llama = str(base("llama").folder)

    def refused(error: type[ForewordError], says: str, *arguments: Any, **options: Any) -> None:
        with pytest.raises(error, match=says):
            ModelFactory.from_huggingface(*arguments, **options)

    refused(UnsupportedModel, "writes no text", str(base("bert").folder))
    refused(UnsupportedOption, "revision='v1' is not supported", llama, revision="v1")
    refused(UsageError, "must be a ModelConfig, found 'v1'", llama, "v1")
    refused(UsageError, "there is no folder or file", llama, ModelConfig(ptuning_path="./nowhere"))
    with pytest.raises(UnsupportedOption, match="foreword import peft"):
        ModelConfig(lora_infos={"a": "/data/lora"})
    with pytest.raises(UsageError, match="max_seq_len"):
        ModelConfig(max_seq_len=-1)
    model = ModelFactory.from_huggingface(llama)
    try:
        with pytest.raises(UsageError, match=r"give model\.tokenizer"):
            Pipeline(model, TOKENIZERS["byte_level"])
    finally:
        model.stop()


def test_a_task_that_labels_answers_its_label(base, tmp_path):
    lm = base("llama").lm
    task = label_task(lm)
    Bank(str(tmp_path / "bank")).publish(task)
    model = ModelFactory.from_huggingface(str(base("llama").folder), ModelConfig(str(tmp_path / "bank" / "mood")))
    try:
        texts = ["hello", "x"]
        probs = classify(model.engine, task, [{"text": text} for text in texts])
        words = [{"good": " yes", "bad": " no"}[max(row, key=row.__getitem__)] for row in probs]
        assert last(Pipeline(model)(texts)) == words
        assert last(Pipeline(model)([f"{text}\nMood:" for text in texts], {"top_k": 1})) == words
    finally:
        model.stop()
    with pytest.raises(UsageError, match="labels texts, and no static prompt stands behind it"):
        Model(lm, task, [StaticPrompt("1", "prompt", "Be brief.")])


def test_code_that_comes_with_a_model_is_run_if_asked(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base("llama").folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\n"
        "class Model(LlamaForCausalLM):\n    config_class = Own\n"
    )
    with pytest.raises(UnsupportedModel, match="trust_remote_code=True in Python"):
        ModelFactory.from_huggingface(str(folder))
    model = ModelFactory.from_huggingface(str(folder), trust_remote_code=True)
    pipeline = Pipeline(model, model.tokenizer)
    (answer,) = list(pipeline(["x"], generate_config={**GREEDY, "is_streaming": False}))
    pipeline.stop()
    assert answer.batch_response == [plain(base("llama"), "x")]


def test_an_encoder_decoder_answers_behind_a_prefix():
    lm = tiny_encoder_decoder("t5")
    task = Task("p", "prefix-tuning", random_prefix(lm), template="{text}{target:label}")
    answers = []
    for front in (task, None):
        model = Model(lm, front, [])
        answers += last(Pipeline(model)(["xya"], GREEDY))
        model.stop()
    assert answers[0] != answers[1]
