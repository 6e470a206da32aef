"""Flags of what is learned and how, for the commands that learn; each is a key of a recipe, too."""

from __future__ import annotations

from typing import Annotated

import typer

Method = Annotated[
    str,
    typer.Option(
        help="p-tuning-v2, prefix-tuning, p-tuning, prompt-tuning, pet, autoprompt, lora, lora-hybrid or manual."
    ),
]
Template = Annotated[
    list[str] | None,
    typer.Option(
        help="How an example becomes text; may be given several times.",
        show_default="{the text field}\\nLabel:{mask}",
    ),
]
Verbalizer = Annotated[
    str | None, typer.Option(help="Words of every label: JSON or a file.", show_default="the labels' names")
]
LabelField = Annotated[str, typer.Option(help="Field that holds the label.")]
TargetField = Annotated[str | None, typer.Option(help="Field that holds the text to generate.")]
Head = Annotated[
    str | None,
    typer.Option(help="verbalizer or linear.", show_default="verbalizer; linear for tags and sentence encoders"),
]
Length = Annotated[int | None, typer.Option(help="Virtual tokens.", show_default="the method's")]
Init = Annotated[str, typer.Option(help="auto, random, uniform, vocab, text, labels or task:NAME.")]
InitText = Annotated[str | None, typer.Option(help="Text to start from.")]
Lr = Annotated[float | None, typer.Option(help="Peak learning rate.", show_default="the method's")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps.", show_default="60 to 320, by size")]
BatchSize = Annotated[int, typer.Option(help="Examples a step.")]
Accumulate = Annotated[int, typer.Option(help="Parts that a step is run in, for less memory.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Recompute activations, for less memory still.")]
Patience = Annotated[
    int | None, typer.Option(help="Stop after so many evaluations without a better one.", show_default="never")
]
ClassWeights = Annotated[str | None, typer.Option(help="Weight of every label in the loss: balanced, JSON or a file.")]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Subtract what the task says to empty input.")]
Rank = Annotated[int | None, typer.Option(help="Of an adapter (lora, lora-hybrid, pet).", show_default="8")]
Encoder = Annotated[str | None, typer.Option(help="Of p-tuning: lstm or mlp.", show_default="lstm")]
Projection = Annotated[
    bool | None, typer.Option("--projection/--no-projection", help="Of p-tuning-v2: learn through an MLP.")
]
FreezeFirst = Annotated[
    bool | None, typer.Option("--freeze-first/--learn-first", help="Of a prefix: keep its first token as it is.")
]
Seed = Annotated[int, typer.Option(help="Of the order of examples and of random values.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")]
Out = Annotated[str | None, typer.Option(help="Run folder.", show_default="runs/NAME-TIME")]
