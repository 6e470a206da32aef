"""The arrows between rooms as `docs/architecture.md` draws them, the public names, and what quick commands import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import foreword

SOURCE = Path(foreword.__file__).parent
PAGE = SOURCE.parents[1] / "docs/architecture.md"
EVERYWHERE = {"core", "errors", "home", "version", "openmp", "progress"}
"""Rooms that every room may use; they use one another and nothing else."""
USE_ALL = {"__init__", "__main__", "bench", "cli", "demo"}
"""Rooms that may use every room."""
ARROW = re.compile(r"^ +([\w &]+?) --> ([\w &]+)$", re.MULTILINE)


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Dotted names below ``foreword`` that a file imports; ``""`` for the package root itself."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
            if node.module == "foreword":
                names = [f"foreword.{alias.name}" for alias in node.names]
        else:
            assert not isinstance(node, ast.ImportFrom), f"{file} has a relative import"
            continue
        found |= {name.removeprefix("foreword").lstrip(".") for name in names if name.split(".")[0] == "foreword"}
    return found


def module(file: Path) -> str:
    """The dotted name of a file below ``foreword``; a package's is that of its folder."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def drawn(heading: str) -> set[tuple[str, str]]:
    """The arrows of the drawing behind a sentence of the page, as (used, user)."""
    block = re.search(re.escape(heading) + r".*?```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, f"{PAGE} has no drawing behind {heading!r}"
    lines = [line for line in block[1].splitlines() if "-->" in line]
    arrows = [ARROW.fullmatch(line) for line in lines]
    assert all(arrows), f"not an arrow: {lines[arrows.index(None)]}" if None in arrows else ""
    return {
        (used, user)
        for arrow in arrows
        if arrow is not None
        for used in arrow[1].split(" & ")
        for user in arrow[2].split(" & ")
    }


def arrows_below(package: str) -> set[tuple[str, str]]:
    """The imports between the rooms of a package, as (used, user); ``""`` is the root."""
    folder, prefix = SOURCE / package, f"{package}." if package else ""
    found = set()
    for file in sorted(folder.rglob("*.py")):
        user = file.relative_to(folder).parts[0].removesuffix(".py")
        for name in imports(file):
            if name.startswith(prefix):
                used = name.removeprefix(prefix).split(".")[0]
                found |= {(used, user)} if used not in ("", user) else set()
    return found


def lines_of(arrows: set[tuple[str, str]]) -> str:
    """Arrows as lines of a drawing, to be pasted."""
    users = {used: sorted(user for each, user in arrows if each == used) for used, _ in sorted(arrows)}
    return "\n".join(f"    {used} --> {' & '.join(found)}" for used, found in users.items())


def test_the_rooms_use_what_the_page_draws_and_nothing_else():
    arrows = {arrow for arrow in arrows_below("") if arrow[0] not in EVERYWHERE and arrow[1] not in USE_ALL}
    assert arrows == drawn('An arrow reads "is used by"'), lines_of(arrows)


@pytest.mark.parametrize("package", ["training", "server"])
def test_the_rooms_inside_a_room_use_what_the_page_draws(package):
    arrows = {arrow for arrow in arrows_below(package) if arrow[1] != "__init__"}
    assert arrows == drawn(f"Inside `{package}/`"), lines_of(arrows)


@pytest.mark.parametrize("package", ["", "training", "server"])
def test_no_room_uses_another_in_a_circle(package):
    arrows = arrows_below(package)
    left = {room for arrow in arrows for room in arrow}
    while free := {room for room in left if not any(used in left for used, user in arrows if user == room)}:
        left -= free
    assert not left, f"rooms in a circle: {', '.join(sorted(left))}"


def test_no_two_classes_share_a_name():
    places: dict[str, list[str]] = {}
    for file in files():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(SOURCE)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_the_nouns_use_nothing_but_one_another():
    for room in EVERYWHERE:
        for file in [SOURCE / f"{room}.py", *(SOURCE / room).rglob("*.py")]:
            if file.exists():
                assert {name.split(".")[0] for name in imports(file)} <= EVERYWHERE, file


def test_nothing_imports_the_package_root():
    for file in files():
        assert "" not in imports(file), f"{file} imports the package root"


def test_no_file_imports_in_a_circle():
    """Imports inside functions and for type checkers count, too."""
    known = {module(file): file for file in files()}
    uses = {name: {used for used in imports_of_modules(file, known) if used != name} for name, file in known.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"imports in a circle: {' -> '.join((*path[path.index(name) :], name))}"
        if name not in done:
            for used in sorted(uses[name]):
                visit(used, (*path, name))
            done.add(name)

    for name in known:
        visit(name, ())


def imports_of_modules(file: Path, known: Mapping[str, Path]) -> set[str]:
    """The files that a file imports: of ``from a import b`` the file ``a.b`` where there is one, else ``a``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "foreword":
            package = (node.module or "").removeprefix("foreword").lstrip(".")
            names = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
            found |= {name if name in known else package for name in names}
    return found & known.keys()


def test_the_server_knows_only_the_engine_protocol():
    for file in (SOURCE / "server").rglob("*.py"):
        used = {name for name in imports(file) if name.startswith("engine")}
        assert used <= {"engine.protocol"}, f"{file} uses {used}"


def test_public_names():
    assert sorted(foreword.__all__) == sorted(
        [
            "Bank",
            "DistilRecipe",
            "Engine",
            "KVPrefix",
            "LoRA",
            "LoRAHybrid",
            "Manual",
            "PTuning",
            "PTuningV2",
            "PrefixTuning",
            "PromptTuning",
            "Recipe",
            "SamplingParams",
            "Task",
            "Template",
            "Verbalizer",
            "__version__",
            "distill",
            "evaluate",
            "load_model",
            "lower",
            "train",
        ]
    )
    assert all(getattr(foreword, name) is not None for name in foreword.__all__)


@pytest.mark.parametrize(
    "code", ["import foreword", "import foreword.cli; foreword.cli.app.app(['--help'], standalone_mode=False)"]
)
def test_quick_commands_import_neither_torch_nor_transformers(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=60)
