"""The doors for those who evaluate where they run: the flags, and what came of them."""

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import msgspec
from litestar import MediaType, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation

from experiments import store
from experiments.doors import json_response, names_tag, principal_of, read_body
from experiments.problems import FieldProblem, ProblemError, invalid
from router.elsewhere import (
    ExposureItem,
    Findings,
    Records,
    examine,
    read_exposures,
    records_of,
)
from router.epochs import Epochs
from router.flagd import FlagSets
from router.items import ItemError
from router.plane import DataPlane
from router.recording import RETRY_AFTER_SECONDS
from router.records import RecordId


class LocalPlane(msgspec.Struct, frozen=True):
    """What these doors work with, handed in."""

    data: DataPlane
    flag_sets: FlagSets
    epochs: Epochs
    pool: store.Pool


Local: TypeAlias = NamedDependency[SkipValidation[LocalPlane]]


class ExposuresAnswer(msgspec.Struct, frozen=True):
    """What became of a batch: each item is accepted, a duplicate of one that is known, of a unit
    that is not enrolled (then there is nothing to keep), set aside as a mismatch, or an error."""

    accepted: int
    duplicates: int
    not_enrolled: int
    mismatched: int
    errors: list[ItemError]


@get("/v1/flagd", opt={"permission": "evaluate"}, tags=["local evaluation"])
async def flag_set(request: Request[Any, Any, Any], local: Local) -> Response[bytes]:
    """The experiments as a flag set of flagd, for evaluators that hash as we do: in Python,
    `openfeature-flagd-core` from 2.0 on. `left_out` names what flagd cannot express."""
    principal = principal_of(request)
    found = await local.flag_sets.of(
        local.data.project(principal.project), shows_units=principal.may("record")
    )
    etag = f'"{found.tag}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if names_tag(request.headers.get("if-none-match", ""), etag):
        return Response(b"", status_code=304, media_type=MediaType.JSON, headers=headers)
    return Response(found.body, media_type=MediaType.JSON, headers=headers)


@post(
    "/v1/exposures",
    status_code=200,
    opt={
        "permission": "record",
        "takes": ExposureItem | list[ExposureItem],
        "gives": ExposuresAnswer,
    },
    tags=["local evaluation"],
)
async def record_exposures(request: Request[Any, Any, Any], local: Local) -> Response[bytes]:
    """Exposures that were evaluated elsewhere: one, a list, or NDJSON. The variant of each is
    computed again from its epoch; what is true is on disk before the answer. An exposure is known
    by what it says, so a repeat is a duplicate without any id."""
    plane = local.data
    project = plane.project(principal_of(request).project)
    body = await read_body(request)
    now = plane.clock()
    reading = await read_exposures(body, request.headers.get("content-type", ""), now)
    findings = await examine(project, reading.items, local.epochs)
    if reading.single:
        _refuse(findings.errors)
    records = await records_of(project, findings, now)
    # All that took many turns of the event loop, and the records are stamped in that of recording.
    stamped = records.as_of(plane.clock())
    known = await plane.recorder.take_in(
        [*stamped.inside, *stamped.beside], stamped.suspects, project.erasures
    )
    answer = _answer(records, findings, known, reading.errors)
    _count(plane, project.project, findings, answer)
    return json_response(answer)


def _refuse(errors: Sequence[ItemError]) -> None:
    """Refuse a body that is one exposure, if that is wrong.

    Raises:
        ProblemError: `unavailable` if it cannot be checked now, else `invalid`.
    """
    for error in errors:
        if error.type == "unavailable":
            headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
            raise ProblemError("unavailable", error.detail, headers=headers)
    if errors:
        raise invalid([FieldProblem(e.path, e.type, e.detail) for e in errors])


def _answer(
    records: Records, findings: Findings, known: frozenset[RecordId], errors: list[ItemError]
) -> ExposuresAnswer:
    fresh = {record.id for record in records.inside} - known
    return ExposuresAnswer(
        accepted=len(fresh),
        duplicates=len(records.inside) - len(fresh),
        not_enrolled=findings.not_enrolled,
        mismatched=len(findings.suspects),
        errors=sorted([*errors, *findings.errors], key=lambda error: error.index),
    )


def _count(plane: DataPlane, project: str, findings: Findings, answer: ExposuresAnswer) -> None:
    for result, count in (
        ("accepted", answer.accepted),
        ("duplicate", answer.duplicates),
        ("not_enrolled", answer.not_enrolled),
        ("mismatched", answer.mismatched),
        ("refused", len(answer.errors)),
    ):
        plane.metrics.reported.add(project, result, count=count)
    for suspect in findings.suspects:
        plane.metrics.mismatched.add(project, suspect.item.experiment)


ROUTES: Final[list[HTTPRouteHandler]] = [flag_set, record_exposures]
