"""`TriggerSearch`: steps of AutoPrompt's gradient-guided search (Shin et al. 2020, arXiv:2010.15980, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from random import Random

from torch import Tensor

from foreword.models.language_model import token_embeddings
from foreword.prompts.trigger import AutoPrompt, TriggerTokens
from foreword.text import seam
from foreword.text.template import Template
from foreword.training.data.examples import Example, ExampleBuilder, batch_schedule, examples_of
from foreword.training.methods.autoprompt.candidates import (
    CausalCandidateEncoder,
    MaskedCandidateEncoder,
    Trigger,
    candidate_losses,
)
from foreword.training.methods.autoprompt.token_filter import SEAM, TokenFilter
from foreword.training.modules.losses import LabelLoss, mean_loss
from foreword.training.modules.trainable_prompt import TrainablePrompt
from foreword.training.run import Run

# Steps unless --max-steps says otherwise.
STEPS = 20
# Tokens with the highest scores that the candidates of a position are drawn from.
TOP_K = 128
# Candidates of a step that are evaluated again, and on how many batches.
FINALISTS = 4
FINAL_BATCHES = 3


@dataclass(frozen=True)
class TriggerSearch:
    """The search's fixed inputs; the trigger is passed to every step.

    Attributes:
        run: over templates that begin with the seam; its examples have room for a candidate trigger.
        token_filter: accepts or rejects triggers.
        loss: is minimized.
    """

    run: Run
    token_filter: TokenFilter
    loss: LabelLoss

    @classmethod
    def from_run(cls, run: Run, prompt: TrainablePrompt) -> TriggerSearch:
        """The search of a run with a verbalizer."""
        assert run.data.verbalizer is not None
        templates = tuple(Template.parse(SEAM + template.source) for template in run.data.templates)
        seamed = Run(run.lm, run.recipe, replace(run.data, templates=templates), run.transfer)
        seamed = replace(seamed, examples=candidate_builder(seamed).build(run.data.train_rows))
        loss = seamed.loss(prompt)
        assert isinstance(loss, LabelLoss)
        return cls(seamed, TokenFilter.from_verbalizer(run.lm, run.data.verbalizer), loss)

    @property
    def steps(self) -> int:
        return self.run.recipe.max_steps or STEPS

    @property
    def num_candidates(self) -> int:
        """Triggers that are evaluated in a step."""
        assert isinstance(self.run.method, AutoPrompt)
        return self.run.method.candidates

    def step(self, number: int, tokens: TriggerTokens) -> float:
        """Replace one token, or none if nothing is better; returns the loss of the trigger that is kept.

        Every candidate is evaluated on one batch; the best of them and the present trigger compete on `FINAL_BATCHES`
        others, since the best of many on few rows is mostly the luckiest.
        """
        gradient_batch, first, *more = self._batches[number * (2 + FINAL_BATCHES) : (number + 1) * (2 + FINAL_BATCHES)]
        rest = [example for batch in more for example in batch]
        candidates = self.candidates(tokens, gradient_batch, Random(f"{self.run.recipe.seed}/{number}"))
        best = self._losses(candidates, first).argsort()[:FINALISTS].tolist()
        finalists = [tokens.trigger, *(candidates[index] for index in best)]
        losses = self._losses(finalists, rest)
        kept = int(losses.argmin())
        tokens.set_tokens(finalists[kept])
        return float(losses[kept])

    def candidates(self, tokens: TriggerTokens, examples: Sequence[Example], rng: Random) -> list[Trigger]:
        """Accepted triggers that differ in one token, as many for every position.

        They are drawn from the tokens with the highest scores (as in Zou et al. 2023, arXiv:2307.15043), since the
        scores are linear and the loss is not.
        """
        trigger, allowed = tokens.trigger, self.token_filter.allowed
        best = self._hotflip_scores(tokens, examples).topk(min(TOP_K, len(allowed)), dim=1).indices
        pools = [rng.sample(allowed[row].tolist(), len(row)) for row in best]
        candidates: list[Trigger] = []
        for place, token in chain.from_iterable(map(enumerate, zip(*pools, strict=True))):
            changed = (*trigger[:place], token, *trigger[place + 1 :])
            if token != trigger[place] and self.token_filter.accepts(changed):
                candidates.append(changed)
            if len(candidates) == self.num_candidates:
                break
        return candidates

    def _losses(self, triggers: Sequence[Trigger], examples: Sequence[Example]) -> Tensor:
        return candidate_losses(self.run.lm, self.loss, triggers, examples)

    def _hotflip_scores(self, tokens: TriggerTokens, examples: Sequence[Example]) -> Tensor:
        """``[length, allowed]``: how much every replacement would lower the loss, to first order (HotFlip, Ebrahimi et
        al. 2018, arXiv:1712.06751)."""
        front, length = tokens.front(), len(tokens.trigger)
        values = front.soft if front.soft is not None else front.inner_soft
        assert values is not None
        values.requires_grad_()
        mean_loss(self.loss, self.run.lm, front, examples).backward()
        assert values.grad is not None
        gradient, present = values.grad[-length:].float(), values.detach()[-length:].float()
        return (gradient * present).sum(-1, keepdim=True) - gradient @ self._embeddings.T

    @cached_property
    def _embeddings(self) -> Tensor:
        """``[allowed, hidden]`` as they reach the first layer: some models scale embeddings."""
        return token_embeddings(self.run.lm.model, self.token_filter.allowed).float()

    @cached_property
    def _batches(self) -> list[list[Example]]:
        """For every step a batch for the gradient, one for all candidates and `FINAL_BATCHES` for the best of them."""
        run, sizes = self.run, [example.num_tokens for example in self.run.examples]
        batches = batch_schedule(sizes, run.batch_size, self.steps * (2 + FINAL_BATCHES), run.recipe.seed)
        return [examples_of(run.examples, batch) for batch in batches]


def candidate_builder(run: Run) -> ExampleBuilder:
    """Builds examples without their triggers, which are put in front of them or into them later."""
    lm, label_tokens = run.lm, run.word_scorer.max_extra_tokens if run.word_scorer is not None else 0
    if lm.causal:
        prefix_length = len(seam.special_tokens(lm.tokenizer)[0]) + run.length
        return ExampleBuilder(lm, run.data, CausalCandidateEncoder(lm.tokenizer), prefix_length, label_tokens)
    encoder = MaskedCandidateEncoder(lm.tokenizer, False, trigger_length=run.length)
    return ExampleBuilder(lm, run.data, encoder, 0, label_tokens)
