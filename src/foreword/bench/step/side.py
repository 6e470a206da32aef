"""The embedded engine, stepped by hand, and the matrix products in the same process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foreword.bench.material import windows
from foreword.bench.step.by_hand import Side
from foreword.bench.step.products import Bandwidth, Products, Shapes
from foreword.engine.engine import Engine
from foreword.models.load import load_model, pull


def start(settings: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    """Load the model; make the engine without a thread, and the products' weights."""
    lm = load_model(settings["model"], dtype=settings["dtype"], device="cpu")
    products = Products(Shapes.of(lm.model.config.get_text_config()), lm.dtype)
    prompts = windows(lm.tokenizer, settings["text"], settings["batch"], settings["prompt_tokens"])
    side = Side(Engine(lm, start=False, reuse=False), prompts)
    return {
        "bandwidth": Bandwidth(),
        "begin": side.begin,
        "folder": lambda: str(pull(settings["model"], print)),
        "prefill": side.prefill,
        "products": products.seconds,
        "prompts": lambda: prompts,
        "step": side.step,
        "weights": lambda: products.nbytes,
    }
