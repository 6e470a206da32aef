"""`LazyRegistry`: things by name, each imported when it is asked for, so that names are known without PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

T_co = TypeVar("T_co", covariant=True)


class LazyRegistry(Mapping[str, T_co]):
    """Objects made without arguments, by name.

    Args:
        homes: the module and class of each, such as ``foreword.prompts.manual.Manual``.
    """

    def __init__(self, homes: Mapping[str, str]) -> None:
        self._homes = homes

    def __getitem__(self, name: str) -> T_co:
        module, _, kind = self._homes[name].rpartition(".")
        return getattr(import_module(module), kind)()

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)
