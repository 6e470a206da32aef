"""`Run`: a base model, a recipe and its data, from which everything else of a run follows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from foreword.core import Bos, Head, KVPrefix, Task
from foreword.errors import SettingError, TemplateError
from foreword.models import LanguageModel
from foreword.prompts import init
from foreword.prompts.base import Method, PromptEncoder
from foreword.prompts.lower import empty
from foreword.prompts.registry import method as find_method
from foreword.text.encoded_example import ConstantPrefix, ExampleEncoder
from foreword.text.label_scorers import HeadScorer, LabelScorer, word_scorer
from foreword.text.rows import Row, data_digest
from foreword.training.data.class_weights import class_weights
from foreword.training.data.examples import BatchItem, Example, ExampleBuilder, batch_schedule
from foreword.training.data.training_data import TrainingData
from foreword.training.loop.losses import AnswerLoss, LabelLoss, Loss, SharedForwardLoss
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.encoder_decoder import check_encoder_decoder
from foreword.training.recipe import Recipe
from foreword.training.setting import flag_of
from foreword.version import __version__

# Rows that choose the best checkpoint; the final figures are over all of them.
HELD_ROWS = 1000
# Peak learning rate of a head beside a method at its own rate, or alone.
HEAD_LR = 5e-3
# Flags that mean nothing where nothing is learned.
LEARNING = ("length", "init_text", "lr", "epochs", "max_steps", "patience", "class_weights", "warm_start")


@dataclass(frozen=True)
class Run:
    """What a run is made from; nothing in it changes while it learns.

    Attributes:
        lm: the base model, frozen.
        recipe: the settings.
        material: the data.
        transfer: the task that ``init="task:NAME"`` names.
        behind: a shared prefix that stays as it is, in front of what is learned and part of what is served.
    """

    lm: LanguageModel
    recipe: Recipe
    material: TrainingData
    transfer: Task | None = None
    behind: KVPrefix | None = None

    @classmethod
    def of(
        cls,
        lm: LanguageModel,
        recipe: Recipe,
        transfer: Task | None = None,
        material: TrainingData | None = None,
        behind: KVPrefix | None = None,
        like: Run | None = None,
    ) -> Run:
        """Read the data and check every row. Raises UsageError and its kin, or ModelMismatch.

        Args:
            material: the data, where it has been read already.
            like: a run on the same rows; where its examples are the same tokens, they are shared.
        """
        if transfer is not None:
            transfer.prefix.model.check(lm.identity, f"the task to start from, '{recipe.parent}',")
        if material is None:
            material = TrainingData.read(recipe, vocabulary=lm.vocabulary)
        run = cls(lm, recipe, material, transfer, behind)
        if lm.decoder:
            check_encoder_decoder(lm, run.method, material)
        run._check_flags()
        if run.method.soft and not run.material.template.soft_tokens and not lm.causal:
            run = replace(run, material=material.with_soft(run.length))
        if like is not None and run._reads_as(like):
            run.__dict__["examples"] = like.examples  # as the cached property would keep its own
        run._check_rows()
        return run

    @cached_property
    def method(self) -> Method:
        return find_method(self.recipe.method, **self.recipe.options)

    @property
    def label(self) -> str:
        return self.method.name

    def with_seed(self, seed: int) -> Run:
        """The same run with other random numbers, on the same rows."""
        return replace(self, recipe=replace(self.recipe, seed=seed))

    def with_steps(self, steps: int) -> Run:
        """The same run with another number of steps."""
        return replace(self, recipe=replace(self.recipe, max_steps=steps, epochs=None))

    @property
    def learns(self) -> bool:
        """Whether there is anything to learn."""
        return self.method.learns or bool(self.material.head_labels)

    @cached_property
    def length(self) -> int:
        """Virtual tokens: those of the template, or as many as are asked for."""
        slots = self.material.template.soft_tokens if self.method.soft else 0
        if slots and self.recipe.length not in (None, slots):
            raise SettingError(
                "length",
                f"--length {self.recipe.length} contradicts the {slots} soft tokens of the template; leave it out.",
            )
        return slots or self.recipe.length or self._usual_length

    @property
    def _usual_length(self) -> int:
        if self.transfer is None or not self.method.length:
            return self.method.length
        soft = self.transfer.soft
        return len(soft) if self.method.soft and soft is not None else self.transfer.prefix.length

    @cached_property
    def lead(self) -> ConstantPrefix:
        """The constant beginning of the template, for methods that learn soft tokens."""
        return ExampleEncoder(self.lm.tokenizer, self.lm.causal).beginning(self.material.template)

    @cached_property
    def bos(self) -> Bos:
        """Where the beginning-of-text token is."""
        if self.behind is not None:
            return self.behind.bos
        if self.transfer is not None and self.transfer.prefix.length and not self.method.soft:
            return self.transfer.prefix.bos
        return "prefix" if self.lead.has_text else "request"

    @cached_property
    def layout(self) -> ExampleEncoder:
        template = self.material.template
        lead = template.soft_tokens - template.inner_soft(self.lm.causal)
        return ExampleEncoder(self.lm.tokenizer, self.lm.causal, self.bos == "request", lead, self.lm.decoder)

    @cached_property
    def reader(self) -> ExampleBuilder:
        longest = 0 if self.words is None else self.words.longest
        ahead = len(self.lead.token_ids) or (self.length if self.lm.causal else 0)
        ahead += self.behind.length if self.behind is not None else 0
        return ExampleBuilder(self.lm, self.material, self.layout, ahead, longest)

    @cached_property
    def words(self) -> LabelScorer | None:
        """How the words of the labels are scored; ``None`` without a verbalizer."""
        verbalizer, template = self.material.verbalizer, self.material.template
        if verbalizer is None:
            return None
        lm, before = self.lm, template.before_answer
        return word_scorer(lm.tokenizer, verbalizer, before, causal=lm.causal, decoder=lm.decoder)

    @property
    def examples(self) -> list[Example]:
        """The training rows in tokens."""
        return self._examples

    @cached_property
    def _examples(self) -> list[Example]:
        return self.reader.read(self.material.train_rows)

    @property
    def held(self) -> list[Row]:
        """The rows that choose the best checkpoint, evenly over the evaluation rows."""
        return self._held

    @cached_property
    def _held(self) -> list[Row]:
        rows = self.material.eval_rows
        count = min(HELD_ROWS, len(rows))
        return [rows[i * len(rows) // count] for i in range(count)]

    @property
    def steps(self) -> int:
        return self.recipe.steps(len(self.examples))

    @property
    def lr(self) -> float:
        return self.recipe.lr or self.method.lr or HEAD_LR

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_of(len(self.examples))

    @property
    def batches(self) -> list[list[BatchItem]]:
        """Draws from `examples`, a batch a step."""
        return batch_schedule(
            [example.size for example in self.examples], self.batch_size, self.steps, self.recipe.seed
        )

    def loss(self, learned: TrainablePrompt) -> Loss:
        """What is minimized; a head's values come from ``learned``."""
        return self.shared_loss(learned)

    def shared_loss(self, learned: TrainablePrompt) -> SharedForwardLoss:
        """The part of `loss` that others may share a forward with: all of it, mostly."""
        if not self.material.labels:
            return AnswerLoss()
        weights = class_weights(self.recipe, self.material)
        tensor = torch.tensor(list(weights.values())) if weights is not None else None
        words, head = self.words, learned.head
        if head is not None:
            return LabelLoss(lambda: HeadScorer(head.weight, head.bias), tensor)
        assert words is not None
        return LabelLoss(lambda: words, tensor)

    def learned(self) -> TrainablePrompt:
        """Everything trainable at its initial values. Raises UsageError if there is nothing to start from."""
        generator = torch.Generator().manual_seed(self.recipe.seed)
        start = self._initializer()(self.length, generator)
        start = replace(start, lead=self.lead.token_ids if self._slots else None, bos=self.bos, behind=self.behind)
        return self._learned(self.method.encoder(self.lm, start), generator)

    def learned_with(self, encoder: PromptEncoder) -> TrainablePrompt:
        """The same with an encoder that is there already; a head begins anew."""
        return self._learned(encoder, torch.Generator().manual_seed(self.recipe.seed))

    def _learned(self, encoder: PromptEncoder, generator: torch.Generator) -> TrainablePrompt:
        pace = HEAD_LR / self.method.lr if self.method.lr else 1.0  # --lr makes both faster or slower
        return TrainablePrompt(encoder, self._head(generator), pace)

    def task(self, name: str) -> Task:
        """The task before anything is learned: template, words and defaults."""
        material = self.material
        return Task(
            name=name,
            method=self.method.name,
            prefix=empty(self.lm),
            template=material.template.source,
            verbalizer=dict(material.verbalizer.words) if material.verbalizer is not None else None,
            generation=self._generation(),
            head=self._empty_head(),
            provenance={
                "foreword": __version__,
                "data_sha256": self.material.digest,
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
            "data": material.digest,
            "eval": data_digest(recipe.eval) if recipe.eval is not None else None,
            "unlabeled": data_digest(recipe.unlabeled) if recipe.unlabeled is not None else None,
            "template": [template.source for template in material.templates],
            "verbalizer": {label: list(spelled) for label, spelled in words.items()},
            "transfer": self.transfer.prefix.digest if self.transfer is not None else None,
            "warm_start": [data_digest(file) for file in recipe.warm_start or ()],
            "model": self.lm.identity.weights,
            "dtype": str(self.lm.dtype),
        }

    @property
    def _slots(self) -> bool:
        """Whether the template says where soft tokens go."""
        return self.method.soft and self.material.template.soft_tokens > 0

    def _reads_as(self, other: Run) -> bool:
        """Whether another run's examples are the same tokens, and fit here."""
        alike = (self.layout, self.material.templates) == (other.layout, other.material.templates)
        return alike and self.reader.has_room(max(example.size for example in other.examples))

    def _check_rows(self) -> None:
        """Read all of them now, so that none fails after an hour."""
        _ = self.examples
        self.reader.read(self.material.eval_rows)

    def _check_flags(self) -> None:
        ignored = [name for name in LEARNING if getattr(self.recipe, name) is not None]
        if not self.learns and (ignored or self.recipe.init != "auto"):
            key = (ignored or ["init"])[0]
            raise SettingError(
                key, f"--method {self.method.name} learns nothing, so {flag_of(key)} would be ignored; leave it out."
            )
        if self.recipe.length is not None and not self.method.length:
            raise SettingError("length", f"--method {self.method.name} has no virtual tokens, so leave --length out.")
        if self.material.template.soft_tokens and not self.method.soft:
            raise TemplateError(
                f"the template has {{soft:N}} slots, which --method {self.method.name} does not learn; take them out, "
                "or use p-tuning."
            )
        if self.recipe.calibrate and not self.material.labels:
            raise SettingError("calibrate", "--calibrate is for labels, and this run generates text; leave it out.")

    def _generation(self) -> dict[str, Any]:
        if self.material.labels:
            return {}
        # Twice the longest answer leaves room for new ones and still ends a model that rambles.
        answers = [target for example in self.examples for target in (example.target, *example.others)]
        return {"max_tokens": max(16, 2 * max(map(len, answers)))}

    def _empty_head(self) -> Head | None:
        """A head that knows its labels and nothing else."""
        if not self.material.head_labels:
            return None
        labels = self.material.head_labels
        width = self.lm.identity.hidden_size
        return Head(labels, torch.zeros(len(labels), width), torch.zeros(len(labels)), self.material.per_token)

    def _head(self, generator: torch.Generator) -> nn.Linear | None:
        if not self.material.head_labels:
            return None
        width = self.lm.identity.hidden_size
        head = nn.Linear(width, len(self.material.head_labels), dtype=torch.promote_types(self.lm.dtype, torch.float32))
        with torch.no_grad():
            head.weight.copy_(0.02 * torch.randn(head.weight.shape, generator=generator))
            head.bias.zero_()
        return head.to(self.lm.device)

    def _initializer(self) -> init.Initializer:
        recipe = self.recipe
        if recipe.init_text is not None:
            if recipe.init not in ("auto", "text"):
                raise SettingError("init_text", f"--init-text is for --init text, not --init {recipe.init}.")
            return init.text(self.lm, recipe.init_text)
        if self.transfer is not None:
            return init.transfer(self.transfer, soft=self.method.soft)
        kind = self.method.init if recipe.init == "auto" else recipe.init
        makers = self._makers()
        if kind not in makers:
            mend = "give it with --init-text" if kind == "text" else f"choose {', '.join(makers)}, text or task:NAME"
            raise SettingError("init", f"--init {kind} has nothing to start from; {mend}.")
        return makers[kind]()

    def _makers(self) -> dict[str, Callable[[], init.Initializer]]:
        return {
            # A little more text than the virtual tokens are likely to hold.
            "auto": lambda: init.text(self.lm, self.material.solved(budget=6 * self.length)),
            "random": lambda: init.random_values,
            "uniform": lambda: init.uniform_values,
            "vocab": lambda: init.sampled_vocabulary(self.lm),
            "labels": lambda: init.text(self.lm, self.material.label_words()),
        }
