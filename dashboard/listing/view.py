"""How a row of the list reads: from what was found to texts and small drawings. Pure."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, Literal, TypeAlias

import msgspec
from markupsafe import Markup

from analysis.chronicle.model import Glance, Lead
from analysis.reports.model import Severity
from analysis.reports.words import wait
from dashboard.charts.model import Measure, Share
from dashboard.charts.small import share_bar
from dashboard.charts.text import interval_words
from dashboard.listing.asked import Asked, Health, Order, Tab
from dashboard.listing.order import Listed, Need, Selection
from dashboard.numbers import count, lift, points, share, signed, spread_of
from experiments.model import State
from experiments.search import Found, Labels, Split

Tone: TypeAlias = Literal["ok", "info", "warning", "critical", "neutral"]

STATES: Final[Mapping[State, str]] = {
    "draft": "Draft",
    "running": "Running",
    "paused": "Paused",
    "concluded": "Concluded",
    "rolled_back": "Rolled back",
    "archived": "Archived",
}
_SHOWN_TABS: Final[tuple[Tab, ...]] = (
    "all",
    "attention",
    "running",
    "paused",
    "draft",
    "concluded",
    "rolled_back",
    "archived",
)
_ALWAYS: Final[frozenset[Tab]] = frozenset({"all", "attention", "running", "draft"})
_HEALTH: Final[Mapping[Severity, tuple[str, Tone]]] = {
    "ok": ("Well", "ok"),
    "info": ("Well", "ok"),
    "warning": ("Warning", "warning"),
    "critical": ("Critical", "critical"),
}
HEALTHS: Final[tuple[tuple[Health, str], ...]] = (
    ("any", "Any health"),
    ("critical", "Critical"),
    ("warning", "Warning"),
    ("ok", "Well"),
)
_COLUMNS: Final[tuple[tuple[Order, str], ...]] = (
    ("name", "Experiment"),
    ("state", "State"),
    ("health", "Health"),
    ("units", "Units"),
    ("owner", "Owner"),
    ("started", "Started"),
)
_NEEDS: Final[Mapping[Need, str]] = {
    "alarm": "A guardrail alarms",
    "data": "Fix the data first",
    "stopped": "The data stopped",
    "proposal": "A proposal waits",
}
_TONE_OF_NEED: Final[Mapping[Need, Tone]] = {
    "alarm": "critical",
    "rolled_back": "critical",
    "data": "critical",
    "stopped": "warning",
    "proposal": "info",
    "approval": "info",
    "overdue": "warning",
    "ship": "ok",
    "end": "info",
}
_BAR_WIDTH: Final = 84.0
_BAR_HEIGHT: Final = 14
_COLOURS: Final = 10


class Badge(msgspec.Struct, frozen=True):
    """A finding in a word; `words` say all of it, and are empty where there is no more to say."""

    text: str
    tone: Tone
    words: str = ""


class Traffic(msgspec.Struct, frozen=True):
    """How traffic is split: a bar, None where none is split, and in a few words."""

    bar: Markup | None
    words: str


class Result(msgspec.Struct, frozen=True):
    """The primary result at a glance.

    Arguments:
        verdict: in a few words; `tone` as a finding.
        conclusion: the report's headline; empty where there is no report.
        figure: the lift, or the difference where that is not defined; empty without one.
        of: the treatment that the figure is of.
        why: why it was rolled back, or what a ramp waits for; empty of any other.
        words: the figure with its interval, in a sentence.
        bar: the interval around no difference.
    """

    verdict: str
    tone: Tone
    conclusion: str = ""
    figure: str = ""
    of: str = ""
    why: str = ""
    words: str = ""
    bar: Markup | None = None


class Row(msgspec.Struct, frozen=True):
    """An experiment as a row shows it. `health` and `units` are None before the first report."""

    key: str
    name: str
    href: str
    tags: tuple[str, ...]
    owner: str
    state: State
    state_name: str
    note: str
    health: Badge | None
    traffic: Traffic
    result: Result
    units: int | None
    started_at: datetime | None
    updated_at: datetime
    run: int


class TabView(msgspec.Struct, frozen=True):
    """A tab with the number of experiments that it has."""

    name: str
    href: str
    count: int
    is_chosen: bool
    is_urgent: bool


class Column(msgspec.Struct, frozen=True):
    """A heading by which rows can be ordered; `direction` in ARIA's words."""

    order: Order
    name: str
    href: str
    direction: str


class ListView(msgspec.Struct, frozen=True):
    """The page.

    Arguments:
        asked: what the address says.
        found: how many rows there are on all pages, in words.
        first_page, next_page: addresses; empty where there is none.
        as_of: when the oldest of the figures shown was read, of experiments that go on.
        is_new: whether the project has no experiment at all.
        may_write: whether the visitor may make one.
        has_holdout: whether a holdout is in force.
    """

    asked: Asked
    rows: tuple[Row, ...]
    tabs: tuple[TabView, ...]
    columns: Mapping[Order, Column]
    labels: Labels
    found: str
    first_page: str
    next_page: str
    as_of: datetime | None
    is_new: bool
    may_write: bool
    has_holdout: bool


def make_view(
    asked: Asked,
    selection: Selection,
    splits: Mapping[int, Split],
    labels: Labels,
    *,
    is_new: bool,
    may_write: bool,
    has_holdout: bool,
) -> ListView:
    """The page of a selection.

    Args:
        splits: of the experiments of its rows, by id.
    """
    times = [
        one.glance.at for one in selection.listed if one.glance is not None and not one.glance.final
    ]
    return ListView(
        asked=asked,
        rows=tuple(row_of(one, splits[one.found.id]) for one in selection.listed),
        tabs=_tabs(asked, selection.counts),
        columns={
            order: Column(order, name, asked.by(order), asked.direction(order))
            for order, name in _COLUMNS
        },
        labels=labels,
        found="1 experiment" if selection.total == 1 else f"{count(selection.total)} experiments",
        first_page=asked.address() if asked.after is not None else "",
        next_page="" if selection.next is None else asked.address(after=selection.next),
        as_of=min(times, default=None),
        is_new=is_new,
        may_write=may_write,
        has_holdout=has_holdout,
    )


def row_of(listed: Listed, split: Split) -> Row:
    """The row of an experiment."""
    found, glance = listed.found, listed.glance
    return Row(
        key=found.key,
        name=found.name or found.key,
        href=f"/experiments/{found.key}",
        tags=found.tags,
        owner=found.owner,
        state=found.state,
        state_name=STATES[found.state],
        note=_note(found, split),
        health=None if glance is None else _health(glance),
        traffic=_traffic(found, split),
        result=_result(listed, split),
        units=None if glance is None else glance.units,
        started_at=found.started_at,
        updated_at=found.updated_at,
        run=found.run,
    )


def _tabs(asked: Asked, counts: Mapping[Tab, int]) -> tuple[TabView, ...]:
    return tuple(
        TabView(
            _tab_name(tab),
            asked.address(tab=tab),
            counts.get(tab, 0),
            tab == asked.tab,
            tab == "attention" and counts.get(tab, 0) > 0,
        )
        for tab in _SHOWN_TABS
        if counts.get(tab) or tab in _ALWAYS or tab == asked.tab
    )


def _tab_name(tab: Tab) -> str:
    if tab == "all":
        return "All"
    return "Needs attention" if tab == "attention" else STATES[tab]


def _note(found: Found, split: Split) -> str:
    """What else is to be known of its state."""
    if found.state in {"running", "paused"} and split.rolled_back:
        return f"without {', '.join(split.rolled_back)}"
    return f"run {found.run}" if found.run > 1 else ""


def _health(glance: Glance) -> Badge | None:
    """The worst of the checks; before there are units, that all is well says nothing."""
    name, tone = _HEALTH[glance.health]
    if tone == "ok":
        return Badge(name, tone) if glance.units else None
    number = glance.checks.get(glance.health, 1)
    plural = f"{name.lower()}s" if glance.health == "warning" else name.lower()
    text = name if number == 1 else f"{number} {plural}"
    return Badge(text, tone, f"{glance.worst} {glance.worst_action}".strip())


def _traffic(found: Found, split: Split) -> Traffic:
    if found.state == "draft":
        return Traffic(None, "")
    if found.state in {"concluded", "rolled_back", "archived"}:
        shipped = split.ship if split.ship is not None else split.variants[0]
        return Traffic(None, "" if found.state == "archived" else f"all get {shipped}")
    shares = [
        Share(variant, min(place, _COLOURS - 1), split.shares.get(variant, 0.0))
        for place, variant in enumerate(split.variants)
    ]
    return Traffic(share_bar(shares), _split_words([share.share for share in shares]))


def _split_words(shares: Sequence[float]) -> str:
    """The split of what is enrolled; of many variants only how many there are, for the bar has the
    rest."""
    total = sum(shares)
    if total <= 0:
        return "nobody"
    split = " / ".join(f"{100 * part / total:.0f}" for part in shares)
    if len(shares) > _MOST_NAMED:
        split = f"{len(shares)} variants"
    return split if total > _WHOLE else f"{split} of {share(total)}"


_MOST_NAMED: Final = 4
_WHOLE: Final = 0.9999


def _result(listed: Listed, split: Split) -> Result:
    verdict, tone = _verdict(listed, split)
    glance = listed.glance
    if glance is None:
        return Result(verdict, tone)
    lead = glance.lead
    if listed.found.state == "rolled_back":
        return Result(verdict, tone, glance.headline, why=glance.headline.partition(": ")[2])
    why = glance.ramp.reason if listed.need == "overdue" and glance.ramp is not None else ""
    if lead is None or lead.difference is None:
        return Result(verdict, tone, glance.headline, why=why)
    return Result(
        verdict,
        tone,
        glance.headline,
        figure=_figure(lead, lead.difference),
        of=lead.treatment,
        why=why,
        words=_words(lead, lead.difference),
        bar=interval_bar(lead),
    )


def _verdict(listed: Listed, split: Split) -> tuple[str, Tone]:
    """The verdict in a few words: what was done, else what to do."""
    if listed.need == "proposal":
        return _NEEDS["proposal"], _TONE_OF_NEED["proposal"]
    done = _done(listed.found.state, split)
    if done is not None:
        return done, "critical" if listed.found.state == "rolled_back" else "neutral"
    if listed.glance is None:
        return "No report yet", "neutral"
    if listed.need is not None:
        return _advice(listed.need, listed.glance), _TONE_OF_NEED[listed.need]
    return _waiting(listed.glance, listed.found.state), "neutral"


def _done(state: State, split: Split) -> str | None:
    """What was done with an experiment that is not going on; None of one that is."""
    if state != "concluded":
        return {"draft": "Not started", "rolled_back": "Rolled back", "archived": ""}.get(state)
    kept = split.ship is None or split.ship == split.variants[0]
    return "Control kept" if kept else f"{split.ship} shipped"


def _advice(need: Need, glance: Glance) -> str:
    if need == "ship":
        return f"Ship {glance.variant}"
    if need == "end":
        is_futile = glance.action == "stop_for_futility"
        return "Stop for futility" if is_futile else "Keep the control"
    if need == "approval" and glance.ramp is not None:
        return f"Approve step {glance.ramp.step} of {glance.ramp.steps}"
    if need == "overdue" and glance.ramp is not None:
        return f"Step {glance.ramp.step} of {glance.ramp.steps} is held back"
    return _NEEDS[need]


def _waiting(glance: Glance, state: State) -> str:
    if glance.units == 0:
        return "No units yet"
    opening = "Paused too early" if state == "paused" else "Keep running"
    if glance.more_seconds is None:
        return opening
    return f"{opening}, {wait(glance.more_seconds)}"


def _plain(lead: Lead, difference: float) -> str:
    spread = spread_of(lead.low, lead.high, difference)
    return points(difference, spread) if _is_rate(lead) else signed(difference, spread)


def _is_rate(lead: Lead) -> bool:
    return lead.kind == "proportion"


def _lift(lead: Lead, difference: float) -> str:
    """With as many digits as its difference has, whose size it is in another unit."""
    spread = spread_of(lead.low, lead.high, difference)
    if spread is not None and lead.lift is not None and difference:
        spread *= abs(lead.lift / difference)
    return lift(lead.lift, spread)


def _figure(lead: Lead, difference: float) -> str:
    """The lift; where it is not defined, the difference."""
    return _plain(lead, difference) if lead.lift is None else _lift(lead, difference)


def _words(lead: Lead, difference: float) -> str:
    measure: Measure = "points" if _is_rate(lead) else "number"
    relative = "" if lead.lift is None else f"lift {_lift(lead, difference)}, "
    return (
        f"{lead.metric}, {lead.treatment} against the control: {relative}difference "
        f"{_plain(lead, difference)}, {interval_words(lead.low, lead.high, measure)}"
    )


def interval_bar(lead: Lead) -> Markup:
    """The interval of a difference, drawn around none: the middle. A bound that is not defined is
    drawn to the edge. It has no scale, for no two metrics share one; the words beside it do."""
    ends = [abs(x) for x in (lead.low, lead.high, lead.difference) if x is not None]
    reach = max(ends, default=0.0) or 1.0
    half = _BAR_WIDTH / 2

    def place(value: float) -> float:
        return round(half + value / reach * (half - 3), 1)

    low = 0.0 if lead.low is None else place(lead.low)
    high = _BAR_WIDTH if lead.high is None else place(lead.high)
    tone = lead.finding if lead.finding in {"better", "worse"} else "open"
    return Markup(
        '<svg class="interval interval--{tone}" width="{w:.0f}" height="{h}" aria-hidden="true"'
        ' focusable="false"><path class="interval-zero" d="M{half:g} 0v{h}"/>'
        '<path class="interval-line" d="M{low:g} {middle}H{high:g}"/>'
        '<circle class="interval-dot" cx="{at:g}" cy="{middle}" r="2.5"/></svg>'
    ).format(
        tone=tone,
        w=_BAR_WIDTH,
        h=_BAR_HEIGHT,
        half=half,
        low=low,
        high=high,
        middle=_BAR_HEIGHT // 2,
        at=place(lead.difference or 0.0),
    )
