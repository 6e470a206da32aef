"""`mount_ui`: mounts the page at ``/ui``, with only those of Gradio's routes that it needs."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foreword.errors import UsageError
from foreword.server.operations.origins import is_cross_origin

PATH = "/ui"
_ICON = (
    "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 8 8'><path fill='#0d9488' d='M0 0h3v8H0z'/>"
    "<path fill='#94a3b8' d='M4 0h4v3H4zM4 4h4v4H4z'/></svg>"
)


def has_ui() -> bool:
    """Whether the extra ``[ui]`` is installed."""
    return find_spec("gradio") is not None


def check_ui() -> None:
    """Raise UsageError without the extra ``[ui]``."""
    if not has_ui():
        raise UsageError("the page at /ui needs Gradio; run `pip install 'foreword[ui]'`, or serve with --no-ui.")


def mount_ui(app: FastAPI, base: str) -> None:
    """Mount the page, which sends its requests to the application itself, with the visitor's Authorization header.

    Args:
        app: with all its routes and middleware, which hold for the page as for any other client.
        base: the base model's name.

    Raises:
        UsageError: Gradio is not installed.
    """
    check_ui()
    import gradio as gr

    from foreword.server.in_process_transport import InProcessTransport
    from foreword.server.ui.page import Page
    from foreword.server.ui.server_client import ServerClient
    from foreword.server.ui.task_versions import TaskVersions

    client = ServerClient(InProcessTransport(app))
    page = Page(client, TaskVersions(client), base)

    @app.get(PATH, include_in_schema=False)
    async def ui() -> Response:
        return RedirectResponse("ui/")  # relative, so that a proxy may put a path in front

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(_ICON, media_type="image/svg+xml")

    gr.mount_gradio_app(
        app,
        page.blocks,
        PATH,
        theme=_theme(),
        css=_read("page.css"),
        head=f"<script>{_read('page.js')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        app_kwargs={"middleware": [Middleware(RouteFilter)]},
    )


class RouteFilter:
    """ASGI middleware in front of Gradio's routes.

    Answers 404 to those that the page does not need (uploads, files, proxies, monitoring), and 403 to requests from
    pages of other sites, with which browsers send the visitor's key too.

    Args:
        app: Gradio's.
    """

    ALLOWED_PREFIXES = ("/assets/", "/static/", "/gradio_api/heartbeat/")
    ALLOWED_PATHS = frozenset(
        {
            "/",
            "/config",
            "/theme.css",
            "/favicon.ico",
            "/manifest.json",
            "/gradio_api/cancel",
            "/gradio_api/info",
            "/gradio_api/queue/data",
            "/gradio_api/queue/join",
            "/gradio_api/startup-events",
            "/gradio_api/theme.css",
        }
    )

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in self.ALLOWED_PATHS and not path.startswith(self.ALLOWED_PREFIXES):
                return await PlainTextResponse("there is nothing here.", 404)(scope, receive, send)
            headers = Headers(scope=scope)
            if "origin" in headers and is_cross_origin(headers, scope["scheme"]):
                return await PlainTextResponse("only this server's own page may ask here.", 403)(scope, receive, send)
        await self._app(scope, receive, send)


def _theme():
    """Fonts of the visitor's own system: nothing is fetched from elsewhere."""
    from gradio import themes

    system = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    return themes.Default(
        primary_hue=themes.colors.teal,
        neutral_hue=themes.colors.slate,
        font=[themes.Font(name) for name in system],
        font_mono=[themes.Font(name) for name in mono],
    )


def _read(name: str) -> str:
    return files("foreword.server.ui").joinpath(name).read_text(encoding="utf-8")
