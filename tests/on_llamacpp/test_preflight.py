"""The prompt that a child process runs before an engine relies on llama.cpp, and what becomes of a child that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp", reason="needs llama.cpp: make test-llamacpp")

from foreword.cli.doctor.llamacpp import check_llamacpp
from foreword.errors import EngineError, UnsupportedModel
from foreword.llamacpp import compat, preflight
from foreword.llamacpp.engine import LlamaCppEngine
from foreword.llamacpp.model import GgufModel, gguf_model
from on_llamacpp.gguf_models import IDS, gguf_file, llamacpp_engine, make_request
from served_model import tokens

AMX = "CPU : AVX512 = 1 | AVX512_VNNI = 1 | AMX_INT8 = 1 | REPACK = 1 | "
# llama.cpp as Python calls it, in every process that is started: `{body}` stands in front of each batch.
DECODE = """
import llama_cpp.llama_cpp as llama_cpp, signal, time
run = llama_cpp.llama_decode
def decode(context, batch):
    {body}
    return run(context, batch)
llama_cpp.llama_decode = decode
"""
DIES = DECODE.format(body="if batch.n_tokens > 32: signal.raise_signal(signal.{name})")
SENTENCE = (
    "killed by SIGILL while running 64 tokens of model.gguf in a child process; it was compiled for another CPU, or "
    "wrongly for this one: compile it on this machine"
)

Site = Callable[[str], None]


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Path:
    """Where nothing is remembered yet."""
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def site(own_home, tmp_path, monkeypatch) -> Site:
    """Gives every Python that is started from now on something to run first."""

    def write(source: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(source)
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
        )

    return write


@pytest.fixture
def model(served) -> GgufModel:
    return gguf_model(str(gguf_file(served)))


@pytest.fixture
def children(monkeypatch) -> list[list[str]]:
    """Commands of those that were started."""
    commands, run = [], subprocess.run

    def counted(command, **options):
        commands.append(command)
        return run(command, **options)

    monkeypatch.setattr(subprocess, "run", counted)
    return commands


def test_what_went_well_is_remembered_for_this_library_cpu_and_file(model, own_home, children, monkeypatch):
    preflight.preflight(model)
    preflight.preflight(model)
    assert len(children) == 1
    preflight.preflight(model, remember=False)
    preflight.preflight(replace(model, identity=replace(model.identity, weights="another file")))
    assert len(children) == 3
    monkeypatch.setattr(preflight, "_cpu", lambda: ["another"])
    preflight.preflight(model)
    files = compat.library_files()
    assert {"libllama.so", "libggml-cpu.so"} <= {file.name for file in files}
    monkeypatch.setattr(preflight, "library_files", lambda: files[1:])
    preflight.preflight(model)
    assert len(children) == 5
    assert len(list((own_home / "llamacpp").iterdir())) == 4


def test_a_home_that_cannot_be_written_is_no_reason_to_refuse(model, tmp_path, monkeypatch, children):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOREWORD_HOME", str(tmp_path / "file" / "home"))
    for _ in range(2):
        preflight.preflight(model)
    assert len(children) == 2


def test_the_child_loads_no_pytorch(model, site):
    site("import sys\nsys.modules['torch'] = sys.modules['transformers'] = None")
    preflight.preflight(model)


def test_a_load_is_refused_whose_child_dies(model, own_home, site):
    site(DIES.format(name="SIGILL"))
    with pytest.raises(EngineError, match=f"llama.cpp was {SENTENCE}.*or use --engine embedded"):
        LlamaCppEngine(model)
    assert not (own_home / "llamacpp").exists()
    site(DIES.format(name="SIGKILL"))
    with pytest.raises(EngineError, match=r"killed by SIGKILL .*; the system may have run out of memory"):
        LlamaCppEngine(model)
    site(DIES.format(name="SIGSEGV"))
    with pytest.raises(EngineError, match=r"killed by SIGSEGV .*; compile llama-cpp-python on this machine again"):
        LlamaCppEngine(model)


def test_a_short_prompt_alone_does_not_show_it(model, site):
    """What every load proved before: a token at a time, which such a library runs."""
    site(DIES.format(name="SIGILL"))
    program = (
        "import sys, numpy, pathlib; from foreword.llamacpp.compat import Session; "
        "f = pathlib.Path(sys.argv[1]); "
        "s = Session(f, dtype=numpy.dtype('float32'), num_cells=64, batch_size=64, max_outputs=1)\n"
        "for count in (1, 32, 33):\n"
        "    s.tokens.positions[:] = range(64); s.tokens.count = count; s.decode(s.tokens); s.clear(0)\n"
        "    print(count, flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(model.file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (-signal.SIGILL, ["1", "32"]), done.stderr


def test_a_server_whose_child_dies_says_one_sentence(model, site):
    """Without the check it would say that it is serving, and die of the first long prompt."""
    site(DIES.format(name="SIGILL"))
    done = foreword("serve", "--engine", "llamacpp", "--model", model.file, "--port", "0", "--no-ui")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("foreword: llama.cpp was killed")
    assert SENTENCE in line


def test_the_doctor_runs_it_too(model, site):
    """Also where it is remembered that it went well."""
    name = str(model.file)
    LlamaCppEngine(model, cells=256, start=False).close()
    (found,) = check_llamacpp(name)
    assert (found.area, found.state) == ("engine", "good")
    assert found.found.startswith("64 tokens, ")
    site(DIES.format(name="SIGILL"))
    done = foreword("doctor", "--model", name, "--json")
    assert done.returncode == 1
    (told,) = (each for each in json.loads(done.stdout)["findings"] if each["what"] == found.what)
    assert told["state"] == "broken"
    assert SENTENCE in told["found"]
    assert SENTENCE in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_leaves_out_what_llama_cpp_does_not_run(served, tmp_path):
    assert check_llamacpp(served.folder) == check_llamacpp("owner/name") == []
    (found,) = check_llamacpp(str(tmp_path / "absent.gguf"))
    assert found.state == "note"


def test_a_child_that_hangs_is_ended(model, site):
    site(DECODE.format(body="time.sleep(600)"))
    with pytest.raises(EngineError, match=r"did not run 64 tokens of model.gguf in a child process within 2 seconds"):
        preflight.preflight(model, timeout=2)


def test_what_a_child_says_of_a_file_is_said(model, site, tmp_path, capfd):
    site(DECODE.format(body="pass") + "llama_cpp.llama_model_n_swa = lambda model: 48")
    with pytest.raises(UnsupportedModel, match="sliding windows"):
        preflight.preflight(model)
    site(DECODE.format(body="return 1"))
    with pytest.raises(EngineError, match=r"did not run a batch of 64 tokens \(status 1\)"):
        preflight.preflight(model)
    site(DECODE.format(body="raise RuntimeError('odd')"))
    with pytest.raises(EngineError, match=r"ended with status 1 while running .*; what it printed says why"):
        preflight.preflight(model)
    assert "RuntimeError: odd" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("system_info", "extra"),
    [(AMX, False), (AMX.replace("AMX_INT8 = 1 | ", ""), True), (AMX.replace("INT8 = 1", "INT8 = 0"), True), ("", True)],
)
def test_weights_are_kept_from_amx_and_else_as_llama_cpp_would(system_info, extra):
    library = compat.library()
    assert library.llama_model_default_params().use_extra_bufts
    assert compat.model_params(library, system_info).use_extra_bufts is extra


def test_a_library_with_amx_loads_without_extra_buffers(served, monkeypatch):
    """And answers the same, from weights that are not repacked."""
    library, given = compat.library(), []
    load, real = library.llama_model_load_from_file, library.llama_print_system_info()

    def noted(file, params):
        given.append(params.use_extra_bufts)
        return load(file, params)

    monkeypatch.setattr(library, "llama_model_load_from_file", noted)
    answers = []
    for said in (real, AMX.encode()):
        monkeypatch.setattr(library, "llama_print_system_info", lambda said=said: said)
        with llamacpp_engine(served, cells=256) as engine:
            answers += tokens(engine, [make_request(served.tasks[0], IDS * 9)])
    assert given == [b"AMX_INT8 = 1" not in real, False]
    assert answers[0] == answers[1]


def foreword(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foreword", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)
