"""Settings that are wrong for a reason that no type shows."""

from datetime import timedelta
from typing import get_args

import pytest

from turnout.settings import Process, SettingsError, load_settings, require_one_process


def test_a_router_ships_often_enough_not_to_be_taken_for_dead() -> None:
    assert load_settings({"TURNOUT_SHIP_EVERY": "10s"}, {}).ship_every == "10s"
    with pytest.raises(SettingsError, match="TURNOUT_SHIP_EVERY: must be at most 10s"):
        load_settings({"TURNOUT_SHIP_EVERY": "11s"}, {})


@pytest.mark.parametrize(("name", "longest"), [("SNAPSHOT_POLL", "10s"), ("TICK", "5s")])
def test_what_others_wait_for_happens_often_enough(name: str, longest: str) -> None:
    load_settings({f"TURNOUT_{name}": longest}, {})
    with pytest.raises(SettingsError, match=f"TURNOUT_{name}: must be at most {longest}"):
        load_settings({f"TURNOUT_{name}": "1m"}, {})


def test_it_is_named_together_with_what_else_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r"TURNOUT_TICK: .*; TURNOUT_SHIP_EVERY: "):
        load_settings({"TURNOUT_SHIP_EVERY": "1m"}, {"tick": "soon"})


def test_only_routers_can_be_several() -> None:
    several = load_settings({"TURNOUT_WORKERS": "8"}, {})
    require_one_process(several, "serve")
    for process in get_args(Process):
        require_one_process(load_settings({"TURNOUT_WORKERS": "1"}, {}), process)
        if process != "serve":
            with pytest.raises(SettingsError, match=f"TURNOUT_WORKERS: must be 1 for {process}"):
                require_one_process(several, process)


@pytest.mark.parametrize("workers", ["0", "257", "two", "-1"])
def test_as_many_workers_as_make_sense(workers: str) -> None:
    with pytest.raises(SettingsError, match="TURNOUT_WORKERS: must be"):
        load_settings({"TURNOUT_WORKERS": workers}, {})


@pytest.mark.parametrize(("days", "kept"), [("0", None), ("8", 8), ("90", 90)])
def test_raw_events_are_kept_for_whole_days_or_for_ever(days: str, kept: int | None) -> None:
    keep = load_settings({"TURNOUT_RETENTION_DAYS": days}, {}).keep
    assert keep == (None if kept is None else timedelta(days=kept))


@pytest.mark.parametrize("days", ["1", "7"])
def test_raw_events_are_kept_for_as_long_as_outcomes_may_come_in(days: str) -> None:
    with pytest.raises(SettingsError, match=r"RETENTION_DAYS: must be 0 .* or at least 8"):
        load_settings({"TURNOUT_RETENTION_DAYS": days}, {})
