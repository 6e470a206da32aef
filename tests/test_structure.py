"""The arrows between rooms, the public names, and what the quick commands may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import foreword

SOURCE = Path(foreword.__file__).parent
ROOT = Path(__file__).parents[1]
EVERYWHERE = {"core", "errors", "home", "version", "openmp"}
# "is used by", read the other way: what each room may import, beside the nouns that all may.
USES = {
    "core": set(),
    "errors": set(),
    "home": set(),
    "version": set(),
    "openmp": set(),
    "progress": set(),
    "dense_attention": set(),
    "attention": {"dense_attention"},
    "adapters": set(),
    "models": {"attention", "adapters"},
    "text": set(),
    "bank": set(),
    "prompts": {"models", "attention", "adapters", "text"},
    "engine": {"models", "adapters", "attention", "dense_attention", "text"},
    "evaluation": {"engine", "text"},
    "training": {"models", "attention", "text", "prompts", "engine", "evaluation", "progress"},
    "server": {"text", "bank", "evaluation", "engine", "prompts", "interop"},
    "vllm": {"text", "bank", "engine", "models", "server"},
    "llamacpp": {"text", "engine", "models"},
    "interop": {"models", "adapters", "attention", "text", "prompts", "bank", "engine"},
    "bench": None,
    "demo": None,
    "cli": None,
    "__main__": {"cli"},
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def room(file: Path) -> str:
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


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


def dotted(file: Path) -> set[str]:
    """Full names of modules that a file imports; a name of a module too, since it may be a module itself."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def packages(file: Path) -> set[str]:
    """The packages that a file imports from."""
    return {name.partition(".")[0] for name in dotted(file)}


def module(file: Path, folder: Path) -> str:
    """Full name of the module of a file."""
    root = SOURCE.parent if folder.is_relative_to(SOURCE) else folder.parent
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_rooms_use_only_what_the_design_draws(file):
    if file == SOURCE / "__init__.py":
        return
    here = room(file)
    for name in imports(file):
        assert name, f"{file} imports the package root"
        target = name.split(".")[0]
        allowed = USES[here]
        assert target in EVERYWHERE | {here} or allowed is None or target in allowed, f"{here} may not use {name}"


def test_the_server_knows_only_the_engine_protocol():
    for file in (SOURCE / "server").rglob("*.py"):
        used = {name for name in imports(file) if name.startswith("engine")}
        assert used <= {"engine.protocol"}, f"{file} uses {used}"


def test_every_room_is_drawn():
    assert {room(file) for file in files()} - {"__init__"} == set(USES)


def test_bench_is_small():
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in (SOURCE / "bench").rglob("*.py"))
    assert lines < 1500, "what needs other software, data sets or tables belongs in benchmarks/"


@pytest.mark.parametrize("file", files(), ids=lambda file: str(file.relative_to(SOURCE)))
def test_the_package_needs_neither_its_benchmarks_nor_peft(file):
    assert not {"benchmarks", "peft"} & packages(file)


@pytest.mark.parametrize("folder", [SOURCE / "bench", ROOT / "benchmarks"], ids=lambda folder: folder.name)
def test_files_of_the_benchmarks_import_each_other_in_no_circle(folder):
    modules = {module(file, folder): file for file in folder.rglob("*.py")}
    uses = {name: modules.keys() & set(dotted(file)) for name, file in modules.items()}
    TopologicalSorter(uses).prepare()  # raises CycleError


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
