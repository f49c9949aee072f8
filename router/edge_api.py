"""The door for proxies: which variant a request gets, told in headers.

A proxy asks before it passes a request on: nginx with `auth_request`, HAProxy with a few lines of
Lua, Traefik with `forwardAuth`. Such a question has no body and reads no body, so all stands in
headers. The unit never stands in a path or a query, which proxies write into their logs.

What is answered is what `POST /v1/assign` answers, by the same functions: the exposure is on disk
before it, and a full journal is answered with `X-Turnout-Recorded: false`.
"""

import re
from typing import Annotated, Any, Final

import msgspec
from litestar import MediaType, Request, Response, get
from litestar.datastructures import ResponseHeader
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter

from experiments.doors import NOT_JSON, PathKey, principal_of
from experiments.problems import ProblemError
from experiments.units import unit_problem
from router.api import Data
from router.assign import Assignment
from router.hot import AssignRequest, evaluate_unit
from router.plane import complete
from router.snapshot import Entry

UNIT: Final = "X-Turnout-Unit"
ATTRIBUTES: Final = "X-Turnout-Attributes"
EXPOSE: Final = "X-Turnout-Expose"
MAX_ATTRIBUTES: Final = 8 * 1024
MAX_VALUE: Final = 2 * 1024
"""Bytes of a value in a header: nginx reads the whole head of an answer into 4 KiB by default."""

_OUTSIDE_ASCII: Final = re.compile(r"[^\x20-\x7e]")
_objects = msgspec.json.Decoder(dict[str, Any])


_TOLD: Final = {
    "Variant": "the variant's key",
    "Reason": "why, as `POST /v1/assign` has it",
    "Epoch": "the epoch of the answer",
    "Propensity": "the variant's probability; absent where the unit is not enrolled",
    "Recorded": "whether an exposure is on disk",
    "Value": f"the variant's value as JSON in ASCII; absent beyond {MAX_VALUE} bytes",
}


@get(
    "/v1/route/{key:str}",
    opt={"permission": "evaluate"},
    tags=["assignment"],
    response_headers=[
        ResponseHeader(name=f"X-Turnout-{name}", description=text, documentation_only=True)
        for name, text in _TOLD.items()
    ],
)
async def route_unit(
    request: Request[Any, Any, Any],
    plane: Data,
    key: PathKey,
    _unit: Annotated[
        str | None,
        HeaderParameter(name=UNIT, description="the unit: 1 to 256 bytes of UTF-8; required"),
    ] = None,
    _attributes: Annotated[
        str | None,
        HeaderParameter(name=ATTRIBUTES, description="what targeting reads: an object as JSON"),
    ] = None,
    _expose: Annotated[
        str | None,
        HeaderParameter(name=EXPOSE, description="`false`: only look, and record no exposure"),
    ] = None,
) -> Response[bytes]:
    """Which variant a unit gets, for a proxy: the question and the answer stand in headers."""
    asked = evaluate_unit(plane, principal_of(request), _read(request, key))
    answer, recorded = await complete(plane, asked)
    headers = answer_headers(asked.entry, answer, recorded)
    return Response(b"", status_code=200, media_type=MediaType.TEXT, headers=headers)


def answer_headers(entry: Entry, answer: Assignment, recorded: bool) -> dict[str, str]:
    """An answer as headers. None of them can hold more than one line of ASCII, whatever stands in
    an experiment: keys and reasons have none but safe characters, and a value is escaped."""
    headers = {
        "X-Turnout-Experiment": entry.key,
        "X-Turnout-Run": str(entry.run),
        "X-Turnout-Variant": answer.arm.key,
        "X-Turnout-Reason": answer.reason,
        "X-Turnout-Epoch": str(answer.epoch),
        "X-Turnout-Recorded": "true" if recorded else "false",
        "Cache-Control": "no-store",  # a proxy that kept it would give one unit's answer to all
    }
    if answer.propensity is not None:
        headers["X-Turnout-Propensity"] = repr(answer.propensity)
    value = in_ascii(bytes(answer.arm.value).decode())
    if len(value) <= MAX_VALUE:
        headers["X-Turnout-Value"] = value
    return headers


def in_ascii(text: str) -> str:
    """JSON with all that is no printable ASCII written as an escape: the same value, and one line.

    In compact JSON such characters stand in strings only.
    """
    return _OUTSIDE_ASCII.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    units = found[0].encode("utf-16-be")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))


def _read(request: Request[Any, Any, Any], key: str) -> AssignRequest:
    """What the headers ask for.

    Raises:
        ProblemError: `malformed`, naming the header.
    """
    unit = _header(request, UNIT)
    if not unit:
        raise _wrong(UNIT, "is needed: the unit that is routed")
    detail = unit_problem(unit)
    if detail is not None:
        raise _wrong(UNIT, detail)
    expose = _header(request, EXPOSE)
    if expose not in {None, "", "true", "false"}:
        raise _wrong(EXPOSE, "must be `true` or `false`")
    return AssignRequest(
        experiment=key,
        unit=unit,
        attributes=_read_attributes(_header(request, ATTRIBUTES)),
        expose=expose != "false",
    )


def _read_attributes(text: str | None) -> dict[str, Any] | None:
    if not text:
        return None
    if len(text) > MAX_ATTRIBUTES:
        raise _wrong(ATTRIBUTES, f"may have at most {MAX_ATTRIBUTES} characters")
    try:
        return _objects.decode(text)
    except NOT_JSON as error:
        raise _wrong(ATTRIBUTES, f"must be an object as JSON: {error}") from error


def _header(request: Request[Any, Any, Any], name: str) -> str | None:
    """A header as the UTF-8 that proxies pass through; None where it is absent.

    Raises:
        ProblemError: `malformed` where it comes twice, of which one would be ignored, or is no
            UTF-8.
    """
    sought = name.lower().encode()
    values: list[bytes] = [value for key, value in request.scope["headers"] if key == sought]
    if len(values) > 1:
        raise _wrong(name, "may come once only")
    try:
        return values[0].decode() if values else None
    except UnicodeDecodeError as error:
        raise _wrong(name, "must be UTF-8") from error


def _wrong(name: str, detail: str) -> ProblemError:
    return ProblemError("malformed", f"The header {name} {detail}")


ROUTES: Final[list[HTTPRouteHandler]] = [route_unit]
