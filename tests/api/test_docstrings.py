"""Every public name has a docstring with an example, and the examples run, in this order, in one bank."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path
from typing import Any

import pytest

import foreword
from foreword.bank.bank import Bank
from foreword.models import LanguageModel
from server.running_server import CHATML
from tiny_models import byte_tokenizer, save_tiny

# Those that publish come first, since the others ask what they published.
NAMES = ["load_model", "train", "search", "train_many", "publish", "compose", "export_peft", "import_peft"]
NAMES += sorted(set(foreword.__all__) - {*NAMES, "__version__"})
# These need a server, or minutes.
NOT_RUN = {"Client", "connect", "distill"}


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What the examples stand in: the default model is tiny, the default bank and the folder are new."""
    folder = tmp_path_factory.mktemp("examples")
    save_tiny("llama", folder / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOREWORD_MODEL", str(folder / "model"))
        patch.setenv("FOREWORD_BANK", str(folder / "bank"))
        patch.chdir(folder)
        yield {"foreword": foreword, "lm": foreword.load_model(progress=lambda line: None)}


def test_the_examples_of_public_names_run(namespace: dict[str, Any]):
    """In one test: later examples use what earlier ones published."""
    for name in NAMES:
        run_example(namespace, name)


def run_example(namespace: dict[str, Any], name: str) -> None:
    found = getattr(foreword, name)
    examples = doctest.DocTestParser().get_doctest(inspect.getdoc(found) or "", namespace, name, None, 0)
    assert examples.examples, f"foreword.{name} has no example"
    skipped = [each for each in examples.examples if doctest.SKIP in each.options]
    assert bool(skipped) == (name in NOT_RUN)
    if name == "evaluate":
        examples.globs["engine"] = foreword.Engine(namespace["lm"])
    result = doctest.DocTestRunner().run(examples, clear_globs=False)
    assert not result.failed, name
    if name == "evaluate":
        examples.globs["engine"].close()


def test_the_example_of_the_package_runs(namespace: dict[str, Any]):
    examples = doctest.DocTestParser().get_doctest(foreword.__doc__ or "", dict(namespace), "foreword", None, 0)
    assert not doctest.DocTestRunner().run(examples).failed


def test_members_of_public_classes_have_docstrings():
    for name in set(foreword.__all__) - {"__version__"}:
        found = getattr(foreword, name)
        if not inspect.isclass(found):
            continue
        for member, value in inspect.getmembers(found, lambda each: callable(each) or isinstance(each, property)):
            if not member.startswith("_") and not inspect.isclass(value):
                assert inspect.getdoc(value), f"foreword.{name}.{member} has no docstring"


def test_examples_leave_the_bank_of_the_commands(namespace: dict[str, Any]):
    """A bank that is not named is `$FOREWORD_BANK`, and a model that is not named `$FOREWORD_MODEL`."""
    assert isinstance(namespace["lm"], LanguageModel)
    assert Path(Bank().location).parent == Path.cwd()
    assert "mood" in Bank().names()
