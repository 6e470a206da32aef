"""What every layer keeps, keys and values or states: learned directly (P-tuning v2) or through an MLP (prefix
tuning)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import torch
from torch import Tensor, nn

from foreword.core import Bos, Front, KVPrefix, ModelIdentity
from foreword.errors import SettingError, UsageError
from foreword.models import LanguageModel
from foreword.models.activations import activations
from foreword.models.past import append_keys_values
from foreword.prompts.base import PromptEncoder
from foreword.prompts.init import InitialValues
from foreword.prompts.reparam import Reparam, TrainableValues, projection


class PrefixValues(PromptEncoder):
    """Keys and values of ``P`` positions, as rows ``[P, T]`` that hold those of all layers side by side, and the states
    behind them.

    Args:
        prefix: initial values; offset and beginning-of-text rule stay as they are there.
        dtype: of the model.
        num_frozen: how many of the first positions are not trained.
        reparam: a network that the others are learned through; ``None`` trains them directly. States are always
            learned directly: they are no rows that a network could share its weights over.
    """

    still: Tensor

    def __init__(
        self, prefix: KVPrefix, dtype: torch.dtype, num_frozen: int = 0, reparam: Reparam | None = None
    ) -> None:
        super().__init__()
        rows = flatten_prefix(prefix)
        self.register_buffer("still", rows[:num_frozen].detach().to(dtype, copy=True))
        # The model's dtype may be wider than that of the values, as in a check of gradients.
        reparam = reparam if rows.shape[1] else None
        self.values = TrainableValues(rows[num_frozen:].to(torch.promote_types(rows.dtype, dtype)), reparam)
        self.states = nn.ParameterList(
            state.detach().to(_wide(state.dtype, dtype), copy=True, memory_format=torch.contiguous_format)
            for layer in prefix.states
            for state in layer.values()
        )
        self._state_dtypes = [{name: state.dtype for name, state in layer.items()} for layer in prefix.states]
        self._model, self._offset, self._dtype = prefix.model, prefix.offset, dtype
        self._bos: Bos = prefix.bos

    def front(self) -> Front:
        rows = torch.cat([self.still, self.values().to(self._dtype)])
        prefix = unflatten_prefix(rows, self._model, self._offset, self._bos, self._named_states())
        return Front(prefix=prefix)

    def _named_states(self) -> tuple[dict[str, Tensor], ...]:
        states = iter(self.states)
        return tuple({name: next(states).to(dtype) for name, dtype in layer.items()} for layer in self._state_dtypes)


def _wide(*dtypes: torch.dtype) -> torch.dtype:
    """The widest of some dtypes, float32 at least."""
    return reduce(torch.promote_types, dtypes, torch.float32)


def flatten_prefix(prefix: KVPrefix) -> Tensor:
    """``[P, T]``: a row holds keys, then values, of one position for every layer in turn."""
    pairs = zip(prefix.keys, prefix.values, strict=True)
    return torch.cat([tensor.transpose(0, 1).flatten(1) for pair in pairs for tensor in pair], dim=1)


def unflatten_prefix(
    rows: Tensor, model: ModelIdentity, offset: int, bos: Bos, states: tuple[dict[str, Tensor], ...] = ()
) -> KVPrefix:
    """Inverse of `flatten_prefix`, with views of ``rows``; ``states`` are those of `KVPrefix`."""
    heads = [(shape.kv_heads, dim) for shape in model.layers for dim in (shape.key_dim, shape.value_dim)]
    parts = rows.split([count * dim for count, dim in heads], dim=1)
    tensors = tuple(
        part.reshape(-1, *head).transpose(0, 1) if part.shape[1] else part.new_empty(head[0], len(rows), head[1])
        for part, head in zip(parts, heads, strict=True)
    )
    return KVPrefix(model, tensors[0::2], tensors[1::2], offset, bos=bos, states=states)


@dataclass(frozen=True)
class PTuningV2:
    """Learn the keys and values of ``length`` positions in every layer (Liu et al. 2022, arXiv:2110.07602).

    Starting from the activations of real text learns several times faster than from random values.

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="p-tuning-v2", length=64)
    >>> foreword.PTuningV2(projection=True).lr < foreword.PTuningV2().lr
    True

    Attributes:
        projection: learn them through an MLP, as `PrefixTuning` does.
        freeze_first: do not train the first position. Models attend to the first token whatever it says (an
            attention sink, Xiao et al. 2023, arXiv:2309.17453); it needs real tokens or another task to start from.
    """

    name: ClassVar[str] = "p-tuning-v2"
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    projection: bool = False
    freeze_first: bool = False

    @property
    def lr(self) -> float:
        """Default peak learning rate."""
        return PrefixTuning.lr if self.projection else 5e-3

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PrefixValues:
        """The trainable values of this method at their initial values."""
        if self.projection:
            return PrefixTuning(freeze_first=self.freeze_first).encoder(lm, start)
        return PrefixValues(initial_prefix(lm, start), lm.dtype, _num_frozen(self.freeze_first, start))


@dataclass(frozen=True)
class PrefixTuning:
    """Learn keys and values through an MLP that lowering leaves behind (Li and Liang 2021, arXiv:2101.00190).

    >>> recipe = foreword.Recipe(data="reviews.jsonl", method="prefix-tuning")
    >>> foreword.PrefixTuning(hidden=256).name
    'prefix-tuning'

    Attributes:
        hidden: width of its inner layer.
        freeze_first: see `PTuningV2`.
    """

    name: ClassVar[str] = "prefix-tuning"
    # An MLP moves all positions of all layers at once, so that its steps are small.
    lr = 4e-4
    length: ClassVar[int] = 32
    init: ClassVar[str] = "auto"
    soft: ClassVar[bool] = False
    learns: ClassVar[bool] = True
    hidden: int = 512
    freeze_first: bool = False

    def __post_init__(self) -> None:
        if self.hidden < 1:
            raise UsageError(f"--hidden must be at least 1, got {self.hidden}.")

    def encoder(self, lm: LanguageModel, start: InitialValues) -> PrefixValues:
        """The trainable values of this method at their initial values."""
        reparam = projection(lm.identity.hidden_size, self.hidden, start.generator)
        return PrefixValues(initial_prefix(lm, start), lm.dtype, _num_frozen(self.freeze_first, start), reparam)


def initial_prefix(lm: LanguageModel, start: InitialValues) -> KVPrefix:
    """Initial keys and values of ``length`` positions behind ``start.frozen_prefix``. Raises UsageError for none."""
    if start.length < 1:
        raise UsageError("there is no virtual token to learn; start from a task that has some, or leave --init out.")
    if start.prefix is not None:
        if start.frozen_prefix is not None:
            raise UsageError("another task's prefix cannot go behind a shared one; leave --init out.")
        return start.prefix.to(device=lm.device)
    if start.token_ids is not None:
        # The text begins like any other here; the beginning-of-text token stays with the request.
        found = activations(lm, start.token_ids, start.frozen_prefix)
    else:
        found = _random_prefix(lm, start)
        if start.frozen_prefix is not None:
            if lm.identity.keeps_states:
                raise SettingError(
                    "init", "--init random values cannot go behind a text in a model with states; use --init text."
                )
            found = append_keys_values(lm.identity, start.frozen_prefix, found.keys, found.values)
    return replace(found, bos=start.frozen_prefix.bos) if start.frozen_prefix is not None else found


def _num_frozen(freeze_first: bool, start: InitialValues) -> int:
    """How many of the first positions are not trained. Raises SettingError if ``freeze_first`` makes no sense."""
    if start.frozen_prefix is not None:
        return start.frozen_prefix.length
    if not freeze_first:
        return 0
    if start.prefix is None and start.token_ids is None:
        raise SettingError(
            "freeze_first", "--freeze-first would freeze random values; start from text (--init auto) or leave it out."
        )
    if start.length < 2:
        raise SettingError(
            "freeze_first", "--freeze-first leaves nothing to learn of one virtual token; use a larger --length."
        )
    return 1


def _random_prefix(lm: LanguageModel, start: InitialValues, spread: float = 0.1) -> KVPrefix:
    def draw(*shape: int) -> Tensor:
        return (spread * start.noise(shape, start.generator)).to(lm.device)

    shapes = lm.identity.layers
    keys = tuple(draw(shape.kv_heads, start.length, shape.key_dim) for shape in shapes)
    values = tuple(draw(shape.kv_heads, start.length, shape.value_dim) for shape in shapes)
    states = tuple({state.name: draw(*state.shape) for state in shape.states} for shape in shapes)
    return KVPrefix(lm.identity, keys, values, offset=start.length, states=states if lm.identity.keeps_states else ())
