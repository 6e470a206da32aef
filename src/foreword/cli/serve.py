"""``foreword serve``."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.errors import UsageError
from foreword.progress import Progress

if TYPE_CHECKING:
    from foreword.core import Task
    from foreword.models import LanguageModel


def serve(
    engine: Annotated[str, typer.Option(help="embedded.")] = "embedded",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    multi_task_prompt: Annotated[
        str | None, typer.Option(help="JSON rows {task_id, prompt | system}, served beside the bank.")
    ] = None,
    prefix_bytes: Annotated[int, typer.Option(help="Bound of the loaded prefixes, in bytes.")] = 1 << 30,
    max_model_len: Annotated[int | None, typer.Option(help="Positions a request may take.")] = None,
    model: options.ModelName = None,
    bank: options.BankRoot = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    trust_remote_code: options.RemoteCode = False,
    allow_other_weights: options.OtherWeights = False,
) -> None:
    """Serve the base model and every task of the bank over the OpenAI API.

    Example: foreword serve --port 8000
    """
    if engine != "embedded":
        raise UsageError(f"engine {engine!r} is not in this version; use --engine embedded.")
    if prefix_bytes < 0:
        raise UsageError(f"--prefix-bytes must be 0 or more, got {prefix_bytes}.")
    # Said at once if the port is taken; it opens only when the engine can answer.
    _bind(host, port).close()
    lm = options.open_model(model, dtype, device, trust_remote_code)
    _check_length(max_model_len, lm.context)
    extra = _extra_tasks(lm, multi_task_prompt)
    import uvicorn

    from foreword.server.app import create_app

    store = options.open_bank(bank)
    with options.open_engine(lm, allow_other_weights=allow_other_weights, max_model_len=max_model_len) as running:
        app = create_app(
            running,
            store,
            prefix_bytes=prefix_bytes,
            extra_tasks=extra,
            allow_other_weights=allow_other_weights,
        )
        names = {*extra, *store.names()}
        with _bind(host, port) as door:
            options.say(f"serving {lm.name} and {len(names)} tasks at http://{host}:{door.getsockname()[1]}")
            config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)
            uvicorn.Server(config).run(sockets=[door])


# Seconds that answers on their way have to finish once the server is told to stop.
GRACE = 10


def _check_length(asked: int | None, context: int | None) -> None:
    if asked is not None and not 2 <= asked <= (context or asked):
        raise UsageError(f"--max-model-len must be from 2 to the model's context of {context}, got {asked}.")


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
        door.listen()
    except (OSError, OverflowError) as error:
        door.close()
        reason = getattr(error, "strerror", None) or str(error)
        mend = "choose another --host" if isinstance(error, socket.gaierror) else "choose another --port, or 0"
        raise UsageError(f"cannot listen on {host}:{port} ({reason}); {mend}.") from error
    return door


def _extra_tasks(lm: LanguageModel, file: str | None) -> dict[str, Task]:
    if file is None:
        return {}
    from foreword.prompts.static import static_task
    from foreword.text.prompt_rows import read_prompts

    prompts, tasks = read_prompts(file), {}
    with Progress("computing", len(prompts), "prompts") as progress:
        for prompt in prompts:
            tasks[prompt.name] = static_task(lm, prompt.name, prompt.kind, prompt.text)
            progress.advance()
    return tasks
