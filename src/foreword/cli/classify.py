"""``foreword classify``."""

from __future__ import annotations

from typing import Annotated

import typer

from foreword.cli import options
from foreword.errors import UsageError


def classify(
    name: Annotated[str, typer.Argument(help="Task, or task@version.")],
    texts: Annotated[list[str], typer.Argument(metavar="TEXT...", help="Texts to classify; - reads lines from stdin.")],
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    allow_other_weights: options.OtherWeights = False,
    json: options.Json = False,
) -> None:
    """Label texts with a task that has a verbalizer.

    Example: foreword classify reviews "a masterpiece" "dull and long"
    """
    from foreword.text.template import Template

    task = options.open_bank(bank).load(name)
    if task.template is None or task.verbalizer is None:
        raise UsageError(f"task '{name}' has no verbalizer to choose from; train one with {{mask}}, or use generate.")
    fields = Template.parse(task.template).fields
    if len(fields) != 1:
        raise UsageError(f"task '{name}' has {len(fields)} input fields, classify takes one; ask /v1/classify.")
    if texts == ["-"]:
        texts = [line for line in options.read_text("-").splitlines() if line.strip()]
    lm = options.open_model(model, dtype, device, trust_remote_code)
    options.check_model(task, lm, allow_other_weights=allow_other_weights)
    from foreword.evaluation.evaluate import classify as run_classify

    with options.open_engine(lm, allow_other_weights=allow_other_weights) as engine:
        probs = run_classify(engine, task, [{fields[0]: text} for text in texts])
    rows = [{"index": i, "label": max(row, key=row.__getitem__), "probs": row} for i, row in enumerate(probs)]
    lines = [f"{row['label']}\t{max(probs[row['index']].values()):.3f}\t{texts[row['index']]}" for row in rows]
    options.emit({"task": task.ref, "data": rows}, "\n".join(lines), json)
