"""`TeacherLogits`: top-k log-probabilities of the teacher, the model behind the text, at every answer token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foreword.core import Front
from foreword.errors import TrainingError
from foreword.models import LanguageModel
from foreword.progress import Progress
from foreword.text.ragged import batch_by_tokens, make_batch
from foreword.training.distillation.document import Document
from foreword.training.distillation.self_study import SelfStudyConversation
from foreword.training.loop.atomic_write import atomic_write

# Tokens whose log-probabilities are kept at every place.
TOP_K = 64
# Tokens of the conversations of one forward.
MAX_BATCH_TOKENS = 512


@dataclass(frozen=True, eq=False)
class TeacherLogits:
    """The teacher's top-k tokens at every answer token of all conversations, concatenated.

    Attributes:
        starts: first place of every conversation, and the number of places; one more than there are conversations.
        token_ids: ``[places, k]`` int32, most probable first.
        logprobs: ``[places, k]`` float32; the remaining probability is that of all other tokens together.
    """

    starts: tuple[int, ...]
    token_ids: Tensor
    logprobs: Tensor

    def of_conversation(self, number: int) -> tuple[Tensor, Tensor]:
        """Token ids and log-probabilities ``[places, k]`` of one conversation."""
        part = slice(self.starts[number], self.starts[number + 1])
        return self.token_ids[part], self.logprobs[part]

    def save(self, file: Path) -> None:
        """Write them atomically."""
        tensors = {"starts": torch.tensor(self.starts), "token_ids": self.token_ids, "logprobs": self.logprobs}
        with atomic_write(file) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)

    @classmethod
    def load(cls, file: Path) -> TeacherLogits:
        """Inverse of `save`. Raises TrainingError for a damaged file."""
        try:
            tensors = load_file(file)
            return cls(tuple(tensors["starts"].tolist()), tensors["token_ids"], tensors["logprobs"])
        except (SafetensorError, KeyError) as error:
            raise TrainingError(f"{file} is damaged, so the run cannot be resumed; use another --out.") from error


@torch.inference_mode()
def teacher_logits(
    lm: LanguageModel, document: Document, conversations: Sequence[SelfStudyConversation], k: int = TOP_K
) -> TeacherLogits:
    """Run every conversation behind its chunk of the text."""
    k = min(k, lm.identity.vocab_size)
    token_ids = [torch.empty(0)] * len(conversations)
    logprobs = list(token_ids)
    with Progress("reading", len(conversations), "conversations") as progress:
        for numbers in conversation_batches(conversations):
            front = Front(document.chunks[conversations[numbers[0]].chunk].prefix)
            encoded = [conversations[number].encoded() for number in numbers]
            batch, places = make_batch(front, encoded, lm.device)
            logits = lm.logits(batch, places).float()
            top = logits.topk(k)
            sizes = [len(each.output_indices) for each in encoded]
            top_ids = top.indices.int().cpu().split(sizes)
            top_logprobs = (top.values - logits.logsumexp(-1, keepdim=True)).cpu().split(sizes)
            for number, ids, values in zip(numbers, top_ids, top_logprobs, strict=True):
                token_ids[number], logprobs[number] = ids, values
            progress.advance(len(numbers))
    starts = (0, *accumulate(map(len, token_ids)))
    return TeacherLogits(starts, torch.cat(token_ids), torch.cat(logprobs))


def conversation_batches(conversations: Sequence[SelfStudyConversation]) -> Iterator[list[int]]:
    """Batches of numbers of conversations, each about one chunk and of similar lengths."""
    sizes = [each.size for each in conversations]
    order = sorted(range(len(sizes)), key=lambda number: (conversations[number].chunk, sizes[number]))
    for _, group in groupby(order, key=lambda number: conversations[number].chunk):
        yield from batch_by_tokens([(number, sizes[number]) for number in group], MAX_BATCH_TOKENS)
