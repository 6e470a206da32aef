"""`TokenizedModel`: a model's tokenizer and limits without its weights, for what only counts tokens."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForMaskedLM

from foreword.errors import UnknownModel
from foreword.home import default_model, home
from foreword.models import gguf
from foreword.models.auto_classes import auto_classes
from foreword.models.load import load_config_and_tokenizer, resolve_source
from foreword.models.positions import max_positions


@dataclass(frozen=True, eq=False)
class TokenizedModel:
    """What of a `foreword.models.LanguageModel` follows from its configuration and tokenizer.

    Attributes:
        name, tokenizer, causal, is_encoder_decoder, context, has_lm_head, eos_token_ids: as there.
        vocab_size: rows of its input embedding.
    """

    name: str
    tokenizer: Any
    causal: bool
    is_encoder_decoder: bool
    context: int | None
    has_lm_head: bool
    vocab_size: int
    eos_token_ids: frozenset[int]

    @classmethod
    def load(
        cls,
        name: str | None = None,
        *,
        trust_remote_code: bool = False,
        progress: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    ) -> TokenizedModel:
        """Read configuration and tokenizer; the built-in model is not fetched for it.

        Raises UnknownModel, or UnsupportedModel for a model with code of its own that is not trusted.
        """
        name = name or default_model()
        if name == gguf.BUILTIN and not Path(home() / "models" / gguf.BUILTIN).is_dir():
            raise UnknownModel(f"{name} has not been fetched yet; run: foreword models pull {name}.")
        config, tokenizer = load_config_and_tokenizer(resolve_source(name, progress), name, trust_remote_code)
        text, auto = config.get_text_config(), auto_classes(config)
        is_encoder_decoder = bool(getattr(config, "is_encoder_decoder", False))
        causal = not is_encoder_decoder and AutoModelForMaskedLM not in auto
        masked = any(each.endswith("ForMaskedLM") for each in getattr(config, "architectures", None) or ())
        ends = getattr(text, "eos_token_id", None)
        return cls(
            name,
            tokenizer,
            causal,
            is_encoder_decoder,
            max_positions(text),
            causal or is_encoder_decoder or masked,
            text.vocab_size,
            frozenset(each for each in (ends if isinstance(ends, list) else [ends]) if each is not None),
        )
