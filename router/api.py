"""The doors of the data plane: assignment, OFREP's single evaluation, outcomes."""

import logging
from typing import Any, Final, TypeAlias

import msgspec
from litestar import MediaType, Request, Response, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import FromPath, SkipValidation

from experiments.doors import principal_of, read_body, respond
from experiments.problems import DEFECT, ProblemError
from router.hot import (
    ASSIGN,
    FLAG,
    MAX_ASSIGN_BODY,
    AssignAnswer,
    AssignRequest,
    HotDoor,
    OfrepError,
    OfrepRequest,
    OfrepSuccess,
    refuse_flag,
)
from router.items import ItemError
from router.outcomes import Context, OutcomeItem, read_batch
from router.plane import DataPlane, complete

logger = logging.getLogger(__name__)

Data: TypeAlias = NamedDependency[SkipValidation[DataPlane]]


class OutcomesAnswer(msgspec.Struct, frozen=True):
    """What became of a batch: each item is accepted, a duplicate or an error."""

    accepted: int
    duplicates: int
    errors: list[ItemError]


async def _answer(
    door: HotDoor, request: Request[Any, Any, Any], plane: DataPlane, key: str = ""
) -> Response[bytes]:
    body = await read_body(request, MAX_ASSIGN_BODY)
    asked = door.evaluate(plane, principal_of(request), key, body)
    answer, recorded = await complete(plane, asked)
    return Response(door.encode(asked.entry, answer, recorded), media_type=MediaType.JSON)


def handle_ofrep_problem(
    request: Request[Any, Any, Any], error: ProblemError | OfrepError
) -> Response[bytes]:
    """Litestar exception handler of the doors that speak OFREP."""
    return respond(refuse_flag(error, request.path_params.get("key", ""), ""))


def handle_ofrep_defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """Litestar exception handler of the doors that speak OFREP: a defect of ours."""
    logger.error("defect", exc_info=error)
    return handle_ofrep_problem(request, ProblemError("internal", DEFECT))


@post(
    "/v1/assign",
    status_code=200,
    opt={"permission": "evaluate", "takes": AssignRequest, "gives": AssignAnswer},
    tags=["assignment"],
)
async def assign_unit(request: Request[Any, Any, Any], plane: Data) -> Response[bytes]:
    """Which variant a unit gets; its exposure is on disk before the answer."""
    return await _answer(ASSIGN, request, plane)


@post(
    "/ofrep/v1/evaluate/flags/{key:str}",
    status_code=200,
    opt={"permission": "evaluate", "takes": OfrepRequest, "gives": OfrepSuccess},
    exception_handlers={
        ProblemError: handle_ofrep_problem,
        OfrepError: handle_ofrep_problem,
        500: handle_ofrep_defect,
    },
    tags=["assignment"],
)
async def evaluate_flag(
    request: Request[Any, Any, Any], plane: Data, key: FromPath[str]
) -> Response[bytes]:
    """OpenFeature Remote Evaluation of one flag: an experiment is a flag."""
    return await _answer(FLAG, request, plane, key)


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
    project = plane.project(principal.project)
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
