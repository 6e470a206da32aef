"""`TriggerSearch`: which tokens of a trigger to exchange, by the gradient and by trying (Shin et al. 2020,
arXiv:2010.15980, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from random import Random

from torch import Tensor

from foreword.prompts.trigger import AutoPrompt, TriggerTokens
from foreword.text import seam
from foreword.text.template import Template
from foreword.training.data.examples import Example, ExampleBuilder, batch_schedule
from foreword.training.loop.losses import LabelLoss, mean_loss
from foreword.training.loop.trainable_prompt import TrainablePrompt
from foreword.training.methods.autoprompt.candidates import (
    CausalCandidates,
    MaskedCandidates,
    Trigger,
    in_front,
    inside,
    losses,
)
from foreword.training.methods.autoprompt.token_filter import SEAM, TokenFilter
from foreword.training.run import Run

# Steps unless --max-steps says otherwise.
STEPS = 20
# Tokens of a place that candidates are drawn from.
POOL = 128
# Candidates of a step that are tried again, and on how many batches.
FINALISTS = 4
FINAL = 3


@dataclass(frozen=True)
class TriggerSearch:
    """What every step needs; nothing in it changes.

    Attributes:
        run: over templates that begin with the seam.
        spelling: what a trigger may be.
        loss: what is to become smaller.
    """

    run: Run
    spelling: TokenFilter
    loss: LabelLoss

    @classmethod
    def of(cls, run: Run, learned: TrainablePrompt) -> TriggerSearch:
        """Of a run that chooses words."""
        assert run.material.verbalizer is not None
        templates = tuple(Template.parse(SEAM + template.source) for template in run.material.templates)
        seamed = Run(run.lm, run.recipe, replace(run.material, templates=templates), run.transfer)
        loss = seamed.loss(learned)
        assert isinstance(loss, LabelLoss)
        return cls(seamed, TokenFilter.of(run.lm, run.material.verbalizer), loss)

    @property
    def steps(self) -> int:
        return self.run.recipe.max_steps or STEPS

    @property
    def candidates(self) -> int:
        """Triggers that are tried a step."""
        assert isinstance(self.run.method, AutoPrompt)
        return self.run.method.candidates

    def step(self, number: int, tokens: TriggerTokens) -> float:
        """Exchange one token, or none if nothing is better; the loss of what is kept.

        Every candidate is tried on one batch; the best of them and what is there now compete on `FINAL` others, since
        the best of many on few rows is mostly the luckiest.
        """
        ahead, first, *more = self._batches[number * (2 + FINAL) : (number + 1) * (2 + FINAL)]
        rest = [example for batch in more for example in batch]
        candidates = self.promising(tokens, ahead, Random(f"{self.run.recipe.seed}/{number}"))
        best = self._losses(candidates, first).argsort()[:FINALISTS].tolist()
        finalists = [tokens.trigger, *(candidates[place] for place in best)]
        found = self._losses(finalists, rest)
        kept = int(found.argmin())
        tokens.change(finalists[kept])
        return float(found[kept])

    def promising(self, tokens: TriggerTokens, examples: Sequence[Example], source: Random) -> list[Trigger]:
        """Exchanges of one token that survive, in every place as many: drawn from those that would lower the loss most
        if it were a straight line (as in Zou et al. 2023, arXiv:2307.15043, since it is not)."""
        trigger, allowed = tokens.trigger, self.spelling.allowed
        best = self._gains(tokens, examples).topk(min(POOL, len(allowed)), dim=1).indices
        pools = [source.sample(allowed[row].tolist(), len(row)) for row in best]
        found: list[Trigger] = []
        for place, token in chain.from_iterable(map(enumerate, zip(*pools, strict=True))):
            changed = (*trigger[:place], token, *trigger[place + 1 :])
            if token != trigger[place] and self.spelling.survives(changed):
                found.append(changed)
            if len(found) == self.candidates:
                break
        return found

    def _losses(self, triggers: Sequence[Trigger], examples: Sequence[Example]) -> Tensor:
        lay_out = (in_front if self.run.lm.causal else inside)(self.run.lm, self.loss.choice())
        return losses(self.run.lm, self.loss, lay_out, triggers, examples)

    def _gains(self, tokens: TriggerTokens, examples: Sequence[Example]) -> Tensor:
        """``[length, allowed]``: how much every exchange would lower the loss, to first order (HotFlip, Ebrahimi et al.
        2018, arXiv:1712.06751)."""
        front, length = tokens.front(), len(tokens.trigger)
        values = front.soft if front.soft is not None else front.inner
        assert values is not None
        values.requires_grad_()
        mean_loss(self.loss, self.run.lm, front, examples).backward()
        assert values.grad is not None
        slope, here = values.grad[-length:].float(), values.detach()[-length:].float()
        return (slope * here).sum(-1, keepdim=True) - slope @ self._embedded.T

    @cached_property
    def _embedded(self) -> Tensor:
        """``[allowed, hidden]`` as they reach the first layer: some models scale embeddings on the way."""
        return self.run.lm.model.get_input_embeddings()(self.spelling.allowed).float()

    @cached_property
    def _examples(self) -> list[Example]:
        lm, run = self.run.lm, self.run
        longest = run.words.longest if run.words is not None else 0
        if lm.causal:
            ahead = len(seam.specials(lm.tokenizer)[0]) + run.length
            reader = ExampleBuilder(lm, run.material, CausalCandidates(lm.tokenizer), ahead, longest)
        else:
            reader = ExampleBuilder(
                lm, run.material, MaskedCandidates(lm.tokenizer, False, trigger=run.length), 0, longest
            )
        return reader.read(run.material.train_rows)

    @cached_property
    def _batches(self) -> list[list[Example]]:
        """For every step one batch for the gradient, one for all candidates and `FINAL` for the best of them."""
        sizes, recipe = [example.size for example in self._examples], self.run.recipe
        drawn = batch_schedule(sizes, recipe.batch_of(len(sizes)), self.steps * (2 + FINAL), recipe.seed)
        return [[self._examples[draw.place] for draw in batch] for batch in drawn]
