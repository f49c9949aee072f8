"""`turnout serve --workers N`: several routers on one port, which die, are replaced and add up."""

import asyncio
import os
import re
import signal
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.commands import (
    PATIENCE,
    PLAIN,
    Up,
    Variables,
    checked,
    journals_in,
    refusal,
    until,
    up,
    worker_of,
)
from tests.e2e.crash.audit import figures
from tests.e2e.crash.figures import FIGURES, RecordProperty
from tests.e2e.crash.fleet import Layout, Member, running_fleet, running_servers
from tests.e2e.crash.load import Ledger
from tests.e2e.crash.programs import Turnout
from tests.e2e.crash.programs import until as until_so
from tests.e2e.outside import outcomes_in, outside
from tests.e2e.traffic import QUICK, assign, start_experiment
from turnout.settings import Process

THREE: Final = (*QUICK, "--workers", "3")
SERVING: Final = Layout([Member("serve", "data", workers=3)], [Member("worker", "other")])


@pytest.fixture
def variables(database_url: str, redis_url: str) -> Variables:
    """Settings that name the servers of a test."""
    return {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}


def workers_of(pid: int) -> set[int]:
    """The workers of a parent that runs."""
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def runs(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


def total(service: Up, name: str, timeout: float = 30, **labels: str) -> float:
    """The sum of a metric over all its labels but these, asked on a new connection."""
    text = httpx.get(f"{service.url}/metrics", timeout=timeout, verify=PLAIN).text
    wanted = {f'{label}="{value}"' for label, value in labels.items()}
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for given, value in found if wanted <= set(given.split(",")))


def spread(service: Up, key: str, workers: int = 3) -> Counter[str]:
    """Expose units on connections of their own, until so many workers have served some; how many
    each did."""
    served: Counter[str] = Counter()

    def enough() -> bool:
        with service.client(key) as client:
            answer = assign(client, f"unit-{served.total()}")
            assert checked(answer)["recorded"]
            outcome = {"event": "click", "unit": f"unit-{served.total()}"}
            assert checked(client.post("/v1/outcomes", json=outcome))["accepted"] == 1
        served[worker_of(answer.headers)] += 1
        return len(served) >= workers and served.total() >= 30

    until(enough, f"{workers} workers serve")
    return served


def test_workers_share_a_port_and_add_up_to_one_router(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *THREE, variables=variables, command="serve") as service:
        assert [line.partition(" ")[0] for line in service.printed] == ["Admin", "Turnout"]
        assert len(workers_of(service.process.pid)) == 3
        assert len(journals_in(tmp_path / "data")) == 3
        start_experiment(service, service.admin_key)
        counted = total(service, "turnout_assignments_total")
        served = spread(service, service.admin_key)
        for _ in range(6):  # whoever is asked
            assert total(service, "turnout_assignments_total") == counted + served.total()
            accepted = total(service, "turnout_outcomes_total", result="accepted")
            assert accepted == served.total()
            timed = total(service, "turnout_request_seconds_count", door="/v1/outcomes")
            assert timed == served.total()
            assert total(service, "turnout_workers") == 3
        until(lambda: total(service, "turnout_journal_bytes") == 0, "all is shipped")
        # An exposure and an outcome of each.
        assert total(service, "turnout_shipped_records_total") == 2 * served.total()
        assert service.stop() == 0
        assert service.strays == []
    assert journals_in(tmp_path / "data") == []


async def test_a_worker_that_dies_is_replaced_and_counts_on(
    tmp_path: Path, variables: Variables
) -> None:
    slow = ("--workers", "3", "--ship-every", "10s")
    with up(tmp_path / "data", *slow, variables=variables, command="serve") as service:
        start_experiment(service, service.admin_key)
        served = spread(service, service.admin_key)
        counted = total(service, "turnout_assignments_total")
        before = workers_of(service.process.pid)
        journals = set(journals_in(tmp_path / "data"))
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: total(service, "turnout_worker_restarts_total") == 1, "it is replaced")
        until(lambda: total(service, "turnout_workers") == 3, "its successor serves")
        assert workers_of(service.process.pid) & before == before - {victim}
        # What it had counted stays in the sum, whoever is asked, and the new one adds to it.
        for _ in range(6):
            assert total(service, "turnout_assignments_total") == counted
        again = spread(service, service.admin_key)
        assert total(service, "turnout_assignments_total") == counted + again.total()
        until(lambda: len(journals - set(journals_in(tmp_path / "data"))) == 1, "its journal went")
        assert service.stop() == 0
    units = await outcomes_in(variables["TURNOUT_DATABASE_URL"])
    assert units.total() == served.total() + again.total()


def test_a_worker_that_hangs_is_noticed(tmp_path: Path, variables: Variables) -> None:
    with up(tmp_path / "data", *THREE, variables=variables, command="serve") as service:
        assert total(service, "turnout_worker_silences_total") == 0
        victim = min(workers_of(service.process.pid))
        os.kill(victim, signal.SIGSTOP)

        def noticed() -> bool:
            with suppress(httpx.TimeoutException):  # the one that hangs was asked
                return total(service, "turnout_worker_silences_total", timeout=3) > 0
            return False

        try:
            until(noticed, "it is missed")
        finally:
            os.kill(victim, signal.SIGCONT)
        assert service.stop() == 0


async def test_what_was_acknowledged_counts_once_whatever_worker_is_killed_or_stopped(
    tmp_path: Path, record_property: RecordProperty
) -> None:
    ledger = Ledger()
    async with (
        running_servers(tmp_path) as servers,
        running_fleet(tmp_path, SERVING, servers) as fleet,
    ):
        (router,) = fleet.routers
        async with fleet.load(ledger, "workers"):
            for _ in range(4):
                await ledger.grow(300)
                os.kill(max(workers_of(router.pid)), signal.SIGKILL)
            await until_so(lambda: three_serve(router), "all serve again")
            await ledger.grow(300)
            assert await router.stop() == 0
            await router.start()
            await ledger.grow(300)
        findings = await fleet.settle(ledger)
        record_property(FIGURES, figures(ledger, findings))
        assert findings == {}


async def three_serve(router: Turnout) -> bool:
    """Whether no worker is missing."""
    return await router.metric("turnout_workers") == 3


@pytest.mark.parametrize(
    ("path", "body", "late"),
    [
        ("/v1/outcomes", b'{"event": "click", "unit": "late"}', 30),
        ("/v1/assign", b'{"experiment": "ranker", "unit": "late"}', 0),
    ],
    ids=["outcome", "assignment"],
)
async def test_requests_in_flight_are_answered_before_the_workers_end(
    path: str, body: bytes, late: int, tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *THREE, variables=variables, command="serve") as service:
        key = service.admin_key
        start_experiment(service, key)
        url = httpx.URL(service.url)
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n".encode()
        head += b"Content-Length: %d\r\n\r\n" % len(body)
        connections = [await asyncio.open_connection(url.host, url.port) for _ in range(30)]
        for _, writer in connections:
            writer.write(head + body[:10])
            await writer.drain()
        spread(service, key)  # by now the workers have read what they were sent before
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(url), "no connection is taken any more")
        answers = []
        for reader, writer in connections:
            writer.write(body[10:])
            answers.append(await asyncio.wait_for(reader.read(), PATIENCE))
            writer.close()
        assert [answer.partition(b"\r\n")[0] for answer in answers] == [b"HTTP/1.1 200 OK"] * 30
        assert service.process.wait(PATIENCE) == 0
    assert (await outcomes_in(variables["TURNOUT_DATABASE_URL"]))["late"] == late


def refuses(url: httpx.URL) -> bool:
    """Whether nobody listens."""
    with socket.socket() as probe:
        return probe.connect_ex((url.host, url.port or 0)) != 0


async def test_workers_do_not_outlive_their_parent(tmp_path: Path, variables: Variables) -> None:
    slow = ("--workers", "3", "--ship-every", "10s")
    with up(tmp_path / "data", *slow, variables=variables, command="serve") as service:
        start_experiment(service, service.admin_key)
        served = spread(service, service.admin_key)
        workers = workers_of(service.process.pid)
        service.kill()
        until(lambda: not any(runs(worker) for worker in workers), "all have ended")
    # They were asked to stop, not killed: what they had acknowledged is in Postgres.
    assert journals_in(tmp_path / "data") == []
    units = await outcomes_in(variables["TURNOUT_DATABASE_URL"])
    assert units.total() == served.total()


def test_workers_that_cannot_start_say_why_in_one_line(tmp_path: Path) -> None:
    gone = {
        "TURNOUT_DATABASE_URL": "postgresql://turnout@127.0.0.1:1/turnout",
        "TURNOUT_REDIS_URL": "redis://127.0.0.1:1",
    }
    start = ("serve", "--data-dir", tmp_path / "data", "--workers", "3", "--port")
    assert refusal(*start, "0", variables=gone).startswith("cannot reach Postgres: ")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert refusal(*start, port, variables=gone).startswith("cannot listen on 127.0.0.1:")


def test_a_second_start_does_not_share_the_port_of_the_first(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *THREE, variables=variables, command="serve") as service:
        port = str(httpx.URL(service.url).port)
        for workers in ("1", "3"):
            flags = ("--port", port, "--workers", workers, "--data-dir", tmp_path / "data")
            assert "cannot listen" in refusal("serve", *flags, variables=variables)


@pytest.mark.parametrize("command", ["up", "worker"])
def test_only_routers_can_be_several(
    command: Process, data_dir: Path, variables: Variables
) -> None:
    line = refusal(command, "--data-dir", data_dir, "--workers", "2", variables=variables)
    assert line.startswith(f"wrong settings: TURNOUT_WORKERS: must be 1 for {command}")
    assert not data_dir.exists()


async def test_workers_start_alone_and_join_when_postgres_is_back(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        variables = servers.variables
        with up(tmp_path / "data", *QUICK, variables=variables, command="serve") as first:
            key = first.admin_key
            start_experiment(first, key)
            assert first.stop() == 0
        await servers.kill_postgres()
        await servers.kill_redis()
        with up(tmp_path / "data", *THREE, variables=variables, command="serve") as service:
            assert not service.admin_key
            served = spread(service, key)
            await servers.start_postgres()
            until(
                lambda: total(service, "turnout_shipped_records_total") == 2 * served.total(),
                "what was recorded alone is shipped",
            )
            assert service.stop() == 0
            assert service.strays == []
        assert (await outcomes_in(servers.database_url)).total() == served.total()
