"""Every llama.cpp symbol that Foreword uses, with the versions it was checked against; `Session` is a loaded model.

The library is llama-cpp-python's; only its bindings of the C interface are used.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from foreword.errors import EngineError, UnsupportedModel, UsageError
from foreword.llamacpp.sequence_state import GGML_TYPES

PACKAGE = "llama-cpp-python"
SUPPORTED_VERSIONS = ((0, 3, 36), (0, 3, 37))
"""From and below; their sequence states have the layout in `foreword.llamacpp.sequence_state`."""

MAX_SEQUENCES = 256
"""``LLAMA_MAX_SEQ``: sequences of a context."""

_LOG_ERROR, _LOG_CONT = 4, 5  # GGML_LOG_LEVEL_ERROR and _CONT, which continues the line before
_ROPE_NORM, _ROPE_NEOX = 0, 2  # LLAMA_ROPE_TYPE_NORM rotates neighbours, _NEOX halves


@cache
def library() -> Any:
    """The library, which logs errors only.

    Raises UsageError if it is not installed, or not in a supported version.
    """
    check_version()
    llama_cpp = import_module("llama_cpp.llama_cpp")
    llama_cpp.llama_backend_init()
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p())
    return llama_cpp


def check_version() -> None:
    """Raise UsageError unless llama.cpp is installed in a supported version."""
    try:
        version = metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UsageError("llama.cpp is not installed; run: pip install 'foreword[llamacpp]'") from None
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if not SUPPORTED_VERSIONS[0] <= numbers < SUPPORTED_VERSIONS[1]:
        first, last = (".".join(map(str, bound)) for bound in SUPPORTED_VERSIONS)
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
    """``llama_model_params``: the defaults, but without extra buffers where the library was compiled with AMX.

    Args:
        system_info: of ``llama_print_system_info``.
    """
    params = llama_cpp.llama_model_default_params()
    # GCC 12 takes the writes of the tile configuration for dead and drops them: the first product of more than 32 rows
    # ends the process with SIGILL. Products get to AMX through weights in an extra buffer only.
    if "AMX_INT8 = 1" in system_info:
        params.use_extra_bufts = False
    return params


def _log_callback(llama_cpp: Any) -> Any:
    """Writes errors to stderr."""
    last = [0]

    def write(level: int, text: bytes, _: ctypes.c_void_p) -> None:
        level = last[0] if level == _LOG_CONT else level
        last[0] = level
        if level >= _LOG_ERROR:
            os.write(2, text)

    callback = llama_cpp.llama_log_callback(write)
    _CALLBACKS.append(callback)  # the library calls it for as long as the process lives
    return callback


_CALLBACKS: list[Any] = []


class TokenBatch:
    """A ``llama_batch`` over numpy arrays: token ids or embeddings, their positions and sequences.

    Args:
        capacity: tokens at most.
        embedding_size: of an embedding; 0 for token ids.

    Attributes:
        token_ids: ``[capacity]``.
        embeds: ``[capacity, embedding_size]`` float32, in their place.
        positions, seq_ids: ``[capacity]``.
        outputs: ``[capacity]``: 1 where logits are to be read.
        count: tokens in the batch.
    """

    def __init__(self, capacity: int, embedding_size: int = 0) -> None:
        self.capacity = capacity
        self.token_ids = np.zeros(capacity, np.int32)
        self.embeds = np.zeros((capacity, embedding_size), np.float32)
        self.positions = np.zeros(capacity, np.int32)
        self.seq_ids = np.zeros(capacity, np.int32)
        self.outputs = np.zeros(capacity, np.int8)
        self.count = 0
        self._num_seq_ids = np.ones(capacity, np.int32)
        base, step = self.seq_ids.ctypes.data, self.seq_ids.itemsize
        self._seq_id_pointers = np.array([base + step * row for row in range(capacity)], np.uintp)

    def to_llama(self, llama_cpp: Any) -> Any:
        """The ``llama_batch``, which points into these arrays."""
        arrays = {
            "pos": self.positions,
            "n_seq_id": self._num_seq_ids,
            "seq_id": self._seq_id_pointers,
            "logits": self.outputs,
            **({"embd": self.embeds} if self.embeds.size else {"token": self.token_ids}),
        }
        types = dict(llama_cpp.llama_batch._fields_)
        pointers = {name: ctypes.cast(array.ctypes.data, types[name]) for name, array in arrays.items()}
        return llama_cpp.llama_batch(n_tokens=self.count, **pointers)


class Session:
    """A model and one context; used by one thread at a time.

    Args:
        file: the model.
        dtype: of the cache, one of `foreword.llamacpp.sequence_state.GGML_TYPES`.
        num_cells: positions of the cache, over all sequences.
        batch_size: tokens of a batch at most.
        max_outputs: tokens of a batch whose logits are read, at most.
        stopped: ends the load with an EngineError once it is set.

    Attributes:
        vocab_size, hidden_size: of the model.
        dtype: of the cache.
        num_cells: positions of the cache; the library rounds them up.
        tokens, embeds: batches to fill and `decode`, of token ids and of embeddings.

    Raises:
        UnsupportedModel: no causal model whose cache holds a key and a value for every position.
        EngineError: it could not be loaded.
    """

    def __init__(
        self,
        file: Path,
        *,
        dtype: np.dtype,
        num_cells: int,
        batch_size: int,
        max_outputs: int,
        stopped: threading.Event | None = None,
    ) -> None:
        self._c, self.dtype = library(), dtype
        params = model_params(self._c, self._c.llama_print_system_info().decode())
        keep_on = self._c.llama_progress_callback(lambda fraction, _: stopped is None or not stopped.is_set())
        params.progress_callback = keep_on
        self._model = self._c.llama_model_load_from_file(str(file).encode(), params)
        if not self._model:
            raise EngineError(f"llama.cpp could not load {file}; what it printed says why.")
        try:
            self._check_model(file)
            context_params = self._context_params(num_cells, batch_size, max_outputs)
            self._context = self._c.llama_init_from_model(self._model, context_params)
            if not self._context:
                raise EngineError(
                    f"llama.cpp could not make a cache of {num_cells} positions for {file.name}; give it fewer with "
                    "--max-model-len, or free some memory."
                )
        except BaseException:
            self._c.llama_model_free(self._model)
            raise
        self._memory = self._c.llama_get_memory(self._context)
        self.vocab_size = int(self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model)))
        self.hidden_size = int(self._c.llama_model_n_embd(self._model))
        self.num_cells = int(self._c.llama_n_ctx(self._context))
        self.batch_size, self.max_outputs = batch_size, max_outputs
        self.tokens, self.embeds = TokenBatch(batch_size), TokenBatch(batch_size, self.hidden_size)

    def _context_params(self, num_cells: int, batch_size: int, max_outputs: int) -> Any:
        params = self._c.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.kv_unified = num_cells, MAX_SEQUENCES, True
        params.n_batch = params.n_ubatch = batch_size
        params.n_outputs_max = max(max_outputs, MAX_SEQUENCES)  # it makes room for one of every sequence in any case
        params.n_threads = params.n_threads_batch = _num_threads()
        params.type_k = params.type_v = GGML_TYPES[self.dtype]
        params.flash_attn_type = int(self.dtype == np.float16)  # it would round a float32 cache to float16
        params.no_perf = True
        return params

    def _check_model(self, file: Path) -> None:
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
        if c.llama_model_rope_type(model) not in (_ROPE_NORM, _ROPE_NEOX):
            raise UnsupportedModel(
                f"{file.name} cannot be served on llama.cpp: its keys are not rotated by neighbours or halves, so how "
                "they lie cannot be proved; use --engine embedded."
            )

    @property
    def interleaved(self) -> bool:
        """Whether it rotates neighbouring numbers of a key, as the library says; else halves."""
        return self._c.llama_model_rope_type(self._model) == _ROPE_NORM

    def decode(self, batch: TokenBatch) -> None:
        """Run a batch. Raises EngineError if the library fails."""
        status = self._c.llama_decode(self._context, batch.to_llama(self._c))
        if status:
            raise EngineError(f"llama.cpp did not run a batch of {batch.count} tokens (status {status}).")

    def logits(self, row: int) -> np.ndarray:
        """Logits ``[vocab]`` float32 of an output of the last batch; the next batch overwrites them."""
        pointer = self._c.llama_get_logits_ith(self._context, row)
        if not pointer:
            raise EngineError(f"llama.cpp has no logits of row {row}.")
        return np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def share(self, source: int, target: int, length: int) -> None:
        """Let a sequence share the first ``length`` positions of another; nothing is copied."""
        self._c.llama_memory_seq_cp(self._memory, source, target, 0, length)

    def clear(self, seq_id: int) -> None:
        """Remove all positions of a sequence."""
        self._c.llama_memory_seq_rm(self._memory, seq_id, -1, -1)

    def get_state(self, seq_id: int) -> bytes:
        """Keys and values of a sequence, see `foreword.llamacpp.sequence_state`."""
        size = self._c.llama_state_seq_get_size(self._context, seq_id)
        buffer = (ctypes.c_uint8 * size)()
        if self._c.llama_state_seq_get_data(self._context, buffer, size, seq_id) != size:
            raise EngineError("llama.cpp did not give the state of a sequence.")
        return bytes(buffer)

    def set_state(self, seq_id: int, state: bytes) -> None:
        """Replace a sequence by a state. Raises EngineError if the library refuses it."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        if self._c.llama_state_seq_set_data(self._context, buffer, len(state), seq_id) != len(state):
            raise EngineError(f"llama.cpp did not take a prefix of {len(state):,} bytes.")

    def close(self) -> None:
        """Free model and cache."""
        self._c.llama_free(self._context)
        self._c.llama_model_free(self._model)


def _num_threads() -> int:
    """``OMP_NUM_THREADS``, or the cores that this process may use."""
    chosen = os.environ.get("OMP_NUM_THREADS", "")
    affinity = getattr(os, "sched_getaffinity", None)
    return int(chosen) if chosen.isdigit() and int(chosen) else len(affinity(0)) if affinity else os.cpu_count() or 1
