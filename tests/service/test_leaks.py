"""Nothing that names a unit or is a secret leaves by the log, the traces, the metrics or the
details of problems, whatever fails."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx
import pytest

from experiments.spans import current_trace
from tests.collecting import collecting
from tests.receiving import receiving
from tests.running import definition, eventually, running
from turnout.logs import JsonFormatter

UNIT = "unit-zq81"
SECRET = "secret-zq81"  # noqa: S105 - what must not be found
MARK = "zq81"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
ASKED = f"00-{TRACE}-00f067aa0ba902b7-01"
NOISE = (
    *("asyncio", "uvicorn.error", "urllib3", "aiohttp"),
    *("opentelemetry", "asyncpg", "asyncpg.pool", "redis"),
)
CLIENTS = ("httpx", "httpcore")


@contextlib.contextmanager
def logged() -> Iterator[io.StringIO]:
    """All that is logged, at level debug, as it would be written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter("up"))
    loggers = [logging.getLogger(name) for name in (None, *NOISE, *CLIENTS)]
    before = [each.level for each in loggers]
    loggers[0].addHandler(handler)
    for each in loggers:
        each.setLevel(logging.WARNING if each.name in CLIENTS else logging.DEBUG)
    try:
        yield written
    finally:
        loggers[0].removeHandler(handler)
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)


def with_password(url: str) -> str:
    """The address of a database, with a password that nobody asks for."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.username}:{SECRET}@"))


async def try_all_doors(client: httpx.AsyncClient, key: str) -> list[httpx.Response]:
    """Requests at the doors that units pass, right and wrong ones."""
    wrong = {"Authorization": f"Bearer to_0123456789ab_{SECRET}"}
    traced = {"traceparent": ASKED}
    right = {"experiment": key, "unit": UNIT, "attributes": {"mail": UNIT}}
    answers = []
    for path, body in [
        ("/v1/assign", right),
        ("/v1/assign", {"experiment": key, "unit": UNIT * 100}),
        ("/v1/assign", {"experiment": key, "unit": {"id": UNIT}}),
        ("/v1/assign", {"experiment": key, "unit": UNIT, "attributes": {"a": [UNIT]}}),
        ("/v1/assign/batch", {"units": [UNIT, UNIT * 100], "experiments": [key]}),
        ("/v1/outcomes", {"event": "click", "unit": UNIT}),
        ("/v1/outcomes", {"event": "click", "unit": UNIT, "value": UNIT, "at": UNIT}),
        ("/v1/outcomes", {"event": "click", "units": {"user": [UNIT]}}),
        ("/v1/exposures", {"experiment": key, "unit": UNIT, "variant": "new", "epoch": 99}),
        ("/v1/units/erase", {"unit": UNIT, "reason": "asked for"}),
        ("/v1/units/erase", {"unit": UNIT, "unit_type": [UNIT]}),
        (f"/v1/experiments/{key}/overrides", {"unit": UNIT, "variant": "none", "reason": "x"}),
        (f"/v1/experiments/{key}/overrides", {"unit": UNIT, "variant": "new", "reason": "x"}),
        ("/ofrep/v1/evaluate/flags/" + key, {"context": {"targetingKey": UNIT}}),
        ("/ofrep/v1/evaluate/flags/" + key, {"context": {"targetingKey": [UNIT]}}),
        ("/ofrep/v1/evaluate/flags", {"context": {"targetingKey": UNIT}}),
    ]:
        answers.append(await client.post(path, json=body, headers=traced))
        answers.append(await client.post(path, json=body, headers=wrong))
        answers.append(await client.post(path, content=f'{{"unit": "{UNIT}"', headers=traced))
    asked = {"experiment": key, "unit": UNIT}
    for more in ({}, {"at": UNIT}, {"epoch": UNIT}, {"attributes": f'["{UNIT}"]'}):
        answers += [await client.get("/v1/replay", params=asked | more, headers=traced)]
    answers.append(await client.get(f"/v1/{UNIT}", headers=traced))
    return answers


async def test_no_unit_and_no_secret_leaves_by_a_side_door(
    migrated_url: str, redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    async with collecting() as collector, receiving() as receiver:
        with logged() as written:
            async with (
                running(
                    with_password(migrated_url),
                    redis_url.replace("unix://", f"unix://:{SECRET}@"),  # refused, and gone without
                    tmp_path,
                    otlp_endpoint=collector.url.replace("//", f"//collector:{SECRET}@"),
                    trace_sample=1,
                    signing_key=f"a signing key, and it is long enough: {SECRET}",
                ) as turnout,
                httpx.AsyncClient(base_url=turnout.url, timeout=30) as client,
                asyncpg.create_pool(migrated_url, min_size=1, max_size=1) as database,
            ):
                client.headers["Authorization"] = f"Bearer {turnout.admin_key}"
                hook = {"url": f"{receiver.url}/{SECRET}?token={SECRET}"}
                receiver.status = 503
                assert (await client.post("/v1/webhooks", json=hook)).status_code == 201
                key = (await client.post("/v1/experiments", json=definition())).json()["key"]
                started = await client.post(f"/v1/experiments/{key}/start", json={"reason": "go"})
                assert started.status_code == 200

                async def assigns() -> bool | None:
                    body = {"experiment": key, "unit": "probe", "expose": False}
                    answer = await client.post("/v1/assign", json=body)
                    return answer.status_code == 200 or None

                await eventually(assigns, "assignment")
                answers = await try_all_doors(client, key)
                await database.execute(
                    "select pg_terminate_backend(pid) from pg_stat_activity"
                    " where datname = current_database() and pid <> pg_backend_pid()"
                )
                answers += await try_all_doors(client, key)
                # Defects: a table that is not there, and two that take no row, of which one says
                # what it was to take.
                await database.execute(
                    """create function refuse() returns trigger language plpgsql as
                       $$ begin raise exception 'no room for %', new; end $$;
                       create trigger refuse before insert on override
                       for each row execute function refuse()"""
                )
                await database.execute("alter table erasure rename to gone")
                await database.execute("alter table outcome add check (event <> 'click') not valid")
                answers += await try_all_doors(client, key)

                async def failed() -> bool | None:
                    return ("a webhook was not delivered" in written.getvalue()) or None

                await eventually(failed, "delivery that failed")
                metrics = (await client.get("/metrics")).text
        assert {answer.status_code for answer in answers} >= {200, 400, 401, 404, 422, 500}
        lines = [line for line in written.getvalue().splitlines() if MARK in line]
        assert lines == []
        assert MARK not in metrics
        problems = [
            answer.text
            for answer in answers
            if answer.headers.get("content-type") == "application/problem+json"
        ]
        assert len(problems) > 30
        assert [text for text in problems if MARK in text] == []
        assert collector.spans
        assert [raw for raw in collector.raw if MARK.encode() in raw] == []
        # What a caller's trace is, the log knows.
        assert f'"trace_id":"{TRACE}"' in written.getvalue()
        assert current_trace.get() is None
