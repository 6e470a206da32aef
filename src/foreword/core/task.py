"""`Task`: a prefix with everything that is served under its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from foreword.core.adapter import Adapter
from foreword.core.head import Head
from foreword.core.overview import Overview, WithOverview, join_some, metrics_line
from foreword.core.prefix import KVPrefix

if TYPE_CHECKING:
    import torch


Kind = Literal["learned", "system", "prompt"]
Combine = Literal["mean", "vote"]


@dataclass(frozen=True, eq=False, repr=False)
class Task(WithOverview):
    """A named prefix with its template, verbalizer and generation defaults: what a bank stores and a server serves.

    >>> task = foreword.Bank().load("mood")
    >>> task.name, task.labels
    ('mood', ('bad', 'good'))

    Attributes:
        name: ``[a-z0-9][a-z0-9._-]{0,63}``.
        method: how the prefix came to be, such as ``p-tuning-v2`` or ``static``.
        prefix: may have length 0 (a manual template, LoRA alone).
        kind: ``learned``, or for a static prefix ``system`` (a system turn) or ``prompt`` (raw text in front); a
            distilled prefix has no token ids and is of the kind of the text that it stands for.
        text: the text of a static task, or the one that a distilled prefix stands for.
        template: source of the template, if examples have fields.
        verbalizer: words of every label, in the order of the labels.
        generation: defaults for requests, named as in `SamplingParams`.
        provenance: where it came from: data digest, recipe, metrics, parents; JSON values only.
        soft: ``[S, hidden]`` learned soft tokens, the last of them those of the template's ``{soft:N}`` in order; or
            ``None``. The ones in front of the first field of a causal model are in the prefix too, and are kept for
            transfer; the others stay embeddings, which the engine feeds in place.
        adapter: low-rank changes of the model for this task's requests.
        head: labels a text or its words from hidden states, in place of a verbalizer.
        bias: log-probability of every label without any input, which scores are calibrated by.
        members: further prefixes with the same template; their answers are combined with the first one's.
        combine: by the mean of the members' probabilities, or by their vote.
        label_field: the field that held the label in the rows that it was learned from.
        ttl: seconds that it lives without being used; ``None`` for ever.
        version: ``NNNN-digest12``, set by the bank.
    """

    name: str
    method: str
    prefix: KVPrefix
    kind: Kind = "learned"
    text: str | None = None
    template: str | None = None
    verbalizer: Mapping[str, tuple[str, ...]] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    soft: torch.Tensor | None = None
    adapter: Adapter | None = None
    head: Head | None = None
    bias: Mapping[str, float] | None = None
    members: tuple[KVPrefix, ...] = ()
    combine: Combine = "mean"
    label_field: str = "label"
    ttl: int | None = None
    version: str = ""

    @property
    def ref(self) -> str:
        """``name@version``, or the name alone before it is published."""
        return f"{self.name}@{self.version}" if self.version else self.name

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels in the order of their scores; empty for a task that generates."""
        return self.head.labels if self.head is not None else tuple(self.verbalizer or ())

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        tensors = [t for t in (self.soft, *((self.head.weight, self.head.bias) if self.head else ())) if t is not None]
        own = sum(t.nbytes for t in tensors)
        adapter = self.adapter.nbytes if self.adapter is not None else 0
        return own + adapter + sum(prefix.nbytes for prefix in (self.prefix, *self.members))

    def overview(self) -> Overview:
        """Name, how it came to be, its parts and its measured metrics."""
        generation = ", ".join(f"{name} {value}" for name, value in self.generation.items())
        return Overview(
            f"Task {self.ref!r}",
            {
                "method": self.method if self.kind == "learned" else f"{self.method} ({self.kind})",
                "prefix": f"{self.prefix.length} positions, {self.nbytes:,} bytes in all",
                "text": self.text,
                "template": self.template,
                "labels": join_some(self.labels),
                "members": f"{1 + len(self.members)}, by {self.combine}" if self.members else None,
                "sampling": generation,
                "metrics": metrics_line(*(self.provenance.get(name) or {} for name in ("metrics", "metrics_before"))),
            },
        )
