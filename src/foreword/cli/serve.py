"""``foreword serve``."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli import options
from foreword.errors import UsageError

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
    # Bound before the model loads, so that a port in use is said at once; it answers only once it listens.
    door = _bind(host, port)
    lm = options.open_model(model, dtype, device, trust_remote_code)
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
        names = [*extra, *store.names()]
        options.say(f"serving {lm.name} and {len(names)} tasks at http://{host}:{door.getsockname()[1]}")
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[door])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot listen on {host}:{port} ({reason}); choose another --port, or 0.") from error
    return door


def _extra_tasks(lm: LanguageModel, file: str | None) -> dict[str, Task]:
    if file is None:
        return {}
    from foreword.prompts.static import static_task
    from foreword.text.prompt_rows import read_prompts

    return {prompt.name: static_task(lm, prompt.name, prompt.kind, prompt.text) for prompt in read_prompts(file)}
