"""Imports inside the server go one way: application, route families, operations."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_structure import SOURCE, imports

MAY_IMPORT = {
    "__init__": set(),
    "app": {"openai", "tasks", "operations", "ui"},
    "background": set(),
    "openai": {"tasks", "operations", "schema"},
    "tasks": {"operations", "schema"},
    "operations": set(),
    "schema": set(),
    "ui": set(),
}
FILES = {".".join(file.relative_to(SOURCE).with_suffix("").parts): file for file in (SOURCE / "server").rglob("*.py")}


def family(module: str) -> str:
    return module.split(".")[1]


def server_imports(file: Path) -> set[str]:
    """Modules of the server that a file imports."""
    return {name for name in imports(file) if name.startswith("server.")}


@pytest.mark.parametrize("module", sorted(FILES))
def test_families_import_only_what_is_drawn(module: str) -> None:
    here = family(module)
    for name in server_imports(FILES[module]):
        assert family(name) in MAY_IMPORT[here] | {here}, f"{module} may not import {name}"


def test_no_circles_between_files() -> None:
    left = {module: server_imports(file) & FILES.keys() for module, file in FILES.items()}
    while leaves := {module for module, used in left.items() if not used & left.keys()}:
        left = {module: used for module, used in left.items() if module not in leaves}
    assert not left, f"these files import each other in a circle: {sorted(left)}"
