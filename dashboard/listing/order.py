"""Which experiments are listed, and in which order: what needs a person comes first. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from analysis.chronicle.model import Glance
from analysis.reports.model import Severity
from dashboard.listing.asked import Asked, Order, Tab
from experiments.model import State
from experiments.search import Found

PAGE: Final = 500
"""Rows of a page."""
Need: TypeAlias = Literal[
    "alarm", "rolled_back", "data", "stopped", "proposal", "approval", "overdue", "ship", "end"
]
"""Why an experiment needs a person: what will not go on, or not go right, until somebody acts.

- `alarm`: a guardrail alarms, and the traffic stays.
- `rolled_back`: the guard has ended the run within the last days; somebody has to know, and to say
  what becomes of it. Who has concluded or archived it, or started it again, has.
- `data`: its data cannot be trusted.
- `stopped`: units or outcomes came, and come no more: what is waited for will not come.
- `proposal`: somebody has proposed what another has to approve.
- `approval`: a ramp waits for one.
- `overdue`: a step of a ramp is over, and the evidence to go on is not there.
- `ship`, `end`: its plan is at its end, with a variant to be shipped or without one.

They come in this order: harm before what cannot be known, before what merely waits.
"""
NEWS: Final = timedelta(days=3)
"""For how long a rollback is news: over a weekend."""

_LIVE: Final[frozenset[State]] = frozenset({"running", "paused"})
_NEEDS: Final[tuple[Need, ...]] = get_args(Need)
_STATES: Final[tuple[State, ...]] = (
    "running",
    "paused",
    "draft",
    "rolled_back",
    "concluded",
    "archived",
)
_SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "warning", "info", "ok")
_NEVER: Final = datetime.min.replace(tzinfo=UTC)


class Listed(msgspec.Struct, frozen=True):
    """An experiment of the list; the glance is None where none was made of its current run."""

    found: Found
    glance: Glance | None
    need: Need | None


class Selection(msgspec.Struct, frozen=True):
    """A page of what was asked for.

    Arguments:
        listed: its rows.
        counts: how many there are in each tab, whichever is chosen.
        total: how many there are in this one, on all pages.
        next: the id behind which the next page begins; None on the last.
    """

    listed: tuple[Listed, ...]
    counts: Mapping[Tab, int]
    total: int
    next: int | None


def select(
    asked: Asked,
    found: Sequence[Found],
    glances: Mapping[int, Glance],
    now: datetime,
    size: int = PAGE,
    proposals: Mapping[str, int] = MappingProxyType({}),
) -> Selection:
    """A page of the experiments that were found, as it is asked for.

    A page begins behind an experiment, wherever that stands by then: none is shown twice for
    another's coming. Where it has gone from this view, the first page is shown.
    """
    listed = [_listed(one, glances.get(one.id), now, proposals.get(one.key, 0)) for one in found]
    if asked.health != "any":
        listed = [one for one in listed if _is_so(one, asked.health)]
    counts: Counter[Tab] = Counter()
    for one in listed:
        for tab in tabs_of(one):
            counts[tab] += 1
    shown = [one for one in listed if asked.tab in tabs_of(one)]
    shown.sort(key=_newest_first)
    shown.sort(key=_KEYS[asked.order], reverse=asked.largest_first)
    shown.sort(key=_LACKS[asked.order])  # what has no value comes last, either way
    place = next((i + 1 for i, one in enumerate(shown) if one.found.id == asked.after), 0)
    page = shown[place : place + size]
    more = place + size < len(shown)
    return Selection(tuple(page), counts, len(shown), page[-1].found.id if more else None)


def need_of(found: Found, glance: Glance | None, now: datetime, proposals: int = 0) -> Need | None:
    """Why it needs a person most, if it does. Drafts wait for nobody, nor does what is over, but
    for a rollback that is news, and for proposals."""
    if found.state == "rolled_back":
        ended = found.ended_at or found.updated_at
        if now - ended < NEWS:
            return "rolled_back"
    if glance is None or found.state not in _LIVE:
        return "proposal" if proposals else None
    needs: Mapping[Need, bool] = {
        "alarm": glance.alarms > 0,
        "data": glance.health == "critical" or glance.action == "fix_data",
        # Nobody waits for what a pause keeps away.
        "stopped": glance.stopped and found.state == "running",
        "proposal": proposals > 0,
        "approval": glance.ramp is not None and glance.ramp.waits_for == "approval",
        "overdue": glance.ramp is not None and glance.ramp.waits_for == "evidence",
        "ship": glance.action == "ship",
        "end": glance.action in {"stop_for_futility", "keep_control"},
    }
    return next((need for need in _NEEDS if needs.get(need)), None)


def tabs_of(listed: Listed) -> tuple[Tab, ...]:
    """The tabs in which it stands."""
    state = listed.found.state
    if state == "archived":
        return (state,)
    return ("all", state) if listed.need is None else ("all", "attention", state)


def _listed(found: Found, glance: Glance | None, now: datetime, proposals: int) -> Listed:
    # What was seen of an earlier run says nothing of this one.
    current = glance if glance is not None and glance.run == found.run else None
    return Listed(found, current, need_of(found, current, now, proposals))


def _is_so(listed: Listed, health: str) -> bool:
    if listed.glance is None:
        return False
    found = listed.glance.health
    return found == health or (health == "ok" and found == "info")


def _newest_first(listed: Listed) -> tuple[float, int]:
    return -listed.found.updated_at.timestamp(), -listed.found.id


def _by_need(listed: Listed) -> tuple[int, int]:
    needs = len(_NEEDS) if listed.need is None else _NEEDS.index(listed.need)
    return needs, _STATES.index(listed.found.state)


def _by_name(listed: Listed) -> str:
    return (listed.found.name or listed.found.key).casefold()


def _by_health(listed: Listed) -> int:
    return len(_SEVERITIES) if listed.glance is None else _SEVERITIES.index(listed.glance.health)


def _by_units(listed: Listed) -> int:
    return -1 if listed.glance is None else listed.glance.units


_KEYS: Final[Mapping[Order, Callable[[Listed], Any]]] = {
    "attention": _by_need,
    "name": _by_name,
    "state": lambda one: _STATES.index(one.found.state),
    "health": _by_health,
    "units": _by_units,
    "owner": lambda one: one.found.owner.casefold(),
    "started": lambda one: one.found.started_at or _NEVER,
}


def _lacks_nothing(_: Listed) -> bool:
    return False


def _lacks_glance(listed: Listed) -> bool:
    return listed.glance is None


_LACKS: Final[Mapping[Order, Callable[[Listed], bool]]] = {
    "attention": _lacks_nothing,
    "name": _lacks_nothing,
    "state": _lacks_nothing,
    "health": _lacks_glance,
    "units": _lacks_glance,
    "owner": lambda one: not one.found.owner,
    "started": lambda one: one.found.started_at is None,
}
