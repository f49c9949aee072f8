"""Backfill: values of units that were enrolled before a metric came, or was changed; of one of the
scope `exposure` what they have met last.

It goes on in the background, some units a step, each step in a transaction of its own. The values
of a metric stand for all ordinals below its mark `covered`; folding keeps those up to date
meanwhile, and leaves the others to the steps to come, which read all that was folded by then.
"""

from typing import Final

import msgspec

from analysis.folding.enrol import make_room, read_moved
from analysis.folding.fold import BY_INDEX, apply, outcomes_of_moved, units_of_moved
from analysis.folding.metrics import StoredMetric, read_every_metric
from analysis.folding.position import hold_moments
from analysis.folding.visits import fill_meetings
from experiments.store import Connection

STEP: Final = 20_000
"""Units of one step: a fraction of a second."""

_UNFINISHED = """
    select m.id, m.experiment, m.run, m.covered, r.enrolments
    from run_metric m join run r on r.experiment = m.experiment and r.number = m.run
    where m.covered is not null order by m.id limit 1
"""
_UNITS_FROM = """
    insert into moved
    select experiment, run, ordinal, project, unit_type, unit, arm, at, several, profile,
           null, null, null, 0
    from enrolment where experiment = $1 and run = $2 and ordinal >= $3 and ordinal < $4
"""
_COVERED = "update run_metric set covered = $2 where id = $1"


async def backfill(connection: Connection) -> bool:
    """Make the values of the next units of a metric that is not complete; whether there was one.

    The caller's transaction makes it one with the metric's mark.
    """
    await hold_moments(connection)
    row = await connection.fetchrow(_UNFINISHED)
    if row is None:
        return False
    begin, end = row["covered"], min(row["covered"] + STEP, row["enrolments"])
    await connection.execute(BY_INDEX)
    [metric] = await read_every_metric(connection, (), [row["id"]])
    if metric.made.scope == "exposure":
        await fill_meetings(connection, metric, begin, end)
    else:
        await _fill_values(connection, metric, begin, end)
    await connection.execute(_COVERED, metric.id, None if end == row["enrolments"] else end)
    return True


async def _fill_values(connection: Connection, metric: StoredMetric, begin: int, end: int) -> None:
    await make_room(connection)
    await connection.execute(_UNITS_FROM, metric.experiment, metric.run, begin, end)
    units = units_of_moved(
        await read_moved(connection), [msgspec.structs.replace(metric, covered=None)]
    )
    await apply(connection, [metric], units, await outcomes_of_moved(connection, units))
