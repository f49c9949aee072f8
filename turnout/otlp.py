"""Spans by OpenTelemetry's SDK, sent by OTLP over HTTP.

This is the one module that imports the SDK and its exporter, and it is imported only where tracing
is on.

**Who is traced.** Work that nobody outside began, and requests whose callers said nothing, are
traced by chance (`trace_sample`). A caller that has decided is followed, both ways, but may have no
more than `MOST_ASKED_FOR` requests a second traced in a process: beyond that its requests are
traced by chance as well, so that nobody can have all of them traced who is not to. What is below a
span is traced if and only if that is.

**What it may cost.** Spans that have ended wait in a queue of `QUEUE`, which a thread of the SDK
sends on in batches; what finds it full is dropped, and counted. Nobody waits for a collector: when
the process ends it has `STOP_SECONDS` to take the rest.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final
from uuid import uuid4

import msgspec
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import SpanKind, StatusCode, TraceFlags, TraceState

from experiments.spans import NO_SPAN, NONE, Kind, Span, TraceContext, Value, current_trace

QUEUE: Final = 2_048
BATCH: Final = 512
MOST_ASKED_FOR: Final = 100
"""Requests a second that are traced since their callers want it."""
STOP_SECONDS: Final = 2.0

_KINDS: Final[Mapping[Kind, SpanKind]] = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}

logger = logging.getLogger(__name__)


class SpanCounts:
    """How many spans were sent, and how many were dropped: the queue was full, or the collector did
    not take them. Two threads count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting = 0
        self.sent = 0
        self.dropped = 0

    def queue(self) -> bool:
        """Take a place in the queue; False, and one more dropped, if there is none."""
        with self._lock:
            if self._waiting >= QUEUE:
                self.dropped += 1
                return False
            self._waiting += 1
            return True

    def leave(self, number: int, *, taken: bool) -> None:
        """So many leave the queue, and were taken or not."""
        with self._lock:
            self._waiting -= number
            if taken:
                self.sent += number
            else:
                self.dropped += number

    def lose_rest(self) -> None:
        """What still waits is lost."""
        self.leave(self._waiting, taken=False)


class _Exporter(SpanExporter):
    """Sends spans, and counts what becomes of them."""

    def __init__(self, inner: SpanExporter, counts: SpanCounts) -> None:
        self._inner = inner
        self._counts = counts
        self._failing = False
        self._over = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; in the SDK's thread."""
        result = SpanExportResult.FAILURE if self._over else self._inner.export(spans)
        taken = result is SpanExportResult.SUCCESS
        if self._over:  # they were counted as lost when it was over
            return result
        self._counts.leave(len(spans), taken=taken)
        if taken and self._failing:
            logger.info("traces are taken again")
        elif not taken:
            logger.warning("traces are not taken", extra={"dropped": self._counts.dropped})
        self._failing = not taken
        return result

    def give_up(self) -> None:
        """Send nothing any more."""
        self._over = True
        self._counts.lose_rest()
        self._inner.shutdown()

    def shutdown(self) -> None:
        """End, after the last batch."""
        if not self._over:
            self._over = True
            self._inner.shutdown()


class _Processor(BatchSpanProcessor):
    """Queues spans that have ended, while there is room."""

    def __init__(self, exporter: SpanExporter, counts: SpanCounts) -> None:
        super().__init__(exporter, max_queue_size=QUEUE, max_export_batch_size=BATCH)
        self._counts = counts

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span."""
        if span.context is not None and span.context.trace_flags.sampled and self._counts.queue():
            super().on_end(span)


class Policy:
    """Who is traced."""

    def __init__(
        self, share: float, chance: Callable[[], float], elapsed: Callable[[], float]
    ) -> None:
        """`chance` gives a number in [0, 1), each time another."""
        self._share = share
        self._chance = chance
        self._elapsed = elapsed
        self._left = float(MOST_ASKED_FOR)
        self._filled_at = elapsed()

    def wants(self, parent: TraceContext | None) -> bool:
        """Whether what is below `parent` is traced."""
        if parent is not None:
            if not parent.sampled or not parent.remote:
                return parent.sampled
            if self._may_ask():
                return True
        return self._chance() < self._share

    def _may_ask(self) -> bool:
        now = self._elapsed()
        filled = self._left + (now - self._filled_at) * MOST_ASKED_FOR
        self._left, self._filled_at = min(filled, float(MOST_ASKED_FOR)), now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class OtlpSpan:
    """A span that is recorded."""

    def __init__(self, inner: trace.Span) -> None:
        self.inner = inner
        self.is_kept = True

    @property
    def context(self) -> TraceContext:
        """Where work below it belongs."""
        return _context_of(self.inner, offhand=False)

    def end(self) -> None:
        """End it, now."""
        if self.is_kept:
            self.inner.end()

    def rename(self, name: str) -> None:
        """Give it its name."""
        self.inner.update_name(name)

    def set(self, name: str, value: Value) -> None:
        """Add an attribute."""
        self.inner.set_attribute(name, value)

    def event(self, name: str, attributes: Mapping[str, Value]) -> None:
        """Note that something has happened."""
        self.inner.add_event(name, attributes)

    def fail(self, kind: str) -> None:
        """Say that it came to nothing."""
        self.inner.set_attribute("error.type", kind)
        self.inner.set_status(StatusCode.ERROR)

    def forget(self) -> None:
        """Leave it out: one that never ends is never sent."""
        self.is_kept = False


class OtlpTracer:
    """Makes spans, and sends them to a collector."""

    def __init__(
        self, endpoint: str, share: float, role: str, version: str, elapsed: Callable[[], float]
    ) -> None:
        """Begin; a thread runs from here on, so a process that forks does so before.

        Args:
            endpoint: where the collector is, without `/v1/traces`.
            share: of what no caller decides on, how much is traced.
            role: what this process is: `up`, `serve` or `worker`.
            elapsed: seconds that only ever grow.

        Raises:
            ValueError: if an `OTEL_*` variable has a value that the SDK refuses.
        """
        # What it says of each attempt would tell the address with its password, and never end.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        self.counts = SpanCounts()
        url = f"{endpoint.rstrip('/')}/v1/traces"
        self._exporter = _Exporter(OTLPSpanExporter(endpoint=url), self.counts)
        self._processor = _Processor(self._exporter, self.counts)
        named = Resource.create(
            {
                "service.name": "turnout",
                "service.version": version,
                "service.instance.id": str(uuid4()),
                "host.name": socket.gethostname(),
                "process.pid": os.getpid(),
                "turnout.process": role,
            }
        )
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # whoever is not to be traced never comes here
            resource=named.merge(OTELResourceDetector().detect()),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer = self._provider.get_tracer("turnout", version)
        self._random = random.Random()  # noqa: S311 - who is traced is no secret
        self._policy = Policy(share, self._random.random, elapsed)

    @contextlib.contextmanager
    def span(
        self,
        name: str,
        kind: Kind = "internal",
        attributes: Mapping[str, Value] = NONE,
        *,
        parent: TraceContext | None = None,
        offhand: bool = False,
    ) -> Iterator[Span]:
        """A span around a piece of work: see `experiments.spans.Tracer`."""
        above = parent or current_trace.get()
        if not self._policy.wants(above):
            with _within(self._untraced(above)):
                yield NO_SPAN
            return
        span = self._start(name, kind, attributes, above)
        with _within(_context_of(span.inner, offhand=offhand)):
            try:
                yield span
            except BaseException as error:
                span.fail(type(error).__qualname__)
                raise
            finally:
                span.end()

    def begin_request(
        self, name: str, attributes: Mapping[str, Value], parent: TraceContext | None
    ) -> OtlpSpan | None:
        """The span of a request, which whoever asks for it ends; None where it is not traced."""
        if not self._policy.wants(parent):
            return None
        return self._start(name, "server", attributes, parent)

    def _start(
        self, name: str, kind: Kind, attributes: Mapping[str, Value], parent: TraceContext | None
    ) -> OtlpSpan:
        return OtlpSpan(
            self._tracer.start_span(
                name,
                Context() if parent is None else _sdk_context(parent),
                _KINDS[kind],
                attributes,
                record_exception=False,
                set_status_on_exception=False,
            )
        )

    def _untraced(self, above: TraceContext | None) -> TraceContext:
        """What is below work that is not traced: it belongs together, and is not traced either."""
        if above is None:
            trace_id, span_id = (self._random.getrandbits(bits) or 1 for bits in (128, 64))
            return TraceContext(f"{trace_id:032x}", f"{span_id:016x}", sampled=False)
        return msgspec.structs.replace(above, sampled=False) if above.sampled else above

    async def close(self) -> None:
        """Send what waits, for a moment, and end. It does not wait for the thread that sends."""
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def end() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # No thread of the loop's: those are waited for when it ends.
        threading.Thread(target=end, name="last traces", daemon=True).start()
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await sent.wait()
        except TimeoutError:
            self._exporter.give_up()


@contextlib.contextmanager
def _within(context: TraceContext) -> Iterator[None]:
    token = current_trace.set(context)
    try:
        yield
    finally:
        current_trace.reset(token)


def _context_of(span: trace.Span, *, offhand: bool) -> TraceContext:
    context = span.get_span_context()
    return TraceContext(
        trace.format_trace_id(context.trace_id),
        trace.format_span_id(context.span_id),
        context.trace_flags.sampled,
        context.trace_state.to_header(),
        offhand=offhand,
    )


def _sdk_context(parent: TraceContext) -> Context:
    context = trace.SpanContext(
        int(parent.trace_id, 16),
        int(parent.span_id, 16),
        parent.remote,
        TraceFlags(TraceFlags.SAMPLED if parent.sampled else TraceFlags.DEFAULT),
        TraceState.from_header([parent.state]) if parent.state else None,
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())
