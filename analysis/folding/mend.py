"""Cells counted again from their units' states, where differences have cost them their digits.

A cell loses digits when something leaves it that was far larger than what stays: one purchase of
1e30 that is erased leaves 16 digits of itself, and nothing of the others. That is rare, and shows
(`tables.worn`), so the cost, which is that of the run's enrolments, is paid only then.
"""

from typing import Final

import numpy as np

from analysis.folding.aggregates import scores, width
from analysis.folding.cells import ALL, Keys, distinct
from analysis.folding.metrics import StoredMetric
from analysis.folding.segments import arms_of, segments_of
from analysis.folding.states import States, Units, blocks_of, caps_of
from analysis.folding.tables import Table, empty_table, grouped, merge_tables
from analysis.folding.wire import Layout, read_rows
from experiments.store import Connection

_STRETCH: Final = 200_000
_UNITS: Final = """
    select ordinal, arm, at, profile from enrolment
    where experiment = $1 and run = $2 and ordinal >= $3 and ordinal < $4 and arm = any($5)
      and ($6::timestamptz is null or at >= $6)
    order by ordinal
"""
_LAST: Final = "select enrolments from run where experiment = $1 and number = $2"
_LAYOUT: Final = Layout({"ordinal": "int8", "arm": "int4", "at": "time", "profile": "int4"})


async def count_again(connection: Connection, metric: StoredMetric, keys: Keys) -> Table:
    """The moments of some cells of a metric, from the states of the units that they count."""
    aggregates = [part.aggregate for part in metric.made.parts]
    last = metric.covered
    if last is None:
        last = await connection.fetchval(_LAST, metric.experiment, metric.run)
    cells = len(keys.metric)
    total = empty_table(cells, len(aggregates))
    arms = await arms_of(connection, np.unique(keys.arm).tolist())
    for begin in range(0, last, _STRETCH):
        stretch = (metric.experiment, metric.run, begin, min(begin + _STRETCH, last))
        rows = await read_rows(connection, _UNITS, _LAYOUT, *stretch, arms, metric.since)
        units = Units.standing(np.full(len(rows["ordinal"]), metric.id), rows)
        states = await States.read(connection, width(aggregates), units)
        caps = np.repeat(caps_of([metric]), len(units.at), axis=0)
        values = scores(aggregates, states.of_units(), caps)
        own = blocks_of([metric], np.zeros(len(units.at), np.int64), units.at)
        segment = await segments_of(connection, units.arm, units.profile)
        row = np.concatenate([np.arange(len(own)), segment.row])
        arm, values = np.concatenate([units.arm, segment.arm]), values[row]
        for block in (own[row], np.full(len(row), ALL)):
            there = Keys(np.full(len(row), metric.id), block, arm)
            both = Keys(*(np.concatenate(pair) for pair in zip(keys, there, strict=True)))
            _, place = distinct(both)
            cell_of = np.full(len(place), -1)
            cell_of[place[:cells]] = np.arange(cells)
            cell = cell_of[place[cells:]]
            counted = np.flatnonzero(cell >= 0)
            total = merge_tables(total, grouped(cell[counted], values[counted], cells))
    return total
