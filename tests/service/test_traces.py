"""Traces of a whole Turnout, as a collector gets them."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as Wire

from tests.collecting import Collected, Collector, collecting
from tests.receiving import Receiver, receiving
from tests.running import Running, definition, eventually, running
from tests.service.loop import SHOP, Service, Visitors, rates
from tests.service.loop import definition as definition_of
from tests.service.test_deliveries import listen
from tests.service.test_guard import guardrail, live
from turnout.otlp import OtlpTracer

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER = "00f067aa0ba902b7"
ASKED = f"00-{TRACE}-{CALLER}-01"
DECLINED = f"00-{TRACE}-{CALLER}-00"
SIGNING_KEY = "a signing key of the tests, which is no secret"


@pytest.fixture(autouse=True)
def _send_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of the SDK's own: it waits 5 s for a batch to fill, and 10 s for a collector."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")


@contextlib.asynccontextmanager
async def traced(
    migrated_url: str, redis_url: str, folder: Path, endpoint: str, share: float
) -> AsyncIterator[tuple[Running, httpx.AsyncClient]]:
    """A Turnout that traces, and a client with its admin key."""
    settings: dict[str, Any] = {"signing_key": SIGNING_KEY, "trace_sample": share}
    async with (
        running(migrated_url, redis_url, folder, otlp_endpoint=endpoint, **settings) as turnout,
        httpx.AsyncClient(base_url=turnout.url, timeout=30) as client,
    ):
        client.headers["Authorization"] = f"Bearer {turnout.admin_key}"
        yield turnout, client


async def first(collector: Collector, name: str, **attributes: Any) -> Collected:
    """A span of this name with these attributes, once it has come."""

    async def found() -> Collected | None:
        for span in collector.named(name):
            if attributes.items() <= span.attributes.items():
                return span
        return None

    return await eventually(found, f"span {name}")


async def start(client: httpx.AsyncClient, **headers: str) -> str:
    """A running experiment that the router knows."""
    answer = await client.post("/v1/experiments", json=definition())
    assert answer.status_code == 201, answer.text
    key: str = answer.json()["key"]
    path = f"/v1/experiments/{key}/start"
    answer = await client.post(path, json={"reason": "a test"}, headers=headers)
    assert answer.status_code == 200, answer.text

    async def assigns() -> bool | None:
        body = {"experiment": key, "unit": "probe", "expose": False}
        return (await client.post("/v1/assign", json=body)).status_code == 200 or None

    await eventually(assigns, "assignment")
    return key


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    """Where traces go."""
    async with collecting() as one:
        yield one


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """Where webhooks go."""
    async with receiving() as one:
        yield one


async def test_a_caller_finds_its_request_what_it_did_and_the_webhook_in_one_trace(
    migrated_url: str, redis_url: str, tmp_path: Path, collector: Collector, receiver: Receiver
) -> None:
    async with traced(migrated_url, redis_url, tmp_path, collector.url, 0) as (_, client):
        answer = await client.post("/v1/webhooks", json={"url": receiver.url})
        assert answer.status_code == 201, answer.text
        key = await start(client, traceparent=ASKED, tracestate="vendor=a:1")
        request = await first(collector, "POST /v1/experiments/{key}/start")
        assert (request.trace, request.parent) == (TRACE, CALLER)
        assert (request.kind, request.state) == (Wire.SPAN_KIND_SERVER, "vendor=a:1")
        assert request.attributes["http.request.method"] == "POST"
        assert request.attributes["http.route"] == "/v1/experiments/{key}/start"
        assert request.attributes["http.response.status_code"] == 200
        assert request.attributes["turnout.project"] == "default"
        assert request.resource["service.name"] == "turnout"
        assert request.resource["turnout.process"] == "up"
        assert request.resource["service.instance.id"]

        change = await first(collector, "transaction", **{"db.system.name": "postgresql"})
        assert (change.trace, change.parent) == (TRACE, request.id)
        news = await first(collector, "PUBLISH")
        assert (news.trace, news.attributes["db.system.name"]) == (TRACE, "redis")

        sent = await first(collector, "POST webhook")
        assert (sent.trace, sent.parent) == (TRACE, change.id)
        assert sent.attributes["http.response.status_code"] == 200

        async def told() -> dict[str, str] | None:
            return next((got.headers for got in receiver.got if "traceparent" in got.headers), None)

        headers = await eventually(told, "webhook")
        assert headers["traceparent"] == f"00-{TRACE}-{sent.id}-01"
        assert headers["tracestate"] == "vendor=a:1"

        # The hot door has no framework, and its span says the same.
        body = {"experiment": key, "unit": "alice"}
        await client.post("/v1/assign", json=body, headers={"traceparent": ASKED})
        hot = await first(collector, "POST /v1/assign")
        assert (hot.trace, hot.parent, hot.kind) == (TRACE, CALLER, Wire.SPAN_KIND_SERVER)
        assert hot.attributes["http.route"] == "/v1/assign"
        assert hot.attributes["turnout.project"] == "default"
        # At a share of 0 nothing else was traced, though much was done.
        assert {span.trace for span in collector.spans} == {TRACE}


async def test_at_a_share_of_one_all_work_is_traced_but_what_callers_declined(
    migrated_url: str, redis_url: str, tmp_path: Path, collector: Collector
) -> None:
    async with traced(migrated_url, redis_url, tmp_path, collector.url, 1) as (_, client):
        answer = await client.get("/healthz", headers={"traceparent": DECLINED})
        assert answer.status_code == 200
        key = await start(client)
        for unit in ("alice", "bob"):
            body = {"experiment": key, "unit": unit}
            assert (await client.post("/v1/assign", json=body)).status_code == 200
        shipped = await first(collector, "ship segment")
        assert shipped.attributes["turnout.records"] >= 1
        fold = await first(collector, "fold")
        assert fold.attributes["turnout.records"] >= 1
        tick = await first(collector, "controller tick")
        assert not tick.parent
        ticks = {span.id for span in collector.named("controller tick")}
        assert fold.parent in ticks
        wrong = {"traceparent": "00-not-a-trace-01"}
        assert (await client.get("/v1/experiments", headers=wrong)).status_code == 200
        listed = await first(collector, "GET /v1/experiments")
        assert not listed.parent
        assert not collector.named("GET /healthz")

        scraped = await client.get("/metrics")
        assert "turnout_trace_spans_sent_total" in scraped.text
        # Whatever was sent: no unit and no key is among it.
        assert not [raw for raw in collector.raw if b"alice" in raw or b"to_" in raw]


async def test_a_collector_that_is_gone_or_hangs_harms_nobody(
    migrated_url: str,
    redis_url: str,
    tmp_path: Path,
    collector: Collector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    collector.gate.clear()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "120")
    async with traced(migrated_url, redis_url, tmp_path, collector.url, 1) as (_, client):
        key = await start(client)
        for number in range(50):
            body = {"experiment": key, "unit": f"u{number}"}
            assert (await client.post("/v1/assign", json=body)).status_code == 200
        stops_at = time.monotonic()
    # It has 2 s for traces. The SDK would wait for 30 s, and the collector for ever.
    assert time.monotonic() - stops_at < 25
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")

    async with collecting() as gone:
        nobody = gone.url
    async with traced(migrated_url, redis_url, tmp_path / "two", nobody, 1) as (_, client):
        # This database has had its first start, and its key was told then.
        assert (await client.get("/healthz")).status_code == 200

        async def dropped() -> bool | None:
            text = (await client.get("/metrics")).text
            lines = [line for line in text.splitlines() if line.startswith("turnout_trace_spans_d")]
            return True if float(lines[0].split()[-1]) > 0 else None

        await asyncio.wait_for(eventually(dropped, "dropped span"), 30)


async def test_a_tick_that_rolls_back_says_so_and_its_webhook_belongs_to_it(
    service: Service, collector: Collector
) -> None:
    tracer = OtlpTracer(collector.url, 1, "worker", "0", time.monotonic)
    service.controller = service.new_controller("traced", tracer=tracer)
    await listen(service, "http://127.0.0.1:9/")
    await service.begin(definition_of("x", guardrail("ok", margin={"absolute": 0.02})))
    visitors = Visitors(service, "x", seed=3)
    assert await live(service, visitors, 60, {"ok": rates(a=0.9, b=0.1)}) < 60
    for _ in range(3):  # in which nothing is to be done
        await service.tick()
    await tracer.close()
    [decided] = [span for span in collector.named("decide") if span.events]
    assert decided.attributes == {"turnout.project": SHOP, "turnout.experiment": "x"}
    [(name, what)] = decided.events
    assert (name, what["turnout.kind"], what["turnout.rule"]) == ("decision", "rollback", "guard")
    assert what["turnout.experiment"] == "x"
    [tick] = [span for span in collector.named("controller tick") if span.id == decided.parent]
    assert tick.trace == decided.trace
    # Ticks, folds and looks that found nothing to do have left nothing.
    folded = {span.parent for span in collector.named("fold")}
    assert {span.id for span in collector.named("controller tick")} == folded | {tick.id}
    [row] = await service.fetch(
        """select traceparent from delivery d join decision c on c.id = d.decision
           where c.kind = 'rollback'"""
    )
    assert row["traceparent"] == f"00-{decided.trace}-{decided.id}-01"
