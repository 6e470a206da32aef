"""`TeacherLogits`: what the teacher, who sees the text, expects behind every token of a conversation; computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.core import Front
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.progress import Progress
from foreword.text.encoded_example import EncodedExample
from foreword.text.ragged import batch_by_tokens, make_batch
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import Conversation

# Tokens whose logits are kept at every place.
TOP = 64
# Tokens of conversations that are run together.
AT_ONCE = 512


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """The most probable tokens at places of conversations, laid end to end.

    Attributes:
        starts: first place of every conversation, and how many places there are at the end.
        token_ids: ``[places, k]`` int32, best first.
        logprobs: ``[places, k]`` float32; what they leave of the probability is that of all other tokens together.
    """

    starts: tuple[int, ...]
    token_ids: Tensor
    logprobs: Tensor

    def of(self, number: int) -> tuple[Tensor, Tensor]:
        """Token ids and log-probabilities ``[places, k]`` of one conversation."""
        part = slice(self.starts[number], self.starts[number + 1])
        return self.token_ids[part], self.logprobs[part]

    def save(self, file: Path) -> None:
        """Whole or not at all."""
        partial = file.with_name(f".{file.name}")
        tensors = {"starts": torch.tensor(self.starts), "token_ids": self.token_ids, "logprobs": self.logprobs}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> TeacherLogits:
        """Inverse of `save`. Raises TrainingError for a damaged file."""
        try:
            found = load_file(file)
            return cls(tuple(found["starts"].tolist()), found["token_ids"], found["logprobs"])
        except (SafetensorError, KeyError) as error:
            raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.") from error


def read(conversation: Conversation) -> EncodedExample:
    """A conversation with every place where a token of it is predicted, behind the first."""
    ids = conversation.prompt + conversation.answer[:-1]
    return EncodedExample(ids, tuple(range(len(conversation.prompt) - 1, len(ids))))


@torch.inference_mode()
def teacher_logits(
    lm: LanguageModel, document: Document, conversations: Sequence[Conversation], top: int = TOP
) -> TeacherLogits:
    """Run every conversation behind the chunk that it is about."""
    top = min(top, lm.identity.vocab_size)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    with Progress("reading", len(conversations), "conversations") as progress:
        for numbers in batches(conversations):
            front = Front(document.chunks[conversations[numbers[0]].chunk].prefix)
            questions = [read(conversations[number]) for number in numbers]
            batch, places = make_batch(front, questions, lm.device)
            logits = lm.logits(batch, places).float()
            best = logits.topk(top)
            logprobs = best.values - logits.logsumexp(-1, keepdim=True)
            sizes = [len(question.output_indices) for question in questions]
            parts = zip(numbers, best.indices.int().cpu().split(sizes), logprobs.cpu().split(sizes), strict=True)
            found |= {number: (ids, values) for number, ids, values in parts}
            progress.advance(len(numbers))
    starts = [0]
    for number in range(len(conversations)):
        starts.append(starts[-1] + len(found[number][0]))
    ordered = [found[number] for number in range(len(conversations))]
    return TeacherLogits(tuple(starts), torch.cat([a for a, _ in ordered]), torch.cat([b for _, b in ordered]))


def batches(conversations: Sequence[Conversation]) -> Iterator[list[int]]:
    """Numbers of conversations about one chunk, of similar lengths, that are run together."""
    sizes = [len(read(each).token_ids) for each in conversations]
    order = sorted(range(len(sizes)), key=lambda number: (conversations[number].chunk, sizes[number]))
    for _, alike in groupby(order, key=lambda number: conversations[number].chunk):
        yield from batch_by_tokens([(number, sizes[number]) for number in alike], AT_ONCE)
