"""`model_info`: identity, tokenizer and context of a causal model, for engines that load its weights themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from foreword.core import LayerShape, ModelIdentity
from foreword.errors import UnsupportedModel
from foreword.home import default_model
from foreword.models.auto_classes import auto_class
from foreword.models.fingerprint import compute_identity
from foreword.models.load import load_config_and_tokenizer, pull
from foreword.models.positions import max_positions

TOKENS = 2


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """A causal model without its weights.

    Attributes:
        name: what the user called it; it is served under this name.
        folder: where its files are.
        tokenizer: its tokenizer.
        identity: checked against that of every prefix; the same that `load_model` finds.
        context: positions that it can take, prefix included; ``None`` without a limit.
        first_linear: name and ``[out, in]`` of the first `nn.Linear` within its layers; ``None`` if there is none.
    """

    name: str
    folder: Path
    tokenizer: Any
    identity: ModelIdentity
    context: int | None
    first_linear: tuple[str, tuple[int, int]] | None = None


def model_info(
    name: str | None = None,
    *,
    trust_remote_code: bool = False,
    progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
) -> ModelInfo:
    """Describe a model by its files; cache shapes come from a forward on the meta device, which computes nothing.

    The support probe does not run here: it ran in `load_model` when the prefix was made.

    Args: as for `load_model`.

    Raises:
        UnknownModel: there is no such model.
        UnsupportedModel: not a causal model, or one whose layers do not show.
    """
    name = name or default_model()
    folder = pull(name, progress)
    config, tokenizer = load_config_and_tokenizer(str(folder), name, trust_remote_code)
    auto = auto_class(config)
    if auto not in (AutoModelForCausalLM, AutoModelForMultimodalLM):
        raise UnsupportedModel(f"{name} is no causal model ({type(config).__name__}); serve it with --engine embedded.")
    try:
        with torch.device("meta"), torch.no_grad():
            # Some experts multiply in bfloat16 alone.
            model = auto.from_config(config, dtype=torch.bfloat16, trust_remote_code=trust_remote_code)
            model.config.pad_token_id = None  # with one, GPT-2 looks at the tokens, and on no device there are none
            ids = torch.zeros(1, TOKENS, dtype=torch.long)
            layers = model.eval()(input_ids=ids, use_cache=True).past_key_values.layers
            shapes = tuple(LayerShape(int(e.keys.shape[1]), e.keys.shape[-1], e.values.shape[-1]) for e in layers)
    except (TypeError, AttributeError, KeyError, ValueError, RuntimeError, NotImplementedError) as error:
        raise UnsupportedModel(f"{name} ({type(config).__name__}) shows no keys and values: {error!r}.") from error
    identity = compute_identity(model, tokenizer, shapes, folder)
    context = max_positions(config.get_text_config())
    return ModelInfo(name, folder, tokenizer, identity, context, _first_linear(model))


def _first_linear(model: nn.Module) -> tuple[str, tuple[int, int]] | None:
    linears = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    inner = ((name, (each.out_features, each.in_features)) for name, each in linears if ".layers." in name)
    return next(inner, None)
