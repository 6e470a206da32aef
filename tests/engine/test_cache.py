"""What a cache costs."""

from pathlib import Path

import pytest
import torch

from foreword.core import LayerShape
from foreword.engine.cache import PAGE_SIZE, PagedCache

STATUS = Path("/proc/self/status")


def resident() -> int:
    """Bytes of this process in memory."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


@pytest.mark.skipif(not STATUS.is_file(), reason="only Linux tells")
def test_pages_that_nothing_was_written_to_take_no_memory():
    before = resident()
    cache = PagedCache((LayerShape(2, 64, 32),) * 4, 1 << 16, torch.bfloat16, torch.device("cpu"))
    size = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
    assert size > 1 << 30
    assert resident() - before < size / 10
    for tensor, dim in ((cache.keys[0], 64), (cache.values[3], 32)):
        assert tensor.shape == (2 * (1 << 16) * PAGE_SIZE, dim)
        assert tensor.data_ptr() % 64 == 0
        assert not tensor[-1].any()
