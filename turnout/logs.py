"""The log: one line of JSON for each record, on standard error.

**What a line never holds**: a secret. What looks like a key of ours, a password in an address, a
bearer token, the query of an address or the secret of a webhook is replaced here, whoever wrote it.

**What a line holds only where an operator asked for it** (`TURNOUT_LOG_UNITS`): the ids of units.
Messages of errors may quote what they stumbled over, so that of an error which is not known to be
without, only its kind and its place are told; of one of Postgres, the code and the constraint.

**What a line cannot do** is look like two, or move a cursor: all control characters are escaped.

**How many there can be**: of lines that say the same, `MOST_A_MINUTE`. The next one tells how many
were left out. Lines at level debug are not counted: who asks for them wants all.
"""

import asyncio
import contextvars
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final

import asyncpg
import msgspec
import redis.exceptions

from experiments.spans import current_trace

MOST_A_MINUTE: Final = 60
"""Lines that say the same, in a minute."""
MOST_REQUESTS_A_MINUTE: Final = 600
"""Lines of requests at one door that came to the same."""
_MOST_KINDS: Final = 2_000
_WINDOW: Final = 60.0
_LONGEST_TEXT: Final = 4_000
_LONGEST_TRACE: Final = 20_000
_MOST_CAUSES: Final = 8
_PLAIN_FIELDS: Final = frozenset(
    logging.LogRecord("", 0, "", 0, "", (), None).__dict__ | {"message": "", "taskName": ""}
)
_REDACTED: Final = "[redacted]"

# Each is replaced by what stands beside it. The first ones are secrets.
_SECRETS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"\bto_([A-Za-z0-9-]+)_[A-Za-z0-9_-]{8,}"), rf"to_\1_{_REDACTED}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[^\s'\",]+"), rf"\1 {_REDACTED}"),
    (re.compile(r"\bwhsec_[A-Za-z0-9+/=_-]+"), f"whsec_{_REDACTED}"),
    (re.compile(r"hooks\.slack\.com/[^\s'\"]+"), f"hooks.slack.com/{_REDACTED}"),
    # Up to the last @: a password may hold what an address may not.
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,20}://)[^\s'\"]*@"), rf"\1{_REDACTED}@"),
    (re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]{0,20}://[^\s?'\"]*\?)[^\s'\"]+"), rf"\1{_REDACTED}"),
    (re.compile(r"(/[^\s?'\"]{0,200}\?)[^\s'\"=]{1,200}=[^\s'\"]*"), rf"\1{_REDACTED}"),
    (
        re.compile(
            r"(?i)\b(password|passwd|pwd|secret|token|api[_-]?key|signing[_-]?key)"
            r"(\s*[=:]\s*)[^\s,;'\"]+"
        ),
        rf"\1\2{_REDACTED}",
    ),
)
_VALUES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"(?s)(?:\\n|\s)*\b(DETAIL|CONTEXT):.*"), rf" \1: {_REDACTED}"),
    (re.compile(r"(?s)(invalid input for query argument \$\d+).*"), rf"\1: {_REDACTED}"),
    (
        re.compile(r"(?s)(invalid (?:input syntax|byte sequence|input value) for [^:]*:).*"),
        rf"\1 {_REDACTED}",
    ),
    (re.compile(r"(?s)(value ).*( is out of range)"), rf"\1{_REDACTED}\2"),
    (re.compile(r"(?s)\b(exception=\w+)\(.*\)"), rf"\1({_REDACTED})"),
)
_CONTROLS: Final = re.compile(r"[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
_TOLD_WHOLE: Final = (
    OSError,
    AttributeError,
    TypeError,
    NameError,
    ImportError,
    RuntimeError,
    MemoryError,
    asyncio.CancelledError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    redis.exceptions.ConnectionError,
    redis.exceptions.TimeoutError,
)
"""Errors whose messages quote no data: the interpreter's about the code, and of connections."""
_OF_DATA: Final = ("21", "22", "23", "P0", "XX")
"""Classes of Postgres' codes whose messages may quote what was stored or sent."""

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="")


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON."""

    def __init__(self, role: str = "turnout", *, units: bool = False) -> None:
        """`role` is what this process is; `units` says whether lines may hold ids of units."""
        super().__init__()
        self._role = role
        self._units = units

    def format(self, record: logging.LogRecord) -> str:
        """The line: time, level, logger, message, process, request, trace, the record's own fields,
        and the error."""
        message = record.getMessage()
        if record.name == "asyncio" and not self._units:
            message = message.partition("\n")[
                0
            ]  # below it are reprs of what the callback was given
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self._text(message),
            "process": self._role,
            "pid": record.process,
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        trace = current_trace.get()
        if trace is not None:
            line |= {"trace_id": trace.trace_id, "span_id": trace.span_id}
        for name, value in record.__dict__.items():
            if name not in _PLAIN_FIELDS:
                line[name] = self._value(value)
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = self._trace_of(record.exc_info[1])
        encoded = msgspec.json.encode(line, enc_hook=str).decode()
        return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", encoded)

    def _value(self, value: Any) -> Any:
        if isinstance(value, BaseException):
            return said(value, units=self._units)
        if value is None or isinstance(value, (bool, int, float, datetime)):
            return value
        return self._text(value if isinstance(value, str) else str(value))

    def _text(self, text: str) -> str:
        return redacted(text[:_LONGEST_TEXT], units=self._units)

    def _trace_of(self, error: BaseException) -> str:
        parts = []
        for each, heading in _chain(error):
            frames = "".join(traceback.format_tb(each.__traceback__))
            parts.append(f"{heading}{frames}{said(each, units=self._units)}")
        return "\n".join(reversed(parts))[-_LONGEST_TRACE:]


def _chain(error: BaseException) -> Iterator[tuple[BaseException, str]]:
    """An error, and what led to it, the last one first."""
    each: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if each is None:
            return
        before = each.__cause__ or (None if each.__suppress_context__ else each.__context__)
        yield each, "" if before is None else "then: "
        each = before


def said(error: BaseException, *, units: bool = False) -> str:
    """An error in words that hold no secret and, unless `units`, no data."""
    kind = type(error).__qualname__
    text = str(error)
    if isinstance(error, asyncpg.PostgresError) and not units:
        known = (error.sqlstate, getattr(error, "constraint_name", None))
        kind = f"{kind} ({', '.join(str(name) for name in known if name)})"
        if (error.sqlstate or "XX")[:2] in _OF_DATA:
            return kind
        text = text.partition("\n")[0]
    elif (
        not units and text and (isinstance(error, ValueError) or not isinstance(error, _TOLD_WHOLE))
    ):
        return f"{kind} (TURNOUT_LOG_UNITS=true would show its message)"
    return f"{kind}: {redacted(text[:_LONGEST_TEXT], units=units)}" if text else kind


def redacted(text: str, *, units: bool = False) -> str:
    """A text without what looks like a secret or, unless `units`, like a value in an error of
    Postgres."""
    for pattern, instead in _SECRETS if units else (*_SECRETS, *_VALUES):
        text = pattern.sub(instead, text)
    return text


class Flood(logging.Filter):
    """Lets so many lines pass that say the same."""

    def __init__(self, elapsed: Callable[[], float] = time.monotonic) -> None:
        """`elapsed` gives seconds that only ever grow."""
        super().__init__()
        self._elapsed = elapsed
        self._lock = threading.Lock()
        self._seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written; the first one of a minute tells how many were not."""
        if record.levelno <= logging.DEBUG:
            return True
        fields = record.__dict__
        door = fields.get("door")
        most = MOST_A_MINUTE if door is None else MOST_REQUESTS_A_MINUTE
        # A defect that is rare is not left out for one that is not.
        same = (record.name, record.levelno, record.msg, door, fields.get("status"))
        kind = (*same, _place_of(record))
        now = self._elapsed()
        with self._lock:
            begun, count = self._seen.get(kind, (now, 0))
            suppressed = 0
            if now - begun >= _WINDOW:
                suppressed = max(0, count - most)
                begun, count = now, 0
            elif not count and len(self._seen) >= _MOST_KINDS:
                self._seen.clear()
            self._seen[kind] = (begun, count + 1)
        if suppressed:
            record.suppressed = suppressed
        return count < most


def _place_of(record: logging.LogRecord) -> object:
    """Of which kind the error of a record is, and where it was raised; None without one."""
    error = record.exc_info[1] if record.exc_info else record.__dict__.get("error")
    if not isinstance(error, BaseException):
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return (type(error), trace and (trace.tb_frame.f_code.co_filename, trace.tb_lineno))


def configure_logging(level: str, role: str = "turnout", *, units: bool = False) -> None:
    """Log as JSON lines to standard error.

    Args:
        role: what this process is, as its lines tell it.
        units: whether lines may hold ids of units.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter(role, units=units))
    handler.addFilter(Flood())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    quiet = {
        # Of these, info is a line for each request, connection or query.
        **dict.fromkeys(("httpx", "httpcore", "uvicorn", "asyncio", "urllib3"), logging.WARNING),
        # It warns each second while Postgres is gone, with a traceback; whoever needed it tells it.
        "asyncpg.pool": logging.ERROR,
    }
    for name, least in quiet.items():
        logging.getLogger(name).setLevel(least)
    sys.excepthook = _log_end
    threading.excepthook = lambda end: _log_end(end.exc_type, end.exc_value, end.exc_traceback)


def _log_end(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    """What nobody has caught, which the interpreter would print as it is."""
    if error is not None:
        logging.getLogger("turnout").critical("defect", exc_info=(kind, error, trace))
