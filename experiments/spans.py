"""Spans: what a part tells of its work to whoever traces it, and the W3C trace context that links
the work of several processes.

A part gets a `Tracer` handed in and knows no more of tracing than this; `NO_TRACES` is the one that
does nothing. The context is known even where nobody traces: what a caller sent is in the lines of
the log, and is passed on to receivers of webhooks.

Spans hold no unit, no key and no attribute of a unit: they leave the house.
"""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

Value: TypeAlias = str | int | float | bool
Kind: TypeAlias = Literal["internal", "server", "client", "producer", "consumer"]

NONE: Final[Mapping[str, Value]] = {}
"""No attributes."""
_SAMPLED: Final = 0x01
_LONGEST_STATE: Final = 512
_MOST_MEMBERS: Final = 32
_PARENT: Final = re.compile(
    r"(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})-(?P<flags>[0-9a-f]{2})"
    r"(?P<more>-[\x20-\x7e]*)?"
)
_MEMBER: Final = re.compile(
    r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)


class TraceContext(msgspec.Struct, frozen=True):
    """Where a piece of work belongs: its trace, its span, and what the systems before it wrote into
    `tracestate`.

    `remote` says that it came from outside. Within an `offhand` one nothing but what asks for it
    gets a span: what a tick that finds nothing to do does in Postgres is nobody's concern.
    """

    trace_id: str
    span_id: str
    sampled: bool
    state: str = ""
    remote: bool = False
    offhand: bool = False

    @property
    def traceparent(self) -> str:
        """As the header `traceparent` has it."""
        return f"00-{self.trace_id}-{self.span_id}-{_SAMPLED if self.sampled else 0:02x}"

    def headers(self) -> dict[str, str]:
        """The headers that pass it on."""
        headers = {"traceparent": self.traceparent}
        if self.state:
            headers["tracestate"] = self.state
        return headers


current_trace: ContextVar[TraceContext | None] = ContextVar("current_trace", default=None)
"""Where the work of this task belongs; None where it belongs to nothing."""


class Span(Protocol):
    """A piece of work that is going on."""

    def rename(self, name: str) -> None:
        """Give it the name that it should have had, which is known only now."""
        ...

    def set(self, name: str, value: Value) -> None:
        """Add an attribute."""
        ...

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Note that something has happened, now."""
        ...

    def fail(self, kind: str) -> None:
        """Say that it came to nothing; `kind` is what was wrong, of a few values."""
        ...

    def forget(self) -> None:
        """Leave it out: it turned out to be of no interest."""
        ...


class Tracer(Protocol):
    """Makes spans."""

    def span(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] = NONE,
        *,
        parent: TraceContext | None = None,
        offhand: bool = False,
    ) -> AbstractContextManager[Span]:
        """A span around a piece of work, below `parent`, or else below the one that is going on.
        An exception that passes through it marks it as failed.

        Args:
            name: of few values: what varies stands in attributes.
            offhand: whether only spans that ask for it are made below this one.
        """
        ...


class _NoSpan:
    """A span that nobody records."""

    def rename(self, name: str) -> None:
        """Do nothing."""

    def set(self, name: str, value: Value) -> None:
        """Do nothing."""

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Do nothing."""

    def fail(self, kind: str) -> None:
        """Do nothing."""

    def forget(self) -> None:
        """Do nothing."""


NO_SPAN: Final[Span] = _NoSpan()
_NOTHING: Final = nullcontext(NO_SPAN)


class _NoTraces:
    """The tracer where tracing is off."""

    def span(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] = NONE,
        *,
        parent: TraceContext | None = None,
        offhand: bool = False,
    ) -> AbstractContextManager[Span]:
        """No span."""
        return _NOTHING


NO_TRACES: Final[Tracer] = _NoTraces()


def read_context(traceparent: str, tracestate: str = "") -> TraceContext | None:
    """The context in the headers of a caller; None where `traceparent` is not well formed, for then
    nothing of it counts.

    SOURCE: W3C Trace Context, Level 1, sections 3.2 and 3.3. A later version may have more behind
    its flags. A `tracestate` that is not well formed is left out, and the rest counts.
    """
    match = _PARENT.fullmatch(traceparent)
    if match is None or match["version"] == "ff":
        return None
    if match["version"] == "00" and match["more"] is not None:
        return None
    trace, span = match["trace"], match["span"]
    if not trace.strip("0") or not span.strip("0"):
        return None
    sampled = bool(int(match["flags"], 16) & _SAMPLED)
    return TraceContext(trace, span, sampled, _read_state(tracestate), remote=True)


def _read_state(text: str) -> str:
    if not text or len(text) > _LONGEST_STATE:
        return ""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    names = [member.partition("=")[0] for member in members]
    if len(members) > _MOST_MEMBERS or len({*names}) < len(names):
        return ""
    return ",".join(members) if all(_MEMBER.fullmatch(member) for member in members) else ""
