"""What each release left behind is brought up to date, and goes on (tests/releases)."""

import gzip
import json
import math
import tarfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis

from analysis.upkeep.verify import verify
from experiments import lifecycle, store
from experiments.keys import check_key, key_id_of
from router.assign import assign
from router.replay import Question, replay
from router.shelf import Shelf
from router.snapshot import ProjectSnapshot, compile_project
from tests.releases.make import AFTERWARDS, HERE, attributes
from tests.service.loop import Service
from turnout.migrate import migrate, migrations
from turnout.settings import Settings
from turnout.ship import ship

RELEASES: Final = sorted(path.name.removesuffix(".sql.gz") for path in HERE.glob("*.sql.gz"))
PROJECT: Final = "default"
ALSO_LATE: Final = "ranker"
"""The experiment whose units are in the journal that was left, too."""
FIGURES: Final = ("difference", "mean_control", "mean_treatment", "n_control", "n_treatment")
_LAST: Final = "select max(received_to) from segment"
_SOME: Final = """
    select x.id, e.key, x.unit, x.variant, x.epoch, x.at from exposure x
    join experiment e on e.id = x.experiment where hashtext(x.unit) % 20 = 0 order by x.at limit 60
"""
_AUDITED: Final = "select kind, action, number from audit where project = $1 order by number"
_LATE: Final = """
    select count(distinct unit) as units, count(*) - count(distinct id) as doubled
    from exposure where unit like 'late-%'
"""


class Left(msgspec.Struct, frozen=True):
    """What a release has left, migrated, and what it had said of it."""

    release: str
    told: dict[str, Any]
    service: Service
    url: str
    redis_url: str
    folder: Path

    @property
    def numbers(self) -> tuple[int, ...]:
        """The release's number, to compare with others."""
        return tuple(map(int, self.release.split(".")))


@asynccontextmanager
async def left_by(
    release: str, database_url: str, redis_url: str, folder: Path
) -> AsyncIterator[Left]:
    """Restore what a release left, and migrate it; a controller looks at it soon after."""
    told = json.loads(gzip.decompress((HERE / f"{release}.json.gz").read_bytes()))
    with tarfile.open(HERE / f"{release}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(
            gzip.decompress((HERE / f"{release}.sql.gz").read_bytes()).decode()
        )
        await connection.execute("reset all")
        before = await connection.fetchval("select count(*) from migration")
        applied = await migrate(connection)
        assert applied == [each.name for each in migrations()][before:]
        last: datetime = await connection.fetchval(_LAST) or await connection.fetchval(
            "select max(received_at) from exposure"
        )
    finally:
        await connection.close()
    async with (
        asyncpg.create_pool(database_url, min_size=1, max_size=4) as pool,
        Redis.from_url(redis_url) as redis,
    ):
        service = Service(pool, redis)
        service.clock.now = last + timedelta(hours=1)
        yield Left(release, told, service, database_url, redis_url, folder)


@pytest.mark.parametrize("release", RELEASES)
async def test_a_database_of_an_older_release_goes_on(
    release: str, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    async with left_by(release, database_url, redis_url, tmp_path) as left:
        await _says_and_assigns_what_it_said_and_assigned(left)
        await _ships_the_journal_once(left)
        await left.service.settle()
        await _reports_what_it_reported(left)
        await _replays_its_exposures(left)
        await _goes_on(left)
        async with left.service.pool.acquire() as connection:
            verdict = await verify(connection, None, None, lambda _: None)
        assert (verdict.found, verdict.lines()[-1][-9:]) == (0, "all equal")


async def _project(left: Left) -> ProjectSnapshot:
    async with left.service.pool.acquire() as connection:
        publication = await store.load_publication(connection, PROJECT)
    assert publication is not None
    return await compile_project(publication)


async def _says_and_assigns_what_it_said_and_assigned(left: Left) -> None:
    """From Postgres, and from the snapshot on disk where it can be read."""
    project = await _project(left)
    assert not project.unread
    keys = {key.id: key for key in project.keys}
    for role, text in left.told["keys"].items():
        holder = check_key(text, keys[key_id_of(text) or ""], left.service.clock.now)
        assert holder is not None
        assert holder.role == role
    assigned = [project]
    kept = Shelf(left.folder).load()
    if kept is None:
        # Set aside, or there was none: then a router starts by Postgres.
        assert not (left.folder / "snapshot" / "publications").exists()
    else:
        assigned += [await compile_project(publication) for publication in kept.publications]
    for each in assigned:
        for key, units in left.told["assignments"].items():
            entry = each.entries[key]
            for unit, before in units.items():
                got = assign(entry, unit, {**attributes(unit), entry.unit_attribute: unit})
                now = {"variant": got.arm.key, "value": json.loads(bytes(got.arm.value))}
                # A sticky unit keeps its first variant, which its Redis knew.
                if not entry.sticky:
                    assert now == {"variant": before["variant"], "value": before["value"]}, key
                assert entry.epoch == before["epoch"]


async def _ships_the_journal_once(left: Left) -> None:
    settings = Settings(
        database_url=left.url, redis_url=left.redis_url, data_dir=str(left.folder / "new")
    )
    journals = left.folder / "journals"
    [folder] = journals.iterdir() if journals.exists() else [left.folder / "journal"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    shipment = await ship(settings, folder)
    assert shipment.whole
    assert await _late(left) == (AFTERWARDS, 0)
    folder.mkdir(exist_ok=True)
    for name, content in before.items():  # an old copy of it turns up
        (folder / name).write_bytes(content)
    assert (await ship(settings, folder)).records == 0
    assert await _late(left) == (AFTERWARDS, 0)


async def _late(left: Left) -> tuple[int, int]:
    """How many units came late, and how many of their exposures stand twice."""
    [row] = await left.service.fetch(_LATE)
    return row["units"], row["doubled"]


async def _reports_what_it_reported(left: Left) -> None:
    for key, before in left.told["reports"].items():
        report = msgspec.to_builtins(await left.service.report(key, PROJECT))
        assert report["run"] == before["run"]
        if key == ALSO_LATE:
            late = sum(report["units"].values()) - sum(before["units"].values())
            assert AFTERWARDS * 0.9 <= late <= AFTERWARDS  # some are in the holdout
            continue
        assert report["units"] == before["units"], key
        metrics = {metric["key"]: metric for metric in report["metrics"]}
        for metric in before["metrics"]:
            now = metrics[metric["key"]]
            for variant, arm in metric["arms"].items():
                assert now["arms"][variant]["finished"] == arm["finished"], (key, metric["key"])
            told = {each["treatment"]: each for each in now["comparisons"]}
            for comparison in metric["comparisons"]:
                _same(comparison, told[comparison["treatment"]])


def _same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Counts, means and differences are what they were. How sure one may be of them is computed
    better from release to release: the changelog says how."""
    if before["fixed"] is None:
        assert now["fixed"] is None
        return
    for name in FIGURES:
        old, new = before["fixed"][name], now["fixed"][name]
        same = old == new if None in (old, new) else math.isclose(old, new, rel_tol=1e-9)
        assert same or abs(old - new) < 1e-12, (before["treatment"], name, old, new)


async def _replays_its_exposures(left: Left) -> None:
    """Every exposure that was recorded follows from its epoch, as it did then."""
    project = await _project(left)
    exposures = await left.service.fetch(_SOME)
    assert len(exposures) > 20
    async with left.service.pool.acquire() as connection:
        for row in exposures:
            record = await lifecycle.find(connection, PROJECT, row["key"])
            question = Question(
                row["unit"], row["at"], epoch=row["epoch"], attributes=attributes(row["unit"])
            )
            told = await replay(connection, project, record, question)
            assert told.recomputed.variant == row["variant"], row
            assert told.agrees


async def _goes_on(left: Left) -> None:
    """New exposures count, hands and the controller decide, and that is audited from now on."""
    service = left.service
    record = await service.find("again", PROJECT)
    for number in range(30):
        at = service.clock.now + timedelta(milliseconds=number)
        variant = "ab"[number % 2]
        await service.ship([service.exposure(record, f"new-{number}", variant, at)])
    await service.settle()
    assert (await service.report("again", PROJECT)).units == {"a": 15, "b": 15}
    paused = await service.pause("again", PROJECT)
    assert paused.epoch == record.epoch + 1
    audited = await service.fetch(_AUDITED, PROJECT)
    assert [row["number"] for row in audited] == list(range(1, len(audited) + 1))
    assert ("decision", "decision.pause") in {(row["kind"], row["action"]) for row in audited}
