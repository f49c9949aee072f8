"""OFREP's bulk evaluation: all flags of a project for one context, for clients that keep them.

A client evaluates all that it might show at its start, so none of it is an exposure. It comes again
when it hears of a change, or every now and then, with the entity tag of what it has.

An entity tag is a hash of all that an answer is made of: the project's version, the context, which
experiments are stale, and the address of the event stream. So a 304 needs no evaluation, is never
given to another context or after a change, and a client whose ticket for the stream is about to end
gets a new one. What Redis holds of a unit has no version: an answer that asks for it has no tag.
"""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar

import msgspec
from litestar import MediaType, Request, Response, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from experiments.doors import Reply, names_tag, principal_of, read_body, respond
from experiments.problems import DEFECT, ProblemError
from router.api import Data, handle_ofrep_problem
from router.assign import Assignment
from router.evaluation import Evaluation
from router.hot import (
    MAX_ASSIGN_BODY,
    OfrepError,
    OfrepFailure,
    OfrepRequest,
    encode_flag,
    read_context,
    unit_of,
)
from router.plane import DataPlane, count
from router.snapshot import Entry, ProjectSnapshot
from router.sticky import sticks
from router.streams import address

T = TypeVar("T")

FLAGS_A_TURN: Final = 100
"""How many flags are evaluated, in about half a millisecond, before others get their turn."""
LOOKUPS_AT_ONCE: Final = 16
"""How many sticky variants of one request are looked up together: each takes a connection."""
FRESH_SECONDS: Final = 1.0
"""How long an answer waits for a version that the client has heard of and this router has not."""

_FORM: Final = 1
"""Goes up when the same project and context come to be answered differently."""
_MOST_DIGITS: Final = 18
logger = logging.getLogger(__name__)


class EventEndpoint(msgspec.Struct, frozen=True):
    """Path and query of an event stream, on the origin that the client has for OFREP."""

    requestUri: str  # noqa: N815 - the protocol's name


class EventStream(msgspec.Struct, frozen=True):
    """Where a client hears of changes."""

    type: str
    endpoint: EventEndpoint


class BulkFlag(msgspec.Struct, frozen=True, omit_defaults=True):
    """A flag in a bulk answer: it was evaluated, as in the answer to a single evaluation, or it
    failed, which only its `errorCode` tells."""

    key: str
    reason: str = ""
    variant: str = ""
    value: Any = None
    metadata: dict[str, str | float | bool] = {}
    errorCode: str = ""  # noqa: N815 - the protocol's name
    errorDetails: str = ""  # noqa: N815 - the protocol's name


class BulkAnswer(msgspec.Struct, frozen=True):
    """All flags of a project, in the order of their keys."""

    flags: list[BulkFlag]
    metadata: dict[str, str | float | bool]
    eventStreams: list[EventStream]  # noqa: N815 - the protocol's name


class BulkFailure(msgspec.Struct, frozen=True):
    """A bulk evaluation that fails as a whole."""

    errorCode: str  # noqa: N815 - the protocol's name
    errorDetails: str  # noqa: N815 - the protocol's name


def entity_tag(
    project: ProjectSnapshot, context: Mapping[str, Any], stale: Sequence[str], stream: str
) -> str:
    """The tag of a bulk answer, in its quotes.

    The context counts as what it says: the order of its names, blanks, escapes and the ways to
    write a number (10.0, 1e1) do not matter. 1 and 1.0 stay apart, for targeting can tell them
    apart.

    Args:
        stale: the keys of the experiments that are stale now, in their order.
        stream: the address of the event stream.
    """
    parts = (_FORM, project.project, project.version, stale, stream, context)
    text = msgspec.json.encode(parts, order="sorted")
    return f'"{hashlib.blake2b(text, digest_size=16).hexdigest()}"'


def flags_of(project: ProjectSnapshot) -> list[Entry]:
    """The experiments that are flags, in the order of their keys."""
    return [project.entries[key] for key in sorted(project.entries)]


def has_tag(entries: Sequence[Entry]) -> bool:
    """Whether the answer follows from the snapshot and the context alone."""
    return not any(entry.sticky and entry.state == "running" for entry in entries)


def bulk_body(flags: Sequence[bytes], project: ProjectSnapshot, stream: str) -> bytes:
    """The body of a bulk answer, of flags that are encoded."""
    streams = [EventStream("sse", EventEndpoint(stream))]
    return b'{"flags":[%b],"metadata":%b,"eventStreams":%b}' % (
        b",".join(flags),
        msgspec.json.encode({"version": project.version}),
        msgspec.json.encode(streams),
    )


async def evaluate_all(
    plane: DataPlane,
    project: ProjectSnapshot,
    entries: Sequence[Entry],
    context: dict[str, Any],
) -> list[bytes]:
    """Each flag's evaluation or failure, encoded; others get their turns in between."""
    flags: list[bytes] = []
    for batch in _batches(entries, FLAGS_A_TURN):
        asked = [_evaluation(plane, project, entry, context) for entry in batch]
        answers = await _settled(plane, [one for one in asked if isinstance(one, Evaluation)])
        flags += [
            msgspec.json.encode(one)
            if isinstance(one, OfrepFailure)
            else encode_flag(one.entry, answers[one.entry.key], False)
            for one in asked
        ]
        await asyncio.sleep(0)
    return flags


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for first in range(0, len(items), size):
        yield items[first : first + size]


def _evaluation(
    plane: DataPlane, project: ProjectSnapshot, entry: Entry, context: dict[str, Any]
) -> Evaluation | OfrepFailure:
    try:
        unit = unit_of(project, entry, context)
    except OfrepError as error:
        return OfrepFailure(entry.key, error.code, error.details)
    answer = plane.assign(entry, unit, context)
    return Evaluation(project, entry, unit, context, False, answer)


async def _settled(plane: DataPlane, asked: Sequence[Evaluation]) -> dict[str, Assignment]:
    """The final answers by the experiments' keys: those of sticky ones are looked up, together."""
    answers = {one.entry.key: one.answer for one in asked}
    for group in _batches([one for one in asked if sticks(one.entry, one.answer)], LOOKUPS_AT_ONCE):
        found = await asyncio.gather(
            *(
                plane.sticky.settle(one.project, one.entry, one.unit, one.answer, keep=False)
                for one in group
            )
        )
        answers |= {one.entry.key: answer for one, answer in zip(group, found, strict=True)}
    for one in asked:
        count(plane, one.entry, answers[one.entry.key])
    return answers


def _handle_bulk_error(request: Request[Any, Any, Any], error: OfrepError) -> Response[bytes]:
    body = msgspec.json.encode(BulkFailure(error.code, error.details))
    return respond(Reply(error.status, body))


def _handle_bulk_defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    logger.error("defect", exc_info=error)
    return respond(Reply(500, msgspec.json.encode(BulkFailure("GENERAL", DEFECT))))


@post(
    "/ofrep/v1/evaluate/flags",
    status_code=200,
    opt={"permission": "evaluate", "takes": OfrepRequest, "gives": BulkAnswer},
    exception_handlers={
        ProblemError: handle_ofrep_problem,
        OfrepError: _handle_bulk_error,
        500: _handle_bulk_defect,
    },
    tags=["assignment"],
)
async def evaluate_flags(
    request: Request[Any, Any, Any],
    plane: Data,
    config_etag: Annotated[
        str | None,
        QueryParameter(name="flagConfigEtag", description="the `etag` of the event that led here"),
    ] = None,
    config_last_modified: Annotated[
        str | None,
        QueryParameter(
            name="flagConfigLastModified",
            description="taken since the protocol has it; our events tell versions, not times",
        ),
    ] = None,
) -> Response[bytes]:
    """OpenFeature Remote Evaluation of all flags; it records no exposures."""
    caller = principal_of(request)
    context = read_context(await read_body(request, MAX_ASSIGN_BODY))
    project = await _fresh_project(plane, caller.project, config_etag)
    key = plane.refresher.find_key(caller.key_id)
    if key is None:
        raise ProblemError("unauthenticated", "The key was revoked a moment ago")
    entries = flags_of(project)
    stream = address(key, project.version, plane.clock())
    headers: dict[str, str] = {}
    stale: list[str] = []
    if has_tag(entries):
        stale = _stale(plane, entries)
        try:
            headers["ETag"] = tag = entity_tag(project, context, stale, stream)
        except RecursionError as error:
            raise OfrepError(400, "INVALID_CONTEXT", "`context` is nested too deep") from error
        if names_tag(request.headers.get("if-none-match", ""), tag):
            return Response(b"", status_code=304, media_type=MediaType.JSON, headers=headers)
    flags = await evaluate_all(plane, project, entries, context)
    if headers and _stale(plane, entries) != stale:
        headers.clear()  # it happened in between: nobody can say which flags saw it
    return Response(bulk_body(flags, project, stream), media_type=MediaType.JSON, headers=headers)


def _stale(plane: DataPlane, entries: Sequence[Entry]) -> list[str]:
    return [entry.key for entry in entries if plane.is_stale(entry)]


async def _fresh_project(plane: DataPlane, name: str, heard: str | None) -> ProjectSnapshot:
    """A project, of the version that an event has told the client of, if that comes in time: the
    event may have come from a router that was quicker."""
    project = plane.project(name)
    if heard is None or not (heard.isascii() and heard.isdigit() and len(heard) <= _MOST_DIGITS):
        return project
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FRESH_SECONDS):
            while project.version < int(heard):
                await plane.refresher.changed(name, project.version)
                project = plane.project(name)
    return project


ROUTES: Final[list[HTTPRouteHandler]] = [evaluate_flags]
