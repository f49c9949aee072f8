"""How Turnout is seen from outside: request ids, structured logs, request metrics."""

import contextvars
import itertools
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, cast

import msgspec
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from prometheus_client import CollectorRegistry

from router.tally import Histogram, Tally

REQUEST_ID: Final = b"x-request-id"
_MAX_REQUEST_ID: Final = 128
_LATENCY_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_STATUS: Final = {status: str(status) for status in range(100, 600)}
_PLAIN_FIELDS: Final = frozenset(
    logging.LogRecord("", 0, "", 0, "", (), None).__dict__ | {"message": "", "taskName": ""}
)

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")
logger = logging.getLogger("turnout.request")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, logger, message, request id, and the record's own fields."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= {k: v for k, v in record.__dict__.items() if k not in _PLAIN_FIELDS}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def configure_logging(level: str) -> None:
    """Log as JSON lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "uvicorn.access", "uvicorn.error", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    # It warns every second while Postgres is gone, with a traceback; whoever needed it tells that.
    logging.getLogger("asyncpg.pool").setLevel(logging.ERROR)


def request_ids(prefix: str) -> Callable[[], str]:
    """Ids of requests: `prefix`, which should be random, and a number that rises. Random bits for
    each would take ten times as long."""
    numbers = itertools.count(1)
    return lambda: f"{prefix}{next(numbers):x}"


class RequestLog:
    """Counts and times requests by door, and logs those that failed or changed something."""

    def __init__(self, registry: CollectorRegistry, new_id: Callable[[], str]) -> None:
        self.new_id = new_id
        self._logs_all = logger.isEnabledFor(logging.DEBUG)
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

    def answered(self, method: str, door: str, status: int, seconds: float) -> None:
        """Take in a request that was answered."""
        self._requests.one((method, door, _STATUS[status]))
        self._seconds.observe(seconds, (method, door))
        level = _log_level(method, door, status)
        if logger.isEnabledFor(level):
            logger.log(
                level,
                "request",
                extra={"method": method, "door": door, "status": status, "seconds": seconds},
            )

    def answered_well(self, method: str, door: str, seconds: float) -> None:
        """Take in a request at a hot door that was answered with 200."""
        if self._logs_all:
            self.answered(method, door, 200, seconds)
        else:
            self._requests.one((method, door, "200"))
            self._seconds.observe(seconds, (method, door))


class RequestTelemetry:
    """ASGI middleware around the whole app: gives each request an id, and tells the log of it."""

    def __init__(self, app: ASGIApp, requests: RequestLog) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http":  # type: ignore[comparison-overlap]  # plain text on the wire
            await self._handle(cast("HTTPScope", scope), receive, send)
        else:
            await self._app(scope, receive, send)

    async def _handle(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        identity = given_id(given) or self._requests.new_id()
        token = request_id.set(identity)
        scope.setdefault("state", {})["request_id"] = identity
        status = 500
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, identity.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            door = str(scope.get("path_template") or "unknown")
            seconds = time.perf_counter() - began
            self._requests.answered(scope["method"], door, status, seconds)
            request_id.reset(token)


def given_id(value: bytes) -> str:
    """The id that a caller gave its request in `X-Request-Id`; empty where it is none to repeat."""
    if 0 < len(value) <= _MAX_REQUEST_ID and value.isascii():
        text = value.decode()
        return text if text.isprintable() else ""
    return ""


def _log_level(method: str, door: str, status: int) -> int:
    """Defects are errors; what is refused or changes something is worth a line, since somebody may
    ask about it by its id; other requests at the hot doors are not."""
    if status >= 500:
        return logging.ERROR
    if status >= 400:
        return logging.INFO
    hot = method == "GET" or "/assign" in door or "/ofrep" in door or "/outcomes" in door
    return logging.DEBUG if hot else logging.INFO
