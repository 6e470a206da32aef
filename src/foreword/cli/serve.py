"""``foreword serve``."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foreword.cli.completion import complete_values
from foreword.cli.engines import ENGINES, ServerOptions, vllm_command
from foreword.cli.flags import expand_options
from foreword.cli.options import say
from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.server.operations.auth import Authenticator

FILES_OF_ITS_OWN = 256
"""Files that the server may need besides those of its connections."""


@expand_options
def serve(
    engine: Annotated[
        str, typer.Option(help="embedded, vllm or llamacpp.", autocompletion=complete_values(ENGINES))
    ] = "embedded",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    api_keys: Annotated[
        Path | None,
        typer.Option(help="File of API keys, made by foreword key.", envvar="FOREWORD_API_KEYS"),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1024, help="Bound of an upload, in bytes.")] = 64 << 20,
    max_json_bytes: Annotated[int, typer.Option(min=1024, help="Bound of any other body, in bytes.")] = 4 << 20,
    max_connections: Annotated[int, typer.Option(min=1, help="Connections that may be open at once.")] = 2048,
    timeout: Annotated[float, typer.Option(min=0.001, help="Seconds that an answer may take.")] = 600.0,
    timeout_head: Annotated[float, typer.Option(min=0.001, help="Seconds that a request's headers may take.")] = 10.0,
    timeout_body: Annotated[float, typer.Option(min=0.001, help="Seconds that a request's body may take.")] = 120.0,
    timeout_keep_alive: Annotated[
        float, typer.Option(min=0.001, help="Seconds that a connection may be idle between requests.")
    ] = 5.0,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            "--timeout-graceful-shutdown",
            min=0,
            help="Seconds that answers have to finish once the server is told to stop.",
        ),
    ] = 10.0,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(help="Name by which clients ask, as api.example.com, *.example.com or *; may be repeated."),
    ] = None,
    share_pages: Annotated[
        str | None,
        typer.Option(
            help="Whose requests may find each other's tokens in the cache: all, tenant (a key's own) or none.",
            show_default="tenant with API keys, else all",
        ),
    ] = None,
    cors_origin: Annotated[
        list[str] | None, typer.Option(help="Web page that may ask from a browser; may be repeated.")
    ] = None,
    quiet: Annotated[bool, typer.Option(help="Write no line for every request.")] = False,
    ui: Annotated[
        bool | None,
        typer.Option("--ui/--no-ui", help="A page at /ui.", show_default="with the extra [ui]"),
    ] = None,
    print_command: Annotated[
        bool, typer.Option("--print-command", help="Print the vllm serve line that does the same, and serve nothing.")
    ] = False,
    *,
    options: ServerOptions,
) -> None:
    """Serve the base model and every task of the bank over the OpenAI API, with a page to try them.

    Requests need an API key if --api-keys names a file of them, or the variable FOREWORD_API_KEY holds one.

    Example: foreword serve --port 8000
    """
    if engine not in ENGINES:
        raise UsageError(f"engine {engine!r} is not in this version; choose {' or '.join(ENGINES)}.")
    if options.prefix_bytes < 0:
        raise UsageError(f"--prefix-bytes must be 0 or more, got {options.prefix_bytes}.")
    if print_command:
        if api_keys is not None or cors_origin or options.allow_other_weights or os.environ.get("FOREWORD_API_KEY"):
            raise UsageError(
                "API keys, --cors-origin and --allow-other-weights are of Foreword's own server, which vllm serve does "
                "not have; leave them out, or serve without --print-command."
            )
        return print(vllm_command(options, engine, host, port))
    authenticator = _authenticator(api_keys, share_pages)
    from foreword.server.ui.mount import PATH, check_ui, has_ui

    if ui:
        check_ui()
    shown = has_ui() if ui is None else ui
    # Said at once if the port is taken; it opens only when the engine can answer.
    _bind(host, port).close()
    # uvicorn gives answers their time and then raises the signal again, which must not skip the engine's own end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with ENGINES[engine](options) as (running, store, extra):
        from foreword.server.app import create_app
        from foreword.server.operations.connections import ConnectionLimits
        from foreword.server.operations.graceful_server import GracefulServer
        from foreword.server.operations.origins import KnownHosts

        app = create_app(
            running,
            store,
            prefix_bytes=options.prefix_bytes,
            extra_tasks=extra,
            allow_other_weights=options.allow_other_weights,
            authenticator=authenticator,
            timeout=timeout,
            max_waiting=options.max_waiting,
            model_defaults=options.model_defaults,
            max_body_bytes=max_body_bytes,
            max_json_bytes=max_json_bytes,
            timeout_body=timeout_body,
            known_hosts=KnownHosts.of_server(host, allowed_host or ()),
            cors_origins=cors_origin or (),
            ui=shown,
            engine_kind=engine,
        )
        if not quiet:
            _write_access_log()
        names = {*extra, *store.names()}
        with _bind(host, port) as door:
            page = f", and a page to try them at {PATH}" if shown else ""
            address = f"http://{host}:{door.getsockname()[1]}"
            say(f"serving {running.name} and {len(names)} tasks at {address}{page}")
            limits = ConnectionLimits(_connections(max_connections), timeout_head, timeout_keep_alive)
            GracefulServer(app, grace, running.close, limits).run(sockets=[door])


def _authenticator(file: Path | None, share_pages: str | None) -> Authenticator:
    """Authenticator of the keys in a file, and of the one in the environment, which may do everything."""
    from foreword.server.operations.api_keys import ApiKeys
    from foreword.server.operations.auth import Authenticator
    from foreword.server.operations.page_sharing import SHARE_PAGES

    if (share := SHARE_PAGES.get(share_pages or "tenant")) is None:
        raise UsageError(f"--share-pages must be {', '.join(SHARE_PAGES)}, got {share_pages!r}.")
    keys = ApiKeys.load(file, os.environ.get("FOREWORD_API_KEY"))
    return Authenticator(keys, file.with_name(f"{file.name}.used") if file is not None else None, share)


def _write_access_log() -> None:
    """Lines of the requests go to stderr, as they are."""
    from foreword.server.operations.access_log import LOGGER

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def _connections(wanted: int) -> int:
    """As many connections as the process may open files for, beside its own; it may open as many as it can get."""
    try:
        import resource
    except ImportError:  # Windows, which has no such bound
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + FILES_OF_ITS_OWN
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft < needed:
        wanted = max(1, soft - min(FILES_OF_ITS_OWN, soft // 2))
        say(f"at most {wanted} connections are taken, since this process may open {soft} files (ulimit -n).")
    return wanted


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
