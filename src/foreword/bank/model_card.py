"""The model card of a version: its ``README.md``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from foreword.core import Head, KVPrefix, Task

_KINDS = {
    "learned": "a learned prompt",
    "system": "a system prompt computed ahead",
    "prompt": "a prompt text computed ahead",
}


def model_card(task: Task) -> str:
    """The card of a task, in Markdown. It does not have the version, which depends on the digest of this file."""
    lines = [
        f"# {task.name}",
        "",
        f"{_kind(task).capitalize()} for one frozen language model, published with Foreword.",
        "",
        f"- method: {task.method}",
        f"- base model: {_model(task.prefix)}{_quantization(task)}",
        f"- prefix: length {task.prefix.length}, {task.prefix.nbytes} bytes",
        *_distilled(task),
        *_parts(task),
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


def _kind(task: Task) -> str:
    stands_for = {"system": "a system prompt", "prompt": "a prompt text"}.get(task.kind)
    if stands_for is not None and task.prefix.token_ids is None:
        return f"{stands_for} distilled into {task.prefix.length} virtual tokens"
    return _KINDS.get(task.kind, task.kind)


def _distilled(task: Task) -> list[str]:
    """Token count and digest of a distilled text, and the task that it was distilled from."""
    source = task.provenance
    if task.method != "distill":
        return []
    parents = source.get("parents") or ["no task"]
    return [
        f"- distilled from: a text of {source.get('text_tokens')} tokens, sha256 {source.get('text_sha256')}",
        f"- parent: {', '.join(map(str, parents))}",
    ]


def _model(prefix: KVPrefix) -> str:
    model = prefix.model
    return f"{model.architecture}, weights {model.weights[:12]}"


def _quantization(task: Task) -> str:
    found = task.provenance.get("quantization")
    return f", quantized ({found})" if found else ""


def _parts(task: Task) -> list[str]:
    """Members, soft tokens, adapter and head, and the bytes of all tensors; empty for a task with only a prefix."""
    lines = []
    if task.members:
        lines.append(f"- ensemble: {len(task.members) + 1} prefixes, answers combined by {task.combine}")
    if task.soft is not None:
        lines.append(f"- soft tokens: {task.soft.shape[0]}")
    if task.adapter is not None:
        lines.append(f"- adapter: LoRA of rank {task.adapter.rank}, {task.adapter.nbytes} bytes")
    if task.head is not None:
        lines.append(f"- head: {_head_gives(task.head)}")
    return [*lines, f"- all tensors: {task.nbytes} bytes"] if lines else []


def _head_gives(head: Head) -> str:
    if head.problem_type == "regression":
        return "a number for the whole text"
    if head.problem_type == "multi_label_classification":
        return "any number of labels for the whole text"
    return f"a label for {'every word' if head.per_token else 'the whole text'}"


def _labels(task: Task) -> list[str]:
    calibrated = ["- scores: calibrated by those without any input"] if task.bias is not None else []
    return [f"- labels: {', '.join(task.labels)}", *calibrated] if task.labels else []


def _metrics(metrics: Any) -> list[str]:
    if not isinstance(metrics, Mapping):
        return []
    return [f"- {name}: {value:.4g}" for name, value in metrics.items() if isinstance(value, int | float)]


def _commands(task: Task) -> list[str]:
    if task.labels:
        return [f'foreword classify {task.name} "your text"']
    if task.kind == "system":
        return ["foreword serve", f'# then ask it over chat, as model "{task.name}"']
    if task.template:
        return [f"foreword generate {task.name} --field NAME='its text'"]
    return [f'foreword generate {task.name} "your text"']
