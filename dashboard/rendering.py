"""Templates: the one place where HTML is put together. What is no markup of ours is escaped."""

import gzip
from importlib.metadata import version
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from litestar import MediaType, Request, Response

from dashboard import filters
from dashboard.assets import Assets
from dashboard.sessions import Visitor

VISITOR: Final = "visitor"
"""Where the guard puts who looks at a page, in the state of the request."""
_WORTH_PACKING: Final = 1024
_PACKING: Final = 5


class Renderer:
    """Renders templates; made once, for they are compiled."""

    def __init__(self, assets: Assets) -> None:
        self.assets = assets
        self._environment = Environment(
            loader=PackageLoader("dashboard"),
            autoescape=select_autoescape(default=True, default_for_string=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.globals["asset"] = assets.url
        self._environment.globals["version"] = version("turnout")
        self._environment.filters.update(filters.ALL)

    def render(self, template: str, **context: Any) -> str:
        """The text of a template."""
        return self._environment.get_template(template).render(context)

    def page(
        self, request: Request[Any, Any, Any], template: str, status: int = 200, **context: Any
    ) -> Response[bytes]:
        """A page, or a part of one, compressed where the browser takes that. A big one takes tens
        of milliseconds: make it beside the event loop (`asyncio.to_thread`).

        Templates know `visitor` (None before signing in), `path` and whether only a part
        `is_partial`, besides what is given.
        """
        visitor: Visitor | None = request.scope["state"].get(VISITOR)
        context = {
            "visitor": visitor,
            "path": request.url.path,
            "is_partial": request.headers.get("hx-request") == "true",
            **context,
        }
        content = self.render(template, **context).encode()
        headers = {"Vary": "Accept-Encoding, HX-Request"}
        if len(content) > _WORTH_PACKING and "gzip" in request.headers.get("accept-encoding", ""):
            content = gzip.compress(content, _PACKING, mtime=0)
            headers["Content-Encoding"] = "gzip"
        return Response(content, status_code=status, headers=headers, media_type=MediaType.HTML)
