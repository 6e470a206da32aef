"""The columns of the matrix: what is done with a model, and how far it is from plain Transformers in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from foreword.bench.conformance.on_llamacpp import on_llamacpp
from foreword.bench.conformance.on_vllm import on_vllm
from foreword.bench.conformance.subject import TEXTS, Subject, largest
from foreword.core import SamplingParams, Task
from foreword.engine.engine import Engine
from foreword.engine.protocol import Chunk, Request
from foreword.errors import BenchError
from foreword.interop.export import export_peft
from foreword.prompts.lower import empty_prefix, lower_tokens
from foreword.text.label_scorers import MaskScorer, WordScorer
from foreword.text.prompt import Prompt
from foreword.text.verbalizer import WordTrie
from foreword.training.loop.gradient_checkpointing import gradient_checkpointing

Figures = Mapping[str, Any]

# A word of one token, one of several, and one that is the beginning of another.
WORDS = ((0, (7,)), (1, (30, 31, 32)), (2, (30, 31)))
ANSWER = 8
# Behind the prefix that goes with them; of the static one also a part alone.
LENGTHS = (1, 13, 6)


def train(subject: Subject) -> Figures:
    """Logits and gradients behind something learned; a loss has both."""
    ours, theirs = subject.learned(), subject.learned()
    found, expected = subject.ours(ours), subject.theirs(theirs)
    return {
        "difference": largest(found, expected),
        "gradients": largest(_gradients(found, ours), _gradients(expected, theirs)),
    }


def checkpointing(subject: Subject) -> Figures:
    """Gradients with gradient checkpointing and without."""

    runs: list[nn.Module] = []
    hook = register_module_forward_pre_hook(lambda module, inputs: runs.append(module))

    def gradients(wanted: bool) -> tuple[list[Tensor], int]:
        runs.clear()
        learned = subject.learned()
        with gradient_checkpointing(subject.lm, wanted):
            found = _gradients(subject.ours(learned), learned)
        return found, len(runs)

    try:
        (found, run), (expected, run_once) = gradients(True), gradients(False)
    finally:
        hook.remove()
    # Equal gradients would say nothing if nothing had been forgotten and run again.
    if run <= run_once:
        raise BenchError(
            f"with checkpointing {run} modules ran, without {run_once}; the backward pass runs none again."
        )
    return {"difference": largest(found, expected)}


def engine(subject: Subject) -> Figures:
    """Requests with different prefixes together in the engine, each alone in Transformers."""
    with Engine(subject.lm, cache_bytes=1 << 20) as running, torch.no_grad():
        if not running.causal:
            return {"difference": _label_difference(subject, running)}
        requests = _requests(subject)
        answers = [_tokens(chunks) for chunks in running.generate(requests)]
        prompts = [Prompt(request.token_ids, request.prefix, request.prefix_length) for request in requests]
        scores = running.score(prompts, WordScorer(WordTrie.build(WORDS, len(WORDS))))
        logits = [_logits(subject, r, tokens[:-1])[-ANSWER:] for r, tokens in zip(requests, answers, strict=True)]
        expected = torch.stack([_word_scores(subject, request) for request in requests])
    lost = [_behind(rows, tokens) for rows, tokens in zip(logits, answers, strict=True)]
    return {
        "difference": max(*lost, float((scores - expected).abs().max())),
        "same_tokens": all(rows.argmax(-1).tolist() == t for rows, t in zip(logits, answers, strict=True)),
    }


def peft_round_trip(subject: Subject) -> Figures:
    """What is learned as a PEFT folder, in real PEFT around the stock model."""
    if find_spec("peft") is None:  # another Python may have it, but the model is in this one
        return {"missing": "PEFT is not installed beside Foreword"}
    import peft

    folder = subject.folder / "exported"
    learned = [tensor.detach() for tensor in subject.learned()]
    export_peft(subject.lm, _task(subject), folder)
    model: Any = peft.PeftModel.from_pretrained(subject.family.stock(subject.folder), str(folder)).eval()
    with torch.no_grad():
        return {"difference": largest(_by_peft(subject, model), subject.ours(learned))}


CHECKS: Mapping[str, Callable[[Subject], Figures]] = {
    "train": train,
    "checkpointing": checkpointing,
    "engine": engine,
    "peft": peft_round_trip,
    "vllm": on_vllm,
    "llamacpp": on_llamacpp,
}
"""What fills every column."""


def _gradients(logits: Sequence[Tensor], learned: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss that no symmetry of the logits leaves unchanged. Raises BenchError if none arrives."""
    loss = torch.stack([rows.square().mean() + rows[:, ::3].sum(-1).mean() for rows in logits]).sum()
    gradients = torch.autograd.grad(loss, list(learned), allow_unused=True)
    if all(gradient is None or not bool(gradient.any()) for gradient in gradients):
        raise BenchError("no gradient arrives at what is learned.")
    return [
        gradient if gradient is not None else torch.zeros_like(tensor)
        for gradient, tensor in zip(gradients, learned, strict=True)
    ]


def _requests(subject: Subject) -> list[Request]:
    """Without a prefix, behind two learned ones, behind a static one and behind the beginning of it."""
    short, long = subject.prefix(3, 1), subject.prefix(21, 2)
    static = lower_tokens(subject.lm, subject.tokens(15, 3))
    uses = [(None, 0), (short, 3), (static, 15), (long, 21), (static, 5), (short, 3)]
    sampling = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    return [
        Request(subject.tokens(LENGTHS[index % len(LENGTHS)], 10 + index), prefix, used, sampling)
        for index, (prefix, used) in enumerate(uses)
    ]


def _tokens(chunks: Sequence[Chunk]) -> list[int]:
    if chunks[-1].error is not None:
        raise BenchError(chunks[-1].error)
    return [token for chunk in chunks for token in chunk.token_ids]


def _logits(subject: Subject, request: Request, more: Sequence[int]) -> Tensor:
    """Logits of a request's tokens and of ``more``, by Transformers alone."""
    prefix, own = request.prefix, [*request.token_ids, *more]
    if prefix is not None and prefix.token_ids is not None:
        joined = [*prefix.token_ids[: request.prefix_length], *own]
        return subject.stock(input_ids=torch.tensor([joined])).logits[0, request.prefix_length :]
    return subject.stock(input_ids=torch.tensor([own]), past_key_values=subject.past(prefix)).logits[0]


def _behind(rows: Tensor, tokens: Sequence[int]) -> float:
    """By how much the logit of a chosen token is below the highest at most."""
    chosen = rows.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((rows.max(-1).values - chosen).max())


def _word_scores(subject: Subject, request: Request) -> Tensor:
    """Log-probability of every word behind a request, each joined to it and run alone."""
    scores = []
    for _, word in WORDS:
        rows = _logits(subject, request, word[:-1])[-len(word) :].log_softmax(-1)
        scores.append(rows.gather(1, torch.tensor(word)[:, None]).sum())
    return torch.stack(scores)


def _label_difference(subject: Subject, running: Engine) -> float:
    """Of an encoder's log-probabilities of two words at a place of the text."""
    labels = (7, 30)
    uses = [(None, 0), (subject.prefix(3, 1), 3), (subject.prefix(21, 2), 21)]
    prompts = [
        Prompt(subject.tokens(length, 10 + index), prefix, used, (length // 2,))
        for index, ((prefix, used), length) in enumerate(zip(uses, TEXTS, strict=True))
    ]
    found = running.score(prompts, MaskScorer(tuple((at, (token,)) for at, token in enumerate(labels)), len(labels)))
    expected = []
    for prompt in prompts:
        past = subject.past(prompt.prefix) if prompt.prefix is not None else None
        logits = subject.stock(input_ids=torch.tensor([prompt.token_ids]), past_key_values=past).logits[0]
        expected.append(logits[prompt.output_indices[0]].log_softmax(-1)[list(labels)])
    return float((found - torch.stack(expected)).abs().max())


def _task(subject: Subject) -> Task:
    if not subject.lm.is_encoder_decoder:
        return Task("exported", "p-tuning-v2", subject.prefix(len(subject.soft())))
    soft = subject.soft()
    words = {"yes": ("yes",), "no": ("no",)}
    template = f"{{soft:{len(soft)}}}{{text}}{{mask}}"
    return Task("exported", "prompt-tuning", empty_prefix(subject.lm), soft=soft, template=template, verbalizer=words)


def _by_peft(subject: Subject, model: Any) -> list[Tensor]:
    found = []
    for row, length in enumerate(TEXTS):
        ids = torch.tensor([subject.tokens(length, row)])
        if subject.lm.is_encoder_decoder:
            mask = torch.ones_like(ids)
            found.append(model(ids, attention_mask=mask, decoder_input_ids=subject.begun(row)).logits[0])
        else:
            found.append(model(input_ids=ids).logits[0, -length:])
    return found
