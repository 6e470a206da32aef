"""Commands as a user types them: what they print, what they leave, and what they say when it cannot be done."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch
from safetensors.torch import load_file

from foreword.bank.bank import Bank
from foreword.models import load_model

TEMPLATE = r"Review: {text}\nSentiment:{mask}"
VERBALIZER = '{"positive": " great", "negative": " bad"}'


def train(run, data, *more):
    args = ("--template", TEMPLATE, "--verbalizer", VERBALIZER, "--length", 4, "--max-steps", 4, "--batch-size", 4)
    return run("train", "--data", data, *args, "--json", *more)


def test_learn_publish_evaluate_classify_generate(run, reviews, tmp_path):
    learned = train(run, reviews, "--publish", "reviews", "--out", tmp_path / "run")
    assert learned.status == 0, learned.err
    assert learned.json["task"].startswith("reviews@0001-")
    assert learned.json["n"] == 2
    assert set(learned.json["metrics"]) == {"accuracy", "macro_f1", "matthews", "calibration_error"}
    assert learned.json["trained_parameters"] == 3 * 2 * 2 * 4 * 16
    scored = run("eval", "reviews", "--data", reviews, "--json").json
    assert (scored["n"], scored["task"]) == (24, learned.json["task"])
    labelled = run("classify", "reviews", "fine 1", "poor 2", "--json").json["data"]
    assert [row["index"] for row in labelled] == [0, 1]
    assert all(abs(sum(row["probs"].values()) - 1) < 1e-5 for row in labelled)
    answer = run("generate", "reviews", "--field", "text=fine", "--max-tokens", 5, "--json").json
    assert answer["usage"] == {
        "prompt_tokens": 4 + 23,
        "completion_tokens": len(answer["token_ids"]),
        "cached_tokens": 4,
    }
    again = run("publish", "copy", "--run", tmp_path / "run", "--json").json
    assert again["length"] == 4
    same = run("generate", "copy", "--field", "text=fine", "--max-tokens", 5, "--json").json
    assert same == answer


def test_recipe_with_flags_on_top(run, reviews, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {reviews}\ntemplate: 'Review: {{text}}\\nSentiment:{{mask}}'\nverbalizer:\n  positive: ' great'\n"
        "  negative: [' bad', ' poor']\nlength: 4\nmax-steps: 2\nbatch_size: 2\npublish: from-recipe\nreplace: true\n"
    )
    made = run("train", recipe, "--publish", "from-flag", "--json")
    assert made.status == 0, made.err
    assert made.json["task"].startswith("from-flag@")
    recipe.write_text("data: x\nlenght: 3\n")
    wrong = run("train", recipe)
    assert wrong.status == 2
    assert "lenght" in wrong.err


def test_defaults_make_a_short_command_work(run, reviews):
    made = run("train", "--data", reviews, "--max-steps", 1, "--json")
    assert made.status == 0, made.err
    assert Path(made.json["run"]).parts[0] == "runs"
    assert made.json["task"] is None


def test_static_prompts_and_the_bank(run, tmp_path):
    (tmp_path / "policy.txt").write_text("Refunds within 30 days. 退款三十天内有效。")
    (tmp_path / "prompts.json").write_text(
        '[{"task_id": 1, "prompt": "你好 "}, {"task_id": "two", "system": "Be kind."}]'
    )
    first = run("publish", "support", "--system", "policy.txt", "--json").json
    (tmp_path / "policy.txt").write_text("Refunds within 60 days.")
    second = run("publish", "support", "--text", "policy.txt", "--json").json
    assert first["task"].startswith("support@0001-")
    assert second["task"].startswith("support@0002-")
    assert len(run("cache", "prompts.json", "--json").json["tasks"]) == 2
    listed = run("bank", "list", "--json").json["tasks"]
    assert [row["name"] for row in listed] == ["1", "support", "two"]
    assert run("bank", "show", "support", "--json").json["version"] == second["task"].split("@")[1]
    assert run("bank", "rollback", "support", "--json").json["task"] == first["task"]
    assert run("bank", "verify").out.strip() == "everything checks"
    assert run("bank", "remove", "two").status == 0
    missing = run("generate", "two", "hello")
    assert missing.status == 1
    assert "two" in missing.err


def test_the_same_file_publishes_nothing_new(run, tmp_path):
    rows = [{"task_id": "one", "prompt": "Once "}, {"task_id": "two", "prompt": "There was "}]
    (tmp_path / "prompts.json").write_text(json.dumps(rows))
    first = run("cache", "prompts.json", "--json").json["tasks"]
    assert [row["unchanged"] for row in first] == [False, False]
    again = run("cache", "prompts.json")
    assert "unchanged: one@0001-" in again.err
    assert again.out.strip() == "published 0 tasks (0 bytes), 2 unchanged"
    (tmp_path / "prompts.json").write_text(json.dumps([rows[0], {**rows[1], "prompt": "There is "}]))
    third = run("cache", "prompts.json", "--json").json["tasks"]
    assert third[0] == {**first[0], "unchanged": True}
    assert third[1]["task"].startswith("two@0002-")
    other = run("cache", "prompts.json", "--dtype", "float16", "--json").json["tasks"]
    assert [row["unchanged"] for row in other] == [False, False], "what it is computed in is part of it"


def test_the_bank_as_people_read_it(run, reviews, tmp_path):
    (tmp_path / "policy.txt").write_text("Refunds within 30 days.\n退款三十天内有效。")
    run("publish", "support", "--system", "policy.txt")
    template = "Review: {text}\\nSentiment:{mask}"
    small = ("--max-steps", 2, "--length", 4)
    run("train", "--data", reviews, "--template", template, *small, "--publish", "reviews")
    head, learned, static = run("bank", "list").out.splitlines()
    assert " ".join(head.split()) == "NAME VERSION VERSIONS KIND METHOD POSITIONS SIZE LABELS METRIC MODEL CREATED"
    assert learned.split()[0] == "reviews"
    assert learned.split()[2:6] == ["1", "learned", "p-tuning-v2", "4"]
    assert "negative, positive  accuracy " in learned
    assert "LlamaForCausalLM " in static
    row = run("bank", "list", "--json").json["tasks"][0]
    assert (row["positions"], row["labels"], list(row["metric"])) == (4, ["negative", "positive"], ["accuracy"])
    shown = run("bank", "show", "reviews").out
    assert "  template      Review: {text}\\nSentiment:{mask}\n" in shown
    assert "accuracy " in shown
    assert "(before " in shown
    assert "(served)" in shown
    assert run("bank", "show", "support").out.endswith("\n\nRefunds within 30 days.\n退款三十天内有效。\n")


def test_compose_is_one_forward_over_both(run, reviews, tmp_path, folder):
    """A learned prefix and a static prompt behind it: the logits of a plain forward over both."""
    train(run, reviews, "--publish", "soft", "--out", "run")
    (tmp_path / "text.txt").write_text("Once upon a time")
    run("publish", "story", "--text", "text.txt")
    made = run("bank", "compose", "soft", "story", "--publish", "stack", "--json")
    assert made.status == 0, made.err
    assert made.json["length"] == 4 + 16
    stacked = run("generate", "stack", " there", "--max-tokens", 8, "--json").json["token_ids"]
    plain = run("generate", "soft", "Once upon a time there", "--max-tokens", 8, "--json").json["token_ids"]
    assert stacked == plain


def test_published_prefix_file(run, reviews, tmp_path):
    train(run, reviews, "--publish", "a", "--out", "run")
    file = next((tmp_path / "home" / "bank" / "a" / "versions").glob("*/prefix.safetensors"))
    args = ("--prefix", file, "--template", TEMPLATE, "--verbalizer", VERBALIZER)
    assert run("publish", "b", *args, "--json").json["length"] == 4
    both = run("eval", "a", "--data", reviews, "--compare", "b", "--json").json
    assert both["metrics"] == both["compare"][0]["metrics"]


def test_resume_finishes_the_same_run(run, reviews, tmp_path):
    whole = train(run, reviews, "--out", "whole").json
    train(run, reviews, "--out", "cut")
    for checkpoint in (tmp_path / "cut" / "checkpoints").glob("checkpoint-4"):
        for file in checkpoint.iterdir():
            file.unlink()
    resumed = train(run, reviews, "--out", "cut", "--resume").json
    assert resumed["metrics"] == whole["metrics"]
    ours, theirs = (load_file(tmp_path / name / "task" / "prefix.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def bad_rows(tmp_path: Path, *rows: dict | str) -> Path:
    file = tmp_path / "bad.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


GOOD = {"text": "fine", "label": "positive"}


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([GOOD, {"label": "positive"}], (), "bad.jsonl line 2"),
        ([GOOD, {"text": "x"}], (), "--label-field"),
        ([GOOD, {"text": "x", "label": "odd"}], (), "'odd' is not in the verbalizer"),
        ([GOOD, "{"], (), "bad.jsonl line 2 is not JSON"),
        ([], (), "no examples"),
        ([GOOD, GOOD], ("--template", "{text}"), "{mask}"),
        ([GOOD, GOOD], ("--template", "{text}{mask"), "never closed"),
        ([GOOD, GOOD], ("--verbalizer", "{"), "is not JSON"),
        ([GOOD, GOOD], ("--method", "magic"), "p-tuning-v2"),
        ([GOOD, GOOD], ("--length", 0), "--length must be above 0"),
        ([GOOD, {"text": "x" * 300, "label": "positive"}], (), "the context of"),
        ([GOOD, GOOD], ("--publish", "Bad Name"), "a task name is"),
        ([GOOD, GOOD], ("--init", "task:nothing"), "nothing"),
        ([GOOD, GOOD], ("--resume",), "--out"),
        ([GOOD, GOOD], ("--dtype", "int3"), "bfloat16"),
        ([GOOD, GOOD], ("--device", "tpu"), "cpu"),
        ([GOOD, GOOD], ("--model", "./nowhere"), "no model folder"),
    ],
)
def test_bad_training_input_is_one_sentence(run, tmp_path, rows, more, said):
    result = train(run, bad_rows(tmp_path, *rows), *more)
    assert result.status != 0
    assert said in result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert Bank(tmp_path / "home" / "bank").names() == []


def test_a_run_folder_is_not_mixed(run, reviews):
    assert train(run, reviews, "--out", "run").status == 0
    again = train(run, reviews, "--out", "run")
    assert again.status == 1
    assert "--resume" in again.err
    other = train(run, reviews, "--out", "run", "--resume", "--lr", 0.5)
    assert other.status == 1
    assert "another lr" in other.err


def test_prefix_of_another_model_is_refused(run, reviews, folder, tmp_path):
    train(run, reviews, "--publish", "mine", "--out", "run")
    other = tmp_path / "other"
    lm = load_model(str(folder), progress=lambda line: None)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.up_proj.weight += 0.5
    lm.model.save_pretrained(other)
    lm.tokenizer.save_pretrained(other)
    refused = run("generate", "mine", "hello", "--model", other)
    assert refused.status == 1
    assert "other weights" in refused.err
    forced = run("generate", "mine", "hello", "--model", other, "--allow-other-weights", "--max-tokens", 2)
    assert forced.status == 0, forced.err
    (tmp_path / "text.txt").write_text("Hello")
    taken = run("publish", "mine", "--text", "text.txt", "--model", other)
    assert taken.status == 1
    assert "--replace" in taken.err
    assert run("publish", "mine", "--text", "text.txt", "--model", other, "--replace").status == 0


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_prefix_file_is_refused(run, reviews, tmp_path, damage):
    train(run, reviews, "--publish", "mine", "--out", "run")
    file = next((tmp_path / "home" / "bank" / "mine" / "versions").glob("*/prefix.safetensors"))
    data = bytearray(file.read_bytes())
    data = data[:-10] if damage == "cut" else data[:-3] + bytes([data[-3] ^ 255]) + data[-2:]
    file.chmod(0o644)
    file.write_bytes(data)
    refused = run("generate", "mine", "hello")
    assert refused.status == 1
    assert "Traceback" not in refused.err
    assert run("bank", "verify").status == 1


def test_reserved_names_are_refused_before_any_work(run, reviews, tmp_path):
    base = ("--model", "smollm2-135m")
    (tmp_path / "text.txt").write_text("Hello")
    (tmp_path / "prompts.json").write_text(
        '[{"task_id": "ok", "prompt": "a"}, {"task_id": "smollm2-135m", "prompt": "b"}]'
    )
    for refused in (
        run("publish", "smollm2-135m", "--text", "text.txt", *base),
        run("cache", "prompts.json", *base),
        train(run, reviews, "--publish", "smollm2-135m", *base),
        run("serve", "--port", 0, "--multi-task-prompt", "prompts.json", "--model", "smollm2-135m"),
    ):
        assert refused.status == 1
        assert "belongs to the base model" in refused.err
    assert Bank(tmp_path / "home" / "bank").names() == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("generate", "kind"), "there is no text for it"),
        (("generate", "hello", "--seed", 3), "add --temperature"),
        (("generate", "kind", "hello", "--field", "a=b"), "not both"),
        (("generate", "kind", "--field", "a=b", "--field", "a=c"), "given twice"),
        (("generate", "kind", "--field", "ab"), "not k=v"),
        (("classify", "kind", "hello"), "has no labels to choose from"),
        (("bank", "compose", "kind", "story", "--publish", "x"), "system turn"),
        (("bank", "compose", "soft", "--publish", "x"), "two tasks or more"),
        (("bank", "compose", "story", "soft"), "pass --publish NAME, --data FILE or both"),
        (("bank", "compose", "story", "soft", "--publish", "x", "--limit", 3), "are of --data"),
        (("bank", "compose", "story", "story", "--data", "reviews.jsonl"), "has no template to ask the examples with"),
        (("bank", "remove", "story", "--version", "0001"), "is being served"),
        (("publish", "x", "--run", "run", "--dtype", "float32"), "needs no model"),
        (("publish", "x", "--prefix", "static"), "publish the text itself"),
        (("publish", "x", "--prefix", "learned", "--template", "{a}{mask}"), "go together"),
        (("publish", "x", "--prefix", "learned", "--template", "{a}"), "no place for the answer"),
        (("publish", "x", "--prefix", "learned", "--template", "{soft:2}{target:b}"), "{soft:N}"),
        (("publish", "x"), "exactly one of"),
        (("serve", "--max-model-len", 0), "--max-model-len"),
        (("serve", "--prefix-bytes", -1), "--prefix-bytes"),
        (("serve", "--engine", "warp"), "embedded"),
        (("serve", "--print-command"), "add --engine vllm"),
        (("serve", "--engine", "vllm", "--print-command", "--api-keys", "keys.jsonl"), "API keys"),
        (("serve", "--engine", "vllm", "--print-command", "--cors-origin", "https://a.example"), "--cors-origin"),
        (("serve", "--engine", "vllm", "--print-command", "--allow-other-weights"), "--allow-other-weights"),
        (("train", "recipe.yaml"), "line 2: trust-remote-code must be"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(run, reviews, tmp_path, command, said):
    (tmp_path / "text.txt").write_text("Be kind.")
    (tmp_path / "recipe.yaml").write_text(f'data: {reviews}\ntrust_remote_code: "no"\n')
    run("publish", "kind", "--system", "text.txt")
    run("publish", "story", "--text", "text.txt")
    train(run, reviews, "--publish", "soft", "--out", "run")
    bank = tmp_path / "home" / "bank"
    files = {
        name: next((bank / task / "versions").glob("*/*.safetensors"))
        for name, task in (("static", "story"), ("learned", "soft"))
    }
    refused = run(*(files.get(word, word) if command[0] == "publish" else word for word in command))
    assert refused.status != 0
    assert said in refused.err
    assert refused.out == ""
    assert Bank(bank).names() == ["kind", "soft", "story"]


def test_a_task_without_a_prefix_is_not_served_by_another_model(run, reviews, tmp_path, folder):
    run("train", "--data", reviews, "--method", "manual", "--publish", "bare", "--out", "bare")
    other = tmp_path / "other"
    lm = load_model(str(folder), progress=lambda line: None)
    with torch.no_grad():
        lm.model.model.layers[0].mlp.up_proj.weight += 0.5
    lm.model.save_pretrained(other)
    lm.tokenizer.save_pretrained(other)
    for command in (("classify", "bare", "x"), ("eval", "bare", "--data", reviews), ("generate", "bare", "x")):
        refused = run(*command, "--model", other)
        assert refused.status == 1
        assert "task 'bare' was made for other weights" in refused.err


def test_sampling_flags_reach_the_engine(run):
    ask = ("generate", "Once", "--max-tokens", 24, "--json")
    greedy = run(*ask).json["token_ids"]
    warm = [run(*ask, "--temperature", 5, "--seed", seed).json["token_ids"] for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    assert warm[0] != greedy
    assert run(*ask, "--temperature", 5, "--top-k", 1).json["token_ids"] == greedy
    assert run(*ask, "--temperature", 5, "--top-p", 1e-6).json["token_ids"] == greedy
    text = run(*ask).json["text"]
    cut = run(*ask, "--stop", text[2:4]).json
    assert cut["finish_reason"] == "stop"
    assert cut["text"] == text[: text.index(text[2:4])]


def test_beams(run):
    ask = ("generate", "Once", "--max-tokens", 12)
    assert run(*ask, "--beams", 1, "--json").json == run(*ask, "--json").json
    best = run(*ask, "--beams", 4, "--json").json
    assert best["usage"]["completion_tokens"] == len(best["token_ids"])
    assert run(*ask, "--beams", 4).out == best["text"] + "\n"
    assert "beam search takes no temperature" in run(*ask, "--beams", 4, "--temperature", 1).err
    assert "width must be between 1 and" in run(*ask, "--beams", 40).err


def test_constraint_flags_give_the_answer_its_form(run, tmp_path):
    ask = ("generate", "Once", "--max-tokens", 24)
    assert set(run(*ask, "--regex", "[ab]{3}", "--json").json["text"]) <= {"a", "b"}
    assert run(*ask, "--choice", "yes", "--choice", "no", "--json").json["text"] in ("yes", "no")
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["left", "right"]}')
    assert run(*ask, "--json-schema", schema, "--json").json["text"] in ('"left"', '"right"')
    assert "give one of them" in run(*ask, "--regex", "a", "--choice", "b").err
    assert run(*ask, "--temperature", 5, "--min-p", 1, "--json").json == run(*ask, "--json").json


def test_one_damaged_task_does_not_hide_the_others(run, tmp_path):
    (tmp_path / "text.txt").write_text("Hello")
    for name in ("a-task-with-quite-a-long-name", "other"):
        run("publish", name, "--text", "text.txt")
    record = next((tmp_path / "home" / "bank" / "other" / "versions").glob("*/task.json"))
    record.chmod(0o644)
    record.write_text("")
    listed = run("bank", "list")
    assert listed.status == 0
    assert "a-task-with-quite-a-long-name  0001-" in listed.out
    assert "damaged" in listed.out
    assert "task.json" in listed.err


def test_too_long_a_prompt(run, tmp_path):
    (tmp_path / "long.txt").write_text("x" * 400)
    refused = run("publish", "long", "--text", "long.txt")
    assert refused.status == 2
    assert "context" in refused.err
    too_long = run("generate", "y" * 400)
    assert too_long.status == 2
    assert "context" in too_long.err


def test_unsupported_model_is_refused_by_name(run, tmp_path):
    """XLNet reads what comes in an order of its own, and keeps it in tensors of no cache."""
    from transformers import XLNetConfig, XLNetLMHeadModel

    config = XLNetConfig(vocab_size=300, d_model=48, n_layer=2, n_head=4, d_inner=64)
    XLNetLMHeadModel(config).save_pretrained(tmp_path / "xlnet")
    from tiny_models import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "xlnet")
    refused = run("doctor", "--model", tmp_path / "xlnet")
    assert refused.status == 1
    assert "XLNetLMHeadModel" in refused.err


def test_doctor_and_pull(run, folder):
    found = run("doctor", "--json").json
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["difference"] < 1e-4
    assert run("models", "pull", folder).out.strip() == str(folder)


def test_port_in_use(run):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        refused = run("serve", "--port", taken.getsockname()[1])
    assert refused.status == 2
    assert "choose another --port" in refused.err


def test_serve_in_a_process_of_its_own(folder, tmp_path, run):
    """A real process on a real port: static tasks, unknown name, publishing while it runs, a clean end."""
    (tmp_path / "policy.txt").write_text("Be kind.")
    run("publish", "kind", "--system", "policy.txt")
    prompts = {1: " <|im_start|>system\nBe kind.<|im_end|>\n", "code": "你是一位严谨的程序员："}
    rows = [{"task_id": task_id, "prompt": prompt} for task_id, prompt in prompts.items()]
    (tmp_path / "prompts.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    command = [sys.executable, "-m", "foreword", "serve", "--port", "0", "--multi-task-prompt", "prompts.json"]
    environment = {**os.environ, "FOREWORD_MODEL": str(folder), "FOREWORD_HOME": str(tmp_path / "home")}
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "serving" in line)
        url = line.split(" at ")[1].split(",")[0].strip()
        wait_for(f"{url}/ready")
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        names = [model.id for model in client.models.list()]
        assert names[1:] == ["1", "code", "kind"]
        message = [{"role": "user", "content": "hello"}]
        system = [{"role": "system", "content": "Be kind."}, *message]
        task = client.chat.completions.create(model="kind", messages=message, max_tokens=6, temperature=0)
        base = client.chat.completions.create(model=names[0], messages=system, max_tokens=6, temperature=0)
        assert task.choices[0].message.content == base.choices[0].message.content
        assert task.usage.prompt_tokens == base.usage.prompt_tokens
        with pytest.raises(openai.NotFoundError, match="kind"):
            client.chat.completions.create(model="kin", messages=message)
        for task_id, prompt in prompts.items():
            joined = client.completions.create(model=names[0], prompt=prompt + "你好", max_tokens=6, temperature=0)
            for named in (task_id, str(task_id)):
                ask = {"model": names[0], "prompt": "你好", "max_tokens": 6, "temperature": 0}
                found = client.completions.create(**ask, extra_body={"task_id": named})
                assert found.choices[0].text == joined.choices[0].text
                assert found.usage.prompt_tokens == joined.usage.prompt_tokens
        run("publish", "later", "--text", "policy.txt")
        assert client.completions.create(model="later", prompt="x", max_tokens=2).choices
    finally:
        server.terminate()
        assert server.wait(timeout=30) in (0, -15)


def wait_for(url: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"{url} did not answer")


def test_every_command_has_help(run):
    for command in ("demo", "train", "publish", "cache", "eval", "classify", "generate", "serve", "doctor"):
        shown = run(command, "--help")
        assert shown.status == 0
        assert "Usage: foreword" in shown.out


def test_publish_sets_the_tasks_own_sampling(run, tmp_path):
    (tmp_path / "p.txt").write_text("Be kind.")
    flags = ("--temperature", 0.3, "--top-p", 0.8, "--top-k", 7, "--max-tokens", 5, "--stop", "\n", "--stop", "END")
    found = run("publish", "own", "--system", "p.txt", *flags, "--json")
    own = {"temperature": 0.3, "top_p": 0.8, "top_k": 7, "max_tokens": 5, "stop": ["\n", "END"]}
    assert found.json["generation"] == own
    assert run("bank", "show", "own", "--json").json["generation"] == own
    assert "temperature" in run("bank", "show", "own").out
    assert run("generate", "own", "Hello", "--json").json["usage"]["completion_tokens"] <= 5
    refused = run("publish", "own", "--system", "p.txt", "--temperature", 101)
    assert (refused.status, "temperature must be between 0 and 100" in refused.err) == (2, True)


@pytest.mark.parametrize(("engine", "says"), [("vllm", "VLLM_BATCH_INVARIANT=1"), ("llamacpp", "llama.cpp")])
def test_deterministic_is_of_the_embedded_engine(run, monkeypatch, engine, says):
    for package in ("llamacpp", "vllm"):  # installed or not
        monkeypatch.setattr(f"foreword.{package}.compat.check_version", lambda: None)
    refused = run("serve", "--engine", engine, "--deterministic", "--port", 0)
    assert (refused.status, "--deterministic is of the embedded engine" in refused.err) == (2, True)
    assert says in refused.err


def test_deterministic_generates(run):
    answers = {
        run("generate", "Hello", "--max-tokens", 5, "--temperature", 0, *flag).out
        for flag in ((), ("--deterministic",))
    }
    assert len(answers) == 1  # in float32


def test_answers_are_sampled_as_the_model_says(run, folder, tmp_path, monkeypatch):
    copied = tmp_path / "sampled"
    shutil.copytree(folder, copied)
    config = json.loads((copied / "generation_config.json").read_text())
    (copied / "generation_config.json").write_text(json.dumps({**config, "temperature": 5.0}))
    monkeypatch.setenv("FOREWORD_MODEL", str(copied))
    asked = [run("generate", "Hello", "--max-tokens", 20).out for _ in range(2)]
    assert asked[0] != asked[1]
    seeded = [run("generate", "Hello", "--max-tokens", 20, "--seed", 1).out for _ in range(2)]
    assert seeded[0] == seeded[1]
    greedy = [run("generate", "Hello", "--max-tokens", 20, "--generation-config", "none").out for _ in range(2)]
    assert greedy[0] == greedy[1]
    assert "must be auto or none" in run("generate", "Hello", "--generation-config", "vllm").err
