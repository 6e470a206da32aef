"""`foreword demo`: learn a customer-service task, publish it, serve it and ask, on the built-in model."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from foreword.bank.bank import Bank
from foreword.core import SamplingParams, Task
from foreword.demo import corpus, shop_assistant
from foreword.demo.corpus import CustomerMessage
from foreword.demo.shop_assistant import ShopReport, learn_conversations, print_shop_report, talk
from foreword.engine.engine import Engine
from foreword.engine.protocol import Request
from foreword.home import home
from foreword.models import LanguageModel
from foreword.prompts.static import static_task
from foreword.samples import sample
from foreword.server.app import create_app
from foreword.server.background import serve_in_background
from foreword.text import task_prompts
from foreword.training.recipe import Recipe
from foreword.training.train import TrainResult, train

if TYPE_CHECKING:
    from openai import OpenAI

TASK, POLICY = "customer-care", "shop-policy"
QUESTION = "The courier promised my headphones for Friday and nothing has come. Where are they?"
POLICY_QUESTION = "How long do I have to send something back?"
TRAIN_ROWS, HELD_OUT_ROWS, STEPS, LENGTH, BATCH, LR, SEED = 320, 80, 160, 24, 8, 1e-2, 11


@dataclass(frozen=True)
class DemoReport:
    """The measurements of a demo run.

    Attributes:
        accuracy_before: exact match of the category on held-out rows, by the base model with a written prompt of rules
            and five worked examples.
        accuracy_after: the same rows, by the task with its learned prefix and no instruction.
        trained_parameters: numbers that were learned.
        prefix_bytes: what the task costs in the bank.
        ttft_cached_s, ttft_uncached_s: seconds to the first token behind the policy prompt, as a task and sent along.
        answer_base, answer_task: to the same question.
        shop: of what was learned from conversations.
    """

    accuracy_before: float
    accuracy_after: float
    trained_parameters: int
    prefix_bytes: int
    ttft_cached_s: float
    ttft_uncached_s: float
    answer_base: str
    answer_task: str
    shop: ShopReport


def run_demo(lm: LanguageModel, console: Console) -> DemoReport:
    """Train, publish, serve and measure once; the run and the bank stay in `demo_folder`.

    Args:
        lm: the base model.
        console: for progress (stderr under ``--json``).
    """
    folder = demo_folder()
    bank = Bank(folder / "bank")
    train_rows, held_out = corpus.split(TRAIN_ROWS, HELD_OUT_ROWS, SEED)
    console.rule("1. learn")
    console.print(f"{len(train_rows)} generated customer messages, English and Chinese; the model stays frozen.")
    result = _train(lm, folder, train_rows, held_out, console)
    console.rule("2. publish")
    task = bank.publish(result.task, replace=True, reserved=[lm.name])
    cached_policy = bank.publish(static_task(lm, POLICY, "system", sample("policy")), replace=True, reserved=[lm.name])
    for published in (task, cached_policy):
        console.print(f"{published.ref}: {published.prefix.length} positions, {published.prefix.nbytes:,} bytes")
    console.rule("3. serve and ask")
    # Without reuse, so that the policy in a request is computed, as it is after a restart and in a new conversation.
    with Engine(lm, reuse=False) as engine, _client(engine, bank) as client:
        answers = [_chat(client, model, QUESTION) for model in (lm.name, TASK)]
        cached, uncached = _measure_ttft(client, lm.name)
        before = _accuracy(engine, _few_shot_task(lm), held_out)
        after = _accuracy(engine, task, held_out)
    shop = _learn_conversations(lm, folder, bank, console)
    return DemoReport(
        before, after, result.trained_parameters, task.prefix.nbytes, cached, uncached, answers[0], answers[1], shop
    )


def print_report(report: DemoReport, console: Console) -> None:
    """Print the measurements side by side, and commands to go on with."""
    answers = (("base model", report.answer_base), (f"task {TASK}", report.answer_task))
    console.print(f"\n[bold]{QUESTION}[/bold]")
    console.print(Columns([Panel(text.strip(), title=title, width=54) for title, text in answers]))
    table = Table("", "base model", f"task {TASK}", title=f"{HELD_OUT_ROWS} held-out messages")
    table.add_row("category right", f"{report.accuracy_before:.0%}", f"{report.accuracy_after:.0%}")
    table.add_row("instruction", "rules and 5 examples", "none")
    table.add_row("trained parameters", "", f"{report.trained_parameters:,}")
    table.add_row("bytes in the bank", "", f"{report.prefix_bytes:,}")
    console.print(table)
    ratio = report.ttft_uncached_s / report.ttft_cached_s
    console.print(
        f"policy prompt, time to first token: {report.ttft_uncached_s:.3f} s sent along and computed, "
        f"{report.ttft_cached_s:.3f} s as a task ({ratio:.0f} times sooner)"
    )
    print_shop_report(report.shop, "base model", console)
    bank = demo_folder() / "bank"
    console.print("\nNext:")
    for command in (
        f"bank list --bank {bank}",
        f'generate {TASK} --field message="{QUESTION}" --bank {bank}',
        f"chat {shop_assistant.TASK} --bank {bank}",
        f"serve --bank {bank}",
    ):
        console.print(f"  {_command()} {command}", soft_wrap=True, highlight=False)


def demo_folder() -> Path:
    """The folder of the demo's runs and bank."""
    return home() / "demo"


def _command() -> str:
    """The command of this installation: ``foreword`` only if the shell would find this one by that name."""
    beside = Path(sys.executable).with_name("foreword")
    found = shutil.which("foreword")
    if found is not None and Path(found).resolve() == beside.resolve():
        return "foreword"
    return str(beside) if beside.is_file() else f"{sys.executable} -m foreword"


def _learn_conversations(lm: LanguageModel, folder: Path, bank: Bank, console: Console) -> ShopReport:
    console.rule("4. learn from conversations, and have one")
    console.print(f"{shop_assistant.TRAIN_ROWS} conversations of a garden shop, through the model's own chat template.")
    started = time.perf_counter()
    run = folder / "runs" / time.strftime("shop-%Y%m%d-%H%M%S")
    result = learn_conversations(lm, run, bank, lambda line: console.print(line, highlight=False))
    seconds = time.perf_counter() - started
    with Engine(lm) as engine, _client(engine, bank) as client:
        talks = [talk(client, model) for model in (lm.name, result.task.name)]
    return ShopReport(result.before["perplexity"], result.metrics["perplexity"], seconds, *talks)


def _train(
    lm: LanguageModel,
    folder: Path,
    rows: list[CustomerMessage],
    held_out: list[CustomerMessage],
    console: Console,
) -> TrainResult:
    run = folder / "runs" / time.strftime("%Y%m%d-%H%M%S")
    run.mkdir(parents=True)
    # Some of the training rows select the checkpoint; the held-out rows are used once, at the end.
    data = {"train": rows[: -HELD_OUT_ROWS // 2], "dev": rows[-HELD_OUT_ROWS // 2 :], "test": held_out}
    for name, part in data.items():
        lines = [json.dumps(row.to_json(), ensure_ascii=False) for row in part]
        (run / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    recipe = Recipe(
        data=str(run / "train.jsonl"),
        eval=str(run / "dev.jsonl"),
        template=corpus.TEMPLATE,
        length=LENGTH,
        max_steps=STEPS,
        lr=LR,
        batch_size=BATCH,
        seed=SEED,
        out=str(run),
    )
    return train(lm, recipe, name=TASK, say=lambda line: console.print(line, highlight=False))


def _few_shot_task(lm: LanguageModel) -> Task:
    """The baseline: the base model with the written instruction and its examples, as a static prompt."""
    before, _, after = corpus.base_prompt("{message}").partition("{message}")
    task = static_task(lm, "written-prompt", "prompt", before)
    return Task(task.name, task.method, task.prefix, task.kind, task.text, template="{message}" + after)


def _accuracy(engine: Engine, task: Task, rows: list[CustomerMessage]) -> float:
    """Exact match of the category, the first line of a greedy answer."""
    params = SamplingParams(max_tokens=8, stop=("\n",))
    prompts = [task_prompts.from_fields(engine.tokenizer, task, {"message": row.message}) for row in rows]
    answers = engine.generate(Request.from_prompt(prompt, params) for prompt in prompts)
    texts = ["".join(chunk.text for chunk in answer) for answer in answers]
    return sum(corpus.category_of(text) == row.category for text, row in zip(texts, rows, strict=True)) / len(rows)


@contextmanager
def _client(engine: Engine, bank: Bank) -> Iterator[OpenAI]:
    """An OpenAI client of a server on a free port."""
    from openai import OpenAI

    with serve_in_background(create_app(engine, bank)) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def _chat(client: OpenAI, model: str, question: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=60, temperature=0
    )
    return answer.choices[0].message.content or ""


def _measure_ttft(client: OpenAI, base: str) -> tuple[float, float]:
    """Median seconds to the first token, as a task and with the policy sent along, taking turns."""
    cached, uncached = [], []
    for turn in range(4):
        question = {"role": "user", "content": f"{POLICY_QUESTION} ({turn})"}
        cached.append(_ttft(client, POLICY, [question]))
        uncached.append(_ttft(client, base, [{"role": "system", "content": sample("policy")}, question]))
    # The first turn loads the prefix and warms caches up.
    return statistics.median(cached[1:]), statistics.median(uncached[1:])


def _ttft(client: OpenAI, model: str, messages: list) -> float:
    start = time.perf_counter()
    stream = client.chat.completions.create(model=model, messages=messages, max_tokens=2, temperature=0, stream=True)
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            break
    seconds = time.perf_counter() - start
    stream.close()
    return seconds
