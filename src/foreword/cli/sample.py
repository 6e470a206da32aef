"""``foreword sample``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from foreword.samples import SAMPLES, sample


def print_sample(
    name: Annotated[
        str, typer.Argument(help=f"{', '.join(SAMPLES)}.", autocompletion=lambda: list(SAMPLES), show_default=False)
    ],
    language: Annotated[str, typer.Option(help="en or zh.", autocompletion=lambda: ["en", "zh"])] = "en",
) -> None:
    """Print sample data, to try the other commands on.

    Example: foreword sample reviews > reviews.jsonl
    """
    # Bytes: a pipe on Windows or in the C locale would write neither UTF-8 nor plain newlines.
    sys.stdout.buffer.write(sample(name, language).encode())
