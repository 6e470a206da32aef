"""A signal that comes while llama.cpp loads a file, which calls back into Python all along."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import numpy as np
import pytest

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from foreword.errors import EngineError
from foreword.llamacpp.compat import Session
from on_llamacpp.gguf_models import gguf_file, llamacpp_engine

# In the process that serves, a signal comes at the first line that the library has to say of a file's load; each line
# takes 20 milliseconds, so the whole load takes seconds.
SITE = """
import os, signal, sys, time
if "serve" in sys.argv:
    import llama_cpp.llama_cpp as llama_cpp
    load, log_set = llama_cpp.llama_model_load_from_file, llama_cpp.llama_log_set
    calls = []
    def load_from_file(*args):
        calls.append(0)
        return load(*args)
    def set_log(callback, data):
        def write(level, text, data):
            if calls and not any(calls):
                calls[0] = 1
                os.kill(os.getpid(), signal.{name})
            time.sleep(0.02 * bool(calls))
            callback(level, text, data)
        held.append(llama_cpp.llama_log_callback(write))
        log_set(held[0], data)
    held = []
    llama_cpp.llama_model_load_from_file, llama_cpp.llama_log_set = load_from_file, set_log
"""


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 0), ("SIGINT", 130)])
def test_a_server_that_is_told_to_stop_while_its_file_loads_stops(served, tmp_path, name, status):
    with llamacpp_engine(served, cells=256):
        pass  # so that the preflight check is remembered
    (tmp_path / "sitecustomize.py").write_text(SITE.format(name=name))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "foreword", "serve", "--engine", "llamacpp", "--model", str(gguf_file(served))]
    done = subprocess.run(
        [*command, "--bank", served.bank.location, "--allow-other-weights", "--port", "0", "--no-ui"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    assert "serving" not in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_load_ends_once_it_is_told_to(served):
    stopped = threading.Event()
    stopped.set()
    with pytest.raises(EngineError, match="could not load"):
        Session(
            gguf_file(served),
            dtype=np.dtype(np.float32),
            num_cells=256,
            batch_size=8,
            max_outputs=8,
            stopped=stopped,
        )
