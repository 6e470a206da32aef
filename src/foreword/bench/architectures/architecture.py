"""`Architecture`: one of Transformers' own, and a tiny random model of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.auto import modeling_auto

from foreword.bench.architectures.tiny_config import PAD, tiny_configs
from foreword.errors import BenchError

KINDS: Mapping[str, tuple[Any, str]] = {
    "causal": (AutoModelForCausalLM, "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    "masked": (AutoModelForMaskedLM, "MODEL_FOR_MASKED_LM_MAPPING_NAMES"),
    "seq2seq": (AutoModelForSeq2SeqLM, "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES"),
}
"""The auto class of every kind, and Transformers' list of its architectures."""
PARAMETERS = 40_000_000


@dataclass(frozen=True)
class Architecture:
    """A model type of Transformers with the class that ``kind`` (causal, masked or seq2seq) has for it."""

    kind: str
    model_type: str
    class_name: str

    @classmethod
    def all(cls, kind: str) -> list[Architecture]:
        """Those that the installed Transformers has, by name."""
        names = getattr(modeling_auto, KINDS[kind][1])
        return [cls(kind, model_type, names[model_type]) for model_type in sorted(names)]

    def build(self, seed: int = 0) -> Any:
        """A tiny random model in float32 that has run once, in eval mode: the first configuration that can.

        Raises:
            ImportError: it needs a package that is not installed.
            BenchError: no configuration came out small.
            Exception: whatever Transformers raised for the last configuration.
        """
        auto, last = KINDS[self.kind][0], None
        for config in tiny_configs(CONFIG_MAPPING[self.model_type], self.kind):
            try:
                if isinstance(config, Exception):
                    raise config
                return _run_once(auto, config, seed)
            except ImportError:
                raise
            except Exception as error:
                last = error
        raise last or BenchError(f"{self.model_type} has no configuration.")


def _run_once(auto: Any, config: PreTrainedConfig, seed: int) -> Any:
    """The model of a configuration after one forward, if it is tiny."""
    with torch.device("meta"):
        count = sum(each.numel() for each in auto.from_config(copy.deepcopy(config)).parameters())
    if count > PARAMETERS:
        raise BenchError(f"{count / 1e6:.0f} million parameters are not tiny.")
    torch.manual_seed(seed)
    model = auto.from_config(config, attn_implementation="eager").float().eval().requires_grad_(False)
    randomize(model, torch.Generator().manual_seed(seed))
    inputs = example(model, torch.arange(6, 14)[None])
    with torch.no_grad():
        try:
            model(**inputs)
        except AttributeError:  # of a cache for which its configuration lacks something
            model(**inputs, use_cache=False)
    return model


def example(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a forward of the model needs at least."""
    if not getattr(model.config, "is_encoder_decoder", False):
        return {"input_ids": ids}
    return {"input_ids": ids, "decoder_input_ids": torch.full((len(ids), 1), PAD)}


def randomize(model: nn.Module, generator: torch.Generator) -> None:
    """Weights spread so wide that a lost prefix shows; gates and norms, which begin at 0 or 1, move a little."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.12 * noise if parameter.dim() > 1 else parameter + 0.05 * noise)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, and two more are special; for models that have none of their own."""
    alphabet = {symbol: index for index, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", pad_token="<pad>")
