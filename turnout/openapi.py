"""The OpenAPI document: Litestar's, completed by what our doors read and write themselves.

A door names the type of its body in `opt={"takes": ...}` and that of its answer in `"gives"`;
msgspec makes their schemas, the same that decoding judges by.
"""

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from litestar import Request
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.routes import HTTPRoute

from experiments.doors import PROBLEM_JSON
from experiments.problems import ProblemBody

_REFERENCE: Final = "#/components/schemas/{name}"
_PROBLEM: Final = "What went wrong: `type` is one of those that `GET /problems` lists"


class CompleteDocument(JsonRenderPlugin):
    """Renders the document as JSON, with the bodies that Litestar does not know of."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        """The document, as bytes."""
        _complete(openapi_schema, list(_operations(request.app.routes)))
        return super().render(request, openapi_schema)


def operation_id(handler: HTTPRouteHandler, _method: object, _path: object) -> str:
    """The name of an operation, for those who generate clients: the door's or its function's."""
    return handler.name or handler.handler_name


def _operations(routes: list[Any]) -> Iterator[tuple[str, str, HTTPRouteHandler]]:
    for route in routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                for method in handler.http_methods:
                    yield route.path_format, method.lower(), handler


def _complete(document: dict[str, Any], doors: list[tuple[str, str, HTTPRouteHandler]]) -> None:
    kinds = [kind for *_, door in doors for kind in (door.opt.get("takes"), door.opt.get("gives"))]
    named = list(dict.fromkeys([ProblemBody, *(kind for kind in kinds if kind is not None)]))
    schemas, components = msgspec.json.schema_components(named, ref_template=_REFERENCE)
    schema_of = dict(zip(named, schemas, strict=True))
    document["components"]["schemas"].update(components)
    problem = {"schema": schema_of[ProblemBody]}
    for path, method, door in doors:
        operation = document["paths"].get(path, {}).get(method)
        if operation is None or "permission" not in door.opt:
            continue
        takes, gives = door.opt.get("takes"), door.opt.get("gives")
        if takes is not None:
            content = {"application/json": {"schema": schema_of[takes]}}
            operation["requestBody"] = {"required": True, "content": content}
        answers = operation["responses"]
        answers.pop("400", None)  # Litestar's own form, which we do not use
        if gives is not None:
            content = {"application/json": {"schema": schema_of[gives]}}
            answers[str(door.status_code)]["content"] = content
        answers["default"] = {"description": _PROBLEM, "content": {PROBLEM_JSON: problem}}
