"""`TriggerSearch`: which tokens of a trigger to exchange, by the gradient and by trying (Shin et al. 2020,
arXiv:2010.15980, section 2.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from foreword.prompts.trigger import AutoPrompt, TriggerTokens
from foreword.text.template import Template
from foreword.training.candidates import AroundTrigger, BehindTrigger, Trigger, in_front, inside, losses
from foreword.training.data import Example, Reader, schedule
from foreword.training.learned import Learned
from foreword.training.losses import LabelLoss, mean_loss
from foreword.training.run import Run
from foreword.training.triggers import SEAM, Spelling

# Steps unless --max-steps says otherwise.
STEPS = 32
# Batches of training rows that candidates are tried on.
TRIED = 2


@dataclass(frozen=True)
class TriggerSearch:
    """What every step needs; nothing in it changes.

    Attributes:
        run: over templates that begin with the seam.
        spelling: what a trigger may be.
        loss: what is to become smaller.
    """

    run: Run
    spelling: Spelling
    loss: LabelLoss

    @classmethod
    def of(cls, run: Run, learned: Learned) -> TriggerSearch:
        """Of a run that chooses words."""
        assert run.material.verbalizer is not None
        templates = tuple(Template.parse(SEAM + template.source) for template in run.material.templates)
        seamed = Run(run.lm, run.recipe, replace(run.material, templates=templates), run.transfer)
        loss = seamed.loss(learned)
        assert isinstance(loss, LabelLoss)
        return cls(seamed, Spelling.of(run.lm, run.material.verbalizer), loss)

    @property
    def steps(self) -> int:
        return self.run.recipe.max_steps or STEPS

    @property
    def candidates(self) -> int:
        """Triggers that are tried a step."""
        assert isinstance(self.run.method, AutoPrompt)
        return self.run.method.candidates

    def step(self, number: int, tokens: TriggerTokens) -> float:
        """Exchange one token, or none if nothing is better; the loss of what is kept."""
        ahead, *tried = self._batches[number * (1 + TRIED) : (number + 1) * (1 + TRIED)]
        triggers = [tokens.trigger, *self.promising(tokens, ahead)]
        lay_out = (in_front if self.run.lm.causal else inside)(self.run.lm, self.loss.choice())
        found = losses(self.run.lm, self.loss, lay_out, triggers, [example for batch in tried for example in batch])
        kept = int(found.argmin())
        tokens.change(triggers[kept])
        return float(found[kept])

    def promising(self, tokens: TriggerTokens, examples: Sequence[Example]) -> list[Trigger]:
        """The exchanges of one token that would lower the loss most, were it a straight line; only such as survive."""
        trigger, allowed = tokens.trigger, self.spelling.allowed.tolist()
        found: list[Trigger] = []
        for flat in self._gains(tokens, examples).flatten().argsort(descending=True).tolist():
            place, index = divmod(flat, len(allowed))
            changed = (*trigger[:place], allowed[index], *trigger[place + 1 :])
            if changed != trigger and self.spelling.survives(changed):
                found.append(changed)
            if len(found) == self.candidates:
                break
        return found

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
        layout = BehindTrigger(lm.tokenizer) if lm.causal else AroundTrigger(lm.tokenizer, False, trigger=run.length)
        longest = run.words.longest if run.words is not None else 0
        return Reader(lm, run.material, layout, run.length, longest).read(run.material.train_rows)

    @cached_property
    def _batches(self) -> list[list[Example]]:
        """For every step one batch for the gradient, then `TRIED` for the candidates."""
        sizes, recipe = [example.size for example in self._examples], self.run.recipe
        drawn = schedule(sizes, recipe.batch_of(len(sizes)), self.steps * (1 + TRIED), recipe.seed)
        return [[self._examples[draw.place] for draw in batch] for batch in drawn]
