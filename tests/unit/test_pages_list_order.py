"""Which experiments the list shows, and in which order."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from analysis.chronicle.model import Glance, RampGlance
from dashboard.listing.asked import Asked, read_asked
from dashboard.listing.order import Selection, need_of, select
from experiments.search import Found

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)


def found(number: int, **fields: Any) -> Found:
    """An experiment that runs, changed the later the higher its number is."""
    usual: dict[str, Any] = {
        "id": number,
        "key": f"x{number}",
        "name": "",
        "owner": "",
        "state": "running",
        "run": 1,
        "epoch": 1,
        "created_at": NOW,
        "updated_at": NOW + timedelta(minutes=number),
        "started_at": NOW,
        "ended_at": None,
        "tags": (),
    }
    return Found(**{**usual, **fields})


def glance(**fields: Any) -> Glance:
    """A look at a report that finds nothing yet."""
    usual: dict[str, Any] = {
        "at": NOW,
        "run": 1,
        "state": "running",
        "data_until": NOW,
        "health": "ok",
        "checks": {"ok": 5},
        "worst": "",
        "worst_action": "",
        "worst_subject": "",
        "action": "keep_running",
        "variant": None,
        "headline": "Keep running.",
        "more_seconds": None,
        "units": 100,
        "lead": None,
        "alarms": 0,
    }
    return Glance(**{**usual, **fields})


def keys(selection: Selection) -> list[str]:
    """The keys of a page, in order."""
    return [one.found.key for one in selection.listed]


def test_what_needs_a_person_comes_first_then_what_runs_then_drafts_then_the_rest() -> None:
    experiments = [
        found(1, key="concluded", state="concluded"),
        found(2, key="draft", state="draft", run=0, started_at=None),
        found(3, key="runs"),
        found(4, key="rolled-back", state="rolled_back", ended_at=NOW - timedelta(days=9)),
        found(5, key="futile"),
        found(6, key="ready"),
        found(7, key="mismatch"),
        found(8, key="alarm"),
        found(9, key="paused", state="paused"),
    ]
    glances = {
        1: glance(action="ship", variant="b"),
        3: glance(),
        4: glance(alarms=1),
        5: glance(action="stop_for_futility"),
        6: glance(action="ship", variant="b"),
        7: glance(health="critical", action="fix_data"),
        8: glance(alarms=1),
        9: glance(),
    }
    selection = select(Asked(), experiments, glances, NOW)
    assert keys(selection) == [
        *("alarm", "mismatch", "ready", "futile"),
        *("runs", "paused", "draft", "rolled-back", "concluded"),
    ]
    attention = select(Asked(tab="attention"), experiments, glances, NOW)
    assert keys(attention) == ["alarm", "mismatch", "ready", "futile"]


@pytest.mark.parametrize(
    ("of", "seen", "need"),
    [
        ({}, {"ramp": RampGlance(2, 4, "approval", "")}, "approval"),
        ({}, {"ramp": RampGlance(2, 4, "approval", ""), "action": "ship"}, "approval"),
        ({}, {"ramp": RampGlance(2, 4, "evidence", "")}, "overdue"),
        ({}, {"ramp": RampGlance(2, 4, None, "")}, None),
        ({}, {"ramp": RampGlance(2, 4, "approval", ""), "alarms": 1}, "alarm"),
        ({}, {"stopped": True}, "stopped"),
        ({"state": "paused"}, {"stopped": True}, None),
        ({"state": "concluded"}, {"stopped": True, "alarms": 1}, None),
        ({"state": "rolled_back", "ended_at": NOW - timedelta(days=2)}, {}, "rolled_back"),
        ({"state": "rolled_back", "ended_at": NOW - timedelta(days=4)}, {}, None),
    ],
)
def test_a_person_is_needed_where_nothing_goes_on_or_right_without_one(
    of: dict[str, Any], seen: dict[str, Any], need: str | None
) -> None:
    assert need_of(found(1, **of), glance(**seen), NOW) == need


def test_a_look_at_an_earlier_run_says_nothing_of_this_one() -> None:
    [row] = select(Asked(), [found(1, run=2)], {1: glance(run=1, alarms=1)}, NOW).listed
    assert (row.glance, row.need) == (None, None)


def test_archived_ones_are_hidden_unless_they_are_asked_for() -> None:
    experiments = [found(1), found(2, state="archived")]
    selection = select(Asked(), experiments, {}, NOW)
    assert keys(selection) == ["x1"]
    assert (selection.counts["all"], selection.counts["archived"]) == (1, 1)
    assert keys(select(Asked(tab="archived"), experiments, {}, NOW)) == ["x2"]


def test_tabs_count_what_they_would_show() -> None:
    experiments = [found(1), found(2, state="draft"), found(3), found(4, state="paused")]
    glances = {1: glance(), 3: glance(health="critical"), 4: glance(health="critical")}
    for tab in ("all", "running", "draft"):
        selection = select(Asked(tab=tab), experiments, glances, NOW)
        assert selection.total == selection.counts[tab]
        assert dict(selection.counts) == {
            **{"all": 4, "running": 2, "draft": 1, "paused": 1, "attention": 2}
        }
    critical = select(Asked(health="critical"), experiments, glances, NOW)
    assert keys(critical) == ["x3", "x4"]
    assert critical.counts["all"] == 2


def test_pages_show_each_experiment_once() -> None:
    experiments = [found(number) for number in range(7)]
    pages, after = [], None
    while True:
        selection = select(Asked(after=after), experiments, {}, NOW, size=3)
        pages.append(keys(selection))
        after = selection.next
        if after is None:
            break
    assert pages == [["x6", "x5", "x4"], ["x3", "x2", "x1"], ["x0"]]
    assert select(Asked(after=4), experiments, {}, NOW, size=3).total == 7


def test_a_page_behind_one_that_has_gone_is_the_first() -> None:
    assert keys(select(Asked(after=99), [found(1), found(2)], {}, NOW)) == ["x2", "x1"]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(order="units"), ["x2", "x1", "x3"]),
        (Asked(order="units", turned=True), ["x1", "x2", "x3"]),
        (Asked(order="health"), ["x1", "x2", "x3"]),
        (Asked(order="health", turned=True), ["x2", "x1", "x3"]),
    ],
)
def test_what_has_no_value_comes_last_in_either_direction(
    asked: Asked, expected: list[str]
) -> None:
    glances: Mapping[int, Glance] = {
        1: glance(units=5, health="warning"),
        2: glance(units=7),
    }
    assert keys(select(asked, [found(1), found(2), found(3)], glances, NOW)) == expected


def test_names_are_ordered_as_people_read_them() -> None:
    experiments = [found(1, name="beta"), found(2, name="Alpha"), found(3, key="gamma")]
    assert keys(select(Asked(order="name"), experiments, {}, NOW)) == ["x2", "x1", "gamma"]


@pytest.mark.parametrize(
    "asked",
    [
        Asked(),
        Asked(text="50 % & more", tab="rolled_back", health="critical", tag="a", owner="ä b"),
        Asked(order="units", turned=True, after=12),
    ],
)
def test_an_address_is_a_view(asked: Asked) -> None:
    address = asked.address(after=asked.after)
    assert read_asked(dict(parse_qsl(urlsplit(address).query))) == asked


def test_what_an_address_says_that_is_unknown_is_left_out() -> None:
    query = {"state": "broken", "health": "x", "sort": "-drop table", "after": "-1", "q": " a\0b "}
    assert read_asked(query) == Asked(text="ab")


def test_a_heading_turns_its_own_order_round_and_begins_another() -> None:
    asked = Asked(text="a", order="units", after=5)
    assert asked.by("units") == "/experiments?q=a&sort=-units"
    assert asked.by("name") == "/experiments?q=a&sort=name"
    assert [asked.direction("units"), asked.direction("name")] == ["descending", "none"]
    assert read_asked({"sort": "-units"}).direction("units") == "ascending"
