"""The documents, and questions about them where their data set has some."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreword.errors import BenchError
from foreword.text.rows import read_rows


@dataclass(frozen=True)
class BenchDocument:
    """A document of a data set.

    Attributes:
        dataset: folder of its data set.
        id: of the document there.
    """

    dataset: str
    id: str

    @property
    def key(self) -> str:
        return f"{self.dataset}/{self.id}"

    def read(self, data: Path) -> str:
        """Raises BenchError if it is not there."""
        file = data / self.dataset / "documents.jsonl"
        for row in read_rows(file):
            if self.id in (row.values.get("id"), row.values.get("doc_id")):
                return str(row.values["text"])
        raise BenchError(f"there is no document {self.id!r} in {file}; fetch the data again.")

    def questions(self, data: Path) -> list[dict[str, Any]]:
        """The data set's own test questions about it, with their answers; none for policies."""
        file = data / self.dataset / "questions.test.jsonl"
        if not file.is_file():
            return []
        rows = [row.values for row in read_rows(file) if row.values["doc_id"] == self.id]
        return [{"question": row["question"], "answers": row["answers"]} for row in rows]


# All of 900 to 1,500 tokens as SmolLM2 counts them.
DOCUMENTS = (
    BenchDocument("xquad_en", "Amazon_rainforest"),
    BenchDocument("xquad_en", "Genghis_Khan"),
    BenchDocument("fairytaleqa", "the-corpse-watchers"),
    BenchDocument("policies", "37signals_taxes"),
    BenchDocument("policies", "tau2_telecom"),
)
