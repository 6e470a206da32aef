"""`ArchitectureConformance`: every architecture of the installed Transformers, one tiny random model at a time."""

from __future__ import annotations

import json
import multiprocessing
import resource
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch
import transformers
from transformers.utils import logging

from foreword.bench.architectures import encoder_decoder_checks, prefix_checks
from foreword.bench.architectures.architecture import KINDS, Architecture, byte_tokenizer
from foreword.bench.architectures.plain_pair import TOLERANCE, Found, PlainPair, said
from foreword.bench.participants import EMBEDDED
from foreword.bench.record import Record
from foreword.bench.workload import Case, Goal, Log, Options, Workload
from foreword.errors import BenchError, ForewordError, UsageError
from foreword.models.load import load_model

Check = Callable[[PlainPair], Found]
CHECKS: Mapping[str, Check] = {
    "joined": prefix_checks.joined_text,
    "train": prefix_checks.train,
    "engine": prefix_checks.engine,
    "peft": prefix_checks.peft,
}
ENCODER_DECODER_CHECKS: Mapping[str, Check] = {
    "joined": encoder_decoder_checks.joined_text,
    "train": encoder_decoder_checks.train,
    "engine": encoder_decoder_checks.engine,
    "peft": encoder_decoder_checks.peft,
}
TRAINING = (prefix_checks.train, encoder_decoder_checks.train)
BYTES, SECONDS = 10 << 30, 300
GOALS = {"causal": 0.95, "masked": 0.9, "seq2seq": 0.95}


class ArchitectureConformance(Workload):
    """Which architectures carry prefixes, and whether they learn and answer as in plain Transformers.

    Args:
        kinds: names of `KINDS`.
        model_types: those alone; all without any.

    Raises:
        UsageError: there is no such kind or model type.
    """

    name = "architectures"
    engines = (EMBEDDED,)
    reads_data = False

    def __init__(self, kinds: Sequence[str] = tuple(KINDS), model_types: Sequence[str] = ()) -> None:
        if unknown := [kind for kind in kinds if kind not in KINDS]:
            raise UsageError(f"there is no kind {unknown[0]!r} of model; choose from {', '.join(KINDS)}.")
        known = [each for kind in kinds for each in Architecture.all(kind)]
        self.architectures = [each for each in known if not model_types or each.model_type in model_types]
        if missing := sorted(set(model_types) - {each.model_type for each in known}):
            raise UsageError(
                f"Transformers {transformers.__version__} has no {' or '.join(kinds)} model type {missing[0]!r}."
            )
        self._kinds = {each.kind for each in self.architectures}

    def cases(self, options: Options) -> list[Case]:
        settings = {"transformers": transformers.__version__, "dtype": "float32", "title": "architectures"}
        return [
            Case(f"{each.kind}/{each.model_type}", {**settings, "class": each.class_name}, self._measure(each))
            for each in self.architectures
        ]

    def goals(self, engine: str) -> Sequence[Goal]:
        return [Goal(f"{kind}/carried", share) for kind, share in GOALS.items() if kind in self._kinds]

    def values(self, records: Sequence[Record]) -> dict[str, float]:
        """Of every kind the share that carries prefixes among those that could be built."""
        found: dict[str, list[bool]] = {}
        for record in records:
            if "not_built" not in record.metrics:
                found.setdefault(record.key.partition("/")[0], []).append("carried" in record.metrics)
        return {f"{kind}/carried": sum(each) / len(each) for kind, each in found.items()}

    def _measure(self, architecture: Architecture) -> Any:
        def measure(options: Options, settings: Mapping[str, Any], log: Log) -> Mapping[str, Any]:
            del options, settings
            found = in_a_child(architecture)
            log(f"  {next(iter(found.values()))}")
            return found

        return measure


def in_a_child(architecture: Architecture) -> Mapping[str, Any]:
    """What `examine` finds, in a process with limits of its own."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_examine, args=(architecture, theirs))
    child.start()
    theirs.close()
    try:
        return ours.recv() if ours.poll(SECONDS) else {"failed": f"it was not done after {SECONDS} seconds."}
    except EOFError:
        return {"failed": f"its process ended, most likely for want of memory ({BYTES >> 30} GiB)."}
    finally:
        child.join(1)
        child.kill()
        child.join()
        ours.close()


def _examine(architecture: Architecture, answers: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)
    answers.send(examine(architecture))


def examine(architecture: Architecture) -> Found:
    """Why it is ``not_built``, ``refused`` or ``failed``; or how it is ``carried`` and what all its checks found."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = architecture.build()
    except Exception as error:
        return {"not_built": said(error)}
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.save_pretrained(folder)
            byte_tokenizer().save_pretrained(folder)
        except Exception as error:
            return {"not_built": f"it cannot be saved: {said(error)}"}
        found = _load_and_check(folder, type(model))
    return json.loads(json.dumps(found).replace(folder, "the model"))


def _load_and_check(folder: str, stock: Any) -> Found:
    try:
        lm = load_model(folder, dtype="float32", device="cpu", progress=lambda _: None)
    except ForewordError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": said(error)}
    # Loaded, too: some parameters are made anew and never saved.
    model = stock.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").requires_grad_(False)
    pair, checks = PlainPair(lm, model.eval()), ENCODER_DECODER_CHECKS if lm.is_encoder_decoder else CHECKS
    return {"carried": lm.carried, "checks": {name: run(check, pair) for name, check in checks.items()}}


def run(check: Check, pair: PlainPair) -> Found:
    """What a check found, what Foreword refuses there, or how it failed."""
    try:
        found = check(pair)
    except BenchError as error:
        return {"failed": str(error)}
    except ForewordError as error:
        return {"refused": str(error)}
    except Exception as error:
        return {"failed": said(error)}
    difference = found.get("difference")
    if difference is not None and check not in TRAINING and not difference < TOLERANCE:
        return {**found, "difference": None, "failed": f"differs by {difference:.1g} of the largest value."}
    return found
