"""Crash tests: real processes and real `kill -9`. What was acknowledged counts, and counts once."""

import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.crash.audit import figures
from tests.e2e.crash.figures import FIGURES, RecordProperty
from tests.e2e.crash.fleet import (
    ALL_IN_ONE,
    PARTS,
    TWO_WORKERS,
    Fleet,
    Layout,
    embedded_fleet,
    running_fleet,
    running_servers,
)
from tests.e2e.crash.load import Ledger
from tests.e2e.crash.storm import Victim, storm, victims_of

SEED: Final = os.environ.get("CRASH_SEED") or secrets.token_hex(4)
"""What the moments are drawn from. The figures name it, so that they can be drawn again."""


async def weather(
    fleet: Fleet, victims: Sequence[Victim], kills_each: int, record_property: RecordProperty
) -> None:
    """Let a storm pass over a fleet under load: nothing may be lost, doubled or miscounted."""
    record_property(FIGURES, f"CRASH_SEED={SEED}")
    ledger = Ledger()
    began = time.monotonic()
    async with fleet.load(ledger, SEED):
        kills = await storm(victims, kills_each, SEED)
        await fleet.until_ready()
    findings = await fleet.settle(ledger)
    seconds = time.monotonic() - began
    by_kind = ", ".join(f"{number} {kind}" for kind, number in sorted(kills.items()))
    record_property(
        FIGURES,
        f"{kills.total()} kills in {seconds:.0f} s ({by_kind}); {figures(ledger, findings)}",
    )
    assert findings == {}
    assert ledger.acknowledged


@pytest.mark.parametrize(
    ("layout", "kills_each"),
    [
        pytest.param(PARTS, 4, id="parts"),
        pytest.param(TWO_WORKERS, 50, id="parts, long", marks=pytest.mark.crash),
        pytest.param(ALL_IN_ONE, 15, id="all in one", marks=pytest.mark.crash),
    ],
)
async def test_what_was_acknowledged_counts_once_whatever_is_killed(
    layout: Layout, kills_each: int, tmp_path: Path, record_property: RecordProperty
) -> None:
    async with (
        running_servers(tmp_path) as servers,
        running_fleet(tmp_path, layout, servers) as fleet,
    ):
        victims = victims_of(servers, fleet, SEED)
        await weather(fleet, victims, kills_each, record_property)


@pytest.mark.parametrize("kills", [2, pytest.param(40, marks=pytest.mark.crash)])
async def test_a_start_takes_over_what_a_killed_one_left(
    kills: int, tmp_path: Path, record_property: RecordProperty
) -> None:
    async with embedded_fleet(tmp_path) as fleet:
        (up,) = fleet.turnouts
        victim = Victim(up, [("turnout up kill -9", up.kill)])
        await weather(fleet, [victim], kills, record_property)
        assert up.deaths == []
