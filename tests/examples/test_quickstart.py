"""``examples/quickstart.ipynb`` runs from its first cell to its last, in a kernel of its own."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from server.running_server import CHATML
from tiny_models import byte_tokenizer, save_tiny

NOTEBOOK = Path(__file__).parents[2] / "examples/quickstart.ipynb"


def run(folder: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the last line of every cell shows, by the cell's source."""
    for name, value in {"MODEL": model, "HOME": str(folder / "home"), "BANK": str(folder / "bank")}.items():
        monkeypatch.setenv(f"FOREWORD_{name}", value)
    if model == "smollm2-135m":
        monkeypatch.delenv("FOREWORD_HOME")  # where it is converted already
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs before committing"
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    shown = {}
    for cell in notebook.cells:
        outputs = cell.get("outputs", ())
        texts = [output.get("data", {}).get("text/plain") or output.get("text", "") for output in outputs]
        shown[cell.source] = "".join(texts)
        if "Engine(lm)" in cell.source:
            assert "<table>" in outputs[0]["data"]["text/html"]
    return shown


def shown_by(cells: dict[str, str], part: str) -> str:
    return next(text for source, text in cells.items() if part in source)


def test_the_notebook_runs_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_tiny("llama", tmp_path / "model")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "model")
    cells = run(tmp_path, str(tmp_path / "model"), monkeypatch)
    assert shown_by(cells, "engine.classify").count("Classification(") == 2
    assert "Task 'support@0001-" in shown_by(cells, "foreword.publish")
    assert "accuracy" in shown_by(cells, "foreword.evaluate")
    assert (tmp_path / "bank/reviews/current").is_file()


@pytest.mark.slow
def test_the_notebook_runs_on_the_built_in_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cells = run(tmp_path, "smollm2-135m", monkeypatch)
    assert "Classification('positive'" in shown_by(cells, "engine.classify")
