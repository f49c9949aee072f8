"""The doors of the data plane: assignment, OFREP, outcomes."""

from typing import Annotated, Any, Final, TypeAlias

import msgspec
from litestar import MediaType, Request, Response, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, SkipValidation
from msgspec import Meta

from experiments.doors import (
    NOT_JSON,
    Clock,
    json_response,
    malformed,
    parse_json,
    principal_of,
    read_as,
    read_body,
)
from experiments.model import Key
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.units import unit_problem
from router.assign import Assignment, Why, assign, attribute_problems, exposure
from router.metrics import RouterMetrics
from router.outcomes import Context, ItemError, OutcomeItem, read_batch
from router.recording import Recorder
from router.refresher import Refresher
from router.snapshot import Entry

MAX_ASSIGN_BODY = 64 * 1024


class DataPlane(msgspec.Struct, frozen=True):
    """What the data plane works with, handed in."""

    refresher: Refresher
    recorder: Recorder
    metrics: RouterMetrics
    clock: Clock

    def find(self, project: str, key: str) -> Entry | None:
        """The entry of an experiment that was started, or None."""
        found = self.refresher.current.projects.get(project)
        return None if found is None else found.entries.get(key)

    async def evaluate(
        self, entry: Entry, unit: str, attributes: dict[str, Any] | None, expose: bool
    ) -> tuple[Assignment, bool]:
        """Assign a unit, and record its exposure; whether it was recorded."""
        answer = assign(entry, unit)
        recorded = False
        if answer.enrolled and expose:
            record = exposure(entry, answer.arm, unit, attributes, self.clock())
            recorded = await self.recorder.expose(record, entry.key, entry.erasures)
        self.metrics.assignments.labels(
            entry.project, entry.key, answer.arm.key, answer.reason
        ).inc()
        return answer, recorded


Data: TypeAlias = NamedDependency[SkipValidation[DataPlane]]


class AssignRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/assign`."""

    experiment: Key
    unit: Annotated[str, Meta(min_length=1, description="a unit's id: 1 to 256 bytes of UTF-8")]
    attributes: dict[str, Any] | None = None
    expose: bool = True


class AssignAnswer(msgspec.Struct, frozen=True):
    """Which variant a unit gets, and what is needed to account for it.

    `propensity` is the variant's probability for an enrolled unit; it and `slot` are null where the
    answer did not come from a slot. `recorded` says that the exposure is on disk.
    """

    experiment: str
    run: int
    variant: str
    value: msgspec.Raw
    reason: Why
    epoch: int
    propensity: float | None
    slot: int | None
    recorded: bool


class OutcomesAnswer(msgspec.Struct, frozen=True):
    """What became of a batch: each item is accepted, a duplicate or an error."""

    accepted: int
    duplicates: int
    errors: list[ItemError]


class OfrepRequest(msgspec.Struct, frozen=True):
    """The body of an evaluation (OFREP 0.3). The unit is in its context."""

    context: dict[str, Any]


class OfrepSuccess(msgspec.Struct, frozen=True):
    """A successful evaluation (OFREP 0.3)."""

    key: str
    reason: str
    variant: str
    value: msgspec.Raw
    metadata: dict[str, str | float | bool]


class OfrepFailure(msgspec.Struct, frozen=True):
    """A failed evaluation (OFREP 0.3)."""

    key: str
    errorCode: str  # noqa: N815 - the protocol's name
    errorDetails: str  # noqa: N815 - the protocol's name


_OFREP_REASONS: dict[Why, str] = {
    "split": "SPLIT",
    "not_enrolled": "SPLIT",
    "paused": "DISABLED",
    "rolled_back": "DISABLED",
    "concluded": "STATIC",
}
_assign_request = msgspec.json.Decoder(AssignRequest)


class _OfrepError(Exception):
    def __init__(self, status: int, code: str, details: str) -> None:
        super().__init__(details)
        self.status, self.code, self.details = status, code, details


def _read_assign_request(body: bytes) -> AssignRequest:
    try:
        request = _assign_request.decode(body)
    except msgspec.ValidationError:
        request = read_as(AssignRequest, parse_json(body))
    except NOT_JSON as error:
        raise malformed(error) from error
    detail = unit_problem(request.unit)
    if detail is not None:
        raise invalid([FieldProblem("unit", "value", detail)])
    return request


def _read_context(body: bytes) -> dict[str, Any]:
    try:
        data = msgspec.json.decode(body)
    except NOT_JSON as error:
        raise _OfrepError(400, "PARSE_ERROR", f"the body is not JSON: {error}") from error
    context = data.get("context") if isinstance(data, dict) else None
    if not isinstance(context, dict):
        raise _OfrepError(400, "INVALID_CONTEXT", "`context` must be an object")
    return context


def _unit_of(context: dict[str, Any], attribute: str) -> str:
    unit = context.get(attribute)
    if unit is None or unit == "":
        raise _OfrepError(400, "TARGETING_KEY_MISSING", f"the context has no `{attribute}`")
    if not isinstance(unit, str):
        raise _OfrepError(400, "INVALID_CONTEXT", f"`{attribute}` must be a string")
    detail = unit_problem(unit)
    if detail is not None:
        raise _OfrepError(400, "INVALID_CONTEXT", f"`{attribute}` {detail}")
    return unit


def _handle_ofrep_problem(request: Request[Any, Any, Any], error: ProblemError) -> Response[Any]:
    """401 and 403 have no body in OFREP; 413 has only `errorDetails`."""
    if error.status in {401, 403}:
        return Response(
            b"", status_code=error.status, media_type=MediaType.TEXT, headers=error.headers
        )
    return json_response({"errorDetails": error.detail}, error.status, error.headers)


@post(
    "/v1/assign",
    status_code=200,
    opt={"permission": "evaluate", "takes": AssignRequest, "gives": AssignAnswer},
    tags=["assignment"],
)
async def assign_unit(request: Request[Any, Any, Any], plane: Data) -> Response[bytes]:
    """Which variant a unit gets; its exposure is on disk before the answer."""
    body = _read_assign_request(await read_body(request, MAX_ASSIGN_BODY))
    entry = plane.find(principal_of(request).project, body.experiment)
    if entry is None:
        raise ProblemError("not-found", f"No experiment {body.experiment!r} was started")
    problems = attribute_problems(entry, body.attributes, "attributes")
    if problems:
        raise invalid(problems)
    answer, recorded = await plane.evaluate(entry, body.unit, body.attributes, body.expose)
    return Response(
        msgspec.json.encode(
            AssignAnswer(
                experiment=entry.key,
                run=entry.run,
                variant=answer.arm.key,
                value=answer.arm.value,
                reason=answer.reason,
                epoch=entry.epoch,
                propensity=answer.arm.propensity if answer.enrolled else None,
                slot=answer.slot,
                recorded=recorded,
            )
        ),
        media_type=MediaType.JSON,
    )


@post(
    "/ofrep/v1/evaluate/flags/{key:str}",
    status_code=200,
    opt={"permission": "evaluate", "takes": OfrepRequest, "gives": OfrepSuccess},
    exception_handlers={ProblemError: _handle_ofrep_problem},
    tags=["assignment"],
)
async def evaluate_flag(
    request: Request[Any, Any, Any], plane: Data, key: FromPath[str]
) -> Response[Any]:
    """OpenFeature Remote Evaluation of one flag: an experiment is a flag."""
    body = await read_body(request, MAX_ASSIGN_BODY)
    try:
        context = _read_context(body)
        entry = plane.find(principal_of(request).project, key)
        if entry is None:
            raise _OfrepError(404, "FLAG_NOT_FOUND", f"no experiment {key!r} was started")
        unit = _unit_of(context, entry.unit_attribute)
        problems = attribute_problems(entry, context, "context")
        if problems:
            details = "; ".join(f"`{p.path}` {p.detail}" for p in problems)
            raise _OfrepError(400, "INVALID_CONTEXT", details)
    except _OfrepError as error:
        return json_response(OfrepFailure(key, error.code, error.details), error.status)
    answer, recorded = await plane.evaluate(entry, unit, context, expose=True)
    return json_response(
        OfrepSuccess(
            key=key,
            reason=_OFREP_REASONS[answer.reason],
            variant=answer.arm.key,
            value=answer.arm.value,
            metadata={
                "run": entry.run,
                "epoch": entry.epoch,
                "why": answer.reason,
                "recorded": recorded,
            },
        )
    )


@post(
    "/v1/outcomes",
    status_code=200,
    opt={"permission": "record", "takes": OutcomeItem | list[OutcomeItem], "gives": OutcomesAnswer},
    tags=["outcomes"],
)
async def record_outcomes(request: Request[Any, Any, Any], plane: Data) -> Response[bytes]:
    """What came of it: one outcome, a list, or NDJSON; on disk before the answer."""
    principal = principal_of(request)
    body = await read_body(request)
    project = plane.refresher.current.projects[principal.project]
    context = Context(
        project=principal.project,
        default_unit_type=project.default_unit_type,
        recorded_attributes=project.recorded_attributes,
        now=plane.clock(),
        idempotency_key=request.headers.get("idempotency-key") or None,
        unit_key=project.unit_key,
    )
    batch = await read_batch(body, request.headers.get("content-type", ""), context)
    # Reading took many turns of the event loop, and the batch is stamped in that of its recording.
    receipt = await plane.recorder.accept(principal.project, batch, plane.clock())
    answer = OutcomesAnswer(receipt.accepted, receipt.duplicates, batch.errors)
    return Response(msgspec.json.encode(answer), media_type=MediaType.JSON)


ROUTES: Final[list[HTTPRouteHandler]] = [assign_unit, evaluate_flag, record_outcomes]
