"""`Run`: a base model, a recipe and its data, from which everything else of a run follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import torch

from foreword.core import Bos, Head, KVPrefix, Task
from foreword.errors import SettingError
from foreword.models import LanguageModel
from foreword.prompts.base import Method, PromptEncoder
from foreword.prompts.lower import empty_prefix
from foreword.prompts.registry import get_method as find_method
from foreword.text.encoded_example import ConstantPrefix, ExampleEncoder
from foreword.text.label_scorers import HeadScorer, LabelScorer, word_scorer
from foreword.text.long_rows import LongRows
from foreword.text.rows import Row, data_digest
from foreword.training.compatibility import check_compatible
from foreword.training.data.class_weights import class_weights
from foreword.training.data.examples import BatchItem, Example, ExampleBuilder, batch_schedule
from foreword.training.data.target_scale import TargetScale
from foreword.training.data.training_data import TrainingData, evenly_spaced
from foreword.training.initialization import initial_head, initializer
from foreword.training.modules.head_losses import LabelSetLoss, RegressionLoss
from foreword.training.modules.losses import AnswerLoss, LabelLoss, Loss, SharedForwardLoss
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.recipe import Recipe
from foreword.version import __version__

# Evaluation rows that choose the best checkpoint, at most; the final metrics are over all of them.
VALIDATION_ROWS = 1000
# Peak learning rate of a head beside a method at its own rate, or alone.
HEAD_LR = 5e-3


@dataclass(frozen=True)
class Run:
    """Everything that a run is made from; nothing in it changes while it trains.

    It is a `foreword.training.loop.inputs.TrainerInputs`. Make one with `from_recipe`.

    Attributes:
        lm: the base model, frozen.
        recipe: the settings.
        data: rows, templates and labels.
        transfer: the task that ``init="task:NAME"`` names.
        shared_prefix: a frozen prefix in front of the trained one, and part of the served one.
        examples: the training rows in tokens.
    """

    lm: LanguageModel
    recipe: Recipe
    data: TrainingData
    transfer: Task | None = None
    shared_prefix: KVPrefix | None = None
    examples: Sequence[Example] = ()

    @classmethod
    def from_recipe(
        cls,
        lm: LanguageModel,
        recipe: Recipe,
        transfer: Task | None = None,
        data: TrainingData | None = None,
        shared_prefix: KVPrefix | None = None,
        like: Run | None = None,
    ) -> Run:
        """Read the data and check every row. Raises UsageError or a subclass, or ModelMismatch.

        Args:
            data: if it has been read already.
            like: a run on the same rows, whose examples are reused if they are the same tokens.
        """
        if transfer is not None:
            transfer.prefix.model.check(lm.identity, f"the task to start from, '{recipe.parent}',")
        if data is None:
            data = TrainingData.read(recipe, vocabulary=lm.has_lm_head)
        run = cls(lm, recipe, data, transfer, shared_prefix)
        check_compatible(lm, recipe, run.method, data)
        if run.method.soft and not data.num_soft_tokens and not lm.causal:
            run = replace(run, data=data.with_soft_tokens(run.length))
        if (long_rows := LongRows.parse(recipe.long_rows)).action != "refuse":
            run = replace(run, data=run.data.fit(long_rows, run.example_builder.row_fits))
        if like is not None and run._has_tokens_of(like):
            examples = like.examples
        else:
            examples = run.example_builder.build(run.data.train_rows)
        run.example_builder.build(run.data.eval_rows)  # now, so that none fails after an hour
        return replace(run, examples=examples)

    @cached_property
    def method(self) -> Method:
        return find_method(self.recipe.method, **self.recipe.method_options)

    def with_seed(self, seed: int) -> Run:
        """The same run with other random numbers, on the same rows."""
        return replace(self, recipe=replace(self.recipe, seed=seed))

    def with_steps(self, steps: int) -> Run:
        """The same run with another number of steps."""
        return replace(self, recipe=replace(self.recipe, max_steps=steps, epochs=None))

    @property
    def learns(self) -> bool:
        """Whether there is anything to train: a prompt or a head."""
        return self.method.learns or bool(self.data.head_labels)

    @cached_property
    def length(self) -> int:
        """Virtual tokens: the soft tokens of the template, ``--length``, those of ``--transfer``, or the method's."""
        slots = self.data.num_soft_tokens if self.method.soft else 0
        if slots and self.recipe.length not in (None, slots):
            raise SettingError(
                "length",
                f"--length {self.recipe.length} contradicts the {slots} soft tokens of the template; leave it out.",
            )
        return slots or self.recipe.length or self._default_length

    @property
    def _default_length(self) -> int:
        if self.transfer is None or not self.method.length:
            return self.method.length
        soft = self.transfer.soft
        return len(soft) if self.method.soft and soft is not None else self.transfer.prefix.length

    @cached_property
    def constant_prefix(self) -> ConstantPrefix:
        """The constant beginning of the template, for methods with soft tokens."""
        if self.data.template is None:
            return ConstantPrefix((), False)
        return ExampleEncoder(self.lm.tokenizer, self.lm.causal).constant_prefix(self.data.template)

    @cached_property
    def bos(self) -> Bos:
        """Whether prefix or request holds the beginning-of-text token."""
        if self.shared_prefix is not None:
            return self.shared_prefix.bos
        if self.transfer is not None and self.transfer.prefix.length and not self.method.soft:
            return self.transfer.prefix.bos
        return "prefix" if self.constant_prefix.has_text else "request"

    @cached_property
    def example_encoder(self) -> ExampleEncoder:
        lead = self.data.num_soft_tokens - self.data.num_inner_soft_tokens(self.lm.causal)
        return ExampleEncoder(
            self.lm.tokenizer, self.lm.causal, self.bos == "request", lead, self.lm.is_encoder_decoder
        )

    @cached_property
    def example_builder(self) -> ExampleBuilder:
        prefix_length = len(self.constant_prefix.token_ids) or (self.length if self.lm.causal else 0)
        prefix_length += self.shared_prefix.length if self.shared_prefix is not None else 0
        label_tokens = 0 if self.word_scorer is None else self.word_scorer.max_extra_tokens
        return ExampleBuilder(
            self.lm, self.data, self.example_encoder, prefix_length, label_tokens, self.recipe.max_length
        )

    @cached_property
    def word_scorer(self) -> LabelScorer | None:
        """Scores the words of the labels; ``None`` without a verbalizer."""
        verbalizer, template = self.data.verbalizer, self.data.template
        if verbalizer is None or template is None:
            return None
        lm, before = self.lm, template.before_answer
        verbalizer.check_token_rows(lm.tokenizer, lm.identity.vocab_size)
        return word_scorer(lm.tokenizer, verbalizer, before, causal=lm.causal, is_encoder_decoder=lm.is_encoder_decoder)

    @property
    def validation_set(self) -> list[Row]:
        """The rows that choose the best checkpoint, evenly over the evaluation rows."""
        return evenly_spaced(self.data.eval_rows, VALIDATION_ROWS)

    @property
    def steps(self) -> int:
        return self.recipe.steps(len(self.examples))

    @property
    def lr(self) -> float:
        return self.recipe.lr or self.method.lr or HEAD_LR

    @property
    def batch_size(self) -> int:
        return self.recipe.batch_size_for(len(self.examples))

    @property
    def batches(self) -> list[list[BatchItem]]:
        """A batch of `examples` for every step."""
        sizes = [example.num_tokens for example in self.examples]
        return batch_schedule(sizes, self.batch_size, self.steps, self.recipe.seed)

    def loss(self, prompt: TrainablePrompt) -> Loss:
        """The training loss; reads the head's values from the prompt."""
        return self.shared_loss(prompt)

    def shared_loss(self, prompt: TrainablePrompt) -> SharedForwardLoss:
        """`loss`, without an auxiliary loss that needs a forward of its own."""
        if not self.data.labels:
            return AnswerLoss()
        weights = class_weights(self.recipe, self.data)
        tensor = torch.tensor(list(weights.values())) if weights is not None else None
        if prompt.head is not None:
            scorer = HeadScorer(prompt.head.weight, prompt.head.bias)
            if self.target_scale is not None:
                return RegressionLoss(scorer, self.target_scale)
            several = self.data.problem_type == "multi_label_classification"
            return LabelSetLoss(scorer, tensor) if several else LabelLoss(scorer, tensor)
        assert self.word_scorer is not None
        return LabelLoss(self.word_scorer, tensor)

    def initial_prompt(self, encoder: PromptEncoder | None = None) -> TrainablePrompt:
        """All trainable values as they are before training. Raises UsageError if there is nothing to start from.

        Args:
            encoder: used as it is, with a new head; by default one of the run's method is made.
        """
        generator = torch.Generator().manual_seed(self.recipe.seed)
        if encoder is None:
            make = initializer(self.lm, self.recipe, self.method, self.data, self.transfer, self.length)
            values = replace(
                make(self.length, generator),
                constant_prefix=self.constant_prefix.token_ids if self._soft_slots else None,
                bos=self.bos,
                frozen_prefix=self.shared_prefix,
            )
            encoder = self.method.encoder(self.lm, values)
        labels = len(self.data.head_labels)
        head = initial_head(self.lm, labels, generator, bias=self.recipe.head_bias is not False) if labels else None
        # --lr makes both faster or slower.
        ratio = HEAD_LR / self.method.lr if self.method.lr else 1.0
        return TrainablePrompt(encoder, head, ratio, self.target_scale)

    @cached_property
    def target_scale(self) -> TargetScale | None:
        """The scale of the numbers to learn, of a regression. Raises DataError if all are equal."""
        if self.data.problem_type != "regression":
            return None
        centred = self.recipe.head_bias is not False
        return TargetScale.of([self.data.number(row) for row in self.data.train_rows], centred=centred)

    def task(self, name: str) -> Task:
        """The task without trained values: template, verbalizer and defaults."""
        data = self.data
        return Task(
            name=name,
            method=self.method.name,
            prefix=empty_prefix(self.lm),
            template=data.template.source if data.template is not None else None,
            verbalizer=dict(data.verbalizer.words) if data.verbalizer is not None else None,
            generation=self._generation(),
            head=self._zero_head(),
            label_field=data.label_field if data.labels else "label",
            provenance={
                "foreword": __version__,
                "data_sha256": data.digest,
                "recipe": self.recipe.to_json(),
                "parents": [self.recipe.parent] if self.recipe.parent is not None else [],
                **self.lm.origin,
            },
        )

    def settings(self) -> dict[str, Any]:
        """All that must be the same for a run to be resumed: contents count, not the paths they were read from."""
        data, recipe = self.data, self.recipe
        words = data.verbalizer.words if data.verbalizer is not None else {}
        return {
            **recipe.to_json(),
            "data": data.digest,
            "eval": data_digest(recipe.eval) if recipe.eval is not None else None,
            "unlabeled": data_digest(recipe.unlabeled) if recipe.unlabeled is not None else None,
            "template": [template.source for template in data.templates],
            "verbalizer": {label: list(spelled) for label, spelled in words.items()},
            "transfer": self.transfer.prefix.digest if self.transfer is not None else None,
            "warm_start": [data_digest(file) for file in recipe.warm_start or ()],
            "model": self.lm.identity.weights,
            "dtype": str(self.lm.dtype),
            **self.lm.origin,
        }

    def used(self) -> dict[str, Any]:
        """What the settings came to, and what the data were, for people who read the run's recipe."""
        recipe, settings, known = self.recipe, self.settings(), self.recipe.keys()
        options = {field.metadata.get("flag", field.name): field.name for field in fields(self.method)}
        learning = {
            "lr": self.lr,
            "batch_size": self.batch_size,
            "max_steps": self.steps,
            "epochs": round(self.steps * self.batch_size / max(1, len(self.examples)), 3),
        }
        return {
            "method": recipe.method,
            **{flag: getattr(self.method, name) for flag, name in options.items() if flag in known},
            "data": recipe.to_json()["data"],
            "data_sha256": settings["data"],
            "eval": recipe.to_json()["eval"],
            "eval_sha256": settings["eval"],
            "train_rows": len(self.data.train_rows),
            "eval_rows": len(self.data.eval_rows),
            "model": self.lm.name,
            "model_sha256": self.lm.identity.weights,
            "length": self.length,
            "init": self.method.init if recipe.init == "auto" and self.transfer is None else recipe.init,
            **(learning if self.learns else {}),
        }

    @property
    def _soft_slots(self) -> bool:
        """Whether the template says where soft tokens go."""
        return self.method.soft and self.data.num_soft_tokens > 0

    def _has_tokens_of(self, other: Run) -> bool:
        """Whether the examples of another run are those of this one, and fit into the context here."""
        same = (self.example_encoder, self.data.templates) == (other.example_encoder, other.data.templates)
        same = same and self.data.train_rows == other.data.train_rows
        return same and self.example_builder.fits(max(example.num_tokens for example in other.examples))

    def _generation(self) -> dict[str, Any]:
        """Sampling defaults of the task."""
        if self.data.labels:
            return {}
        # Twice the longest answer leaves room for new ones and still ends a model that rambles.
        defaults: dict[str, Any] = {"max_tokens": max(16, 2 * max(each.max_answer_tokens for each in self.examples))}
        if self.data.conversations:
            # A chat template may close turns with a token that the model has not been told to stop at.
            ends = {example.target[-1] for example in self.examples} - self.lm.eos_token_ids
            defaults |= {"stop_token_ids": sorted(ends)} if ends else {}
        return defaults

    def _zero_head(self) -> Head | None:
        """A head with the labels and zeros for values."""
        data, labels, width = self.data, self.data.head_labels, self.lm.identity.head_size
        if not labels:
            return None
        zeros = torch.zeros(len(labels), width), torch.zeros(len(labels))
        return Head(labels, *zeros, data.per_token, data.problem_type)
