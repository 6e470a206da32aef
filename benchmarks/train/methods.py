"""The methods that are trained side by side, and how each is the same function here and in PEFT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TrainMethod:
    """One method.

    Attributes:
        name: in Foreword.
        length: virtual tokens.
        lr: learning rate, constant, of both sides.
        peft_type: its name in PEFT.
        peft_options: of PEFT's configuration.
        names: beginnings of the names of our values, and of the same values in PEFT's prompt encoder.
        faster, leaner: the goals, as ratios of samples a second and of peak memory.
    """

    name: str
    length: int
    lr: float
    peft_type: str
    faster: float
    leaner: float
    peft_options: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=lambda: {"inputs": "embedding.weight"})

    def peft_name(self, name: str) -> str:
        """What PEFT calls one of our values."""
        for ours, theirs in self.names.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        raise KeyError(name)


# Width of the inner layer of prefix tuning's MLP, in place of PEFT's default, which is the width of the keys.
PREFIX_HIDDEN = 512
_LSTM = {
    "inputs": "embedding.weight",
    "network.0.lstm.": "lstm_head.",
    "network.1.": "mlp_head.0.",
    "network.3.": "mlp_head.2.",
}
_MLP = {"inputs": "embedding.weight", "network.0.": "transform.0.", "network.2.": "transform.2."}

# At these rates float32 decides the curves; prompt tuning at 0.02 shows how sums were rounded instead.
METHODS: Mapping[str, TrainMethod] = {
    method.name: method
    for method in (
        TrainMethod("prompt-tuning", 100, 5e-3, "PROMPT_TUNING", faster=3.0, leaner=2.5),
        TrainMethod(
            "p-tuning",
            100,
            1e-5,
            "P_TUNING",
            faster=3.0,
            leaner=2.5,
            peft_options={"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.0},
            names=_LSTM,
        ),
        TrainMethod(
            "prefix-tuning",
            32,
            1e-4,
            "PREFIX_TUNING",
            faster=2.0,
            leaner=1.6,
            peft_options={"prefix_projection": True, "encoder_hidden_size": PREFIX_HIDDEN},
            names=_MLP,
        ),
        TrainMethod("p-tuning-v2", 32, 5e-3, "PREFIX_TUNING", faster=2.0, leaner=1.6),
    )
}
