"""`TrainablePrompt`: all trainable values of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from foreword.core import Adapter, Front, Head, LowRank, Task
from foreword.models import LanguageModel
from foreword.prompts.base import PromptEncoder
from foreword.prompts.lower import lower
from foreword.training.data.target_scale import TargetScale


class TrainablePrompt(nn.Module):
    """A prompt encoder, and the linear head that is trained beside it, if any.

    The frozen model is no submodule, so that optimizer, checkpoints and distributed wrappers see only what is trained.

    Args:
        encoder: makes the front.
        head: ``[labels, hidden]`` linear layer in float32, or ``None``.
        head_lr_ratio: learning rate of the head over that of the encoder.
        target_scale: of the numbers that the head of a regression learns.
    """

    def __init__(
        self,
        encoder: PromptEncoder,
        head: nn.Linear | None = None,
        head_lr_ratio: float = 1.0,
        target_scale: TargetScale | None = None,
    ) -> None:
        super().__init__()
        self._target_scale = target_scale
        self.encoder = encoder
        self.head = head
        self._head_lr_ratio = head_lr_ratio

    def front(self) -> Front:
        """Prefix, soft tokens and adapter for the next forward, with gradients."""
        return self.encoder.front()

    def to_task(self, lm: LanguageModel, task: Task) -> Task:
        """``task`` with the present values: lowered, in the model's dtype, without gradients."""
        front = self.encoder.front()
        return replace(
            task,
            prefix=lower(lm, self.encoder),
            soft=self.encoder.soft_tokens(),
            adapter=_detached(front.adapter) if front.adapter is not None else None,
            head=self._task_head(task),
        )

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimizer: the encoder at ``lr``, the head at its own rate; none without parameters.

        A head starts from noise whatever the method, and the small rate of a method that moves much at every step
        would leave it there.
        """
        rates = ((self.encoder, lr), (self.head, lr * self._head_lr_ratio))
        groups = [([p for p in m.parameters() if p.requires_grad], rate) for m, rate in rates if m is not None]
        return [{"params": parameters, "lr": rate} for parameters, rate in groups if parameters]

    @property
    def num_trainable_parameters(self) -> int:
        """Count of trainable numbers."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def _task_head(self, task: Task) -> Head | None:
        if self.head is None or task.head is None:
            return None
        weight, bias = (tensor.detach().cpu().clone() for tensor in (self.head.weight, self.head.bias))
        if self._target_scale is not None:
            weight, bias = self._target_scale.unfolded(weight, bias)
        return replace(task.head, weight=weight, bias=bias)


def _detached(adapter: Adapter) -> Adapter:
    pairs = adapter.layers.items()
    return Adapter({n: LowRank(p.down.detach().clone(), p.up.detach().clone()) for n, p in pairs}, adapter.scale)
