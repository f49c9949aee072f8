"""The OpenAPI document: Litestar's, completed by what our doors read and write themselves.

A door names the type of its body in `opt={"takes": ...}` and that of its answer in `"gives"`,
and what it answers with 202 where a project demands approval in `"proposes"`; msgspec makes their
schemas, the same that decoding judges by.
"""

from collections.abc import Iterator
from http import HTTPStatus
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
_PROPOSED: Final = "The project demands approval: nothing is done until another approves this"


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
    names = ("takes", "gives", "proposes")
    kinds = [door.opt.get(name) for *_, door in doors for name in names]
    named = list(dict.fromkeys([ProblemBody, *(kind for kind in kinds if kind is not None)]))
    schemas, components = msgspec.json.schema_components(named, ref_template=_REFERENCE)
    schema_of = dict(zip(named, schemas, strict=True))
    document["components"]["schemas"].update(components)
    problem = {"schema": schema_of[ProblemBody]}
    for path, method, door in doors:
        operation = document["paths"].get(path, {}).get(method)
        if operation is None:
            continue
        if "permission" not in door.opt:
            _complete_open(path, operation)
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
        elif path in _MEDIA:
            content = {kind: {"schema": {}} for kind in _MEDIA[path]}
            answers[str(door.status_code)]["content"] = content
        else:
            _leave_open(answers[str(door.status_code)])
        problems = _OFREP_PROBLEMS if path.startswith("/ofrep/") else {PROBLEM_JSON: problem}
        proposes = door.opt.get("proposes")
        if proposes is not None:
            content = {"application/json": {"schema": schema_of[proposes]}}
            answers["202"] = {"description": _PROPOSED, "content": content}
        for status in sorted(_statuses(method)):
            description = f"{HTTPStatus(status).phrase}. {_PROBLEM}"
            answers.setdefault(str(status), {"description": description, "content": problems})


_OFREP_PROBLEMS: Final[dict[str, Any]] = {
    "application/json": {"schema": {}},
    "text/plain": {"schema": {}},
}
"""OFREP has a form of its own for what went wrong with an evaluation, and none for the rest."""


_MEDIA: Final = {
    "/v1/route/{key}": (),
    "/v1/experiments/{key}/weights": ("application/json", "application/yaml", "text/plain"),
}
"""The types of answers that are not JSON, or not only."""


def _leave_open(answer: dict[str, Any]) -> None:
    """Promise nothing of an answer of which the door names no type: the framework takes what a
    handler gives as bytes for a text."""
    for kind in answer.get("content", {}).values():
        if kind.get("schema") == {"type": "string"}:
            kind["schema"] = {}


def _complete_open(path: str, operation: dict[str, Any]) -> None:
    """What is open to everybody, and has an answer that the framework cannot know."""
    answers = operation["responses"]
    if path == "/readyz":
        _leave_open(answers["200"])
        answers["503"] = {**answers["200"], "description": "It cannot serve"}
    if path == "/metrics":
        answers["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}


def _statuses(method: str) -> Iterator[int]:
    """The problems that a door may answer with, by what it takes."""
    yield from (400, 401, 403, 404, 409, 422, 429, 500, 503)
    if method not in {"get", "delete"}:
        yield from (408, 413, 415)
    if method in {"patch", "put"}:
        yield from (412, 428)
