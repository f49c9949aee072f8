"""All pages together, as routers to hang into the service's app."""

from typing import Annotated, Any, Final

from litestar import Request, Response, Router, get
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter

import dashboard.admin.audit
import dashboard.admin.keys
import dashboard.editor.page
import dashboard.experiment.acts
import dashboard.experiment.page
import dashboard.experiment.past
import dashboard.exports
import dashboard.listing.page
import dashboard.live
import dashboard.proposals.page
import dashboard.sign_in
import dashboard.snapshots
from dashboard.assets import PREFIX
from dashboard.plane import Pages, PagesPlane
from dashboard.problem_page import view_of
from dashboard.security import (
    SignInNeededError,
    page_guard,
    read_form,
    sign_in_address,
    with_headers,
)
from experiments.problems import ProblemError

_KEPT: Final = "public, max-age=31536000, immutable"
_IS_PAGE: Final = "is_page"

GUARDED: Final[list[HTTPRouteHandler]] = [
    *dashboard.sign_in.GUARDED,
    *dashboard.listing.page.ROUTES,
    *dashboard.exports.ROUTES,
    *dashboard.snapshots.ROUTES,
    *dashboard.live.ROUTES,
    *dashboard.experiment.page.ROUTES,
    *dashboard.experiment.acts.ROUTES,
    *dashboard.experiment.past.ROUTES,
    *dashboard.editor.page.ROUTES,
    *dashboard.proposals.page.ROUTES,
    *dashboard.admin.keys.ROUTES,
    *dashboard.admin.audit.ROUTES,
]
"""Every page that takes a session; each names the permission that it takes."""


@get("/", include_in_schema=False)
async def home() -> Response[bytes]:
    """Where a visit begins."""
    return Response(b"", status_code=303, headers={"Location": "/experiments"})


@get(PREFIX + "{name:path}", include_in_schema=False)
async def send_asset(
    request: Request[Any, Any, Any], pages: Pages, name: Annotated[str, PathParameter()]
) -> Response[bytes]:
    """A file that pages need."""
    asset = pages.renderer.assets.find(str(name).lstrip("/"))
    if asset is None:
        raise ProblemError("not-found", "There is no such file")
    current = request.query_params.get("v") == asset.digest
    headers = {"Cache-Control": _KEPT if current else "no-cache", "Vary": "Accept-Encoding"}
    if asset.packed is not None and "gzip" in request.headers.get("accept-encoding", ""):
        headers["Content-Encoding"] = "gzip"
        return Response(asset.packed, media_type=asset.media_type, headers=headers)
    return Response(asset.content, media_type=asset.media_type, headers=headers)


def pages_router(pages: PagesPlane) -> Router:
    """The pages: hang it into an app."""
    guarded = Router(path="/", route_handlers=GUARDED, guards=[page_guard(pages)])
    return Router(
        path="/",
        route_handlers=[home, send_asset, *dashboard.sign_in.OPEN, guarded],
        dependencies={
            "pages": Provide(lambda: pages, sync_to_thread=False),
            "form": Provide(read_form),
        },
        exception_handlers={SignInNeededError: _to_sign_in},
        after_request=with_headers,
        opt={_IS_PAGE: True},
    )


def wants_page(request: Request[Any, Any, Any]) -> bool:
    """Whether who asks is to be answered with a page where something went wrong: at the pages, and
    in a browser that goes where there is nothing."""
    handler = request.scope.get("route_handler")
    if handler is not None:
        return bool(handler.opt.get(_IS_PAGE, False))
    is_door = request.url.path.startswith(("/v1/", "/ofrep/"))
    return not is_door and "text/html" in request.headers.get("accept", "")


def problem_page(
    pages: PagesPlane, request: Request[Any, Any, Any], error: ProblemError
) -> Response[bytes]:
    """A page that says what went wrong."""
    url, state = request.url, request.scope["state"]
    again = f"{url.path}?{url.query}" if url.query else url.path
    problem = view_of(error, state.get("request_id", ""), again if request.method == "GET" else "")
    page = pages.renderer.page(request, "problem.html", error.status, problem=problem)
    page.headers.update(error.headers)
    return with_headers(page)


def _to_sign_in(request: Request[Any, Any, Any], error: SignInNeededError) -> Response[bytes]:
    address = sign_in_address(error.to)
    if request.headers.get("hx-request") == "true":
        # A script would follow it into a part of a page.
        return with_headers(Response(b"", status_code=401, headers={"HX-Redirect": address}))
    if request.headers.get("sec-fetch-mode", "navigate") != "navigate":
        return with_headers(Response(b"", status_code=401))
    return with_headers(Response(b"", status_code=303, headers={"Location": address}))
