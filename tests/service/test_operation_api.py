"""The service as an operator sees it: health, metrics, the document of its doors, errors, logs."""

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE
from typing import Any

import asyncpg
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.running import Turnout, definition, eventually, problem, running
from turnout.app import DOORS


async def metrics(turnout: Turnout) -> dict[str, list[tuple[dict[str, str], float]]]:
    """All samples by name: labels and value."""
    answer = await turnout.client(None).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert answer.headers["content-type"].count("charset") == 1
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


async def document(turnout: Turnout) -> dict[str, Any]:
    """The OpenAPI document."""
    answer = await turnout.client(None).get("/schema")
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


async def test_the_process_says_that_it_lives_and_can_serve(turnout: Turnout) -> None:
    nobody = turnout.client(None)
    health = await nobody.get("/healthz")
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    ready = await nobody.get("/readyz")
    assert ready.status_code == 200
    assert (ready.json()["ready"], ready.json()["degraded"]) == (True, False)
    assert {check["name"] for check in ready.json()["checks"]} == (
        {"snapshot", "snapshot on disk", "postgres", "redis", "journal"}
    )


async def test_assignments_and_outcomes_are_counted(turnout: Turnout) -> None:
    key = await turnout.start()
    for unit in ("a", "b", "c"):
        await turnout.assign(key, unit)
    await turnout.client("service").post(
        "/v1/outcomes",
        json=[{"id": "1", "event": "e", "unit": "u"}] * 2 + [{"event": "e"}],
    )
    found = await metrics(turnout)
    assigned = [
        (labels, value)
        for labels, value in found["turnout_assignments_total"]
        if labels["experiment"] == key and labels["project"] == turnout.project
    ]
    assert {labels["reason"] for labels, _ in assigned} == {"split"}
    assert sum(value for _, value in assigned) >= 3
    results = {
        labels["result"]: value
        for labels, value in found["turnout_outcomes_total"]
        if labels["project"] == turnout.project
    }
    assert results == {"accepted": 1, "duplicate": 1, "refused": 1}


async def test_requests_are_counted_and_timed_by_door(turnout: Turnout) -> None:
    key = await turnout.define()
    await turnout.client("analyst").get(f"/v1/experiments/{key}")
    await turnout.client("analyst").get("/nothing/here")
    found = await metrics(turnout)
    requests = {
        (labels["method"], labels["door"], labels["status"])
        for labels, _ in found["turnout_requests_total"]
    }
    assert ("GET", "/v1/experiments/{key}", "200") in requests
    assert ("GET", "unknown", "404") in requests
    assert not any(key in door for _, door, _ in requests)
    timed = {labels["door"] for labels, _ in found["turnout_request_seconds_count"]}
    assert "/v1/experiments/{key}" in timed


async def test_the_journal_the_fold_and_the_leader_can_be_watched(turnout: Turnout) -> None:
    async def leads() -> dict[str, Any] | None:
        found = await metrics(turnout)
        return found if found["turnout_leader"] == [({}, 1.0)] else None

    found = await eventually(leads, "leader")
    assert set(found) >= {
        "turnout_fold_lag_seconds",
        "turnout_folded_records_total",
        "turnout_journal_bytes",
        "turnout_journal_age_seconds",
        "turnout_journal_full",
        "turnout_journal_failures_total",
        "turnout_shipping_lag_seconds",
        "turnout_clock_offset_seconds",
        "turnout_shipping_failures_total",
        "turnout_dead_letters_total",
    }
    assert found["turnout_dead_letters_total"] == [({}, 0.0)]


async def test_the_document_describes_every_door(turnout: Turnout) -> None:
    found = await document(turnout)
    assert found["openapi"].startswith("3.1")
    described = {
        (method.upper(), path) for path, methods in found["paths"].items() for method in methods
    }
    doors = {
        (method, path.replace(":str}", "}")): door
        for door in DOORS
        for path in door.paths
        for method in door.http_methods
    }
    assert doors.keys() <= described
    for (method, path), door in doors.items():
        operation = found["paths"][path][method.lower()]
        assert operation["security"] == [{"bearer": []}, {"apiKey": []}], path
        refused = operation["responses"]["401"]["content"]
        if not path.startswith("/ofrep/"):  # which has a form of its own
            assert refused == {
                "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemBody"}}
            }
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        assert (body is not None) == (method in {"POST", "PUT", "PATCH"}), path
        answers = [code for code in operation["responses"] if code.startswith("2")]
        assert len(answers) == (2 if "proposes" in door.opt else 1), path
        for code in answers:
            says = method != "DELETE" or code == "202"  # that is a proposal, which says so
            assert ("content" in operation["responses"][code]) == says, path
    ids = [operation["operationId"] for m in found["paths"].values() for operation in m.values()]
    assert len(set(ids)) == len(ids)


async def test_every_reference_of_the_document_leads_somewhere(turnout: Turnout) -> None:
    found = await document(turnout)

    def references(part: Any) -> Iterator[str]:
        if isinstance(part, dict):
            if isinstance(part.get("$ref"), str):
                yield part["$ref"]
            for value in part.values():
                yield from references(value)
        elif isinstance(part, list):
            for value in part:
                yield from references(value)

    names = {reference.rpartition("/")[2] for reference in references(found)}
    assert names <= set(found["components"]["schemas"])
    assert {"Experiment", "AssignRequest", "OutcomeItem", "Report", "PlanRequest", "Plan"} <= names
    assert {"Verdict", "QualityCheck", "Breakdown", "PlannedReading", "BayesianReading"} <= names


async def test_every_type_of_problem_is_in_the_catalogue(turnout: Turnout) -> None:
    nobody = turnout.client(None)
    catalogue = (await nobody.get("/problems")).json()
    missing = (await nobody.get("/nothing")).json()
    assert catalogue["types"][missing["type"]] == {"status": 404, "title": missing["title"]}
    assert "unsupported" in catalogue["field_types"]


async def test_what_is_not_there_or_not_taken_is_a_problem(turnout: Turnout) -> None:
    nobody = turnout.client(None)
    problem(await nobody.get("/nothing/here"), 404, "not-found")
    answer = await nobody.put("/v1/outcomes")
    problem(answer, 405, "method-not-allowed")
    assert "POST" in answer.headers["allow"]


async def test_a_request_id_is_taken_over_or_made(turnout: Turnout) -> None:
    nobody = turnout.client(None)
    given = await nobody.get("/healthz", headers={"X-Request-Id": "trace-1"})
    assert given.headers["x-request-id"] == "trace-1"
    made = [(await nobody.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert made[0] != made[1]
    for bad in ("x" * 129, "a\tb"):
        answer = await nobody.get("/healthz", headers={"X-Request-Id": bad})
        assert len(answer.headers["x-request-id"]) == len(made[0])


async def test_the_first_start_tells_an_admin_key_and_later_ones_do_not(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with running(database_url, redis_url, tmp_path, project="shop") as first:
        headers = {"Authorization": f"Bearer {first.admin_key}"}
        async with httpx.AsyncClient(base_url=first.url, headers=headers) as admin:
            made = await admin.post("/v1/experiments", json=definition(key="kept"))
            assert (made.status_code, made.json()["project"]) == (201, "shop")
    async with running(database_url, redis_url, tmp_path, project="shop") as again:
        assert [line for line in again.announced if "to_" in line] == []
        async with httpx.AsyncClient(base_url=again.url, headers=headers) as admin:
            assert (await admin.get("/v1/experiments/kept")).json() == made.json()


async def test_a_sender_who_goes_away_is_no_defect_of_ours(turnout: Turnout) -> None:
    door = {"method": "POST", "door": "/v1/keys"}

    async def answered(status: str) -> float:
        found = await metrics(turnout)
        wanted = {**door, "status": status}
        return sum(value for labels, value in found["turnout_requests_total"] if labels == wanted)

    malformed, defects = await answered("400"), await answered("500")
    url = httpx.URL(turnout.url)
    _, writer = await asyncio.open_connection(url.host, url.port)
    key = turnout.client("admin").headers["Authorization"]
    head = f"POST /v1/keys HTTP/1.1\r\nHost: x\r\nAuthorization: {key}\r\nContent-Length: 9"
    writer.write(f"{head}\r\n\r\n{{".encode())
    await writer.drain()
    await asyncio.sleep(0.1)
    writer.close()

    async def counted() -> bool | None:
        return await answered("400") > malformed or None

    await eventually(counted, "a request that is counted as malformed")
    assert await answered("500") == defects


async def answer_to_bytes(turnout: Turnout, *pieces: bytes) -> bytes:
    """What comes back for bytes on a connection of their own, until it is closed."""
    url = httpx.URL(turnout.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


HEAD = b"POST /v1/outcomes HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    "start",
    [
        b"GET /",
        HEAD + b"X: ",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;",
    ],
    ids=["line", "header", "trailer", "extension"],
)
async def test_a_head_that_never_ends_is_cut_off(turnout: Turnout, start: bytes) -> None:
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        answer = await answer_to_bytes(turnout, start, *[b"a" * 32_768] * 32)
        assert b"400 Bad Request" in answer or b"401 Unauthorized" in answer


async def test_large_bodies_in_small_chunks_and_pipelines_have_no_long_head(
    turnout: Turnout,
) -> None:
    key = turnout.client("service").headers["Authorization"].encode()
    head = b"POST /v1/outcomes HTTP/1.1\r\nHost: x\r\nAuthorization: " + key + b"\r\n"
    item = b'{"event": "e", "unit": "u"}'
    chunks = [b"1\r\n" + item[:1] + b"\r\n"] + [b"1\r\n \r\n"] * 50_000
    chunked = [head + b"Transfer-Encoding: chunked\r\n\r\n", *chunks]
    chunked += [b"%x\r\n%s\r\n0\r\n\r\n" % (len(item) - 1, item[1:])]
    plain = head + b"X-Long: " + b"a" * 60_000 + b"\r\nContent-Length: 27\r\n"
    last = plain + b"Connection: close\r\n\r\n" + item
    answer = await answer_to_bytes(turnout, *chunked, plain + b"\r\n" + item, last)
    assert answer.count(b"200 OK") == 3


async def test_what_was_acknowledged_before_a_stop_is_in_postgres_after_it(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with running(database_url, redis_url, tmp_path, ship_every="1d") as service:
        headers = {"Authorization": f"Bearer {service.admin_key}"}
        async with httpx.AsyncClient(base_url=service.url, headers=headers) as admin:
            await admin.post("/v1/outcomes", json=[{"event": "e", "unit": "u"}] * 7)
    connection = await asyncpg.connect(database_url)
    try:
        assert await connection.fetchval("select count(*) from outcome") == 7
    finally:
        await connection.close()


async def test_logs_are_lines_of_json_with_request_ids_and_without_secrets(
    database_url: str, redis_url: str, tmp_path: Path
) -> None:
    settings = {"database-url": database_url, "redis-url": redis_url, "port": "0"}
    settings |= {"data-dir": str(tmp_path), "log-level": "debug"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "turnout",
        "up",
        *(f"--{name}={value}" for name, value in settings.items()),
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        assert process.stdout is not None
        key, url = [(await process.stdout.readline()).decode().split()[-1] for _ in range(2)]
        secret = key.rpartition("_")[2]
        wrong = f"to_{key.split('_')[1]}_{'5' * 64}"
        async with httpx.AsyncClient(base_url=url, headers={"X-API-Key": key}) as admin:
            answer = await admin.post(
                "/v1/experiments", json=definition(), headers={"X-Request-Id": "trace-1"}
            )
            made = (await admin.post("/v1/keys", json={"role": "client"})).json()["key"]
            await admin.get("/v1/keys", headers={"X-API-Key": wrong})
            await admin.get(f"/v1/experiments?cursor={key}", headers={"X-Request-Id": "trace-2"})
        process.send_signal(signal.SIGTERM)
        _, logged = await asyncio.wait_for(process.communicate(), 30)
    finally:
        if process.returncode is None:
            process.kill()
    assert (answer.status_code, process.returncode) == (201, 0)
    lines = [json.loads(line) for line in logged.decode().splitlines()]
    assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
    requests = [line for line in lines if line["logger"] == "turnout.request"]
    assert [line["status"] for line in requests] == [201, 201, 401, 422]
    assert all(line["request_id"] for line in requests)
    assert (requests[0]["request_id"], requests[0]["door"]) == ("trace-1", "/v1/experiments")
    assert requests[-1]["request_id"] == "trace-2"
    for text in (secret, made.rpartition("_")[2], "5" * 64):
        assert text not in logged.decode()
