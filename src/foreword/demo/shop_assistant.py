"""The demo's second act: a shop's conversations are learned and served, and a customer talks with what came out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel

from foreword.bank.bank import Bank
from foreword.core.json_reader import parse_json
from foreword.models import LanguageModel
from foreword.progress import Say
from foreword.samples import sample
from foreword.training.recipe import Recipe
from foreword.training.train import TrainResult, train

if TYPE_CHECKING:
    from openai import OpenAI

TASK = "shop-assistant"
QUESTIONS = (
    "Do you deliver to Whitby?",
    "How long does that take?",
    "And can I send the boots back if they are too small?",
)
TRAIN_ROWS, EVAL_ROWS, STEPS, LENGTH, BATCH, LR, SEED = 120, 12, 40, 24, 8, 1e-2, 11


@dataclass(frozen=True)
class ShopReport:
    """The measurements of the second act.

    Attributes:
        perplexity_before, perplexity_after: of the assistant's turns in held-out conversations.
        seconds: of learning, with both measurements.
        talk_base, talk_task: `QUESTIONS` and the answers to them, each with everything before as its history.
    """

    perplexity_before: float
    perplexity_after: float
    seconds: float
    talk_base: tuple[str, ...]
    talk_task: tuple[str, ...]


def learn_conversations(lm: LanguageModel, folder: Path, bank: Bank, say: Say) -> TrainResult:
    """Learn from some of the sample conversations, and publish the task."""
    rows = _rows()
    held = rows[:: len(rows) // EVAL_ROWS][:EVAL_ROWS]
    recipe = Recipe(
        data=[row for row in rows if row not in held],
        eval=held,
        length=LENGTH,
        max_steps=STEPS,
        lr=LR,
        batch_size=BATCH,
        seed=SEED,
        out=str(folder),
    )
    result = train(lm, recipe, name=TASK, say=say)
    bank.publish(result.task, replace=True, reserved=[lm.name])
    return result


def talk(client: OpenAI, model: str) -> tuple[str, ...]:
    """The questions with a model's answers, each asked with everything before it."""
    messages: list = []
    for question in QUESTIONS:
        messages.append({"role": "user", "content": question})
        answer = client.chat.completions.create(model=model, messages=messages, max_tokens=60, temperature=0)
        messages.append({"role": "assistant", "content": (answer.choices[0].message.content or "").strip()})
    return tuple(message["content"] for message in messages)


def print_shop_report(report: ShopReport, base: str, console: Console) -> None:
    """Print both conversations side by side, and the perplexities."""
    console.print()
    talks = ((base, report.talk_base), (f"task {TASK}", report.talk_task))
    console.print(Columns([Panel(_transcript(lines), title=title, width=54) for title, lines in talks]))
    console.print(
        f"assistant's turns of {EVAL_ROWS} held-out conversations: perplexity {report.perplexity_before:.1f} before, "
        f"{report.perplexity_after:.1f} after {STEPS} steps ({report.seconds:.0f} s)"
    )


def _transcript(lines: tuple[str, ...]) -> str:
    return "\n".join(f"[bold]{line}[/bold]" if index % 2 == 0 else f"{line}\n" for index, line in enumerate(lines))


def _rows() -> list[dict]:
    """The longest English conversations of the sample that need neither a system turn nor a tool."""
    rows = [parse_json(line) for line in sample("conversations").splitlines()]
    plain = [row for row in rows if "tools" not in row and row["messages"][0]["role"] == "user" and _is_english(row)]
    return sorted(plain, key=lambda row: -len(row["messages"]))[: TRAIN_ROWS + EVAL_ROWS]


def _is_english(row: dict) -> bool:
    return all(message["content"].replace("£", "").replace("é", "").isascii() for message in row["messages"])
