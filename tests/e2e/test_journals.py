"""Journals of whole processes: full, on a bad disk, left by the dead, copied, shipped by hand."""

import re
import resource
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from tests.e2e.commands import (
    PLAIN,
    Up,
    Variables,
    checked,
    done,
    journals_in,
    refusal,
    turnout,
    until,
    up,
)
from tests.e2e.outside import outcomes_in, outside
from tests.e2e.traffic import QUICK, assign, start_experiment

UNSHIPPED = ("--ship-every", "10s")  # what is told after a start waits for so long


@pytest.fixture
def variables(database_url: str, redis_url: str) -> Variables:
    """Settings that name the servers of a test."""
    return {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}


def tell(service: Up, key: str, unit: str) -> httpx.Response:
    """Report an outcome without an id: it counts as often as it is told."""
    with service.client(key) as client:
        return client.post("/v1/outcomes", json={"event": "click", "unit": unit})


def killed_after(service: Up, key: str, *units: str) -> Path:
    """Kill a process once it has acknowledged an outcome of each unit; its journal.

    What it ships right after its start is over by then, and its next time is far off.
    """
    until(lambda: service.metric("turnout_shipping_lag_seconds") > 0, "its first time to ship")
    (journal,) = journals_in(service.data_dir)
    for unit in units:
        checked(tell(service, key, unit))
    service.kill()
    return journal


def copied(folder: Path, target: Path) -> Path:
    """A copy, with all that is in it but for the snapshot, which comes and goes."""
    return Path(shutil.copytree(folder, target, ignore=shutil.ignore_patterns("publications*")))


def flip(path: Path, at: int) -> None:
    """Flip a bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def journal_check(service: Up) -> Any:
    """What /readyz says of the journal. It must say that requests may come, and what is wrong."""
    ready = checked(httpx.get(f"{service.url}/readyz", timeout=30, verify=PLAIN))
    (check,) = [check for check in ready["checks"] if check["name"] == "journal"]
    assert ready["degraded"] == (not all(check["ok"] for check in ready["checks"]))
    return check


def can_write(service: Up, *, bytes_in_a_file: int) -> None:
    """The kernel refuses to let any file of a process grow past this size."""
    hard = resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(service.process.pid, resource.RLIMIT_FSIZE, (bytes_in_a_file, hard))


async def journals_announced(database_url: str) -> int:
    """How many journals the watermark waits for."""
    connection = await asyncpg.connect(database_url)
    try:
        number: int = await connection.fetchval("select count(*) from journal")
        return number
    finally:
        await connection.close()


async def test_past_its_limit_outcomes_are_refused_and_assignments_go_on(tmp_path: Path) -> None:
    async with outside(tmp_path / "outside") as servers:
        flags = (*QUICK, "--journal-limit-mib", "1")
        with up(tmp_path / "data", *flags, variables=servers.variables, command="serve") as service:
            key = service.admin_key
            start_experiment(service, key)
            await servers.kill_postgres()
            batch = [{"event": "click", "unit": f"{n}-{'x' * 200}"} for n in range(500)]
            with service.client(key) as client:
                answers = [client.post("/v1/outcomes", json=batch) for _ in range(40)]
                told = sum(answer.is_success for answer in answers)
                refused = answers[-1]
                assert 0 < told < len(answers)
                assert refused.status_code == 503
                assert refused.json()["type"] == "journal-full"
                assert int(refused.headers["Retry-After"]) > 0
                assert not checked(assign(client, "unit-1"))["recorded"]
            lost = 'turnout_exposures_unrecorded_total{experiment="ranker",project="default"}'
            assert service.metric(re.escape(lost)) == 1
            assert service.metric("turnout_journal_full") == 1
            assert "full" in journal_check(service)["detail"]
            assert not journal_check(service)["ok"]

            await servers.start_postgres()
            until(lambda: service.metric("turnout_journal_bytes") == 0, "all is shipped")
            assert journal_check(service)["ok"]
            assert service.metric("turnout_journal_full") == 0
            assert checked(tell(service, key, "again"))["accepted"] == 1
            with service.client(key) as client:
                assert checked(assign(client, "unit-1"))["recorded"]
            assert service.stop() == 0
        counted = await outcomes_in(servers.database_url)
        assert counted == Counter([item["unit"] for item in batch] * told) + Counter(["again"])


async def test_a_disk_that_refuses_is_said_and_nothing_is_acknowledged_meanwhile(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *UNSHIPPED, variables=variables, command="serve") as service:
        key = service.admin_key
        start_experiment(service, key)
        checked(tell(service, key, "before"))
        assert journal_check(service)["ok"]
        can_write(service, bytes_in_a_file=0)
        for _ in range(3):
            answer = tell(service, key, "never")
            assert (answer.status_code, answer.json()["type"]) == (503, "unavailable")
            assert int(answer.headers["Retry-After"]) > 0
        with service.client(key) as client:
            assert not checked(assign(client, "unit-1"))["recorded"]
        assert "cannot write" in journal_check(service)["detail"]
        assert service.metric("turnout_journal_failing") == 1
        can_write(service, bytes_in_a_file=resource.RLIM_INFINITY)
        checked(tell(service, key, "after"))
        assert journal_check(service)["ok"]
        assert service.metric("turnout_journal_failing") == 0
        assert service.stop() == 0
    assert await outcomes_in(variables["TURNOUT_DATABASE_URL"]) == {"before": 1, "after": 1}


async def test_a_living_process_ships_what_its_dead_neighbour_left(
    tmp_path: Path, variables: Variables
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir, *UNSHIPPED, variables=variables, command="serve", name="dead") as dead:
        journal = killed_after(dead, dead.admin_key, "one", "two")
    url = variables["TURNOUT_DATABASE_URL"]
    with up(data_dir, *QUICK, variables=variables, command="worker", name="first") as worker:
        until(lambda: not journal.exists(), "its journal has gone")
        assert worker.metric("turnout_orphan_records_total") == 2
        assert await outcomes_in(url) == {"one": 1, "two": 1}
        with up(data_dir, *UNSHIPPED, variables=variables, command="serve", name="late") as late:
            journal = killed_after(late, dead.admin_key, "three")
        until(lambda: not journal.exists(), "the other has gone, too")
        assert worker.stop() == 0
    assert await outcomes_in(url) == {"one": 1, "two": 1, "three": 1}
    assert await journals_announced(url) == 0


async def test_an_upgrade_takes_the_journal_of_the_version_before(
    tmp_path: Path, variables: Variables
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir, *UNSHIPPED, variables=variables, name="before") as before:
        killed_after(before, before.admin_key, "one").rename(data_dir / "journal")
    with up(data_dir, *QUICK, variables=variables, name="after") as after:
        until(lambda: not (data_dir / "journal").exists(), "the old journal has gone")
        assert after.stop() == 0
    assert await outcomes_in(variables["TURNOUT_DATABASE_URL"]) == {"one": 1}


async def test_an_old_copy_that_is_restored_loses_nothing_and_doubles_nothing(
    tmp_path: Path, variables: Variables
) -> None:
    data_dir, backup = tmp_path / "data", tmp_path / "backup"
    with up(data_dir, *UNSHIPPED, variables=variables, command="serve", name="first") as first:
        key = first.admin_key
        checked(tell(first, key, "one"))
        copied(data_dir, backup)
        checked(tell(first, key, "two"))
        assert first.stop() == 0  # both are shipped
    shutil.rmtree(data_dir)
    backup.rename(data_dir)
    with up(data_dir, *UNSHIPPED, variables=variables, command="serve", name="again") as again:
        checked(tell(again, key, "three"))
        assert again.stop() == 0
    url = variables["TURNOUT_DATABASE_URL"]
    assert await outcomes_in(url) == {"one": 1, "two": 1, "three": 1}


async def test_a_journal_stripped_of_its_segments_costs_nothing_new(
    tmp_path: Path, variables: Variables
) -> None:
    data_dir = tmp_path / "data"
    with up(data_dir, *QUICK, variables=variables, command="serve", name="first") as first:
        key = first.admin_key
        journal = killed_after(first, key, "one")
        for path in journal.glob("*.segment"):
            path.unlink()
    with up(data_dir, *UNSHIPPED, variables=variables, command="serve", name="again") as again:
        checked(tell(again, key, "two"))
        assert again.stop() == 0
    counted = await outcomes_in(variables["TURNOUT_DATABASE_URL"])
    assert counted["two"] == 1
    assert journals_in(data_dir) == []


# `turnout ship`.


async def test_a_journal_is_shipped_by_hand_and_a_second_time_changes_nothing(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *UNSHIPPED, variables=variables, command="serve") as service:
        journal = killed_after(service, service.admin_key, "one", "two")
    copy = copied(journal, tmp_path / "copy")
    report = [
        "segments: 1 shipped, 0 were in Postgres before",
        "records: 2",
        "duplicates: 0",
        "writes that never finished: 0",
        "dead letters: 0",
        "damaged places: 0",
    ]
    assert done("ship", journal, variables=variables).splitlines() == report
    again = ["segments: 0 shipped, 1 were in Postgres before", "records: 0", *report[2:]]
    assert done("ship", copy, variables=variables).splitlines() == again
    once_more = ["segments: 0 shipped, 0 were in Postgres before", "records: 0", *report[2:]]
    assert done("ship", copy, variables=variables).splitlines() == once_more
    url = variables["TURNOUT_DATABASE_URL"]
    assert await outcomes_in(url) == {"one": 1, "two": 1}
    assert await journals_announced(url) == 0


async def test_what_cannot_be_shipped_by_hand_is_named(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *UNSHIPPED, variables=variables, command="serve") as service:
        journal = killed_after(service, service.admin_key, "bad", "poison", "good")
    url = variables["TURNOUT_DATABASE_URL"]
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("alter table outcome add check (unit <> 'poison')")
    finally:
        await connection.close()
    (active,) = journal.glob("*.segment")
    flip(active, 40)
    result = turnout("ship", journal, variables=variables)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert "records: 2" in lines
    place = lines.index("dead letters: 1") + 1
    assert lines[place].startswith("  segment 1, record 0: CheckViolationError: ")
    (side,) = journal.glob("*.damaged")
    assert lines[-2:] == ["damaged places: 1", f"  {side}"]
    assert await outcomes_in(url) == {"good": 1}


def test_what_cannot_be_shipped_at_all_is_refused(
    tmp_path: Path, serving: Up, variables: Variables
) -> None:
    (journal,) = journals_in(serving.data_dir)
    assert refusal("ship", journal, variables=variables) == (
        f"cannot ship {journal}: another process holds the journal {journal}"
    )
    for folder in (tmp_path, tmp_path / "missing"):
        assert refusal("ship", folder, variables=variables).startswith(f"cannot ship {folder}: ")
    hint = f"; journals are the folders in {serving.data_dir / 'journals'}"
    assert refusal("ship", serving.data_dir, variables=variables).endswith(hint)
    nowhere = tmp_path / "nowhere"
    assert refusal("ship", tmp_path, "--data-dir", nowhere).startswith("no database to ship to: ")
    assert not nowhere.exists()


def test_a_journal_stays_while_the_database_cannot_be_reached(
    tmp_path: Path, variables: Variables
) -> None:
    with up(tmp_path / "data", *UNSHIPPED, variables=variables, command="serve") as service:
        journal = killed_after(service, service.admin_key, "one")
    gone = {"TURNOUT_DATABASE_URL": "postgresql://turnout@127.0.0.1:1/turnout"}
    line = refusal("ship", journal, variables=gone)
    assert line.startswith("cannot reach Postgres: ")
    assert "records: 1" in done("ship", journal, variables=variables)
