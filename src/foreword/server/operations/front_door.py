"""What a browser finds that comes without knowing where to go: ``GET /``, and ``/ui`` where there is no page."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response


def front_door_router(base: str, *, ui: bool, installed: bool) -> APIRouter:
    """The routes.

    Args:
        base: the base model's name.
        ui: whether the page is served at ``/ui``.
        installed: whether the extra ``[ui]`` is there.
    """
    router = APIRouter(include_in_schema=False)
    mend = "leave out --no-ui" if installed else "pip install 'foreword[ui]'"
    no_page = f"There is no page here: {mend}, and start foreword serve again."

    @router.get("/")
    async def front() -> Response:
        page = "The page to try them is at /ui." if ui else no_page.replace("here", "at /ui")
        return PlainTextResponse(
            f"Foreword serves {base} and its tasks.\n{page}\nThe API of OpenAI is below /v1, beginning with "
            "GET /v1/models; its description is at /docs.\n"
        )

    if not ui:

        @router.get("/ui")
        @router.get("/ui/")
        async def no_ui() -> Response:
            return PlainTextResponse(f"{no_page}\n", 404)

    return router
