"""What a router knows, on disk: whole or not at all, and never older than it was."""

import asyncio
import fcntl
import logging
import multiprocessing
import os
import secrets
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

import router.shelf
from experiments.keys import new_key
from experiments.model import Experiment, Variant
from experiments.records import HoldoutPin, LayerPin, Live, Override, Publication
from experiments.units import UnitKey
from router.shelf import Shelf
from tests.lives import live

NOW = datetime(2026, 3, 1, 12, 30, 15, 123456, UTC)
SECRET = bytes(range(32))


def full(number: int, project: str = "shop") -> Live:
    """A running experiment with all that one can have."""
    definition = Experiment(
        key=f"ranker-{number}",
        variants=(
            Variant(key="old", value={"depth": [1, 2.5, None, True]}, weight=0.5, control=True),
            Variant(key="new", value={"model": "ränker/7", "big": 2**63 - 1}, weight=0.5),
        ),
        record=("country",),
        traffic=0.4,
        targeting={"in": [{"var": "country"}, ["DE", "AT"]]},
        stickiness="sticky",
    )
    return live(
        definition,
        experiment=number,
        project=project,
        overrides=(Override(5, "new", None, "plan", 1.5, NOW, "key:1", "to test"),),
        layer=LayerPin("ranking", "ranking#2", (0, 5000)),
        holdout=HoldoutPin(7, 1, 1, "$holdout", ((0, 100), (300, 400))),
        at=NOW,
    )


def publication(version: int, *experiments: Live, project: str = "shop") -> Publication:
    """A project at a version."""
    _, key = new_key(project, "service", "for a test", NOW, secrets.token_bytes)
    return Publication(
        project=project,
        version=version,
        default_unit_type="user",
        keys=(key,),
        experiments=experiments or (full(version),),
        unit_key=None,
        erasures=4,
        sticky_id="a1b2",
        holdout=full(99),
    )


def kept_by(data_dir: Path) -> dict[str, Publication]:
    """What a start finds, by project."""
    kept = Shelf(data_dir).load()
    return {} if kept is None else {found.project: found for found in kept.publications}


async def save(shelf: Shelf, *publications: Publication) -> None:
    """Put and save."""
    for item in publications:
        shelf.put(item)
    await shelf.save()
    assert not shelf.behind


def file_of(data_dir: Path) -> Path:
    """The file."""
    return data_dir / "snapshot" / "publications"


async def test_a_start_finds_what_was_saved(tmp_path: Path) -> None:
    saved = publication(3, full(1), full(2))
    other = publication(8, project="other")
    assert Shelf(tmp_path).load() is None
    assert os.listdir(tmp_path) == []
    await save(Shelf(tmp_path), saved, other)
    assert kept_by(tmp_path) == {"shop": saved, "other": other}


async def test_the_secret_that_units_are_hashed_with_is_kept_and_shown_nowhere(
    tmp_path: Path,
) -> None:
    hashing = msgspec.structs.replace(publication(1), unit_key=UnitKey(SECRET))
    await save(Shelf(tmp_path), hashing)
    found = kept_by(tmp_path)["shop"].unit_key
    assert found is not None
    assert found.hashed("user", "42") == UnitKey(SECRET).hashed("user", "42")
    for shown in (repr(hashing), str(found), f"{found}"):
        assert SECRET.hex() not in shown
        assert repr(SECRET)[2:-1] not in shown


async def test_the_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        await save(Shelf(tmp_path / "data"), publication(1))
    finally:
        os.umask(before)
    folder = tmp_path / "data" / "snapshot"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
    "a bit of the checksum": lambda data: data[:20] + bytes([data[20] ^ 1]) + data[21:],
    "its end": lambda data: data[:-1],
    "nearly all": lambda data: data[:9],
    "everything": lambda _: b"",
    "another format": lambda data: data[:7] + b"\xfe" + data[8:],
    "another program's": lambda _: b"SQLite format 3\0" * 10,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_what_cannot_be_read_is_set_aside_and_the_next_save_makes_a_new_one(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await save(Shelf(tmp_path), publication(1))
    file = file_of(tmp_path)
    damaged = damage(file.read_bytes())
    file.write_bytes(damaged)
    shelf = Shelf(tmp_path)
    with caplog.at_level(logging.ERROR):
        assert shelf.load() is None
    assert [record.message for record in caplog.records] == ["snapshot on disk set aside"]
    assert not file.exists()
    assert file.with_name("set-aside").read_bytes() == damaged
    again = publication(2)
    await save(shelf, again)
    assert kept_by(tmp_path) == {"shop": again}


async def test_a_file_of_which_only_a_part_makes_sense_is_set_aside(tmp_path: Path) -> None:
    strange = msgspec.structs.replace(full(1), record="none")
    await save(Shelf(tmp_path), publication(1, strange), publication(1, project="sound"))
    assert Shelf(tmp_path).load() is None
    assert not file_of(tmp_path).exists()


async def test_neither_of_two_processes_replaces_what_is_newer(tmp_path: Path) -> None:
    quick, late = Shelf(tmp_path), Shelf(tmp_path)
    newest, second = publication(7), publication(2, project="other")
    await save(quick, newest, publication(1, project="other"))
    await save(late, publication(6), second)
    assert kept_by(tmp_path) == {"shop": newest, "other": second}


async def test_a_version_that_falls_is_a_database_that_was_restored(tmp_path: Path) -> None:
    await save(Shelf(tmp_path), publication(7))
    shelf, restored = Shelf(tmp_path), publication(5)
    shelf.load()
    await save(shelf, restored)
    assert kept_by(tmp_path) == {"shop": restored}
    # Who has not heard of it yet has nothing to say.
    await save(Shelf(tmp_path), publication(4))
    assert kept_by(tmp_path) == {"shop": restored}


async def test_what_was_loaded_is_not_written_again(tmp_path: Path) -> None:
    await save(Shelf(tmp_path), publication(1))
    inode = file_of(tmp_path).stat().st_ino
    shelf = Shelf(tmp_path)
    kept = shelf.load()
    assert kept is not None
    await save(shelf, *kept.publications)
    assert file_of(tmp_path).stat().st_ino == inode


async def test_a_disk_that_refuses_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "snapshot").write_text("in the way")
    shelf, saved = Shelf(tmp_path), publication(1)
    shelf.put(saved)
    await shelf.save()
    refused, behind = shelf.refusal, shelf.behind
    assert refused is not None
    assert behind
    (tmp_path / "snapshot").unlink()
    await shelf.save()
    refused, behind = shelf.refusal, shelf.behind
    assert (refused, behind) == (None, False)
    assert kept_by(tmp_path) == {"shop": saved}


async def test_who_cannot_have_the_lock_gives_up_for_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = publication(1)
    await save(Shelf(tmp_path), saved)
    monkeypatch.setattr(router.shelf, "LOCK_PATIENCE", 0.05)
    shelf = Shelf(tmp_path)
    with (tmp_path / "snapshot" / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shelf.put(publication(2))
        await shelf.save()
        assert "holds the lock" in (shelf.refusal or "")
    assert kept_by(tmp_path) == {"shop": saved}


async def test_a_start_knows_how_old_the_file_is_however_seldom_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.shelf, "CONFIRM_EVERY", 0.01)
    monkeypatch.setattr(router.shelf, "PAUSE", 0.0)
    shelf = Shelf(tmp_path)
    refreshed_at = NOW
    running = asyncio.create_task(shelf.run(lambda: refreshed_at))
    shelf.put(publication(1))
    try:
        for refreshed_at in (NOW, NOW + timedelta(hours=1)):
            await until_as_of(tmp_path, refreshed_at)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def until_as_of(data_dir: Path, at: datetime) -> None:
    """Wait until a start would say that the file was true at this time."""
    async with asyncio.timeout(15):
        while True:
            kept = Shelf(data_dir).load()
            if kept is not None and abs(kept.as_of - at) < timedelta(milliseconds=1):
                return
            await asyncio.sleep(0.01)


def write_many(data_dir: Path, first: int) -> None:
    """In a process of its own: save one version after the other, of two projects."""

    async def work() -> None:
        shelf = Shelf(data_dir)
        for version in range(first, 60, 2):
            for project in ("shop", f"own-{first}"):
                shelf.put(publication(version, full(version), project=project))
            await shelf.save()
            assert shelf.refusal is None

    asyncio.run(work())


def test_processes_that_share_a_folder_do_not_tear_the_file(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers: list[Any] = [
        context.Process(target=write_many, args=(tmp_path, first)) for first in (1, 2)
    ]
    for writer in writers:
        writer.start()
    seen = [0]
    while any(writer.is_alive() for writer in writers):
        found = kept_by(tmp_path)
        if "shop" in found:
            seen.append(found["shop"].version)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen == sorted(seen)
    versions = {project: found.version for project, found in kept_by(tmp_path).items()}
    assert versions == {"shop": 59, "own-1": 59, "own-2": 58}
    assert not file_of(tmp_path).with_name("set-aside").exists()
