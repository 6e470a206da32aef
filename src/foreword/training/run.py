"""`Run`: a base model, a recipe and its data, from which everything else of a run follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from foreword.core import KVPrefix, Task
from foreword.errors import UsageError
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.base import Method, PromptEncoder
from foreword.prompts.lower import empty
from foreword.prompts.registry import method as find_method
from foreword.text.rows import Row, data_digest
from foreword.training.data import Example, Reader, schedule
from foreword.training.losses import Loss, answer_loss, label_loss
from foreword.training.material import Material
from foreword.training.recipe import Recipe
from foreword.version import __version__

# Rows that choose the best checkpoint; the final figures are over all of them.
HELD_ROWS = 1000
# Flags that mean nothing where nothing is learned.
LEARNING = ("length", "init_text", "lr", "epochs", "max_steps")


@dataclass(frozen=True)
class Run:
    """What a run is made from; nothing in it changes while it learns.

    Attributes:
        lm: the base model, frozen.
        recipe: the settings.
        material: the data.
        transfer: the prefix of the task that ``init="task:NAME"`` names.
    """

    lm: LanguageModel
    recipe: Recipe
    material: Material
    transfer: KVPrefix | None = None

    @classmethod
    def of(cls, lm: LanguageModel, recipe: Recipe, transfer: KVPrefix | None = None) -> Run:
        """Read the data and check every row. Raises UsageError and its kin, or ModelMismatch."""
        if transfer is not None:
            transfer.model.check(lm.identity, f"the task to start from, '{recipe.parent}',")
        run = cls(lm, recipe, Material.read(recipe), transfer)
        run._check_flags()
        run._check_rows()
        return run

    @cached_property
    def method(self) -> Method:
        return find_method(self.recipe.method)

    @property
    def learns(self) -> bool:
        """Whether the method has anything to learn."""
        return self.method.length > 0

    @cached_property
    def length(self) -> int:
        """Virtual tokens."""
        given = self.transfer.length if self.transfer is not None else self.method.length
        return self.recipe.length or given

    @cached_property
    def reader(self) -> Reader:
        bos = self.transfer.bos if self.transfer is not None and self.transfer.length else "request"
        return Reader(self.lm, self.material, self.length, bos)

    @cached_property
    def examples(self) -> list[Example]:
        """The training rows in tokens."""
        return self.reader.read(self.material.train_rows)

    @cached_property
    def held(self) -> list[Row]:
        """The rows that choose the best checkpoint, evenly over the evaluation rows."""
        rows = self.material.eval_rows
        count = min(HELD_ROWS, len(rows))
        return [rows[i * len(rows) // count] for i in range(count)]

    @property
    def steps(self) -> int:
        return self.recipe.steps(len(self.examples))

    @property
    def lr(self) -> float:
        return self.recipe.lr or self.method.lr

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_of(len(self.examples))

    @property
    def batches(self) -> list[list[int]]:
        """Places in `examples`, a batch a step."""
        return schedule([example.size for example in self.examples], self.batch_size, self.steps, self.recipe.seed)

    @cached_property
    def loss(self) -> Loss:
        return answer_loss if self.reader.trie is None else label_loss(self.reader.trie)

    def encoder(self) -> PromptEncoder:
        """A fresh encoder at its initial values. Raises UsageError if there is nothing to start from."""
        start = self._initializer()(self.length, torch.Generator().manual_seed(self.recipe.seed))
        return self.method.encoder(self.lm, start)

    def task(self, name: str) -> Task:
        """The task with an empty prefix: template, words and defaults, ready to be given what is learned."""
        material = self.material
        return Task(
            name=name,
            method=self.method.name,
            prefix=empty(self.lm),
            template=material.template.source,
            verbalizer=dict(material.verbalizer.words) if material.verbalizer is not None else None,
            generation=self._generation(),
            provenance={
                "foreword": __version__,
                "data_sha256": data_digest(self.recipe.data),
                "recipe": self.recipe.to_json(),
                "parents": [self.recipe.parent] if self.recipe.parent is not None else [],
            },
        )

    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be resumed: contents count, not the paths they were read from."""
        material, recipe = self.material, self.recipe
        words = material.verbalizer.words if material.verbalizer is not None else {}
        return {
            **recipe.to_json(),
            "data": data_digest(recipe.data),
            "eval": data_digest(recipe.eval) if recipe.eval is not None else None,
            "template": material.template.source,
            "verbalizer": {label: list(spelled) for label, spelled in words.items()},
            "transfer": self.transfer.digest if self.transfer is not None else None,
            "model": self.lm.identity.weights,
            "dtype": str(self.lm.dtype),
        }

    def _check_rows(self) -> None:
        """Read all of them now, so that none fails after an hour."""
        _ = self.examples
        self.reader.read(self.material.eval_rows)

    def _check_flags(self) -> None:
        ignored = [name for name in LEARNING if getattr(self.recipe, name) is not None]
        if not self.learns and (ignored or self.recipe.init != "auto"):
            flag = (ignored or ["init"])[0].replace("_", "-")
            raise UsageError(f"--method {self.method.name} learns nothing, so --{flag} would be ignored; leave it out.")

    def _generation(self) -> dict[str, Any]:
        if self.material.verbalizer is not None:
            return {}
        # Twice the longest answer leaves room for new ones and still ends a model that rambles.
        return {"max_tokens": max(16, 2 * max(len(example.target) for example in self.examples))}

    def _initializer(self) -> init.Initializer:
        recipe = self.recipe
        if recipe.init_text is not None:
            if recipe.init not in ("auto", "text"):
                raise UsageError(f"--init-text is for --init text, not --init {recipe.init}.")
            return init.text(self.lm, recipe.init_text)
        if self.transfer is not None:
            return init.transfer(self.transfer)
        kind = self.method.init if recipe.init == "auto" else recipe.init
        makers = self._makers()
        if kind not in makers:
            mend = "give it with --init-text" if kind == "text" else f"choose {', '.join(makers)}, text or task:NAME"
            raise UsageError(f"--init {kind} has nothing to start from; {mend}.")
        return makers[kind]()

    def _makers(self) -> dict[str, Callable[[], init.Initializer]]:
        return {
            # A little more text than the virtual tokens are likely to hold.
            "auto": lambda: init.text(self.lm, self.material.solved(budget=6 * self.length)),
            "random": lambda: init.random_values,
            "vocab": lambda: init.sampled_vocabulary(self.lm),
            "labels": lambda: init.text(self.lm, self.material.label_words()),
        }
