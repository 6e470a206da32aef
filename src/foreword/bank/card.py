"""``README.md`` of a version: what a person sees who opens the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.core import KVPrefix, Task

_KINDS = {
    "learned": "a learned prompt",
    "system": "a system prompt computed ahead",
    "prompt": "a prompt text computed ahead",
}


def write_card(task: Task) -> str:
    """Markdown for one task. The version is left out: its name depends on this very file."""
    lines = [
        f"# {task.name}",
        "",
        f"{_KINDS[task.kind].capitalize()} for one frozen language model, published with Foreword.",
        "",
        f"- method: {task.method}",
        f"- base model: {_model(task.prefix)}",
        f"- prefix: length {task.prefix.length}, {task.prefix.nbytes} bytes",
        *_labels(task),
        *_metrics(task.provenance.get("metrics")),
        "",
        "## Use",
        "",
        "```",
        *_commands(task),
        "```",
    ]
    return "\n".join(lines) + "\n"


def _model(prefix: KVPrefix) -> str:
    model = prefix.model
    return f"{model.architecture}, weights {model.weights[:12]}"


def _labels(task: Task) -> list[str]:
    return [f"- labels: {', '.join(task.verbalizer)}"] if task.verbalizer else []


def _metrics(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping):
        return []
    return [f"- {name}: {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]


def _commands(task: Task) -> list[str]:
    if task.verbalizer:
        return [f'foreword classify {task.name} "your text"']
    if task.kind == "system":
        return ["foreword serve", f'# then ask it over chat, as model "{task.name}"']
    if task.template:
        return [f"foreword generate {task.name} --field NAME='its text'"]
    return [f'foreword generate {task.name} "your text"']
