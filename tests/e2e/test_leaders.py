"""Workers that take over from each other, killed, and stopped and continued: real processes."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from tests.e2e.commands import Up, Variables, checked, turnout, until, up
from tests.e2e.traffic import QUICK, assign

TAKEOVER: Final = 10.0
"""Seconds after which another leads, whatever became of the leader."""
GUARDED: Final = {
    "key": "guarded",
    "variants": [
        {"key": "old", "control": True, "weight": 0.5, "value": "old"},
        {"key": "new", "weight": 0.5, "value": "new"},
    ],
    "metrics": [
        {"key": "error", "role": "guardrail", "kind": "proportion", "event": "error"}
        | {"window": "1s", "goal": "decrease", "margin": {"absolute": 0.01}}
    ],
}
_LEASE: Final = "select holder, term from lease where expires_at > clock_timestamp()"


@pytest.fixture
def variables(database_url: str, redis_url: str) -> Variables:
    """Settings that name the servers of a test."""
    return {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}


class Leaders:
    """A router and some workers, and who of them leads."""

    def __init__(self, router: Up, workers: list[Up], database_url: str) -> None:
        self.router = router
        self.workers = workers
        self._database_url = database_url

    def fetch(self, query: str) -> list[asyncpg.Record]:
        """What is in the database."""

        async def ask() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self._database_url)
            try:
                rows: list[asyncpg.Record] = await connection.fetch(query)
            finally:
                await connection.close()
            return rows

        return asyncio.run(ask())

    def leader(self) -> tuple[Up, int]:
        """The worker that leads, and its term."""
        until(lambda: bool(self.fetch(_LEASE)), "somebody leads")
        [row] = self.fetch(_LEASE)
        pid = int(row["holder"].split(":")[1])
        return next(worker for worker in self.workers if worker.process.pid == pid), row["term"]

    def takeover(self, since: float, term: int) -> float:
        """The seconds since then after which another leads."""

        def taken() -> bool:
            rows = self.fetch(_LEASE)
            return bool(rows) and rows[0]["term"] > term

        until(taken, "another leads")
        return time.monotonic() - since

    def live(self, units: Iterator[int], count: int, *, harm: bool) -> None:
        """Units come, and those that meet the new variant fail where it does harm."""
        with self.router.client(self.router.admin_key) as client:
            for _ in range(count):
                unit = f"unit-{next(units)}"
                met = checked(assign(client, unit, "guarded"))["variant"]
                if harm and met == "new":
                    checked(client.post("/v1/outcomes", json={"event": "error", "unit": unit}))

    def ledger(self) -> list[dict[str, Any]]:
        """The ledger of decisions, the first one first."""
        with self.router.client(self.router.admin_key) as client:
            path = "/v1/experiments/guarded/decisions"
            items: list[dict[str, Any]] = checked(client.get(path))["items"]
        return items[::-1]


@pytest.fixture
def leaders(tmp_path: Path, variables: Variables, database_url: str) -> Iterator[Leaders]:
    """A router with an experiment that runs, and three workers."""
    with ExitStack() as stack:
        flags = (*QUICK, "--tick", "50ms")
        router = stack.enter_context(
            up(tmp_path / "router", *flags, variables=variables, command="serve")
        )
        workers = [
            stack.enter_context(
                up(tmp_path / f"worker-{i}", *flags, variables=variables, command="worker")
            )
            for i in range(3)
        ]
        with router.client(router.admin_key) as client:
            checked(client.post("/v1/experiments", json=GUARDED))
            checked(client.post("/v1/experiments/guarded/start", json={"reason": "to test"}))
            until(lambda: assign(client, "one", "guarded", expose=False).is_success, "it runs")
        yield Leaders(router, workers, database_url)


def test_another_leads_within_ten_seconds_and_the_stopped_one_decides_nothing(
    leaders: Leaders,
) -> None:
    """The leader is killed; the next one is stopped at some moment of its work, harm is found in
    its absence, and it goes on."""
    units = iter(range(1_000_000))
    leaders.live(units, 60, harm=False)
    killed, term = leaders.leader()
    since = time.monotonic()
    killed.kill()
    after_kill = leaders.takeover(since, term)
    leaders.workers.remove(killed)

    stopped, term = leaders.leader()
    leaders.live(units, 30, harm=True)
    time.sleep(random.Random(os.getpid()).random() * 0.2)  # noqa: S311 - at any moment of a tick
    since = time.monotonic()
    os.kill(stopped.process.pid, signal.SIGSTOP)
    after_stop = leaders.takeover(since, term)
    leaders.live(units, 200, harm=True)
    until(lambda: "rollback" in {d["kind"] for d in leaders.ledger()}, "the harm is found")
    decided = leaders.ledger()
    os.kill(stopped.process.pid, signal.SIGCONT)
    time.sleep(1)
    assert leaders.ledger() == decided
    assert [d["kind"] for d in decided if d["kind"] != "hold"] == ["start", "rollback"]
    [rolled_back] = [d for d in decided if d["kind"] == "rollback"]
    assert (rolled_back["rule"], rolled_back["actor"]) == ("guard", "controller")
    assert not [line for worker in leaders.workers for line in worker.strays]

    here = {
        "TURNOUT_URL": leaders.router.url,
        "TURNOUT_API_KEY": leaders.router.admin_key,
    }
    told = turnout("replay-decision", str(rolled_back["id"]), variables=here)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.splitlines()[-1] == "The same again, bit by bit."

    print(f"another led {after_kill:.1f} s after a kill, {after_stop:.1f} s after a stop")
    assert after_kill <= TAKEOVER
    assert after_stop <= TAKEOVER
