"""`ModelIdentity`: architecture, geometry, tokenizer and weights of a model, compared before it gets a prefix."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foreword.errors import ModelMismatch


@dataclass(frozen=True)
class LayerShape:
    """Cache entry of one self-attention layer for one position: ``kv_heads`` keys of ``key_dim``, and as many values
    of ``value_dim``."""

    kv_heads: int
    key_dim: int
    value_dim: int


@dataclass(frozen=True)
class ModelIdentity:
    """Architecture, geometry, tokenizer and weights: a prefix fits a model whose identity agrees.

    Attributes:
        architecture: Transformers class name, such as ``LlamaForCausalLM``.
        hidden_size: width of an input embedding.
        vocab_size: rows of the input embedding.
        layers: shape of every self-attention layer, in the order in which the model runs them.
        rope: rotary parameters as canonical JSON (``null`` for models without).
        tokenizer: SHA-256 fingerprint of the tokenizer.
        weights: SHA-256 over tensor names, shapes and sampled stored values.
        lineage: digests of the files that this model was converted from; any one in common will do.
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    rope: str
    tokenizer: str
    weights: str
    lineage: tuple[str, ...] = ()

    def check(self, model: ModelIdentity, what: str, *, allow_other_weights: bool = False) -> None:
        """Raise `ModelMismatch` unless a prefix made for ``self`` may serve ``model``.

        Args:
            model: identity of the loaded model.
            what: how to name the prefix in the error, such as ``task 'sst2'``.
            allow_other_weights: accept another weights fingerprint (quantized copies), never another shape.
        """
        for name in ("architecture", "hidden_size", "vocab_size", "layers", "rope", "tokenizer"):
            made, found = getattr(self, name), getattr(model, name)
            if made != found and not (name == "rope" and _same_numbers(made, found)):
                raise ModelMismatch(
                    f"{what} was made for another model: {name} is {_short(made)}, the loaded model has "
                    f"{_short(found)}; load the model it was made for, or train it again on this one."
                )
        related = {self.weights, *self.lineage} & {model.weights, *model.lineage}
        if not related and not allow_other_weights:
            raise ModelMismatch(
                f"{what} was made for other weights of {self.architecture}: fingerprint {self.weights[:12]}, the "
                f"loaded model has {model.weights[:12]}; load the model it was made for, or pass "
                "--allow-other-weights if this is a converted copy of it."
            )

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "layers": [[s.kv_heads, s.key_dim, s.value_dim] for s in self.layers],
            "rope": self.rope,
            "tokenizer": self.tokenizer,
            "weights": self.weights,
            "lineage": list(self.lineage),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelIdentity:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            architecture=str(data["architecture"]),
            hidden_size=int(data["hidden_size"]),
            vocab_size=int(data["vocab_size"]),
            layers=tuple(LayerShape(*map(int, shape)) for shape in data["layers"]),
            rope=str(data["rope"]),
            tokenizer=str(data["tokenizer"]),
            weights=str(data["weights"]),
            lineage=tuple(map(str, data["lineage"])),
        )


def _same_numbers(one: str, other: str) -> bool:
    """Whether two JSON texts say the same: a whole number in one configuration is a fraction in another."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def _short(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], LayerShape):
        first = value[0]
        return f"{len(value)} layers of {first.kv_heads} x {first.key_dim}/{first.value_dim}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
