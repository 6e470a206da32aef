"""`check_llamacpp`: the preflight check of llama.cpp, where it is installed and the model is a GGUF file."""

from __future__ import annotations

import time

from foreword.cli import options
from foreword.cli.doctor.finding import Finding
from foreword.errors import EngineError, ForewordError, UsageError


def check_llamacpp(name: str) -> list[Finding]:
    """Run the preflight check, remembered or not; no findings for a model that llama.cpp would not run.

    Args:
        name: the model, as the user gave it.
    """
    from foreword.llamacpp.compat import check_version

    try:
        check_version()
    except UsageError:  # the check of the extras reports it already
        return []
    from foreword.models.gguf import BUILTIN

    if name != BUILTIN and not name.endswith(".gguf"):
        return []
    from foreword.llamacpp.model import gguf_model
    from foreword.llamacpp.preflight import TOKENS, preflight

    what = "prompt on llama.cpp"
    try:
        model = gguf_model(name, progress=options.say)
        began = time.perf_counter()
        preflight(model, remember=False)
    except EngineError as error:
        return [Finding("engine", what, "broken", str(error).rstrip("."))]
    except ForewordError as error:  # the embedded engine may serve it
        return [Finding("engine", what, "note", str(error).rstrip("."))]
    return [Finding("engine", what, "good", f"{TOKENS} tokens, {time.perf_counter() - began:.1f} s with loading")]
