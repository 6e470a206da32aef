"""`check_gradients`: proof, when a model is loaded, that gradients reach all that may be learned in front of it.

Some layers run without an error and pass no gradient on, such as those of weights that a library has packed or rounded
for inference: what is learned through them would keep the value that it began with, or follow a part of its gradient.
Called by `load_model` after the support probe, for every way in which a model carries prefixes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from foreword.adapters import linear_width
from foreword.core import Batch, Front, soft_id
from foreword.errors import TrainingError, UnsupportedModel
from foreword.models.activations import activations
from foreword.models.language_model import LanguageModel, token_embeddings

PREFIX_TOKENS = 3
SOFT_TOKENS = 2
ROW_TOKENS = 3
TOLERANCE = 0.1
"""Share by which the gradient of a linear layer may miss: quantized ones round what goes in."""


@dataclass(frozen=True)
class _Call:
    """One call of a module whose input had a gradient to be found.

    Attributes:
        outputs: the floating-point ones that require gradients.
        meant: gradients were on; an indexer, for one, chooses keys without.
        single: there is one output; a router, which may have the widths of a linear layer, has several.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    meant: bool
    single: bool

    @property
    def linear_kind(self) -> tuple[Any, ...] | None:
        """Alike in linear layers that have the same backward; ``None`` for other modules and those without one."""
        if linear_width(self.module) is None or not self.outputs or not self.single:
            return None
        weight = getattr(self.module, "weight", None)
        return type(self.module), type(weight), getattr(weight, "dtype", None), type(self.outputs[0].grad_fn)

    def passes_gradient(self) -> bool:
        """Whether the backward of a linear layer alone agrees with its forward on half the input.

        What half the input takes away from the output, sent back, must weigh as much along that half as it is long.
        One that is not linear, for all its widths (a router), is asked for any gradient at all.
        """
        x = _required(_floats((*self.args, *self.kwargs.values())))[0].detach().requires_grad_()
        more = self.args[1:], self.kwargs if self.args else {}
        with torch.enable_grad():  # anew, since models write into outputs
            sizes = (x, 0.5 * x, 0.25 * x)
            output, half, quarter = (_floats(self.module(each, *more[0], **more[1]))[0] for each in sizes)
            change, further = (output - half).detach(), (half - quarter).detach()
        length = float(change.float().square().sum())
        bend = float((change.float() - 2 * further.float()).square().sum())
        (gradient,) = torch.autograd.grad(output, x, change, allow_unused=True)
        if bend > TOLERANCE * length:
            return gradient is not None and bool(gradient.any())
        along = float((gradient.float() * 0.5 * x.detach().float()).sum()) if gradient is not None else 0.0
        return abs(along - length) <= TOLERANCE * length

    def depends_on_input(self) -> bool:
        """Whether the outputs change with the input; a rotary embedding reads no more of it than its dtype."""
        try:
            pairs = zip(_floats(self._run(1.0)), _floats(self._run(0.5)), strict=True)
        except (TypeError, ValueError, RuntimeError):
            return True  # it cannot be run apart from its model
        return any(not torch.equal(a, b) for a, b in pairs)

    def _run(self, by: float) -> Any:
        """The outputs for an input of another size."""
        args = [_scaled(each, by) for each in self.args]
        return self.module(*args, **{name: _scaled(each, by) for name, each in self.kwargs.items()})


def check_gradients(lm: LanguageModel) -> None:
    """Run one short row forward and backward, and follow the gradients; once for a model.

    Every key and value of a prefix, and the soft tokens of the row, must get a gradient. Residual connections would
    hide a module that passes none on, so every module that computes from the row's tokens is looked at, and every kind
    of linear layer alone. It costs about a quarter of the time that loading a model on a CPU takes, so a model that is
    loaded to serve goes without, and a run on such a model begins with it (`LanguageModel.passes_gradients`).

    Raises:
        UnsupportedModel: a gradient is lost, or is no number; the sentence names where.
    """
    if lm.passes_gradients:
        return
    front, learned = _front(lm)
    batch, indices = _batch(lm, front)
    with torch.enable_grad(), _recorded_calls(lm.model) as calls:
        try:
            outputs = (lm.logits if lm.has_lm_head else lm.hidden_states)(batch, indices)
        except TrainingError as error:
            raise _refusal(lm, "its own forward turns gradients off in some of its layers") from error
    names = {module: name for name, module in lm.model.named_modules()}
    one_of_each = {call.linear_kind: call for call in calls if call.linear_kind is not None}.values()
    for call in calls:
        if not call.outputs and call.meant and call.depends_on_input():
            raise _refusal(lm, f"its layer {names[call.module]} ({type(call.module).__name__}) passes none on")
    for call in one_of_each:
        if not call.passes_gradient():
            raise _refusal(lm, f"that of its layer {names[call.module]} ({type(call.module).__name__}) is wrong")
    try:
        found = _gradients([outputs], list(learned.values())) if outputs.requires_grad else [None] * len(learned)
    except RuntimeError as error:  # such as a tensor that was changed in place
        raise _refusal(lm, f"its backward fails with {str(error).splitlines()[0]!r}") from error
    for what, gradient in zip(learned, found, strict=True):
        if gradient is None or not bool(gradient.any()):
            raise _refusal(lm, f"none reaches {what}")
        if not bool(gradient.isfinite().all()):
            raise _refusal(lm, f"that of {what} is no number")
    lm.passes_gradients = True


def _front(lm: LanguageModel) -> tuple[Front, dict[str, Tensor]]:
    """A prefix and soft tokens of real text, and every tensor that may be learned by its name."""
    soft, learned = None, {}
    if lm.is_encoder_decoder or "inputs_embeds" in signature(lm.model.forward).parameters:
        soft = token_embeddings(lm.model, torch.tensor(_token_ids(lm, SOFT_TOKENS), device=lm.device))
        soft = learned["the soft tokens"] = soft.detach().requires_grad_()
    if lm.is_encoder_decoder:
        return Front(inner_soft=soft), learned
    prefix = activations(lm, _token_ids(lm, PREFIX_TOKENS)).map(lambda kept: kept.detach().requires_grad_())
    for layer, (key, value) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
        if value.numel():  # what an indexer chooses by has keys alone, and no gradient
            learned |= {f"the keys of layer {layer}": key, f"the values of layer {layer}": value}
    for layer, states in enumerate(prefix.states):
        learned |= {f"the state {name} of layer {layer}": state for name, state in states.items()}
    return Front(prefix, inner_soft=soft), learned


def _batch(lm: LanguageModel, front: Front) -> tuple[Batch, Tensor]:
    """One row with soft tokens behind the front, and the tokens whose outputs are read."""
    soft = map(soft_id, range(SOFT_TOKENS)) if front.inner_soft is not None else ()
    row = [*soft, *_token_ids(lm, ROW_TOKENS)]
    if lm.is_encoder_decoder:
        # The decoder may have a vocabulary of its own (FSMT).
        words = getattr(lm.model.config.get_text_config(decoder=True), "vocab_size", lm.vocab_size)
        answer = [token % words for token in _token_ids(lm, ROW_TOKENS)]
        indices = torch.arange(len(row) - 1, len(row) + len(answer), device=lm.device)
        return Batch.from_rows(front, [row, answer], (None, 0), lm.device), indices
    return Batch.from_rows(front, [row], device=lm.device), torch.arange(len(row), device=lm.device)


def _token_ids(lm: LanguageModel, count: int) -> list[int]:
    """Ids spread over the vocabulary; the lowest are often special tokens, which some models do not attend to."""
    rows = lm.vocab_size
    return [(rows // 3 + step * 7919) % rows for step in range(count)]


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[_Call]]:
    """All calls of modules with a floating-point input that requires gradients, and a floating-point output."""
    calls: list[_Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if _required(_floats((*args, *kwargs.values()))) and _floats(output):
            found, single = _required(_floats(output)), isinstance(output, Tensor)
            calls.append(_Call(module, args, kwargs, found, torch.is_grad_enabled(), single))

    hooks = [module.register_forward_hook(record, with_kwargs=True) for module in model.modules()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _scaled(value: Any, by: float) -> Any:
    return value * by if isinstance(value, Tensor) and value.requires_grad else value


def _gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    """Gradients of a random sum of the outputs, which no normalization makes constant."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(each.shape, generator=generator).to(each) for each in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights, retain_graph=True, allow_unused=True))


def _floats(value: Any) -> list[Tensor]:
    """The floating-point tensors of an output or of arguments."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [each for item in value.values() for each in _floats(item)]
    if isinstance(value, tuple | list):
        return [each for item in value for each in _floats(item)]
    return []


def _required(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [each for each in tensors if each.requires_grad]


def _refusal(lm: LanguageModel, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"gradients are lost in {lm.name}: {what}, so what is learned in front of it would not be what the loss asks "
        "for; load it unquantized or in another quantization, or for serving alone with is_trainable=False."
    )
