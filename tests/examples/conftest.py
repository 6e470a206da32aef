"""Examples run as their readers run them, each a command in a process of its own; their functions are tested too."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tiny_models import save_tiny

EXAMPLES = Path(__file__).parents[2] / "examples"
Run = Callable[..., str]
Load = Callable[[str], ModuleType]


@pytest.fixture(scope="session")
def run() -> Run:
    """``python examples/NAME ARGUMENTS...``; gives what it wrote to stdout, or to stderr if it should fail."""

    def run(name: str, *arguments: object, fails: bool = False) -> str:
        command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
        environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
        ended = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment, check=False)
        assert (ended.returncode != 0) == fails, ended.stderr[-3000:]
        return ended.stderr if fails else ended.stdout

    return run


@pytest.fixture(scope="session")
def load() -> Load:
    """An example as a module."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder."""
    return save_tiny("llama", tmp_path_factory.mktemp("models") / "llama")
