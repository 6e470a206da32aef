"""`mount_ui`: the page on the application, with only the doors that it needs."""

from __future__ import annotations

from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foreword.errors import UsageError

if TYPE_CHECKING:
    from foreword.bank.bank import Bank

PATH = "/ui"
_ICON = (
    '<link rel="icon" href="data:image/svg+xml,<svg xmlns=%22http://www.w3.org/2000/svg%22 viewBox=%220 0 8 8%22>'
    '<path fill=%22%230d9488%22 d=%22M0 0h3v8H0z%22/><path fill=%22%2394a3b8%22 d=%22M4 0h4v3H4zM4 4h4v4H4z%22/></svg>">'
)


def has_ui() -> bool:
    """Whether the extra is installed."""
    return find_spec("gradio") is not None


def check_ui() -> None:
    """Raise UsageError where it is not."""
    if not has_ui():
        raise UsageError("the page at /ui needs Gradio; run `pip install 'foreword[ui]'`, or serve with --no-ui.")


def mount_ui(app: FastAPI, base: str, bank: Bank | None) -> None:
    """Put the page at ``/ui``. It asks the application itself, with the key that the visitor types.

    Args:
        app: with all its routes and middleware, which hold for the page as for any other client.
        base: the base model's name.
        bank: whose versions it shows.

    Raises:
        UsageError: Gradio is not installed.
    """
    check_ui()
    import gradio as gr

    from foreword.server.ui.bank_shelf import BankShelf
    from foreword.server.ui.inside import Inside
    from foreword.server.ui.page import Page
    from foreword.server.ui.routes import Routes

    routes = Routes(Inside(app))
    page = Page(routes, BankShelf(routes, bank), base)

    @app.get(PATH, include_in_schema=False)
    async def ui() -> Response:
        return RedirectResponse("ui/")  # relative, so that a proxy may put a path in front

    gr.mount_gradio_app(
        app,
        page.blocks,
        PATH,
        theme=_theme(),
        css=_read("page.css"),
        head=f"{_ICON}<script>{_read('page.js')}</script>",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        app_kwargs={"middleware": [Middleware(Doorkeeper)]},
    )


class Doorkeeper:
    """Lets through what the page asks for, and not the rest that Gradio can do: uploads, files, proxies, monitoring.

    Args:
        app: Gradio's.
    """

    FILES = ("/assets/", "/static/", "/gradio_api/heartbeat/")
    PATHS = frozenset(
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
        path = scope.get("path", "").removeprefix(scope.get("root_path", ""))
        if scope["type"] == "http" and path not in self.PATHS and not path.startswith(self.FILES):
            return await PlainTextResponse("there is nothing here.", 404)(scope, receive, send)
        await self._app(scope, receive, send)


def _theme():
    """Fonts of the visitor's own system: nothing is fetched from elsewhere."""
    import gradio as gr

    system = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    hues = {"primary_hue": gr.themes.colors.teal, "neutral_hue": gr.themes.colors.slate}
    fonts = {"font": map(gr.themes.Font, system), "font_mono": map(gr.themes.Font, mono)}
    return gr.themes.Default(**hues, **fonts)


def _read(name: str) -> str:
    return files("foreword.server.ui").joinpath(name).read_text(encoding="utf-8")
