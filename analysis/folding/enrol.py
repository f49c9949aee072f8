"""Enrolments: the first exposure of each unit in a run, whichever order exposures come in."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

import asyncpg
import msgspec

from analysis.folding.segments import count_segments, give_profiles
from analysis.folding.wire import Columns, Layout, read_rows
from analysis.inference.exact import combined
from analysis.inference.ratio_check import UnitSums, of_units
from experiments import store
from experiments.allocation import propensities
from experiments.store import Connection

Epoch: TypeAlias = tuple[int, int, int]
Counts: TypeAlias = dict[str, tuple[int, int]]


class Batch(NamedTuple):
    """Segments, and between which times their records were received, the ends included; so raw
    events are sought in the partitions of these days only."""

    segments: Sequence[int]
    received_from: datetime
    received_to: datetime


_TABLES = """
    create temp table if not exists met (
        experiment bigint, run int, project text, unit_type text, unit text collate "C",
        epoch int, variant text, at timestamptz, several boolean, attributes jsonb
    ) on commit delete rows;
    create temp table if not exists moved (
        experiment bigint, run int, ordinal bigint, project text, unit_type text,
        unit text collate "C", arm int, at timestamptz, several boolean, profile int,
        old_arm int, old_at timestamptz, old_several boolean, old_profile int, attributes jsonb
    ) on commit delete rows;
    truncate met, moved
"""
# The first exposure of each unit among the new ones; of two at one time that of the lower epoch.
_MEET = """
    insert into met
    select distinct on (x.experiment, x.run, x.unit)
           x.experiment, x.run, x.project, x.unit_type, x.unit, x.epoch, x.variant, x.at,
           min(x.variant) over same <> max(x.variant) over same, x.attributes
    from exposure x
    join epoch e on e.experiment = x.experiment and e.number = x.epoch and e.run = x.run
    where x.segment = any($1) and x.received_at >= $2 and x.received_at <= $3
    window same as (partition by x.experiment, x.run, x.unit)
    order by x.experiment, x.run, x.unit, x.at, x.epoch, x.variant
"""
_ADD_ARMS = """
    insert into arm (experiment, run, epoch, variant)
    select distinct experiment, run, epoch, variant from met m
    where not exists (
        select from arm a
        where a.experiment = m.experiment and a.epoch = m.epoch and a.variant = m.variant
    )
    order by experiment, run, epoch, variant
"""
# Units that were enrolled before: the earlier exposure counts, whichever came in first. `+ 0` keeps
# the planner from the index of ordinals, by which it would read the whole run for each unit; and a
# subquery for the arm from one that would read all of the run's arms.
_MOVE = """
    insert into moved
    select m.experiment, m.run, e.ordinal, m.project, m.unit_type, m.unit,
           first.arm, first.at, now.several, first.profile,
           e.arm, e.at, e.several, e.profile, first.attributes
    from met m
    join enrolment e
        on e.unit = m.unit and e.experiment + 0 = m.experiment and e.run + 0 = m.run
    join arm old on old.id = e.arm
    cross join lateral (
        select a.id from arm a
        where a.experiment = m.experiment and a.epoch = m.epoch and a.variant = m.variant
        offset 0
    ) as new
    cross join lateral (
        select * from (values (e.at, old.epoch, old.variant, 1, old.id, e.profile, null),
                              (m.at, m.epoch, m.variant, 2, new.id, 0, m.attributes))
            as both_of_them (at, epoch, variant, place, arm, profile, attributes)
        order by at, epoch, variant, place limit 1
    ) as first
    cross join lateral (
        select e.several or m.several or m.variant <> old.variant as several
    ) as now
    where (first.arm, first.at, now.several) is distinct from (e.arm, e.at, e.several)
"""
_UPDATE = """
    update enrolment e set arm = m.arm, at = m.at, several = m.several, profile = m.profile
    from moved m
    where e.unit = m.unit and e.experiment + 0 = m.experiment and e.run + 0 = m.run
"""
_NUMBER = """
    insert into moved
    select m.experiment, m.run,
           r.enrolments - 1 + row_number() over (
               partition by m.experiment, m.run order by m.at, m.unit
           ),
           m.project, m.unit_type, m.unit,
           (select a.id from arm a
            where a.experiment = m.experiment and a.epoch = m.epoch
              and a.variant = m.variant),
           m.at, m.several, 0, null, null, null, 0, m.attributes
    from met m
    join run r on r.experiment = m.experiment and r.number = m.run
    where not exists (
        select from enrolment e
        where e.unit = m.unit and e.experiment + 0 = m.experiment and e.run + 0 = m.run
    )
"""
_ENROL = """
    insert into enrolment
        (experiment, run, ordinal, project, unit_type, unit, arm, at, several, profile)
    select experiment, run, ordinal, project, unit_type, unit, arm, at, several, profile
    from moved where old_arm is null
"""
_COUNT_RUNS = """
    update run r set enrolments = r.enrolments + new.units
    from (
        select experiment, run, count(*) as units from moved where old_arm is null
        group by experiment, run
    ) as new
    where r.experiment = new.experiment and r.number = new.run
"""
_COUNT_ARMS = """
    update arm a set units = a.units + change.units, several = a.several + change.several
    from (
        select arm, sum(units) as units, sum(several) as several
        from (
            select arm, 1 as units, several::int from moved
            union all
            select old_arm, -1, -old_several::int from moved where old_arm is not null
        ) as change
        group by arm
    ) as change
    where a.id = change.arm and (change.units <> 0 or change.several <> 0)
    returning a.experiment, a.run, a.epoch, a.variant, change.units::bigint as units,
              change.several::bigint as several
"""
_ARMS_OF_EPOCHS = """
    select a.experiment, a.run, a.epoch, a.variant, a.units, a.several
    from arm a join unnest($1::bigint[], $2::int[], $3::int[]) as wanted (experiment, run, epoch)
    using (experiment, run, epoch)
"""
_UNIT_SUMS = "select unit_sums from run where experiment = $1 and number = $2"
_KEEP_UNIT_SUMS = "update run set unit_sums = $3 where experiment = $1 and number = $2"
_MOVED = """
    select experiment, run, ordinal, arm, at, profile,
           coalesce(old_arm, 0), coalesce(old_at, at), old_profile
    from moved
"""
_MOVED_LAYOUT: Final = Layout(
    {
        "experiment": "int8",
        "run": "int4",
        "ordinal": "int8",
        "arm": "int4",
        "at": "time",
        "profile": "int4",
        "old_arm": "int4",
        "old_at": "time",
        "old_profile": "int4",
    }
)


async def make_room(connection: Connection) -> None:
    """Make, or empty, the temporary tables; `moved` is what the units' values are found by."""
    await connection.execute(_TABLES)


async def meet(connection: Connection, batch: Batch) -> None:
    """Put the units of a batch's exposures, each once, into `met`; their arms are there then."""
    await make_room(connection)
    await connection.execute(_MEET, *batch)
    await connection.execute(_ADD_ARMS)


async def enrol(connection: Connection, batch: Batch) -> Columns:
    """Take the exposures of a batch in.

    Returns:
        the units whose enrolment is new, or another than before, as they stand in `moved`:
        `old_arm` is 0 for those that are new. Where only `several` changed, a unit is there, too.
    """
    await meet(connection, batch)
    await connection.execute(_MOVE)
    await connection.execute(_NUMBER)
    await give_profiles(connection)
    await connection.execute(_UPDATE)
    await connection.execute(_ENROL)
    await connection.execute(_COUNT_RUNS)
    await count_arms(connection)
    moved = await read_moved(connection)
    if moved["profile"].any() or moved["old_profile"].any():
        await count_segments(connection)
    return moved


async def read_moved(connection: Connection) -> Columns:
    """What stands in `moved`."""
    return await read_rows(connection, _MOVED, _MOVED_LAYOUT)


async def count_arms(connection: Connection) -> None:
    """Bring the counts of arms, and the sums over epochs, from what stood to what `moved` says."""
    changed = await connection.fetch(_COUNT_ARMS)
    epochs = sorted({(row["experiment"], row["run"], row["epoch"]) for row in changed})
    if not epochs:
        return
    after: dict[Epoch, Counts] = defaultdict(dict)
    for row in await connection.fetch(_ARMS_OF_EPOCHS, *map(list, zip(*epochs, strict=True))):
        after[_epoch(row)][row["variant"]] = (row["units"], row["several"])
    before = {epoch: dict(counts) for epoch, counts in after.items()}
    for row in changed:
        units, several = after[_epoch(row)][row["variant"]]
        counts = (units - row["units"], several - row["several"])
        before[_epoch(row)][row["variant"]] = counts
    allocations = await store.get_allocations(connection, [(x, epoch) for x, _, epoch in epochs])
    entering: dict[tuple[int, int], list[UnitSums]] = defaultdict(list)
    leaving: dict[tuple[int, int], list[UnitSums]] = defaultdict(list)
    for experiment, run, epoch in epochs:
        shares = propensities(allocations[experiment, epoch])
        entering[experiment, run].append(_terms(after[experiment, run, epoch], shares))
        leaving[experiment, run].append(_terms(before[experiment, run, epoch], shares))
    for (experiment, run), terms in entering.items():
        standing = await read_unit_sums(connection, experiment, run)
        sums = combined([standing, *terms], leaving[experiment, run])
        text = msgspec.json.encode(sums).decode()
        await connection.execute(_KEEP_UNIT_SUMS, experiment, run, text)


async def read_unit_sums(connection: Connection, experiment: int, run: int) -> UnitSums:
    """The units of a run, summed over its epochs."""
    text = await connection.fetchval(_UNIT_SUMS, experiment, run)
    return UnitSums() if text is None else msgspec.json.decode(text, type=UnitSums)


def _epoch(row: asyncpg.Record) -> Epoch:
    return row["experiment"], row["run"], row["epoch"]


def _terms(counts: Counts, shares: Mapping[str, float]) -> UnitSums:
    units = {variant: n for variant, (n, _) in counts.items()}
    several = {variant: n for variant, (_, n) in counts.items()}
    return of_units(units, several, shares)
