"""``foreword``: the commands, and how every error reaches the user as one sentence with the right exit status."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Annotated

import typer

from foreword.cli import (
    bank,
    bench,
    cache,
    chat,
    classify,
    data,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    generate,
    import_,
    key,
    models,
    publish,
    sample,
    search,
    serve,
    train,
    train_many,
)
from foreword.cli.help import Application
from foreword.errors import ForewordError, Interrupted
from foreword.version import versions

app = Application(
    """Learn, compress and serve what comes before every request.

    Example: foreword demo; foreword train --help
    """,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("sample")(sample.print_sample)
app.add_typer(models.app, name="models")
app.command("doctor")(doctor.doctor)
app.command("data")(data.data)
app.command("train")(train.train)
app.command("train-many")(train_many.train_many)
app.command("search")(search.search)
app.command("distill")(distill.distill)
app.command("publish")(publish.publish)
app.command("cache")(cache.cache)
app.command("eval")(evaluate.evaluate)
app.command("classify")(classify.classify)
app.command("generate")(generate.generate)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("key")(key.key)
app.add_typer(bank.app, name="bank")
app.command("bench")(bench.bench)
app.add_typer(import_.app, name="import")
app.add_typer(export.app, name="export")


def _version(value: bool) -> None:
    if value:
        typer.echo("\n".join(f"{package} {version}" for package, version in versions().items()))
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the versions of Foreword and of its engines."
        ),
    ] = False,
) -> None:
    del version


WARN_AT_IMPORT = ("torchao", "torch.utils._pytree")
"""Loggers that speak of kernels for other machines when Transformers imports torchao, where that is installed."""


def main() -> None:
    """Entry point of the ``foreword`` command. Typer ends the process; only our own errors come back."""
    for name in WARN_AT_IMPORT:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app(prog_name="foreword")
    except ForewordError as error:
        if isinstance(error, Interrupted):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # nothing is left to stop but this
            if sys.stderr.isatty():
                print(file=sys.stderr)  # behind the ^C that the terminal shows
        print(f"foreword: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
