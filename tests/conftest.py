"""What all tests share."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.servers", "tests.running", "tests.pages", "tests.e2e.crash.figures"]

MEMORY = Path("/dev/shm")  # noqa: S108 - the system's folder in memory, of which no other is made
ROOM_BYTES = 3 * 2**30
"""For the folders of a run: what its databases write, and what its tests leave until they end."""
_NAME = "turnout-tests-"

# How long an example takes is the machine's affair: a busy one would fail tests that are right.
settings.register_profile("turnout", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("turnout")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Keep the folders of tests in memory where there is room, unless `--basetemp` says where.

    Each test has a database of its own, nearly all of which is the catalogue that every database
    has: a run writes gigabytes that nobody reads, and on a disk its tests wait for that more than
    for anything else. Processes that run tests for another are told where by that.
    """
    if hasattr(config, "workerinput") or config.option.basetemp is not None or not _has_room():
        return
    _remove_what_the_dead_left()
    folder = MEMORY / f"{_NAME}{os.getpid()}"
    config.option.basetemp = str(folder)
    config.stash[_FOLDER] = folder


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Give the memory back. After a failure the next run does that: somebody may want to look."""
    folder = session.config.stash.get(_FOLDER, None)
    if folder is not None and exitstatus == pytest.ExitCode.OK:
        shutil.rmtree(folder, ignore_errors=True)


_FOLDER = pytest.StashKey[Path]()


def _has_room() -> bool:
    if not os.access(MEMORY, os.W_OK):
        return False
    there = os.statvfs(MEMORY)
    # Some tests copy programs and run the copies.
    if there.f_flag & os.ST_NOEXEC or there.f_bavail * there.f_frsize < ROOM_BYTES:
        return False
    # Its limit is no promise: what is written there takes memory that others may have taken.
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        name, _, kilobytes = line.partition(":")
        if name == "MemAvailable":
            return int(kilobytes.split()[0]) * 1024 >= 2 * ROOM_BYTES
    return False


def _remove_what_the_dead_left() -> None:
    """The folders of runs that have ended: they failed, or were killed."""
    for folder in MEMORY.glob(f"{_NAME}*"):
        if not Path(f"/proc/{folder.name.removeprefix(_NAME)}").exists():
            with suppress(OSError):
                shutil.rmtree(folder)
