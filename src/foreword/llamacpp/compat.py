"""The only place that knows llama.cpp's own names: `Session` is a loaded model with its cache.

The library is llama-cpp-python's; of it the plain C interface is used and nothing else.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from foreword.errors import EngineError, UnsupportedModel, UsageError
from foreword.llamacpp.sequence_state import TYPES

PACKAGE = "llama-cpp-python"
KNOWN = ((0, 3, 36), (0, 3, 37))
"""Versions, from and below, whose sequence states have the layout in `foreword.llamacpp.sequence_state`."""

SEQUENCES = 256
"""As many as llama.cpp can tell apart."""

_ERROR, _CONTINUED = 4, 5  # levels of its log
_NORMAL, _NEOX = 0, 2  # how it rotates keys: neighbours, or halves


@cache
def library() -> Any:
    """llama.cpp, silent but for errors.

    Raises UsageError if it is not installed, or not in a version that is known here.
    """
    check_version()
    llama_cpp = import_module("llama_cpp.llama_cpp")
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_log(llama_cpp), ctypes.c_void_p())
    return llama_cpp


def check_version() -> None:
    """Raise UsageError unless llama.cpp is installed in a version that is known here."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UsageError("llama.cpp is not installed; run: pip install 'foreword[llamacpp]'") from None
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not KNOWN[0] <= numbers < KNOWN[1]:
        first, last = (".".join(map(str, bound)) for bound in KNOWN)
        raise UsageError(
            f"{PACKAGE} {version} is not known here, whose states of sequences may be others; install one from {first} "
            f"on and below {last}."
        )


def library_files() -> list[Path]:
    """The shared libraries of llama.cpp, found without loading one; it must be installed."""
    override = os.environ.get("LLAMA_CPP_LIB_PATH")  # as llama-cpp-python reads it
    spec = find_spec("llama_cpp")
    places = [override] if override else [f"{place}/lib" for place in (spec and spec.submodule_search_locations) or ()]
    return sorted(file for place in places for file in Path(place).glob("*") if file.is_file())


def model_params(llama_cpp: Any, system_info: str) -> Any:
    """How a model is loaded: llama.cpp's defaults, but without its extra buffers where it was compiled with AMX.

    Args:
        system_info: what ``llama_print_system_info`` says.
    """
    params = llama_cpp.llama_model_default_params()
    # GCC 12 takes the writes of the tile configuration for dead and drops them: the first product of more than 32 rows
    # ends the process with SIGILL. Products get to AMX through weights in an extra buffer only.
    if "AMX_INT8 = 1" in system_info:
        params.use_extra_bufts = False
    return params


def _log(llama_cpp: Any) -> Any:
    last = [0]

    def write(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        level = last[0] if level == _CONTINUED else level
        last[0] = level
        if level >= _ERROR:
            os.write(2, text)

    callback = llama_cpp.llama_log_callback(write)
    _KEPT.append(callback)  # the library calls it for as long as the process lives
    return callback


_KEPT: list[Any] = []


class TokenBatch:
    """A batch on its way to the library: positions, sequences, and tokens or their embeddings.

    Args:
        size: rows at most.
        width: of an embedding; 0 for tokens.

    Attributes:
        tokens: ``[size]`` ids.
        embeds: ``[size, width]`` in their place.
        positions, sequences: ``[size]``.
        wanted: ``[size]``: 1 where logits are to be read.
        count: rows that are filled.
    """

    def __init__(self, size: int, width: int = 0) -> None:
        self.tokens = np.zeros(size, np.int32)
        self.embeds = np.zeros((size, width), np.float32)
        self.positions = np.zeros(size, np.int32)
        self.sequences = np.zeros(size, np.int32)
        self.wanted = np.zeros(size, np.int8)
        self.count = 0
        self._counts = np.ones(size, np.int32)
        base, step = self.sequences.ctypes.data, self.sequences.itemsize
        self._pointers = np.array([base + step * row for row in range(size)], np.uintp)

    def batch(self, llama_cpp: Any) -> Any:
        """The library's own struct, which points into this one."""
        names = {
            "pos": self.positions,
            "n_seq_id": self._counts,
            "seq_id": self._pointers,
            "logits": self.wanted,
            **({"embd": self.embeds} if self.embeds.size else {"token": self.tokens}),
        }
        kinds = dict(llama_cpp.llama_batch._fields_)
        pointers = {name: ctypes.cast(array.ctypes.data, kinds[name]) for name, array in names.items()}
        return llama_cpp.llama_batch(n_tokens=self.count, **pointers)


class Session:
    """A model and one context, for one thread at a time.

    Args:
        file: the model.
        dtype: of the cache, one of `foreword.llamacpp.sequence_state.TYPES`.
        cells: positions of its cache, over all sequences.
        rows: tokens of a batch at most.
        outputs: of them at most so many are followed by logits.

    Attributes:
        vocab_size, hidden_size: of the model.
        dtype: of its cache.
        cells: positions of its cache; the library rounds them up.
        tokens, embeds: batches to fill and `decode`, of tokens and of embeddings.

    Raises:
        UnsupportedModel: no causal model whose cache holds a key and a value for every position.
        EngineError: it could not be loaded.
    """

    def __init__(self, file: Path, *, dtype: np.dtype, cells: int, rows: int, outputs: int) -> None:
        self._c, self.dtype = library(), dtype
        params = model_params(self._c, self._c.llama_print_system_info().decode())
        self._model = self._c.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise EngineError(f"llama.cpp could not load {file}; what it printed says why.")
        try:
            self._check_kind(file)
            self._context = self._c.llama_init_from_model(self._model, self._params(cells, rows, outputs))
            if not self._context:
                raise EngineError(
                    f"llama.cpp could not make a cache of {cells} positions for {file.name}; give it fewer with "
                    "--max-model-len, or free some memory."
                )
        except BaseException:
            self._c.llama_model_free(self._model)
            raise
        self._memory = self._c.llama_get_memory(self._context)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model)))
        self.hidden_size = int(self._c.llama_model_n_embd(self._model))
        self.cells = int(self._c.llama_n_ctx(self._context))
        self.rows, self.outputs = rows, outputs
        self.tokens, self.embeds = TokenBatch(rows), TokenBatch(rows, self.hidden_size)

    def _params(self, cells: int, rows: int, outputs: int) -> Any:
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = cells, SEQUENCES, True
        params.n_batch = params.n_ubatch = rows
        params.n_outputs_max = max(outputs, SEQUENCES)  # it makes room for one of every sequence in any case
        params.n_threads = params.n_threads_batch = _cores()
        params.type_k = params.type_v = TYPES[self.dtype]
        params.flash_attn_type = int(self.dtype == np.float16)  # it would round a float32 cache to float16
        params.no_perf = True
        return params

    def _check_kind(self, file: Path) -> None:
        c, model = self._c, self._model
        reasons = {
            "it is an encoder-decoder": c.llama_model_has_encoder(model),
            "it keeps more than keys and values": c.llama_model_is_recurrent(model) or c.llama_model_is_hybrid(model),
            "it fills in texts instead of continuing them": c.llama_model_is_diffusion(model),
            "its layers look back through sliding windows, which drop the cells of a prefix that others still need": (
                c.llama_model_n_swa(model) > 0
            ),
        }
        if reason := next((text for text, holds in reasons.items() if holds), None):
            raise UnsupportedModel(f"{file.name} cannot be served on llama.cpp: {reason}; use --engine embedded.")
        if c.llama_model_rope_type(model) not in (_NORMAL, _NEOX):
            raise UnsupportedModel(
                f"{file.name} cannot be served on llama.cpp: its keys are not rotated by neighbours or halves, so how "
                "they lie cannot be proved; use --engine embedded."
            )

    @property
    def interleaved(self) -> bool:
        """Whether the library says that it rotates neighbours in a key; else halves."""
        return self._c.llama_model_rope_type(self._model) == _NORMAL

    def decode(self, rows: TokenBatch) -> None:
        """Run a batch. Raises EngineError if the library does not."""
        status = self._c.llama_decode(self._context, rows.batch(self._c))
        if status:
            raise EngineError(f"llama.cpp did not run a batch of {rows.count} tokens (status {status}).")

    def logits(self, row: int) -> np.ndarray:
        """Logits ``[vocab]`` float32 behind a row of the last batch that wanted them; the next batch changes them."""
        pointer = self._c.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise EngineError(f"llama.cpp has no logits of row {row}.")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def share(self, source: int, target: int, length: int) -> None:
        """Let a sequence begin with the first ``length`` positions of another; nothing is copied."""
        self._c.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def drop(self, sequence: int) -> None:
        """Empty a sequence."""
        self._c.llama_memory_seq_rm(self._memory, sequence, -1, -1)

    def state(self, sequence: int) -> bytes:
        """What a sequence keeps, see `foreword.llamacpp.sequence_state`."""
        size = self._c.llama_state_seq_get_size(self._context, sequence)
        buffer = (ctypes.c_uint8 * size)()
        if self._c.llama_state_seq_get_data(self._context, buffer, size, sequence) != size:
            raise EngineError("llama.cpp did not give the state of a sequence.")
        return bytes(buffer)

    def restore(self, sequence: int, state: bytes) -> None:
        """Replace what a sequence keeps. Raises EngineError if the library refuses it."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self._c.llama_state_seq_set_data(self._context, buffer, len(state), sequence) != len(state):
            raise EngineError(f"llama.cpp did not take a prefix of {len(state):,} bytes.")

    def close(self) -> None:
        """Free model and cache."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)


def _cores() -> int:
    """Those that this process may use, or as many as ``OMP_NUM_THREADS`` says."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    affinity = getattr(os, "sched_getaffinity", None)
    return int(given) if given.isdigit() and int(given) else len(affinity(0)) if affinity else os.cpu_count() or 1
