"""Tiny models as GGUF files beside their folders, and the engine on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foreword.bank.arrays import load_arrays
from foreword.bank.bank import Bank
from foreword.llamacpp.engine import LlamaCppEngine
from foreword.llamacpp.model import gguf_model
from loading.tiny_gguf import write_gguf
from on_vllm.houses import House, open_house, save_model


def gguf_house(family: str, place: Path) -> House:
    """A bank in front of a tiny random model; beside the model's folder lies ``model.gguf`` in float32."""
    house = open_house(save_model(family, place / "model"), place / "bank")
    write_gguf(house.lm, place / "model" / "model.gguf")
    return house


def edge_bank(house: House) -> Bank:
    """The house's bank as a process without PyTorch reads it."""
    return Bank(house.bank.place, load=load_arrays)


@contextmanager
def llamacpp_engine(house: House, **options) -> Iterator[LlamaCppEngine]:
    model = gguf_model(str(Path(house.folder) / "model.gguf"))
    with LlamaCppEngine(model, allow_other_weights=True, **options) as engine:
        yield engine
