"""The journal: on disk before it is said to be, and nothing lost or made up at the next start."""

import asyncio
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from router.frames import frame
from router.journal import (
    DEFAULT_LIMITS,
    OS_DISK,
    Disk,
    Durability,
    Journal,
    JournalClosedError,
    JournalError,
    JournalFullError,
    JournalLockedError,
    JournalWriteError,
    Limits,
)
from router.records import OutcomeRecord, Record, decode, encode

NOW = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def now() -> datetime:
    """A clock that stands still."""
    return NOW


def outcome(value: float, unit: str = "u1") -> OutcomeRecord:
    """An outcome that is told apart by its value."""
    return OutcomeRecord(None, "shop", "click", (("user", unit),), value, NOW, NOW)


@asynccontextmanager
async def opened(
    folder: Path,
    *,
    durability: Durability = "synced",
    limits: Limits = DEFAULT_LIMITS,
    disk: Disk = OS_DISK,
) -> AsyncIterator[Journal]:
    """A journal on this folder, closed in the end."""
    journal = await Journal.open(folder, now, durability=durability, limits=limits, disk=disk)
    try:
        yield journal
    finally:
        await journal.close()


@asynccontextmanager
async def adopted(folder: Path) -> AsyncIterator[Journal]:
    """What somebody left in this folder, closed in the end."""
    journal = await Journal.adopt(folder, now)
    try:
        yield journal
    finally:
        await journal.close()


async def contents(journal: Journal) -> list[float | None]:
    """The values of all outcomes in sealed segments, in order."""
    return [
        record.value
        for segment in journal.sealed()
        for record in map(decode, await journal.read(segment))
        if isinstance(record, OutcomeRecord)
    ]


def entries(folder: Path) -> list[Path]:
    """All that is in a folder."""
    return list(folder.iterdir())


def segment_files(folder: Path) -> list[Path]:
    """The files of all segments, sealed or not, in order."""
    return sorted(folder.glob("*.segment"))


async def write_and_die(folder: Path, *batches: Sequence[Record]) -> Path:
    """Leave a folder as a process does that is killed: the active segment is not sealed."""
    async with opened(folder) as journal:
        for batch in batches:
            await journal.append(batch)
        (active,) = segment_files(folder)
        data = active.read_bytes()
    for path in segment_files(folder):
        path.unlink()
    active.write_bytes(data)
    return active


class Faults:
    """A disk whose next calls can be made to fail."""

    def __init__(self) -> None:
        self.writes = 0
        self.syncs = 0
        self.failing_syncs = 0
        self.failing_writes = 0
        self.disk = Disk(write=self._write, sync=self._sync)

    def _write(self, file: int, data: memoryview) -> int:
        self.writes += 1
        if self.failing_writes:
            self.failing_writes -= 1
            os.write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "no space left")
        return os.write(file, data)

    def _sync(self, file: int) -> None:
        self.syncs += 1
        if self.failing_syncs:
            self.failing_syncs -= 1
            raise OSError(errno.EIO, "input/output error")
        os.fdatasync(file)


async def test_what_was_appended_is_in_sealed_segments_after_a_rotation(tmp_path: Path) -> None:
    async with opened(tmp_path / "journal") as journal:
        await journal.append([outcome(1), outcome(2)])
        waiting = [journal.append([outcome(3)]), journal.append([outcome(4), outcome(5)])]
        assert journal.sealed() == []
        await journal.rotate()
        assert all(future.done() for future in waiting)
        assert await contents(journal) == [1, 2, 3, 4, 5]
        await journal.rotate()
        assert len(journal.sealed()) == 1


async def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal"
    async with opened(folder) as journal:
        await journal.append([outcome(1)])
    assert folder.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in segment_files(folder))


async def test_an_append_of_nothing_is_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([])
        await journal.rotate()
        assert journal.sealed() == []


async def test_one_process_holds_it(tmp_path: Path) -> None:
    async with opened(tmp_path):
        with pytest.raises(JournalLockedError, match="another process"):
            await Journal.open(tmp_path, now)
        with pytest.raises(JournalLockedError, match="another process"):
            await Journal.adopt(tmp_path, now)
    async with adopted(tmp_path):
        with pytest.raises(JournalLockedError, match="another process"):
            await Journal.adopt(tmp_path, now)


# Who a segment is.


async def test_what_is_left_keeps_its_id_and_its_numbers(tmp_path: Path) -> None:
    made = UUID(int=7)
    journal = await Journal.open(tmp_path, now, new_id=lambda: made)
    await journal.append([outcome(1)])
    await journal.rotate()
    await journal.append([outcome(2)])
    await journal.close()
    for _ in range(2):
        async with adopted(tmp_path) as left:
            assert left.id == made
            assert [segment.number for segment in left.sealed()] == [1, 2]
            assert await contents(left) == [1, 2]


async def test_nobody_appends_to_a_journal_of_another_life(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([outcome(1)])
    with pytest.raises(JournalError, match="another life"):
        await Journal.open(tmp_path, now)
    async with adopted(tmp_path) as left:
        with pytest.raises(JournalClosedError):
            left.append([outcome(2)])
        await left.rotate()
        assert await contents(left) == [1]


async def test_a_folder_whose_segments_were_deleted_begins_no_number_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([outcome(1)])
    for path in segment_files(tmp_path):
        path.unlink()
    with pytest.raises(JournalError, match="another life"):
        await Journal.open(tmp_path, now)
    async with adopted(tmp_path) as left:
        assert left.sealed() == []


async def test_each_process_begins_in_a_folder_of_its_own(tmp_path: Path) -> None:
    first, second = [await Journal.begin(tmp_path / "journals", now) for _ in range(2)]
    assert first.id != second.id
    assert len(entries(tmp_path / "journals")) == 2
    await first.append([outcome(1)])
    await first.close(clear=True)
    await second.close(clear=True)
    (left,) = entries(tmp_path / "journals")
    async with adopted(left) as journal:
        assert (journal.id, await contents(journal)) == (first.id, [1])


async def test_segments_without_an_id_get_one_that_stays(tmp_path: Path) -> None:
    await write_and_die(tmp_path, [outcome(1)])
    (tmp_path / "id").unlink()
    async with adopted(tmp_path) as first:
        assert await contents(first) == [1]
    async with adopted(tmp_path) as second:
        assert second.id == first.id


async def test_a_folder_with_a_broken_id_is_refused(tmp_path: Path) -> None:
    (tmp_path / "id").write_text("nonsense")
    with pytest.raises(JournalError, match="does not hold the id"):
        await Journal.adopt(tmp_path, now)


async def test_what_is_no_journal_is_not_adopted(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(JournalError, match="is no journal"):
        await Journal.adopt(tmp_path, now)
    with pytest.raises(FileNotFoundError):
        await Journal.adopt(tmp_path / "missing", now)
    assert [path.name for path in entries(tmp_path)] == ["holiday.jpg"]


async def test_a_folder_goes_once_all_was_shipped_and_stays_while_anything_is_left(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "journal"
    active = await write_and_die(folder, [outcome(1)], [outcome(2)])
    active.write_bytes(active.read_bytes()[:-1])
    left = await Journal.adopt(folder, now)
    assert left.torn == 1
    await left.close(clear=True)
    assert active.exists()
    left = await Journal.adopt(folder, now)
    for segment in left.sealed():
        await left.remove(segment)
    (folder / "note.txt").touch()  # an operator's
    await left.close(clear=True)
    assert {path.suffix for path in entries(folder)} == {"", ".txt", ".torn"}
    (folder / "note.txt").unlink()
    await (await Journal.adopt(folder, now)).close(clear=True)
    assert not folder.exists()


async def test_damage_that_was_set_aside_keeps_its_folder(tmp_path: Path) -> None:
    active = await write_and_die(tmp_path / "journal", [outcome(1)], [outcome(2)])
    data = bytearray(active.read_bytes())
    data[30] ^= 1
    active.write_bytes(data)
    left = await Journal.adopt(tmp_path / "journal", now)
    assert await contents(left) == [2]
    for segment in left.sealed():
        await left.remove(segment)
    await left.close(clear=True)
    (side,) = (tmp_path / "journal").glob("*.damaged")
    assert side.read_bytes() in bytes(data)


async def test_a_closed_journal_takes_nothing(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path, now)
    last = journal.append([outcome(1)])
    await journal.close()
    assert last.done()
    await last
    with pytest.raises(JournalClosedError):
        journal.append([outcome(2)])
    with pytest.raises(JournalClosedError):
        await journal.rotate()
    await journal.close()
    async with adopted(tmp_path) as again:
        assert await contents(again) == [1]


async def test_a_record_that_cannot_be_written_down_is_refused_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        with pytest.raises(ValueError, match="surrogates not allowed"):
            journal.append([outcome(1), outcome(2, unit="\ud800")])
        await journal.rotate()
        assert journal.sealed() == []


async def test_many_appends_share_a_sync(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, disk=faults.disk) as journal:
        await asyncio.gather(*(journal.append([outcome(n)]) for n in range(1_000)))
        assert faults.syncs <= 3

        async def client(number: int) -> None:
            for turn in range(10):
                await journal.append([outcome(number * 100 + turn)])

        before = faults.syncs
        await asyncio.gather(*map(client, range(100)))
        assert faults.syncs - before <= 50
        await journal.rotate()
        assert len(await contents(journal)) == 2_000


async def test_written_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, durability="written", disk=faults.disk) as journal:
        await journal.append([outcome(1)])
        assert (faults.writes, faults.syncs) == (1, 0)
        (active,) = segment_files(tmp_path)
        assert encode(outcome(1)) in active.read_bytes()
        await journal.rotate()
    assert faults.syncs == 1


async def test_no_write_waits_while_a_sealed_segment_is_synced(tmp_path: Path) -> None:
    """The disk takes its time: until a later write is done."""
    faults, may_end = Faults(), threading.Event()

    def slowly(file: int) -> None:
        assert may_end.wait(10)
        os.fdatasync(file)

    disk = Disk(write=faults.disk.write, sync=slowly)
    async with opened(tmp_path, durability="written", disk=disk) as journal:
        await journal.append([outcome(1)])
        await journal.rotate()
        await asyncio.wait_for(journal.append([outcome(2)]), 5)
        may_end.set()


async def test_synced_waits_for_the_disk(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, disk=faults.disk) as journal:
        await journal.append([outcome(1)])
        assert (faults.writes, faults.syncs) == (1, 1)


async def test_segments_rotate_by_size(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=Limits(segment_bytes=2_000)) as journal:
        for number in range(200):
            await journal.append([outcome(number)])
        sealed = journal.sealed()
        assert len(sealed) > 2
        assert [segment.number for segment in sealed] == list(range(1, len(sealed) + 1))
        assert all(2_000 <= segment.size < 2_200 for segment in sealed)
        await journal.rotate()
        assert await contents(journal) == list(range(200))


async def test_depth_and_age_tell_what_is_not_shipped(tmp_path: Path) -> None:
    times = [NOW + timedelta(seconds=n) for n in range(10)]
    clock = iter(times)
    journal = await Journal.open(tmp_path, lambda: next(clock))
    assert (journal.depth, journal.oldest_at) == (0, None)
    await journal.append([outcome(1)])
    await journal.append([outcome(2)])
    assert journal.oldest_at == times[0]
    await journal.rotate()
    (segment,) = journal.sealed()
    assert journal.depth == segment.size == segment.path.stat().st_size
    await journal.append([outcome(3)])
    assert journal.oldest_at == times[0]
    assert journal.depth > segment.size
    await journal.remove(segment)
    assert journal.oldest_at == times[3]
    depth = journal.depth
    await journal.close()
    async with adopted(tmp_path) as again:
        assert (again.depth, again.oldest_at) == (depth, times[3])


async def test_past_its_limit_it_refuses_until_something_is_shipped(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=Limits(unshipped_bytes=1_000)) as journal:
        kept = 0
        while not journal.full:
            await journal.append([outcome(kept)])
            kept += 1
        with pytest.raises(JournalFullError, match="full"):
            journal.append([outcome(-1)])
        await journal.rotate()
        assert journal.full
        assert await contents(journal) == list(range(kept))
        (segment,) = journal.sealed()
        await journal.remove(segment)
        assert not journal.full
        await journal.append([outcome(1)])


async def test_what_others_left_on_the_disk_counts_towards_the_limit(tmp_path: Path) -> None:
    left = [900]
    limits = Limits(unshipped_bytes=1_000)
    journal = await Journal.open(tmp_path, now, limits=limits, beside=lambda: left[0])
    try:
        await journal.append([outcome(1)])
        await journal.append([outcome(2)])
        assert journal.full
        left[0] = 0
        assert not journal.full
    finally:
        await journal.close()


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    async with opened(tmp_path, limits=Limits(waiting_bytes=10_000)) as journal:
        waiting: list[asyncio.Future[None]] = []
        with pytest.raises(JournalFullError):
            waiting.extend(journal.append([outcome(n)]) for n in range(1_000))
        assert journal.full
        await asyncio.gather(*waiting)
        assert not journal.full


async def test_whoever_gives_up_waiting_disturbs_nobody(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        first, second = journal.append([outcome(1)]), journal.append([outcome(2)])
        first.cancel()
        await second
        await journal.rotate()
        assert await contents(journal) == [1, 2]


# What a crash leaves behind.


async def test_a_torn_tail_is_cut_off_at_every_byte(tmp_path: Path) -> None:
    source = await write_and_die(tmp_path / "source", [outcome(1)], [outcome(2)])
    data = source.read_bytes()
    last = len(encode(outcome(2))) + 8
    for lost in range(1, last + 1):
        folder = tmp_path / str(lost)
        folder.mkdir()
        (folder / source.name).write_bytes(data[:-lost])
        async with adopted(folder) as journal:
            assert await contents(journal) == [1]
            assert (journal.torn, journal.damaged) == (int(lost < last), 0)
            (segment,) = journal.sealed()
            assert segment.path.stat().st_size == segment.size == len(data) - last


async def test_a_torn_tail_before_a_file_made_ahead_is_cut_off(tmp_path: Path) -> None:
    folder, copy = tmp_path / "journal", tmp_path / "copy"
    async with opened(folder) as journal:
        await journal.append([outcome(1)])
        await journal.rotate()
        async with asyncio.timeout(10):
            while len(segment_files(folder)) < 3:  # noqa: ASYNC110 - another thread makes it
                await asyncio.sleep(0.001)
        await journal.append([outcome(2), outcome(3)])
        shutil.copytree(folder, copy)  # as a crash would leave it
        await journal.rotate()
        await journal.append([outcome(4)])  # in the file that was made ahead
        await journal.rotate()
        assert await contents(journal) == [1, 2, 3, 4]
    sealed, active, ahead = segment_files(copy)
    assert ahead.stat().st_size == 0
    with active.open("ab") as file:
        file.write(frame(encode(outcome(5)))[:-1])
    async with adopted(copy) as left:
        assert (left.torn, left.damaged) == (1, 0)
        assert [segment.path for segment in left.sealed()] == [sealed, active]
        assert await contents(left) == [1, 2, 3]


async def test_a_first_write_that_was_torn_leaves_nothing(tmp_path: Path) -> None:
    source = await write_and_die(tmp_path / "source", [outcome(1)])
    data = source.read_bytes()
    for kept in range(len(data)):
        folder = tmp_path / str(kept)
        folder.mkdir()
        (folder / source.name).write_bytes(data[:kept])
        async with adopted(folder) as journal:
            assert journal.sealed() == []
            assert journal.damaged == 0


async def test_a_flipped_byte_is_reported_and_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = await write_and_die(tmp_path / "source", [outcome(1), outcome(2), outcome(3)])
    data = source.read_bytes()
    size = len(encode(outcome(1))) + 8
    for at in range(len(data) - 2 * size, len(data) - size):  # every byte of the second record
        folder = tmp_path / str(at)
        folder.mkdir()
        flipped = data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]
        (folder / source.name).write_bytes(flipped)
        caplog.clear()
        async with adopted(folder) as journal:
            assert (journal.damaged, journal.torn) == (1, 0)
            assert [record.message for record in caplog.records] == ["journal bytes set aside"]
            assert await contents(journal) == [1, 3]
            assert journal.damaged == 1  # told once, read twice
            (side,) = folder.glob("*.damaged")
            assert side.read_bytes() == flipped[-2 * size : -size]


async def test_damage_of_a_sealed_segment_is_found_when_it_is_read(tmp_path: Path) -> None:
    async with opened(tmp_path) as journal:
        await journal.append([outcome(1), outcome(2), outcome(3)])
        await journal.rotate()
        (segment,) = journal.sealed()
        data = bytearray(segment.path.read_bytes())
        data[-1] ^= 1
        segment.path.write_bytes(data[:-5])  # both: it was whole when it was sealed
        assert await contents(journal) == [1, 2]
        assert journal.damaged == 1


async def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path: Path) -> None:
    program = f"""
import asyncio, sys
from datetime import UTC, datetime
from pathlib import Path
from router.journal import Journal, Limits
from router.records import OutcomeRecord

async def main():
    journal = await Journal.begin(
        Path({str(tmp_path)!r}), lambda: datetime.now(UTC),
        limits=Limits(segment_bytes=20_000),
    )
    async def client(number):
        turn = 0
        while True:
            value = number * 1e6 + turn
            at = datetime.now(UTC)
            await journal.append(
                [OutcomeRecord(None, "shop", "click", (("user", "u"),), value, at, at)] * 2
            )
            sys.stdout.write(f"{{value}}\\n")
            sys.stdout.flush()
            turn += 1
    await asyncio.gather(*map(client, range(8)))

asyncio.run(main())
"""
    acknowledged: list[float] = []
    for wanted in (1, 150, 800):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        seen = [await asyncio.wait_for(process.stdout.readline(), 20) for _ in range(wanted)]
        process.send_signal(signal.SIGKILL)
        seen += (await asyncio.wait_for(process.stdout.read(), 20)).splitlines(keepends=True)
        await process.wait()
        acknowledged += [float(line) for line in seen if line.endswith(b"\n")]
    stored: list[float | None] = []
    for folder in entries(tmp_path):
        async with adopted(folder) as journal:
            stored += await contents(journal)
            assert journal.damaged == 0
            numbers = [segment.number for segment in journal.sealed()]
            assert numbers == list(range(1, len(numbers) + 1))
    for value in set(acknowledged):
        assert stored.count(value) >= 2 * acknowledged.count(value)


# A disk that refuses.


async def test_after_a_failed_sync_nothing_that_waited_is_acknowledged(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, disk=faults.disk) as journal:
        await journal.append([outcome(1)])
        faults.failing_syncs = 1
        waiting = [journal.append([outcome(n)]) for n in (2, 3, 4)]
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [JournalWriteError] * 3
        assert journal.failures == 1
        assert journal.refusal == "[Errno 5] input/output error"
        (segment,) = journal.sealed()  # at its last good length, and a new one is begun
        assert await contents(journal) == [1]
        assert segment.path.stat().st_size == segment.size
        await journal.append([outcome(5)])
        assert journal.refusal is None
        await journal.rotate()
        assert await contents(journal) == [1, 5]
        assert [segment.number for segment in journal.sealed()] == [1, 2]


async def test_half_a_write_is_taken_back(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, disk=faults.disk) as journal:
        for number in range(3):  # in the first turn there is nothing to seal
            faults.failing_writes = 1
            with pytest.raises(JournalWriteError, match="no space left"):
                await journal.append([outcome(-1)])
            await journal.append([outcome(number)])
        await journal.rotate()
        assert await contents(journal) == [0, 1, 2]
        assert [segment.number for segment in journal.sealed()] == [1, 2, 3]
    async with adopted(tmp_path) as again:
        assert (again.torn, again.damaged) == (0, 0)
        assert await contents(again) == [0, 1, 2]


async def test_while_syncs_fail_what_was_good_can_still_be_shipped(tmp_path: Path) -> None:
    faults = Faults()
    async with opened(tmp_path, disk=faults.disk) as journal:
        await journal.append([outcome(1)])
        faults.failing_syncs = 1_000
        for _ in range(3):
            with pytest.raises(JournalWriteError):
                await journal.append([outcome(2)])
        await journal.rotate()
        assert await contents(journal) == [1]
        faults.failing_syncs = 0


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The kernel refuses to let any file of this process grow past this size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # Python ignores SIGXFSZ
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """No injected fault: the kernel itself stops a write half-way."""
    acknowledged: list[float] = []
    async with opened(tmp_path) as journal:
        with no_file_larger_than(2_000):
            for number in range(100):
                try:
                    await journal.append([outcome(number)])
                except JournalWriteError:
                    pass
                else:
                    acknowledged.append(number)
        assert journal.failures > 0
        assert len(acknowledged) > 50
        await journal.rotate()
        assert await contents(journal) == acknowledged


async def test_a_folder_that_cannot_take_another_file(tmp_path: Path) -> None:
    """A rotation that fails loses nothing, and goes through when it can."""
    async with opened(tmp_path) as journal:
        await journal.append([outcome(1)])
        blocker = tmp_path / f"{2:020d}.segment"
        blocker.mkdir()
        with pytest.raises(JournalWriteError):
            await journal.rotate()
        await journal.append([outcome(2)])
        blocker.rmdir()
        await journal.rotate()
        assert await contents(journal) == [1, 2]


async def test_a_journal_whose_disk_refuses_closes_and_can_be_opened_again(tmp_path: Path) -> None:
    faults = Faults()
    journal = await Journal.open(tmp_path, now, disk=faults.disk)
    await journal.append([outcome(1)])
    faults.failing_syncs = faults.failing_writes = 1_000
    lost = journal.append([outcome(2)])
    await journal.close()
    with pytest.raises(JournalWriteError):
        await lost
    async with adopted(tmp_path) as again:
        assert await contents(again) == [1]
