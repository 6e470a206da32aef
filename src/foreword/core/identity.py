"""`ModelIdentity`: architecture, geometry, tokenizer and weights of a model, compared before it gets a prefix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from foreword.core.json_reader import parse_json
from foreword.errors import ModelMismatch


@dataclass(frozen=True)
class StateShape:
    """One state of a layer that recurs or convolves: its name in the layer, and its shape for one sequence."""

    name: str
    shape: tuple[int, ...]


PARTS = ("", "cross-attention", "encoder")


@dataclass(frozen=True)
class LayerShape:
    """What one layer keeps of a sequence: for every position ``kv_heads`` keys of ``key_dim`` and as many values of
    ``value_dim`` where it attends (no heads where it does not), and ``states`` where it recurs or convolves.

    ``part`` is ``cross-attention`` or ``encoder`` in an encoder-decoder, for layers that are not those of its decoder's
    self-attention; a prefix may leave all of them out (`ModelIdentity.decoder_only`).
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    states: tuple[StateShape, ...] = ()
    part: str = ""

    def to_json(self) -> list[Any]:
        """``[kv_heads, key_dim, value_dim]``, and behind it an object of name to shape if there are states, or the part
        of an encoder-decoder."""
        states = {state.name: list(state.shape) for state in self.states}
        return [self.kv_heads, self.key_dim, self.value_dim, *([states] if states else []), *filter(None, [self.part])]

    @classmethod
    def from_json(cls, data: Sequence[Any]) -> LayerShape:
        """Inverse of `to_json`. Raises TypeError or ValueError on anything else."""
        heads, key_dim, value_dim, *more = data
        part = more.pop() if more and isinstance(more[-1], str) else ""
        if part not in PARTS:
            raise ValueError(f"no part of an encoder-decoder is called {part!r}")
        (states,) = more or ({},)
        return cls(
            int(heads),
            int(key_dim),
            int(value_dim),
            tuple(StateShape(str(name), tuple(map(int, shape))) for name, shape in dict(states).items()),
            part,
        )


@dataclass(frozen=True)
class ModelIdentity:
    """Architecture, geometry, tokenizer and weights: a prefix fits a model whose identity agrees.

    Attributes:
        architecture: Transformers class name, such as ``LlamaForCausalLM``.
        hidden_size: width of an input embedding.
        vocab_size: rows of the input embedding.
        layers: what every layer keeps, in the order in which the model runs them.
        rope: rotary parameters as canonical JSON (``null`` for models without).
        tokenizer: SHA-256 fingerprint of the tokenizer.
        weights: SHA-256 over tensor names, shapes and sampled stored values.
        lineage: digests of the files that this model was converted from; any one in common will do.
        output_size: width of a final hidden state, if it is not that of an input embedding (ALBERT, ELECTRA).
    """

    architecture: str
    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    rope: str
    tokenizer: str
    weights: str
    lineage: tuple[str, ...] = ()
    output_size: int | None = None

    @property
    def head_size(self) -> int:
        """Width of what a head reads: a final hidden state."""
        return self.output_size if self.output_size is not None else self.hidden_size

    @property
    def writes(self) -> bool:
        """Whether its class writes texts, by the name that Transformers gives to such classes."""
        return self.architecture.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration"))

    def check(self, model: ModelIdentity, what: str, *, allow_other_weights: bool = False) -> None:
        """Raise `ModelMismatch` unless a prefix made for ``self`` may serve ``model``.

        Args:
            model: identity of the loaded model.
            what: how to name the prefix in the error, such as ``task 'sst2'``.
            allow_other_weights: accept another weights fingerprint (quantized copies), never another shape.
        """
        for name in ("architecture", "hidden_size", "vocab_size", "layers", "rope", "tokenizer"):
            made, found = getattr(self, name), getattr(model, name)
            if name == "layers" and made == model.decoder_only.layers:
                continue
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

    @property
    def decoder_only(self) -> ModelIdentity:
        """The identity of prefixes that stand in the decoder's self-attention alone; itself but for an
        encoder-decoder."""
        if not any(layer.part for layer in self.layers):
            return self
        return replace(self, layers=tuple(layer for layer in self.layers if not layer.part))

    def to_json(self) -> dict[str, Any]:
        return {
            "architecture": self.architecture,
            "hidden_size": self.hidden_size,
            "vocab_size": self.vocab_size,
            "layers": [shape.to_json() for shape in self.layers],
            "rope": self.rope,
            "tokenizer": self.tokenizer,
            "weights": self.weights,
            "lineage": list(self.lineage),
            **({"output_size": self.output_size} if self.output_size is not None else {}),
        }

    @property
    def keeps_states(self) -> bool:
        """Whether a layer recurs or convolves, so that what is kept of a text can be neither cut nor moved."""
        return any(layer.states for layer in self.layers)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelIdentity:
        """Inverse of `to_json`. Raises KeyError, TypeError or ValueError on anything else."""
        return cls(
            architecture=str(data["architecture"]),
            hidden_size=int(data["hidden_size"]),
            vocab_size=int(data["vocab_size"]),
            layers=tuple(map(LayerShape.from_json, data["layers"])),
            rope=str(data["rope"]),
            tokenizer=str(data["tokenizer"]),
            weights=str(data["weights"]),
            lineage=tuple(map(str, data["lineage"])),
            output_size=int(data["output_size"]) if data.get("output_size") is not None else None,
        )


def describe_layers(layers: Sequence[LayerShape]) -> str:
    """``30 layers of 3 x 64/64``, and how many of them keep states."""
    attending = [layer for layer in layers if layer.kv_heads]
    states = sum(bool(layer.states) for layer in layers)
    heads = f" of {attending[0].kv_heads} x {attending[0].key_dim}/{attending[0].value_dim}" if attending else ""
    parts = ((name, sum(layer.part == name for layer in layers)) for name in PARTS[1:])
    if apart := [f"{count} of the {name}" for name, count in parts if count]:
        return f"{len(layers)} layers{heads}, {' and '.join(apart)}"
    if not states:
        return f"{len(layers)} layers{heads}"
    return f"{len(layers)} layers, {len(attending)} with keys{heads}, {states} with states"


def _same_numbers(one: str, other: str) -> bool:
    """Whether two JSON texts say the same: a whole number in one configuration is a fraction in another."""
    try:
        return parse_json(one) == parse_json(other)
    except ValueError:
        return False


def _short(value: object) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], LayerShape):
        return describe_layers(value)
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
