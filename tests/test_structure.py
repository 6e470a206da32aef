"""The arrows between rooms as `docs/architecture.md` draws them, circles, names, and what quick commands import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import foreword

SOURCE = Path(foreword.__file__).parent
ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
EVERYWHERE = {"core", "errors", "home", "version", "openmp", "progress", "samples"}
"""Rooms that every room may use; they use one another and nothing else."""
USE_ALL = {"__init__", "__main__", "api", "bench", "cli", "demo"}
"""Rooms that may use every room."""
ARROW = re.compile(r" +([\w &]+?) --> ([\w &]+)")
Arrow = tuple[str, str]
"""The room that is used, and the room that uses it."""


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imports(file: Path) -> set[str]:
    """Full names of modules that a file imports, also inside functions and for type checkers.

    Of ``from a import b`` both ``a`` and ``a.b``, since ``b`` may be a module itself.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{file} has a relative import"
            assert not node.level, f"{file} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def room(name: str, package: str) -> str:
    """The first part of a module's name below a package."""
    return name.removeprefix(f"{package}.").split(".")[0]


def arrows_below(package: str) -> set[Arrow]:
    """The arrows between the rooms of a package, such as ``foreword`` or ``foreword.server``."""
    folder = SOURCE.parent.joinpath(*package.split("."))
    found = set()
    for file in folder.rglob("*.py"):
        user = file.relative_to(folder).parts[0].removesuffix(".py")
        rooms = {room(name, package) for name in imports(file) if name.startswith(f"{package}.")}
        found |= {(used, user) for used in rooms - {user} if is_room(folder, used)}
    return found


def is_room(folder: Path, name: str) -> bool:
    return (folder / name).is_dir() or (folder / f"{name}.py").is_file()


def drawn(sentence: str) -> set[Arrow]:
    """The arrows of the drawing behind a sentence of the page."""
    block = re.search(re.escape(sentence) + r".*?```mermaid\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None, f"{PAGE} has no drawing behind {sentence!r}"
    found = set()
    for line in block[1].splitlines()[1:]:
        arrow = ARROW.fullmatch(line)
        assert arrow is not None, f"not an arrow: {line}"
        found |= {(used, user) for used in arrow[1].split(" & ") for user in arrow[2].split(" & ")}
    return found


def as_drawing(arrows: set[Arrow]) -> str:
    """Arrows as lines of a drawing, to be pasted."""
    users = defaultdict(list)
    for used, user in sorted(arrows):
        users[used].append(user)
    return "\n".join(f"    {used} --> {' & '.join(found)}" for used, found in users.items())


def test_the_rooms_use_what_the_page_draws_and_nothing_else():
    arrows = {arrow for arrow in arrows_below("foreword") if arrow[0] not in EVERYWHERE and arrow[1] not in USE_ALL}
    assert arrows == drawn('An arrow reads "is used by"'), as_drawing(arrows)


@pytest.mark.parametrize("package", ["training", "server"])
def test_the_rooms_inside_a_room_use_what_the_page_draws(package):
    arrows = {arrow for arrow in arrows_below(f"foreword.{package}") if arrow[1] != "__init__"}
    assert arrows == drawn(f"Inside `{package}/`"), as_drawing(arrows)


def test_the_rooms_that_all_may_use_use_nothing_else():
    assert {used for used, user in arrows_below("foreword") if user in EVERYWHERE} <= EVERYWHERE


@pytest.mark.parametrize("package", ["foreword", "foreword.training", "foreword.server"])
def test_rooms_use_each_other_in_no_circle(package):
    uses = defaultdict(set)
    for used, user in arrows_below(package):
        uses[user].add(used)
    TopologicalSorter(uses).prepare()  # raises CycleError


@pytest.mark.parametrize("folder", [SOURCE, ROOT / "benchmarks"], ids=lambda folder: folder.name)
def test_files_import_each_other_in_no_circle(folder):
    modules = {module(file, folder): file for file in folder.rglob("*.py")}
    del modules[folder.name]  # its public names load when they are used
    uses = {name: files_imported(file, set(modules)) - {name} for name, file in modules.items()}
    TopologicalSorter(uses).prepare()  # raises CycleError


def module(file: Path, folder: Path) -> str:
    """The full name of a file's module; a package is its ``__init__.py``."""
    return ".".join(file.relative_to(folder.parent).with_suffix("").parts).removesuffix(".__init__")


def files_imported(file: Path, modules: set[str]) -> set[str]:
    """Of ``from a import b`` the module ``a.b`` where there is one, else ``a``."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules or {str(node.module)}
    return found & modules


def test_every_room_is_drawn():
    rooms = {file.relative_to(SOURCE).parts[0].removesuffix(".py") for file in files()}
    drawn_rooms = {each for arrow in drawn('An arrow reads "is used by"') for each in arrow}
    assert rooms == drawn_rooms | EVERYWHERE | USE_ALL


def test_nothing_imports_the_package_root():
    """Rooms are imported from it (``from foreword import home``), its public names are not."""
    for file in files():
        for name in imports(file) - {"foreword"}:
            first = room(name, "foreword")
            assert not name.startswith("foreword.") or is_room(SOURCE, first), f"{file} imports {name}"
        assert "import foreword\n" not in file.read_text(encoding="utf-8"), file


def test_the_server_knows_only_the_engine_protocol():
    for file in (SOURCE / "server").rglob("*.py"):
        used = {name for name in imports(file) if name.startswith("foreword.engine")}
        assert all(name.startswith("foreword.engine.protocol") for name in used), f"{file} uses {used}"


def test_no_two_classes_share_a_name():
    places = defaultdict(list)
    for file in files():
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(file.relative_to(SOURCE)))
    assert not {name: found for name, found in places.items() if len(found) > 1}


def test_bench_is_small():
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (SOURCE / "bench").glob("*.py"))
    assert lines < 1550, "what needs other software, data sets or tables belongs in benchmarks/"


def test_the_package_needs_neither_its_benchmarks_nor_peft():
    for file in files():
        assert not {"benchmarks", "peft"} & {name.split(".")[0] for name in imports(file)}, file


@pytest.mark.parametrize(
    "code", ["import foreword", "import foreword.cli; foreword.cli.app.app(['--help'], standalone_mode=False)"]
)
def test_quick_commands_import_neither_torch_nor_transformers(code):
    check = f"{code}\nimport sys\nassert not {{'torch', 'transformers', 'numpy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, timeout=60)


def test_outside_texts_are_parsed_by_the_bounded_readers():
    """Else 4,301 digits or 1,000 nested lists end in a traceback; what our own processes say is excepted."""
    own = ("core/json_reader.py", "core/yaml_reader.py", "llamacpp/preflight.py", "bench/")
    calls = re.compile(r"\b(json\.loads?|raw_decode|yaml\.(safe_|full_|unsafe_)?load(_all)?)\(|from json import")
    files = {str(file.relative_to(SOURCE)): file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py")}
    found = [name for name, text in files.items() if calls.search(text) and not name.startswith(own)]
    assert not found, f"{found}: use read_json or parse_json of core/json_reader.py, or core/yaml_reader.py"
