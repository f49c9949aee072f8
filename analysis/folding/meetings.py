"""Meetings: which variant a unit meets now, however long ago it was enrolled.

A unit that returns after its traffic was moved meets another variant than the one that it was
enrolled in. Its exposure says so: one is recorded for each epoch that a unit meets. For runs with a
metric of the scope `exposure` those that follow the enrolment are kept as meetings, and an outcome
belongs to the last one before it. They are kept in a bounded way: of those before the open blocks
only the last one of a unit.

An exposure reaches as far as its epoch. A unit whose slots were released, or that is targeted no
more, goes on living, and records no exposure: what it does after the epoch has ended says nothing
of the variant. Where assignment is sticky a unit keeps its epoch, too, so its exposure reaches as
far as there are epochs in which the experiment runs.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple, TypeAlias

import asyncpg
import numpy as np
from numpy.typing import NDArray

from analysis.folding.aggregates import Integers
from analysis.folding.enrol import Batch
from analysis.folding.wire import UNIX_TO_POSTGRES, Columns, Layout, read_rows
from experiments.store import Connection

Run: TypeAlias = tuple[int, int]
"""An experiment and the number of its run."""

ROUTERS_FOLLOW: Final = timedelta(seconds=10)
"""For how long after the end of an epoch a router may still answer by it."""

_UNIX: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")

# Of one epoch there is nothing to note: all exposures are enrolments.
_OF_SEVERAL_EPOCHS: Final = """
    select r.experiment, r.number
    from unnest($1::bigint[], $2::int[]) as wanted (experiment, number)
    join run r using (experiment, number)
    join experiment x on x.id = r.experiment
    where r.ended_at is not null or exists (
        select from epoch e
        where e.experiment = r.experiment and e.number = x.epoch - 1 and e.run = r.number
    )
"""
_ADD_ARMS: Final = """
    insert into arm (experiment, run, epoch, variant)
    select distinct x.experiment, x.run, x.epoch, x.variant
    from exposure x
    join epoch e on e.experiment = x.experiment and e.number = x.epoch and e.run = x.run
    where x.segment = any($1) and x.received_at >= $2 and x.received_at <= $3
      and (x.experiment, x.run) in (select * from unnest($4::bigint[], $5::int[]))
      and not exists (
          select from arm a
          where a.experiment = x.experiment and a.epoch = x.epoch and a.variant = x.variant
      )
    order by 1, 2, 3, 4
"""
# `+ 0` and the subquery for the arm are for the planner, as in `enrol.py`. Where an enrolment moved
# to an earlier exposure, the one that it had is a meeting.
_NOTE: Final = """
    insert into meeting (experiment, run, ordinal, at, arm)
    select distinct x.experiment, x.run, e.ordinal, x.at, a.id
    from exposure x
    join enrolment e
        on e.unit = x.unit collate "C" and e.experiment + 0 = x.experiment and e.run + 0 = x.run
    cross join lateral (
        select a.id from arm a
        where a.experiment = x.experiment and a.epoch = x.epoch and a.variant = x.variant
          and a.run = x.run
        offset 0
    ) as a
    where x.segment = any($1) and x.received_at >= $2 and x.received_at <= $3
      and (x.experiment, x.run) in (select * from unnest($4::bigint[], $5::int[]))
      and (x.at, a.id) is distinct from (e.at, e.arm)
    union
    select m.experiment, m.run, m.ordinal, m.old_at, m.old_arm
    from moved m
    where m.old_arm is not null and (m.old_at, m.old_arm) is distinct from (m.at, m.arm)
      and (m.experiment, m.run) in (select * from unnest($4::bigint[], $5::int[]))
    on conflict do nothing
    returning experiment, run, ordinal, at
"""
_NOTE_LAST: Final = """
    insert into meeting (experiment, run, ordinal, at, arm)
    select e.experiment, e.run, e.ordinal, last.at, a.id
    from enrolment e
    cross join lateral (
        select x.at, x.epoch, x.variant
        from exposure x
        join segment s on s.id = x.segment and s.folded_at is not null
        where hashtextextended(x.unit, 0) = hashtextextended(e.unit, 0)
          and x.unit collate "C" = e.unit and x.experiment = e.experiment and x.run = e.run
        order by x.at desc, x.epoch desc, x.variant desc limit 1
    ) as last
    cross join lateral (
        select a.id from arm a
        where a.experiment = e.experiment and a.epoch = last.epoch and a.variant = last.variant
          and a.run = e.run
        offset 0
    ) as a
    where e.experiment = $1 and e.run = $2 and e.ordinal >= $3 and e.ordinal < $4
      and (last.at, a.id) is distinct from (e.at, e.arm)
    on conflict do nothing
    returning ordinal
"""
_ADD_ARMS_OF_LAST: Final = """
    insert into arm (experiment, run, epoch, variant)
    select distinct x.experiment, x.run, x.epoch, x.variant
    from enrolment e
    join exposure x
        on hashtextextended(x.unit, 0) = hashtextextended(e.unit, 0)
       and x.unit collate "C" = e.unit and x.experiment = e.experiment and x.run = e.run
    join segment s on s.id = x.segment and s.folded_at is not null
    join epoch p on p.experiment = x.experiment and p.number = x.epoch and p.run = x.run
    where e.experiment = $1 and e.run = $2 and e.ordinal >= $3 and e.ordinal < $4
      and not exists (
          select from arm a
          where a.experiment = x.experiment and a.epoch = x.epoch and a.variant = x.variant
      )
    order by 1, 2, 3, 4
"""
_PRUNE: Final = """
    delete from meeting m
    using unnest($1::bigint[], $2::int[], $3::bigint[], $4::timestamptz[])
        as touched (experiment, run, ordinal, open_from)
    where (m.experiment, m.run, m.ordinal)
        = (touched.experiment, touched.run, touched.ordinal)
      and exists (
          select from meeting later
          where (later.experiment, later.run, later.ordinal) = (m.experiment, m.run, m.ordinal)
            and later.at > m.at and later.at <= touched.open_from
      )
"""
_HAS_ANY: Final = "select exists (select from meeting where experiment = $1 and run = $2)"
_READ: Final = """
    select m.ordinal, m.at, m.arm
    from unnest($3::bigint[]) as wanted (ordinal)
    join meeting m on m.experiment = $1 and m.run = $2 and m.ordinal = wanted.ordinal
"""
_LAYOUT: Final = Layout({"ordinal": "int8", "at": "time", "arm": "int4"})
_EPOCHS_OF: Final = "select id, epoch from arm where id = any($1)"
_IN_FORCE: Final = """
    (
        select number, at, state, stickiness from epoch where experiment = $1 and at <= $2
        order by at desc, number desc limit 1
    )
    union all
    (
        select number, at, state, stickiness from epoch
        where experiment = $1 and at > $2 and at <= $3 order by at, number
    )
"""
_FORGET: Final = """
    delete from meeting m using moved gone
    where (m.experiment, m.run, m.ordinal) = (gone.experiment, gone.run, gone.ordinal)
"""


class Noted(NamedTuple):
    """Meetings that are new: of which run and unit, and when (microseconds since 2000)."""

    experiment: Integers
    run: Integers
    ordinal: Integers
    at: Integers


class Epochs(NamedTuple):
    """The epochs that were in force, one after another: since when, and whether a unit that met an
    earlier one still meets what it met then."""

    number: Integers
    at: Integers
    keeps: NDArray[np.bool_]


async def note_meetings(
    connection: Connection, batch: Batch, open_from: Mapping[Run, datetime]
) -> Noted:
    """Keep what units that are enrolled met since, as a batch's exposures say; those that are new.

    `moved` holds the enrolments that the batch made or moved.

    Args:
        open_from: of each run with a metric of the scope `exposure` the time at which its open
            blocks begin.
    """
    if not open_from:
        return _noted(())
    wanted = [list(column) for column in zip(*open_from, strict=True)]
    runs = await connection.fetch(_OF_SEVERAL_EPOCHS, *wanted)
    if not runs:
        return _noted(())
    columns = [list(column) for column in zip(*runs, strict=True)]
    await connection.execute(_ADD_ARMS, *batch, *columns)
    noted = await connection.fetch(_NOTE, *batch, *columns)
    if noted:
        touched = {(row["experiment"], row["run"], row["ordinal"]) for row in noted}
        units = [(*unit, open_from[unit[:2]]) for unit in sorted(touched)]
        await connection.execute(_PRUNE, *map(list, zip(*units, strict=True)))
    return _noted(noted)


async def note_last(
    connection: Connection, experiment: int, run: int, ordinals: tuple[int, int]
) -> Integers:
    """Keep what units with ordinals of a range met last, as far as raw exposures are there; the
    ordinals of those for which that was not known."""
    await connection.execute(_ADD_ARMS_OF_LAST, experiment, run, *ordinals)
    rows = await connection.fetch(_NOTE_LAST, experiment, run, *ordinals)
    return np.array([row["ordinal"] for row in rows], np.int64)


async def forget_meetings(connection: Connection) -> None:
    """Forget what the units in `moved` met: they were erased."""
    await connection.execute(_FORGET)


async def arms_at(
    connection: Connection, run: Run, ordinal: Integers, at: Integers, enrolled_in: Integers
) -> Integers:
    """The arm that each outcome's unit had met last when it happened.

    Args:
        ordinal, at: of units of this run; times in microseconds since 2000.
        enrolled_in: for each outcome the arm that its unit was enrolled in.
    """
    if not len(ordinal) or not await connection.fetchval(_HAS_ANY, *run):
        return enrolled_in
    units = np.unique(ordinal).tolist()
    meetings = await read_rows(connection, _READ, _LAYOUT, *run, units)
    epoch_of = await epochs_of(connection, meetings["arm"])
    return met_last(ordinal, at, enrolled_in, meetings, epoch_of)


def met_last(
    ordinal: Integers,
    at: Integers,
    enrolled_in: Integers,
    meetings: Columns,
    epoch_of: Mapping[int, int],
) -> Integers:
    """For each outcome the arm of its unit's last meeting that is not after it, or the arm that it
    was enrolled in. Of two meetings at one time that of the later epoch counts.

    Args:
        meetings: columns `ordinal`, `at` and `arm`.
        epoch_of: the epochs of these arms.
    """
    many = len(meetings["ordinal"])
    if not many:
        return enrolled_in
    epoch = np.array([epoch_of[arm] for arm in meetings["arm"].tolist()], np.int64)
    nothing = np.zeros(len(ordinal), np.int64)
    order = np.lexsort(
        (
            np.concatenate([meetings["arm"].astype(np.int64), nothing]),
            np.concatenate([epoch, nothing]),
            np.repeat([0, 1], [many, len(ordinal)]),  # what happens at the time of a meeting is its
            np.concatenate([meetings["at"], at]),
            np.concatenate([meetings["ordinal"], ordinal]),
        )
    )
    place = np.arange(len(order))
    last = np.maximum.accumulate(np.where(order < many, place, -1))
    meeting = np.full(len(order), -1)
    meeting[order] = np.where(last >= 0, order[last], -1)
    found = meeting[many:]
    same = (found >= 0) & (meetings["ordinal"][found] == ordinal)
    arms: Integers = np.where(same, meetings["arm"][found].astype(np.int64), enrolled_in)
    return arms


async def epochs_of(connection: Connection, arms: Integers) -> dict[int, int]:
    """The epochs of arms."""
    rows = await connection.fetch(_EPOCHS_OF, np.unique(arms).tolist())
    return {row["id"]: row["epoch"] for row in rows}


async def read_epochs(
    connection: Connection, experiment: int, first: datetime, last: datetime
) -> Epochs:
    """The epochs of an experiment that were in force between two times."""
    rows = await connection.fetch(_IN_FORCE, experiment, first, last)
    return Epochs(
        np.array([row["number"] for row in rows], np.int64),
        np.array([microseconds(row["at"]) for row in rows], np.int64),
        np.array(
            [row["state"] == "running" and row["stickiness"] == "sticky" for row in rows], np.bool_
        ),
    )


def still_meets(epoch: Integers, at: Integers, epochs: Epochs) -> NDArray[np.bool_]:
    """Whether units that had met an epoch last were still meeting it at a time.

    Args:
        epoch: for each unit the epoch that it had met last.
        at: for each the time that is asked for, in microseconds since 2000.
        epochs: those in force from the earliest of these times on.
    """
    if not len(epochs.number):
        return np.ones(len(at), np.bool_)
    place = np.searchsorted(epochs.at, at, side="right") - 1
    before, place = place < 0, np.maximum(place, 0)
    meets: NDArray[np.bool_] = before | (epoch >= epochs.number[place]) | epochs.keeps[place]
    return meets


def microseconds(at: datetime) -> int:
    """A time in microseconds since 2000, as Postgres counts."""
    return (at - _UNIX) // timedelta(microseconds=1) - UNIX_TO_POSTGRES


def time_of(at: int) -> datetime:
    """The time of so many microseconds since 2000."""
    return _UNIX + timedelta(microseconds=int(at) + UNIX_TO_POSTGRES)


def _noted(rows: Sequence[asyncpg.Record]) -> Noted:
    return Noted(
        experiment=np.array([row["experiment"] for row in rows], np.int64),
        run=np.array([row["run"] for row in rows], np.int64),
        ordinal=np.array([row["ordinal"] for row in rows], np.int64),
        at=np.array([microseconds(row["at"]) for row in rows], np.int64),
    )
