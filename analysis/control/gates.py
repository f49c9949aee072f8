"""A gate for those who roll something out: whether to go on, and whether to go back.

It opens only while somebody watches: where nothing has been folded for a minute, an alarm could not
have been raised, and that none was says nothing.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Final

import msgspec

from analysis.control.ruling import STALE_AFTER
from experiments.model import State
from experiments.records import ExperimentRecord
from experiments.store import Connection

_STANDING: Final = """
    select p.watermark, clock_timestamp() as now,
           (select json_agg(json_build_object('metric', g.metric, 'variant', g.variant)
                            order by g.id)
            from guard_ledger g
            where g.experiment = $1 and g.run = $2 and g.closed_at is null
              and g.acted is not null) as alarms,
           (select json_agg(json_build_object('check', f.name, 'action', f.action) order by f.name)
            from health_finding f where f.experiment = $1 and f.run = $2) as findings
    from fold_position p
"""


class Alarm(msgspec.Struct, frozen=True):
    """Evidence of harm on which the guard has acted, and which nobody has overruled; `variant` is
    empty where it is of the split of all."""

    metric: str
    variant: str


class Standing(msgspec.Struct, frozen=True):
    """A finding about the data that has not cleared."""

    check: str
    action: str


class Seen(msgspec.Struct, frozen=True):
    """What a gate looks at."""

    state: State
    control: str
    ship: str | None
    rolled_back: tuple[str, ...]
    alarms: tuple[Alarm, ...]
    findings: tuple[Standing, ...]
    watermark: datetime | None
    now: datetime


class Reason(msgspec.Struct, frozen=True):
    """Why a gate is shut: a code that does not change with numbers, and the same in words."""

    code: str
    detail: str


class Verdict(msgspec.Struct, frozen=True):
    """Whether to go on, whether to go back, and what stands against going on. Who may neither go on
    nor has to go back waits."""

    go: bool
    roll_back: bool
    reasons: tuple[Reason, ...]


def verdict(seen: Seen) -> Verdict:
    """What a gate says. A run that was concluded with another variant than the control lets it go
    on, and a rollback, by whomever, is one for whoever asks."""
    reasons = tuple(_against(seen))
    roll_back = seen.state == "rolled_back" or (
        seen.state in {"running", "paused"} and bool(seen.rolled_back)
    )
    return Verdict(go=not reasons, roll_back=roll_back, reasons=reasons)


def _against(seen: Seen) -> Iterator[Reason]:
    if seen.state == "draft":
        yield Reason("not_started", "the experiment was not started")
    elif seen.state == "archived":
        yield Reason("archived", "the experiment was put away")
    elif seen.state == "rolled_back":
        yield Reason("rolled_back", "the experiment was rolled back")
    elif seen.state == "concluded":
        if seen.ship == seen.control:
            yield Reason("control_shipped", "the experiment was concluded with its control")
    else:
        yield from _against_living(seen)


def _against_living(seen: Seen) -> Iterator[Reason]:
    if seen.state == "paused":
        yield Reason("paused", "the experiment is paused")
    for variant in seen.rolled_back:
        yield Reason("variant_rolled_back", f"variant {variant} was rolled back")
    for alarm in seen.alarms:
        whom = f" of variant {alarm.variant}" if alarm.variant else ""
        yield Reason("guard_alarm", f"the guard has evidence of harm: {alarm.metric}{whom}")
    for finding in seen.findings:
        yield Reason(f"health_{finding.check}", f"the data are not sound: {finding.check}")
    if seen.watermark is None:
        yield Reason("not_watched", "nothing was folded yet: nobody watches")
    elif seen.now - seen.watermark > STALE_AFTER:
        age = (seen.now - seen.watermark).total_seconds()
        yield Reason("not_watched", f"nothing was folded for {age:.0f} s: nobody watches")


async def look(connection: Connection, record: ExperimentRecord) -> Seen:
    """What there is to see of an experiment now, by the database's clock, which whoever folds goes
    by. What it reads does not grow with history."""
    row = await connection.fetchrow(_STANDING, record.id, record.run)
    assert row is not None, "the position is one row"  # noqa: S101 - an invariant
    watermark: datetime = row["watermark"]
    return Seen(
        state=record.state,
        control=record.definition.control.key,
        ship=record.ship,
        rolled_back=tuple(record.rolled_back),
        alarms=msgspec.json.decode(row["alarms"] or "[]", type=tuple[Alarm, ...]),
        findings=msgspec.json.decode(row["findings"] or "[]", type=tuple[Standing, ...]),
        watermark=None if watermark.year == 1 else watermark,  # -infinity: before the first fold
        now=row["now"],
    )
