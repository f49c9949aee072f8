"""A collector of OpenTelemetry: takes traces by OTLP over HTTP, and keeps their spans."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


class Collected(msgspec.Struct, frozen=True):
    """A span as it arrived, with its process."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    state: str
    failed: bool
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    resource: dict[str, Any]


class Collector:
    """Where traces go. While `gate` is not set it takes them and says nothing."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[Collected] = []
        self.raw: list[bytes] = []
        self.gate = asyncio.Event()
        self.gate.set()

    def named(self, name: str) -> list[Collected]:
        """The spans of this name."""
        return [span for span in self.spans if span.name == name]

    async def handle(self, request: web.Request) -> web.Response:
        """Take an export."""
        body = await request.read()
        await self.gate.wait()
        self.raw.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            process = _read(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += [_span(span, process) for span in scope.spans]
        answer = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=answer, content_type="application/x-protobuf")


def _span(span: Any, process: dict[str, Any]) -> Collected:
    return Collected(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        state=span.trace_state,
        failed=span.status.code == span.status.STATUS_CODE_ERROR,
        attributes=_read(span.attributes),
        events=[(event.name, _read(event.attributes)) for event in span.events],
        resource=process,
    )


def _read(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    """A collector on a free port."""
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        yield collector
    finally:
        collector.gate.set()
        await runner.cleanup()
