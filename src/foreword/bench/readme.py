"""The conformance matrix in the README, between two markers, so that nobody types it."""

from __future__ import annotations

from foreword.bench.conformance.workload import Conformance
from foreword.bench.record import Results
from foreword.errors import BenchError

OPEN, CLOSE = "<!-- conformance -->", "<!-- /conformance -->"


def with_matrix(text: str, results: Results) -> str:
    """A README with the matrix of the records between its markers; as it is if there are no records.

    Raises:
        BenchError: it does not have both markers once, in their order.
    """
    records = results.all(Conformance.name)
    if not records:
        return text
    before, opened, rest = text.partition(OPEN)
    _, closed, after = rest.partition(CLOSE)
    if not opened or not closed or OPEN in rest or CLOSE in after:
        raise BenchError(f"the README must have {OPEN} and then {CLOSE}, each once; put them where the matrix goes.")
    return f"{before}{OPEN}\n\n{Conformance().tables(records)}\n\n{CLOSE}{after}"
