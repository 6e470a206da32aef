"""``foreword bank split``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli.completion import complete_task
from foreword.cli.options import BankRoot, Json, emit, open_bank
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.bank.split import Split


def split(
    name: Annotated[str, typer.Argument(help="Name of the task.", autocompletion=complete_task)],
    weights: Annotated[
        list[str] | None, typer.Argument(help="Versions and weights, or one version for all requests.")
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Serve the current version to all requests again.")] = False,
    bank: BankRoot = None,
    json: Json = False,
) -> None:
    """Serve two or more versions side by side, each to a part of the requests; without weights, show how it is.

    A request's `user` gets the same version every time. Publishing and rolling back end a split.

    Example: foreword bank split reviews 0002=0.1 0001=0.9
    """
    store = open_bank(bank)
    if off and weights:
        raise UsageError("--off ends a split; leave the versions out.")
    if off:
        store.rollback(name, store.current(name))
    elif weights and len(weights) == 1 and "=" not in weights[0]:
        store.rollback(name, weights[0])
    elif weights:
        from foreword.bank.split import parse_weights

        store.set_split(name, parse_weights(weights))
    found = store.split(name)
    served = found.describe() if found is not None else f"{store.current(name)} 100 %"
    emit({"task": name, "split": _shares(found, store.current(name))}, f"{name} is served as {served}", json)


def _shares(split: Split | None, current: str) -> dict[str, float]:
    return dict(split.weights) if split is not None else {current: 1.0}
