"""How requests are seen from outside: their ids, lines in the log, metrics and spans."""

import itertools
import logging
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, cast

from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from experiments.keys import Principal
from experiments.spans import (
    NO_TRACES,
    Span,
    TraceContext,
    Tracer,
    Value,
    current_trace,
    read_context,
)
from router.tally import Histogram, Tally
from turnout.logs import request_id

REQUEST_ID: Final = b"x-request-id"
TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"
_MAX_REQUEST_ID: Final = 128
_LATENCY_BUCKETS: Final = (
    *(0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""All others are counted as one: whoever asks may write there what he likes."""
_READ: Final = frozenset({REQUEST_ID, TRACEPARENT, TRACESTATE})
_STATUS: Final = {status: str(status) for status in range(100, 600)}
logger = logging.getLogger("turnout.request")


def request_ids(prefix: str) -> Callable[[], str]:
    """Ids of requests: `prefix`, which should be random, and a number that rises. Random bits for
    each would take ten times as long."""
    numbers = itertools.count(1)
    return lambda: f"{prefix}{next(numbers):x}"


class RequestSpan(Span, Protocol):
    """The span of a request that is answered in several callbacks."""

    @property
    def context(self) -> TraceContext:
        """Where work below it belongs."""
        ...

    def end(self) -> None:
        """End it, now."""
        ...


class RequestTracer(Protocol):
    """Makes such spans."""

    def begin_request(
        self, name: str, attributes: Mapping[str, Value], parent: TraceContext | None
    ) -> RequestSpan | None:
        """The span of a request; None where it is not traced."""
        ...


class RequestLog:
    """Counts and times requests by door, and logs those that failed or changed something."""

    def __init__(self, registry: CollectorRegistry, new_id: Callable[[], str]) -> None:
        self.new_id = new_id
        self.logs_all = logger.isEnabledFor(logging.DEBUG)
        self._requests = Tally(
            "turnout_requests",
            "Requests answered, by door and status",
            ("method", "door", "status"),
            registry,
        )
        self._seconds = Histogram(
            "turnout_request_seconds",
            "Time to the end of the answer, by door",
            ("method", "door"),
            _LATENCY_BUCKETS,
            registry,
        )

    def answered(
        self, method: str, door: str, status: int, seconds: float, caller: Principal | None = None
    ) -> None:
        """Take in a request that was answered. `caller` is who has sent it, if that is known."""
        self._requests.one((method, door, _STATUS[status]))
        self._seconds.observe(seconds, (method, door))
        level = _log_level(method, door, status)
        if logger.isEnabledFor(level):
            who = {} if caller is None else {"actor": caller.actor, "project": caller.project}
            what = {"method": method, "door": door, "status": status, "seconds": round(seconds, 6)}
            logger.log(level, "request", extra={**what, **who})

    def answered_well(self, method: str, door: str, seconds: float) -> None:
        """Take in a request at a hot door that was answered with 200."""
        if self.logs_all:
            self.answered(method, door, 200, seconds)
        else:
            self._requests.one((method, door, "200"))
            self._seconds.observe(seconds, (method, door))


class RequestTelemetry:
    """ASGI middleware around the whole app: gives each request an id and a span, and tells the log
    of it."""

    def __init__(self, app: ASGIApp, requests: RequestLog, tracer: Tracer = NO_TRACES) -> None:
        self._app = app
        self._requests = requests
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":  # type: ignore[comparison-overlap]  # plain text on the wire
            await self._handle(cast("HTTPScope", scope), receive, send)
        else:
            await self._app(scope, receive, send)

    async def _handle(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        given = {name: value for name, value in scope["headers"] if name in _READ}
        if sum(name == TRACEPARENT for name, _ in scope["headers"]) > 1:
            del given[TRACEPARENT]  # one of them is forged, and nobody knows which
        identity = given_id(given.get(REQUEST_ID, b"")) or self._requests.new_id()
        token = request_id.set(identity)
        trace = given_trace(given.get(TRACEPARENT), given.get(TRACESTATE, b""))
        trace_token = current_trace.set(trace)
        scope.setdefault("state", {})["request_id"] = identity
        status = 500
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, identity.encode())]
            await send(message)

        method = scope["method"] if scope["method"] in _METHODS else "other"
        try:
            with self._tracer.span(method, "server", request_attributes(method, identity)) as span:
                try:
                    await self._app(scope, receive, send_with_id)
                finally:
                    door = str(scope.get("path_template") or "unknown")
                    seconds = time.perf_counter() - began
                    user = scope.get("user")
                    caller = user if isinstance(user, Principal) else None
                    span.rename(f"{method} {door}")
                    span.set("http.route", door)
                    describe_answer(span, status, caller)
                    self._requests.answered(method, door, status, seconds, caller)
        finally:
            current_trace.reset(trace_token)
            request_id.reset(token)


def given_id(value: bytes) -> str:
    """The id that a caller gave its request in `X-Request-Id`; empty where it is none to repeat."""
    if 0 < len(value) <= _MAX_REQUEST_ID and value.isascii():
        text = value.decode()
        return text if text.isprintable() else ""
    return ""


def given_trace(parent: bytes | None, state: bytes) -> TraceContext | None:
    """The trace that a caller's request belongs to; None where it says none, or says it wrong."""
    if parent is None:
        return None
    return read_context(parent.decode("latin-1"), state.decode("latin-1"))


def request_attributes(method: str, identity: str) -> dict[str, Value]:
    """What the span of a request says from its beginning. The names are those of OpenTelemetry's
    stable conventions for HTTP; the path, the query and the caller's address, which may name a
    unit, are not among them."""
    known = "_OTHER" if method == "other" else method
    return {"http.request.method": known, "url.scheme": "http", "turnout.request_id": identity}


def describe_answer(span: Span, status: int, caller: Principal | None) -> None:
    """What the span of a request says at its end."""
    span.set("http.response.status_code", status)
    if caller is not None:
        span.set("turnout.project", caller.project)
    if status >= 500:
        span.fail(str(status))


def _log_level(method: str, door: str, status: int) -> int:
    """Defects are errors; what is refused or changes something is worth a line, since somebody may
    ask about it by its id; other requests at the hot doors are not."""
    if status >= 500:
        return logging.ERROR
    if status >= 400:
        return logging.INFO
    hot = method == "GET" or "/assign" in door or "/ofrep" in door or "/outcomes" in door
    return logging.DEBUG if hot else logging.INFO
