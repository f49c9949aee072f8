"""Tracing, where an operator has named a collector: `TURNOUT_OTLP_ENDPOINT`.

Where nobody has, nothing of the SDK is imported, connections and clients are the plain ones, and
all that is left is the trace context of callers, for the log and for receivers of webhooks.
"""

import contextlib
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector
from redis.asyncio import Redis

from experiments.spans import NO_SPAN, NO_TRACES, Span, Tracer, current_trace
from turnout.backends import CannotRunError
from turnout.settings import Process, Settings

if TYPE_CHECKING:
    from turnout.otlp import OtlpTracer, SpanCounts

_VERB: Final = re.compile(r"\s*(?:--[^\n]*\n\s*)*([a-z]+)\b", re.IGNORECASE)
_TABLE: Final = re.compile(r"\b(?:from|into|update|table)\s+(?:only\s+)?([a-z_]+)", re.IGNORECASE)
_NOTHING: Final = nullcontext(NO_SPAN)


class Traces:
    """What traces a process, if anything does."""

    def __init__(self, exporting: "OtlpTracer | None" = None) -> None:
        self.exporting = exporting
        """What makes spans of requests at the fast lane; None where nobody traces."""
        self.tracer: Tracer = NO_TRACES if exporting is None else exporting

    def connection_class(self) -> type[asyncpg.Connection]:
        """What connections to Postgres are."""
        return asyncpg.Connection if self.exporting is None else _traced_connection(self.tracer)

    def redis_class(self) -> type[Redis]:
        """What a client of Redis is."""
        return Redis if self.exporting is None else _traced_redis(self.tracer)


@contextlib.asynccontextmanager
async def tracing(
    settings: Settings, process: Process, registry: CollectorRegistry
) -> AsyncIterator[Traces]:
    """Trace while this is open, if the settings say so.

    Raises:
        CannotRunError: if an `OTEL_*` variable has a value that the SDK refuses.
    """
    if not settings.otlp_endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield Traces()
        return
    from turnout.otlp import OtlpTracer  # noqa: PLC0415 - only where it is wanted

    try:
        exporting = OtlpTracer(
            settings.otlp_endpoint,
            settings.trace_sample,
            process,
            _version(),
            time.monotonic,
        )
    except ValueError as error:
        raise CannotRunError(f"cannot trace: an OTEL_* variable is wrong: {error}") from error
    registry.register(_SpanCollector(exporting.counts))
    try:
        yield Traces(exporting)
    finally:
        await exporting.close()


def _version() -> str:
    try:
        return metadata.version("turnout")
    except metadata.PackageNotFoundError:  # it runs from a folder, and was never installed
        return "unknown"


class _SpanCollector(Collector):
    """What became of spans, as metrics."""

    def __init__(self, counts: "SpanCounts") -> None:
        self._counts = counts

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counters as they are now."""
        yield CounterMetricFamily(
            "turnout_trace_spans_sent", "Spans that the collector took", self._counts.sent
        )
        yield CounterMetricFamily(
            "turnout_trace_spans_dropped",
            "Spans that were dropped: the queue was full, or the collector did not take them",
            self._counts.dropped,
        )


def summary_of(statement: str) -> str:
    """A statement of SQL in a word or two, such as `SELECT experiment`: what it does and the first
    table that it names. Statements of ours hold no values."""
    verb, table = _VERB.match(statement), _TABLE.search(statement)
    if verb is None:
        return "SQL"
    return f"{verb[1].upper()} {table[1].lower()}" if table else verb[1].upper()


def _driver_span(
    tracer: Tracer, system: str, name: str, *, operation: str
) -> AbstractContextManager[Span]:
    """The span of a call to a server, within work that is traced; otherwise none."""
    current = current_trace.get()
    if current is None or not current.sampled or current.offhand:
        return _NOTHING
    attributes = {"db.system.name": system, "db.operation.name": operation}
    return tracer.span(name, "client", attributes)


def _traced_connection(tracer: Tracer) -> type[asyncpg.Connection]:
    """Connections with a span for each transaction, and for each statement outside of one."""

    class TracedTransaction:
        def __init__(self, inner: Any, span: AbstractContextManager[Span]) -> None:
            self._inner = inner
            self._span = span

        async def __aenter__(self) -> None:
            self._span.__enter__()
            try:
                await self._inner.__aenter__()
            except BaseException as error:
                self._span.__exit__(type(error), error, error.__traceback__)
                raise

        async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
            try:
                await self._inner.__aexit__(kind, error, trace)
            except BaseException as failure:
                self._span.__exit__(type(failure), failure, failure.__traceback__)
                raise
            self._span.__exit__(kind, error, trace)

    class TracedConnection(asyncpg.Connection):
        def transaction(self, **options: Any) -> Any:
            inner = super().transaction(**options)
            if self.is_in_transaction():
                return inner
            span = _driver_span(tracer, "postgresql", "transaction", operation="transaction")
            return inner if span is _NOTHING else TracedTransaction(inner, span)

        async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
            with self._statement(query):
                return await super().execute(query, *arguments, **options)

        async def fetch(self, query: str, *arguments: Any, **options: Any) -> Any:
            with self._statement(query):
                return await super().fetch(query, *arguments, **options)

        async def fetchrow(self, query: str, *arguments: Any, **options: Any) -> Any:
            with self._statement(query):
                return await super().fetchrow(query, *arguments, **options)

        async def fetchval(self, query: str, *arguments: Any, **options: Any) -> Any:
            with self._statement(query):
                return await super().fetchval(query, *arguments, **options)

        def _statement(self, query: str) -> AbstractContextManager[Span]:
            if self.is_in_transaction():
                return _NOTHING
            said = summary_of(query)
            return _driver_span(tracer, "postgresql", said, operation=said.partition(" ")[0])

    return TracedConnection


def _traced_redis(tracer: Tracer) -> type[Redis]:
    """Clients with a span for each command."""

    class TracedRedis(Redis):
        async def execute_command(self, *arguments: Any, **options: Any) -> Any:
            name = str(arguments[0])
            with _driver_span(tracer, "redis", name, operation=name):
                return await super().execute_command(  # type: ignore[no-untyped-call]  # no types
                    *arguments, **options
                )

    return TracedRedis
