"""The release before serves while the database is migrated, and then both serve side by side."""

import subprocess
import sys
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.e2e.commands import (
    PATIENCE,
    PLAIN,
    Up,
    clean_environment,
    turnout,
    until,
    up,
)
from tests.e2e.traffic import QUICK, start_experiment, units_of, until_assigned

BEFORE = "1aa31a9"
"""The commit of release 0.6.0."""
ROOT = Path(__file__).parents[2]


@pytest.fixture
def code_before(tmp_path: Path) -> Path:
    """The code of the release before, out of the history."""
    found = subprocess.run(
        ["git", "archive", BEFORE], cwd=ROOT, capture_output=True, check=False, timeout=60
    )
    if found.returncode != 0:
        pytest.skip("there is no history here that has the release before")
    folder = tmp_path / "before"
    with tarfile.open(fileobj=BytesIO(found.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@contextmanager
def old_router(code: Path, data_dir: Path, variables: dict[str, str]) -> Iterator[Up]:
    """`turnout serve` of the release before."""
    printed, logged = data_dir.with_name("old.out"), data_dir.with_name("old.err")
    with printed.open("wb") as out, logged.open("wb") as err:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "turnout",
                "serve",
                "--port",
                "0",
                *("--data-dir", data_dir),
                *QUICK,
            ],
            env=clean_environment(variables) | {"PYTHONPATH": str(code)},
            cwd=code,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
        try:
            service = Up(process, data_dir, printed, logged)
            service.wait_until_served()
            yield service
        finally:
            process.terminate()
            process.wait(PATIENCE)


class Load(threading.Thread):
    """Units that come one after another, to whatever router there is, until it is stopped."""

    def __init__(self, key: str, *urls: str) -> None:
        super().__init__()
        self.clients = [
            httpx.Client(
                base_url=url,
                headers={"Authorization": f"Bearer {key}"},
                timeout=30,
                verify=PLAIN,
            )
            for url in urls
        ]
        self.stopping = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.acknowledged: list[str] = []

    def run(self) -> None:
        """Send."""
        number = 0
        while not self.stopping.is_set():
            for client in list(self.clients):
                unit = f"{id(self)}-{number}"
                number += 1
                answers = [
                    client.post("/v1/assign", json={"experiment": "ranker", "unit": unit}),
                    client.post("/v1/outcomes", json={"id": unit, "event": "click", "unit": unit}),
                ]
                self.statuses.update(answer.status_code for answer in answers)
                if answers[0].is_success and answers[0].json()["recorded"]:
                    self.acknowledged.append(unit)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        """While the block runs."""
        self.start()
        try:
            yield self
        finally:
            self.stopping.set()
            self.join(PATIENCE)
            for client in self.clients:
                client.close()


async def units(database_url: str, table: str) -> Counter[str]:
    """How often each unit is in a table."""
    connection = await asyncpg.connect(database_url)
    try:
        found = await connection.fetch(f"select unit from {table}")  # noqa: S608 - one of ours
        return Counter(row["unit"] for row in found)
    finally:
        await connection.close()


async def test_nothing_fails_and_nothing_is_lost_from_one_release_to_the_next(
    code_before: Path, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    with old_router(code_before, data_dir, variables) as old:
        key = old.admin_key
        start_experiment(old, key)
        with Load(key, old.url).running() as load:
            until(lambda: len(load.acknowledged) > 50, "units come")
            stands = turnout("migrate", "--status", variables=variables)
            assert stands.returncode == 1
            assert "pending  0026_audit.sql" in stands.stdout
            assert turnout("migrate", variables=variables).returncode == 0
            since = len(load.acknowledged)
            until(lambda: len(load.acknowledged) > since + 50, "units come to the old router")
            start_experiment(old, key, "second")  # it writes what the new schema audits
        with up(data_dir, *QUICK, variables=variables, name="new") as new:
            until_assigned(new, key)
            with Load(key, old.url, new.url).running() as both:
                until(lambda: len(both.acknowledged) > 100, "units come to both")
            assert old.stop() == 0
            assert {**load.statuses, **both.statuses}.keys() == {200}
            came = Counter(load.acknowledged + both.acknowledged)
            until(lambda: units_of(new, key) == len(came), "the report counts all, each once")
            assert await units(database_url, "exposure") == came
            assert await units(database_url, "outcome") == came
    assert turnout("migrate", "--status", variables=variables).returncode == 0
    assert "all equal" in turnout("verify", variables=variables).stdout
