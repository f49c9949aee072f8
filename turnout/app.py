"""Puts the doors of all rooms together into one ASGI app."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec
from litestar import Litestar, Request, Response, Router, get
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi import OpenAPIConfig
from litestar.openapi.spec import Components, SecurityScheme
from litestar.types import ASGIApp, ExceptionHandlersMap

import analysis.chronicle.api
import analysis.control.acts
import analysis.control.api
import analysis.control.gates_api
import analysis.control.overrule_api
import analysis.control.posterior_api
import analysis.control.ramp_api
import analysis.planning.api
import analysis.reports.api
import analysis.reports.snapshots_api
import analysis.upkeep.erase_api
import dashboard.live
import experiments.api
import experiments.audit.api
import experiments.holdout_api
import experiments.keys_api
import experiments.layers_api
import experiments.overrides_api
import experiments.project_api
import experiments.proposals.api
import experiments.webhooks.api
import experiments.weights_export_api
import router.api
import router.batch_api
import router.edge_api
import router.events
import router.local_api
import router.ofrep
import router.replay_api
import router.streams
from analysis.planning.api import PlanningPlane
from analysis.reports.api import AnalysisPlane
from dashboard.app import pages_router, problem_page, wants_page
from dashboard.plane import PagesPlane
from experiments.doors import (
    Gate,
    handle_problem,
    json_response,
    permission_guard,
    problem_of,
)
from experiments.problems import CATALOGUE, DEFECT, FIELD_TYPES, ProblemError
from experiments.spans import NO_TRACES, Tracer
from experiments.webhooks.api import WebhookPlane
from experiments.writes import ControlPlane
from router.local_api import LocalPlane
from router.plane import DataPlane
from router.recording import RETRY_AFTER_SECONDS
from router.records import names_unit
from turnout import __version__
from turnout.cors import Cors
from turnout.head import Heads
from turnout.health import Health
from turnout.openapi import CompleteDocument, operation_id
from turnout.sums import Families, told
from turnout.telemetry import RequestLog, RequestTelemetry

METRICS_TYPE: Final = "text/plain; version=0.0.4"  # Litestar adds the character set
logger = logging.getLogger(__name__)

DOORS: Final[list[HTTPRouteHandler]] = [
    *experiments.api.ROUTES,
    *experiments.audit.api.ROUTES,
    *experiments.keys_api.ROUTES,
    *experiments.project_api.ROUTES,
    *experiments.layers_api.ROUTES,
    *experiments.holdout_api.ROUTES,
    *experiments.overrides_api.ROUTES,
    *experiments.proposals.api.routes(analysis.control.acts.ACTS),
    *experiments.webhooks.api.ROUTES,
    *experiments.weights_export_api.ROUTES,
    *router.api.ROUTES,
    *router.batch_api.ROUTES,
    *router.edge_api.ROUTES,
    *router.local_api.ROUTES,
    *router.replay_api.ROUTES,
    *router.ofrep.ROUTES,
    *analysis.control.api.ROUTES,
    *analysis.control.gates_api.ROUTES,
    *analysis.control.overrule_api.ROUTES,
    *analysis.control.posterior_api.ROUTES,
    *analysis.control.ramp_api.ROUTES,
    *analysis.reports.api.ROUTES,
    *analysis.reports.snapshots_api.ROUTES,
    *analysis.chronicle.api.ROUTES,
    *analysis.planning.api.ROUTES,
    *analysis.upkeep.erase_api.ROUTES,
]
"""Every door that asks for a key; each names the permission that it takes."""
_STREAMS: Final = (router.streams.PATH, dashboard.live.PATH)
_POSTGRES_GONE: Final[tuple[type[Exception], ...]] = (
    OSError,  # nobody listens, or nobody answers in time: TimeoutError is one
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # it starts, stops, or was told to end our query
    asyncpg.InsufficientResourcesError,  # too many connections, no memory, a full disk
    asyncpg.TransactionRollbackError,  # somebody else was faster: again
    asyncpg.ReadOnlySQLTransactionError,  # it is a replica since a failover
    asyncpg.InterfaceError,  # our end of a connection that was lost
    asyncpg.InternalClientError,  # the same, at a moment that asyncpg did not expect
)


Present: TypeAlias = Callable[[Request[Any, Any, Any], ProblemError], Response[bytes]]
"""How a problem is told: as problem details, or as a page."""


class Operation(msgspec.Struct, frozen=True):
    """What an operator sees of a process, whatever its parts are."""

    health: Health
    metrics: Callable[[], Awaitable[Families]]
    requests: RequestLog
    tracer: Tracer = NO_TRACES


class Planes(msgspec.Struct, frozen=True):
    """What the doors work with."""

    control: ControlPlane
    webhooks: WebhookPlane
    data: DataPlane
    local: LocalPlane
    analysis: AnalysisPlane
    planning: PlanningPlane
    pages: PagesPlane
    operation: Operation
    gate: Gate


def create_app(planes: Planes) -> ASGIApp:
    """The whole service as an ASGI app."""

    def present(request: Request[Any, Any, Any], error: ProblemError) -> Response[bytes]:
        if wants_page(request):
            return problem_page(planes.pages, request, error)
        return handle_problem(request, error)

    @get("/problems", tags=["operation"], summary="The catalogue of problem types")
    async def problems() -> dict[str, Any]:
        types = {kind: {"status": s, "title": t} for kind, (s, t) in CATALOGUE.items()}
        return {"types": types, "field_types": FIELD_TYPES}

    guarded = Router(
        path="/",
        route_handlers=DOORS,
        guards=[permission_guard(planes.gate)],
        security=[{"bearer": []}, {"apiKey": []}],
    )
    app = Litestar(
        route_handlers=[
            *_operation_doors(planes.operation),
            problems,
            guarded,
            *router.events.ROUTES,
            pages_router(planes.pages),
        ],
        dependencies={
            "control": Provide(lambda: planes.control, sync_to_thread=False),
            "webhooks": Provide(lambda: planes.webhooks, sync_to_thread=False),
            "plane": Provide(lambda: planes.data, sync_to_thread=False),
            "local": Provide(lambda: planes.local, sync_to_thread=False),
            "analysis": Provide(lambda: planes.analysis, sync_to_thread=False),
            "planning": Provide(lambda: planes.planning, sync_to_thread=False),
            # What a dead letter holds only the router can read.
            "names_unit": Provide(lambda: names_unit, sync_to_thread=False),
        },
        exception_handlers=_handlers(present),
        openapi_config=OpenAPIConfig(
            title="Turnout",
            version=__version__,
            description="Experimentation and traffic allocation",
            path="/schema",
            use_handler_docstrings=True,
            operation_id_creator=operation_id,
            render_plugins=[CompleteDocument(path=["/", "/openapi.json"])],
            components=Components(
                security_schemes={
                    "bearer": SecurityScheme(type="http", scheme="bearer"),
                    "apiKey": SecurityScheme(
                        type="apiKey", name="X-API-Key", security_scheme_in="header"
                    ),
                }
            ),
        ),
        logging_config=None,
        debug=False,
    )
    doors = [*DOORS, *router.events.ROUTES]
    called = Cors(app, doors, lambda: planes.data.refresher.current)
    return _observed(Heads(called, _STREAMS), planes.operation)


def create_operation_app(operation: Operation) -> ASGIApp:
    """The app of a process without doors of its own: what an operator asks, and nothing else."""
    app = Litestar(
        route_handlers=_operation_doors(operation),
        exception_handlers=_handlers(handle_problem),
        openapi_config=None,
        logging_config=None,
        debug=False,
    )
    return _observed(Heads(app), operation)


def _operation_doors(operation: Operation) -> list[HTTPRouteHandler]:
    @get("/healthz", tags=["operation"], summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @get("/readyz", tags=["operation"], summary="Whether it can serve, and what is degraded")
    async def readyz() -> Response[bytes]:
        state = await operation.health.check()
        return json_response(state, 200 if state.ready else 503)

    @get("/metrics", tags=["operation"], summary="Metrics for Prometheus")
    async def metrics(request: Request[Any, Any, Any]) -> Response[bytes]:
        compressed = "gzip" in request.headers.get("accept-encoding", "")
        body = await told(await operation.metrics(), compressed=compressed)
        headers = {"Vary": "Accept-Encoding"}
        if compressed:
            headers["Content-Encoding"] = "gzip"
        return Response(body, media_type=METRICS_TYPE, headers=headers)

    return [healthz, readyz, metrics]


def _observed(app: ASGIApp, operation: Operation) -> ASGIApp:
    return RequestTelemetry(app, operation.requests, operation.tracer)


def _handlers(present: Present) -> ExceptionHandlersMap:
    """What becomes of errors: each is a problem, which `present` tells to whoever asked."""

    def handle_http(request: Request[Any, Any, Any], error: HTTPException) -> Response[bytes]:
        return present(request, problem_of(error))

    def handle_postgres_gone(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        if isinstance(error, ValueError):  # asyncpg's own complaint about our arguments
            return handle_defect(request, error)
        logger.warning("Postgres does not answer", extra={"error": error})
        detail = "Postgres does not answer; assigning and recording go on without it"
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        return present(request, ProblemError("unavailable", detail, headers=headers))

    def handle_defect(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
        logger.error("defect", exc_info=error)
        return present(request, ProblemError("internal", DEFECT))

    return {
        ProblemError: present,
        HTTPException: handle_http,
        **dict.fromkeys(_POSTGRES_GONE, handle_postgres_gone),
        500: handle_defect,
    }
