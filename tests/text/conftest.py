"""The small tokenizers as fixtures, and tasks with tiny tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from foreword.core import Bos, Kind, KVPrefix, LayerShape, ModelIdentity, Task
from text.small_tokenizers import TOKENIZERS


@pytest.fixture
def byte_level() -> PreTrainedTokenizerFast:
    return TOKENIZERS["byte_level"]


@pytest.fixture
def metaspace() -> PreTrainedTokenizerFast:
    return TOKENIZERS["metaspace"]


@pytest.fixture
def wordpiece() -> PreTrainedTokenizerFast:
    return TOKENIZERS["wordpiece"]


@pytest.fixture(params=sorted(TOKENIZERS))
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@pytest.fixture
def make_task() -> Callable[..., Task]:
    """Builds a task whose prefix has ``length`` positions, or those of ``token_ids``."""

    def build(
        length: int = 0,
        *,
        token_ids: Sequence[int] | None = None,
        bos: Bos = "request",
        kind: Kind = "learned",
        text: str | None = None,
        template: str | None = None,
        verbalizer: Mapping[str, tuple[str, ...]] | None = None,
    ) -> Task:
        model = ModelIdentity("TinyForCausalLM", 4, 600, (LayerShape(1, 2, 2),), "null", "t", "w")
        ids = None if token_ids is None else tuple(token_ids)
        rows = torch.zeros(1, length if ids is None else len(ids), 2)
        prefix = KVPrefix(model, (rows,), (rows,), rows.shape[1], ids, bos)
        return Task("demo", "test", prefix, kind=kind, text=text, template=template, verbalizer=verbalizer)

    return build
