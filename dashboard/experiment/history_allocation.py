"""Where the traffic went: the epochs of a run as a band over time, and as a list.

A bandit makes tens of thousands of epochs. They are numbered without gaps, so that some of them,
evenly chosen, are found by as many look-ups in an index; none is scanned for the others. The slots
of an allocation are long, too: of an epoch only its stated weights are read, which whole slots come
within a slot of, and the traffic is summed of those epochs alone that changed it.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
from markupsafe import Markup

from dashboard.charts.band import band
from dashboard.charts.model import BandStep, Cause, Chart, Share
from dashboard.charts.small import share_bar
from dashboard.experiment.people import Who, read_notes, who
from experiments.model import State
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection

MOST_DRAWN: Final = 300
MOST_KEPT: Final = 120
"""Of the drawn ones, those that are drawn whatever the number: by hand, by the guard, of a ramp."""
PAGE: Final = 20

# Runs follow each other, so the first epoch of one is found by halving.
_FIRST: Final = """
    with recursive halved (low, high) as (
        select 1, $3::int
        union all
        select case when e.run < $2 then e.number + 1 else h.low end,
               case when e.run < $2 then h.high else e.number end
        from halved h join epoch e on e.experiment = $1 and e.number = (h.low + h.high) / 2
        where h.low < h.high
    )
    select low from halved where low = high limit 1
"""
_KEPT: Final = """
    select d.epoch_after
    from unnest($3::text[]) as asked (rule), lateral (
        select epoch_before, epoch_after, run from decision
        where experiment = $1 and rule = asked.rule and kind <> 'hold'
        order by id desc limit $4
    ) d
    where d.run = $2 and d.epoch_after > d.epoch_before
"""
_KEPT_RULES: Final = ("manual", "guard", "health", "ramp", "stop")
_EPOCHS: Final = """
    select e.number, e.run, e.at, e.state, e.weights, e.actor, e.reason, e.decision, e.ship,
           d.kind, d.rule, (
               select s.number from epoch s
               where s.experiment = e.experiment and s.run = e.run and s.resized
                 and s.number <= e.number
               order by s.number desc limit 1
           ) as sized
    from epoch e left join decision d on d.id = e.decision
    where e.experiment = $1 and e.number = any($2::int[])
    order by e.number
"""
_TRAFFIC: Final = """
    select number, (
        select coalesce(sum((part.slots ->> 1)::int), 0)
        from jsonb_array_elements(allocation -> 'runs') as part (slots)
        where part.slots ->> 0 is not null
    ) / 10000.0::float8 as traffic
    from epoch where experiment = $1 and number = any($2::int[])
"""


class EpochFacts(msgspec.Struct, frozen=True):
    """An epoch, as far as it is shown. `rule` and `kind` are those of its decision; empty where an
    older release kept none."""

    number: int
    run: int
    at: datetime
    state: State
    weights: dict[str, float]
    traffic: float
    actor: str
    reason: str
    decision: int | None
    ship: str | None
    kind: str = ""
    rule: str = ""

    def shares(self, variants: Collection[str]) -> tuple[float, ...]:
        """The share of all traffic that each of these variants has."""
        return tuple(self.traffic * self.weights.get(variant, 0.0) for variant in variants)


class AllocationFacts(msgspec.Struct, frozen=True):
    """The epochs of the current run that are drawn, and how many there are; and the newest ones of
    all runs."""

    drawn: tuple[EpochFacts, ...]
    number: int
    newest: tuple[EpochFacts, ...]
    older: int | None
    notes: dict[str, str]


class EpochRow(msgspec.Struct, frozen=True):
    """An epoch in the list. `decision` links to the decision that made it; empty without."""

    number: int
    run: int
    at: datetime
    state: State
    bar: Markup
    split: str
    who: Who
    reason: str
    decision: str


class Epochs(msgspec.Struct, frozen=True):
    """A page of the list of epochs, the newest first; `older` leads on, empty at the end."""

    rows: tuple[EpochRow, ...]
    older: str


class Allocation(msgspec.Struct, frozen=True):
    """Allocation over time. `note` says how exact the shares are, and which
    epochs are not drawn."""

    chart: Chart
    note: str
    epochs: Epochs


async def read(connection: Connection, record: ExperimentRecord) -> AllocationFacts | None:
    """The epochs of the current run, and the newest of all; None before the first one."""
    if not record.epoch:
        return None
    first: int = await connection.fetchval(_FIRST, record.id, record.run, record.epoch)
    number = record.epoch - first + 1
    kept: Sequence[int] = ()
    if number > MOST_DRAWN:
        rows = await connection.fetch(_KEPT, record.id, record.run, _KEPT_RULES, MOST_KEPT)
        kept = [row["epoch_after"] for row in rows]
    newest = range(max(1, record.epoch - PAGE + 1), record.epoch + 1)
    chosen = thinned(first, record.epoch, kept)
    found = await read_epochs(connection, record, {*chosen, *newest})
    notes = await read_notes(connection, record.project, {epoch.actor for epoch in found.values()})
    return AllocationFacts(
        drawn=tuple(found[each] for each in chosen),
        number=number,
        newest=tuple(found[each] for each in reversed(newest)),
        older=newest[0] if newest[0] > 1 else None,
        notes=notes,
    )


async def read_page(connection: Connection, record: ExperimentRecord, before: int) -> Epochs:
    """The page of the list of epochs behind the number `before`."""
    last = min(before - 1, record.epoch)
    numbers = range(max(1, last - PAGE + 1), last + 1)
    found = await read_epochs(connection, record, numbers)
    epochs = [found[number] for number in reversed(numbers)]
    notes = await read_notes(connection, record.project, {epoch.actor for epoch in epochs})
    older = numbers[0] if numbers and numbers[0] > 1 else None
    return make_epochs(record, epochs, older, notes)


def thinned(
    first: int, last: int, kept: Collection[int] = (), most: int = MOST_DRAWN
) -> tuple[int, ...]:
    """At most about `most` numbers from `first` to `last`, both of them and as many of `kept` as
    `MOST_KEPT`, the newest, and the rest evenly spaced."""
    number = last - first + 1
    if number <= most:
        return tuple(range(first, last + 1))
    chosen = {first, last, *sorted(each for each in kept if first <= each <= last)[-MOST_KEPT:]}
    even = most - len(chosen)
    chosen |= {first + round(i * (number - 1) / (even - 1)) for i in range(even)}
    return tuple(sorted(chosen))


async def read_epochs(
    connection: Connection, record: ExperimentRecord, numbers: Collection[int]
) -> dict[int, EpochFacts]:
    """Epochs by number."""
    if not numbers:
        return {}
    rows = await connection.fetch(_EPOCHS, record.id, sorted(numbers))
    sized = sorted({row["sized"] or row["number"] for row in rows})
    traffic = {
        row["number"]: row["traffic"] for row in await connection.fetch(_TRAFFIC, record.id, sized)
    }
    return {row["number"]: _facts(row, traffic) for row in rows}


def _facts(row: Any, traffic: Mapping[int, float]) -> EpochFacts:
    return EpochFacts(
        number=row["number"],
        run=row["run"],
        at=row["at"],
        state=row["state"],
        weights=msgspec.json.decode(row["weights"], type=dict[str, float]),
        traffic=traffic[row["sized"] or row["number"]],
        actor=row["actor"],
        reason=row["reason"],
        decision=row["decision"],
        ship=row["ship"],
        kind=row["kind"] or "",
        rule=row["rule"] or "",
    )


def make(
    record: ExperimentRecord, facts: AllocationFacts, now: datetime, listed: Collection[int]
) -> Allocation:
    """Allocation over time. Pure.

    Args:
        listed: decisions that the page has in its timeline; others stand on pages of their own.
    """
    variants = tuple(record.definition.weights)
    drawn = facts.drawn
    note = _EXACTNESS
    if facts.number > len(drawn):
        note += (
            f" {len(drawn)} of the {facts.number:,} epochs of this run are drawn: the first and "
            "the last, those by hand, by the guard and of a ramp as far as they are few, and the "
            "others at even distances. The list has them all."
        )
    return Allocation(
        chart=band(
            [_step(record, epoch, variants, listed) for epoch in drawn],
            variants,
            title=f"Allocation of run {record.run} over time",
            end=_end(record, drawn, now),
        ),
        note=note,
        epochs=make_epochs(record, facts.newest, facts.older, facts.notes),
    )


def _end(record: ExperimentRecord, drawn: Sequence[EpochFacts], now: datetime) -> datetime:
    """Until when the band goes: of a run that has ended so far that its last epoch is seen."""
    first, last = drawn[0].at, drawn[-1].at
    if record.state in HOLDS_SLOTS:
        return max(now, last)
    return min(max(now, last), last + _SEEN * (last - first))


_SEEN: Final = 0.08
_EXACTNESS: Final = (
    "Shares are the stated weights times the traffic; slots are whole, so that what a router does "
    "may differ by a hundredth of a per cent or two."
)


def _step(
    record: ExperimentRecord,
    epoch: EpochFacts,
    variants: Collection[str],
    listed: Collection[int],
) -> BandStep:
    link = None
    if epoch.decision is not None:
        stands_here = epoch.decision in listed
        link = (
            f"#decision-{epoch.decision}"
            if stands_here
            else decision_link(record.key, epoch.decision)
        )
    return BandStep(
        at=epoch.at,
        shares=epoch.shares(variants),
        epoch=epoch.number,
        cause=cause_of(epoch),
        reason=epoch.reason,
        link=link,
        state=epoch.state,
    )


def cause_of(epoch: EpochFacts) -> Cause:
    """Who made an epoch, as the band marks it."""
    if epoch.kind == "start":
        return "start"
    match epoch.rule:
        case "guard" | "health":
            return "guard"
        case "ramp" | "bandit" | "stop":
            return epoch.rule
        case _:
            return "hand"


def make_epochs(
    record: ExperimentRecord,
    epochs: Sequence[EpochFacts],
    older: int | None,
    notes: Mapping[str, str],
) -> Epochs:
    """The list of epochs. Pure."""
    variants = tuple(record.definition.weights)
    rows = tuple(
        EpochRow(
            number=epoch.number,
            run=epoch.run,
            at=epoch.at,
            state=epoch.state,
            bar=share_bar(shares_of(variants, epoch.shares(variants))),
            split=split_words(variants, epoch.shares(variants)),
            who=who(epoch.actor, epoch.rule, notes),
            reason=epoch.reason,
            decision="" if epoch.decision is None else decision_link(record.key, epoch.decision),
        )
        for epoch in epochs
    )
    return Epochs(rows, "" if older is None else f"/experiments/{record.key}/epochs?before={older}")


def decision_link(key: str, decision: int) -> str:
    """Where a decision stands by itself, with its evidence."""
    return f"/experiments/{key}/decisions/{decision}"


def shares_of(variants: Sequence[str], shares: Sequence[float]) -> tuple[Share, ...]:
    """Shares of all traffic as a small bar has them."""
    return tuple(
        Share(variant, place, share)
        for place, (variant, share) in enumerate(zip(variants, shares, strict=True))
    )


def split_words(variants: Sequence[str], shares: Sequence[float]) -> str:
    """A split in words: `v6 48 %, v7 48 %, 4 % not enrolled`."""
    parts = [
        f"{variant} {share_words(share)}"
        for variant, share in zip(variants, shares, strict=True)
        if share > 0
    ]
    rest = 1.0 - sum(shares)
    if rest > _NOTHING:
        parts.append(f"{share_words(rest)} not enrolled")
    return ", ".join(parts)


_NOTHING: Final = 5e-5  # half a slot


def share_words(share: float) -> str:
    """A share of the traffic in per cent, to the slot: a hundredth of a per cent."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".") + "\N{NARROW NO-BREAK SPACE}%"
