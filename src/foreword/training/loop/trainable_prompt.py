"""`TrainablePrompt`: everything with trainable values in a run, and the task that it becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from foreword.core import Adapter, Front, Head, LowRank, Task
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.lower import lower


class TrainablePrompt(nn.Module):
    """A prompt encoder, and the head that is learned beside it, if any.

    The frozen model is no module of it, so that optimizer, checkpoints and distributed wrappers see only what is
    learned.

    Args:
        encoder: makes the front.
        head: ``[labels, hidden]`` linear layer in float32, or ``None``.
        pace: how many times the encoder's learning rate the head learns at.
    """

    def __init__(self, encoder: PromptEncoder, head: nn.Linear | None = None, pace: float = 1.0) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self._pace = pace

    def front(self) -> Front:
        """What the next forward needs, with gradients."""
        return self.encoder.front()

    def become(self, lm: LanguageModel, task: Task) -> Task:
        """``task`` with what has been learned so far: lowered, in the model's dtype, without gradients."""
        front = self.encoder.front()
        return replace(
            task,
            prefix=lower(lm, self.encoder),
            soft=self.encoder.soft_tokens(),
            adapter=_detached(front.adapter) if front.adapter is not None else None,
            head=self._head(task),
        )

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """What an optimizer takes: the encoder at ``lr``, the head at its own pace, each if it has anything to learn.

        A head begins at noise whatever the method, so that the small rate of a method that moves much at every step
        would leave it there.
        """
        rates = ((self.encoder, lr), (self.head, lr * self._pace))
        found = [([p for p in m.parameters() if p.requires_grad], rate) for m, rate in rates if m is not None]
        return [{"params": parameters, "lr": rate} for parameters, rate in found if parameters]

    @property
    def parameter_count(self) -> int:
        """How many numbers are learned."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def _head(self, task: Task) -> Head | None:
        if self.head is None or task.head is None:
            return None
        weight, bias = (tensor.detach().cpu().clone() for tensor in (self.head.weight, self.head.bias))
        return Head(task.head.labels, weight, bias, task.head.per_token)


def _detached(adapter: Adapter) -> Adapter:
    pairs = adapter.layers.items()
    return Adapter({n: LowRank(p.down.detach().clone(), p.up.detach().clone()) for n, p in pairs}, adapter.scale)
