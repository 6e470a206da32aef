"""`open_session`: a model is loaded and looked at, and signals end that at once. Called by the engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from foreword.errors import UnsupportedModel
from foreword.llamacpp.compat import Session
from foreword.llamacpp.key_layout import KeyLayout
from foreword.llamacpp.model import GgufModel


def open_session(model: GgufModel, *, num_cells: int, batch_size: int, max_outputs: int) -> tuple[Session, KeyLayout]:
    """Load a model, and find the order of keys in its cache.

    The library runs in a thread of its own meanwhile. It calls back into Python, and what a signal's handler raises
    there, such as the `SystemExit` of SIGTERM, ctypes drops; handlers run in the main thread, which only waits here.

    Args:
        model: the file, and the dtype of its cache.
        num_cells, batch_size, max_outputs: see `Session`.

    Raises:
        UnsupportedModel, EngineError: see `Session` and `KeyLayout.verify`.
    """
    stopped = threading.Event()

    def load() -> tuple[Session, KeyLayout]:
        session = Session(
            model.file,
            dtype=model.dtype,
            num_cells=num_cells,
            batch_size=batch_size,
            max_outputs=max_outputs,
            stopped=stopped,
        )
        try:
            return session, _verified_key_layout(model, session)
        except BaseException:
            session.close()
            raise

    with ThreadPoolExecutor(1, thread_name_prefix="load-model") as thread:
        loading = thread.submit(load)
        try:
            return loading.result()
        except BaseException:
            stopped.set()
            if loading.exception() is None:
                loading.result()[0].close()
            raise


def _verified_key_layout(model: GgufModel, session: Session) -> KeyLayout:
    """The order of keys in the cache. Raises UnsupportedModel or EngineError if it cannot be verified."""
    found, expected = (session.vocab_size, session.hidden_size), (model.identity.vocab_size, model.identity.hidden_size)
    if found != expected:
        raise UnsupportedModel(
            f"llama.cpp reads {model.file.name} with {found} tokens and width, its file says {expected}."
        )
    layout = KeyLayout(model.identity.layers, model.rotary_dim, model.rope_theta, session.interleaved)
    layout.verify(session, token_id=model.identity.vocab_size // 2, max_position=session.num_cells - 1)
    return layout
