"""Per-unit values and cells, brought from what stood to what stands.

A unit's state lies in a chunk with those of its neighbours, who came when it came. A batch of
outcomes is taken into the states that it touches; what that does to the scores goes into the cells
as differences. Nothing is kept in memory from one batch to the next, so there is nothing to lose
when a transaction is aborted, and a new leader knows all that the old one knew.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.folding.aggregates import WIDTH, Aggregate, Floats, Integers, absorb, scores, width
from analysis.folding.cells import ALL, CLOSED, Keys, distinct, keep_cells, read_cells
from analysis.folding.histogram import change_histograms
from analysis.folding.mend import count_again
from analysis.folding.metrics import StoredMetric
from analysis.folding.segments import segments_of
from analysis.folding.states import OPENING, States, Units, blocks_of, caps_of, unit_key
from analysis.folding.tables import Table, grouped, merge_tables, remove_tables, worn
from experiments.store import Connection

_COUNT_LATE = "update run_metric set late = late + $2 where id = $1"


class Outcomes(NamedTuple):
    """Outcomes of units, a row for each and every part of a metric that it counts in."""

    metric: Integers
    part: Integers
    ordinal: Integers
    value: Floats
    at: Integers

    def at_rows(self, rows: Integers) -> "Outcomes":
        """These outcomes only."""
        return Outcomes(
            self.metric[rows],
            self.part[rows],
            self.ordinal[rows],
            self.value[rows],
            self.at[rows],
        )


class Changes(NamedTuple):
    """Cells before and after, of one number of dimensions: all that is in `keys`."""

    keys: Keys
    before: Table
    after: Table


async def bring_up_to_date(
    connection: Connection, metrics: Sequence[StoredMetric], units: Units, outcomes: Outcomes
) -> list[Changes]:
    """Take outcomes into the units' states, and the change of their scores into the cells.

    Args:
        metrics: all that `units` names.
        units: each once.
        outcomes: of these units only.
    """
    changes: list[Changes] = []
    for aggregates, alike in _by_shape(metrics):
        numbers = np.array([metric.id for metric in alike], np.int64)
        own = units.at_rows(np.flatnonzero(np.isin(units.metric, numbers)))
        if len(own.metric):
            theirs = outcomes.at_rows(np.flatnonzero(np.isin(outcomes.metric, numbers)))
            changes += await _bring_alike(connection, aggregates, alike, own, theirs)
    return changes


async def open_with(
    connection: Connection, metrics: Sequence[StoredMetric], units: Units, outcomes: Outcomes
) -> None:
    """Take outcomes that are about to be dropped into the opening balances of their units.

    Args:
        metrics, units, outcomes: as above; these outcomes are in the states already.
    """
    for aggregates, alike in _by_shape(metrics):
        numbers = np.array([metric.id for metric in alike], np.int64)
        own = units.at_rows(np.flatnonzero(np.isin(units.metric, numbers)))
        if len(own.metric):
            own = own.at_rows(np.argsort(unit_key(own.metric, own.ordinal)))
            theirs = outcomes.at_rows(np.flatnonzero(np.isin(outcomes.metric, numbers)))
            openings = await States.read(connection, width(aggregates), own, OPENING)
            balance = openings.of_units()
            _absorb_all(aggregates, balance, own, theirs)
            await openings.keep(connection, balance)


def _by_shape(
    metrics: Sequence[StoredMetric],
) -> list[tuple[tuple[Aggregate, ...], list[StoredMetric]]]:
    """Metrics together with those that are made of the same aggregates."""
    shapes: dict[tuple[Aggregate, ...], list[StoredMetric]] = defaultdict(list)
    for metric in metrics:
        shapes[tuple(part.aggregate for part in metric.made.parts)].append(metric)
    return sorted(shapes.items())


async def _bring_alike(
    connection: Connection,
    aggregates: tuple[Aggregate, ...],
    metrics: Sequence[StoredMetric],
    units: Units,
    outcomes: Outcomes,
) -> list[Changes]:
    """`bring_up_to_date` for metrics that are made of the same aggregates."""
    order = np.argsort(unit_key(units.metric, units.ordinal))
    units = units.at_rows(order)
    metric = np.searchsorted([m.id for m in metrics], units.metric)
    caps = caps_of(metrics)[metric]

    states = await States.read(connection, width(aggregates), units)
    state = states.of_units()
    old, had = scores(aggregates, state, caps), _is_touched(state)
    afresh = np.flatnonzero(units.afresh)
    if len(afresh):
        anew = units.at_rows(afresh)
        openings = await States.read(connection, width(aggregates), anew, OPENING)
        state[afresh] = openings.of_units()
    _absorb_all(aggregates, state, units, outcomes)
    new, has = scores(aggregates, state, caps), _is_touched(state)
    await states.keep(connection, state)

    counted = units.old_arm != 0
    same = counted & (units.arm == units.old_arm) & (units.at == units.old_at) & (had == has)
    same &= units.profile == units.old_profile
    changed = np.flatnonzero(~(same & (old == new).all(axis=1)))
    if not len(changed):
        return []
    units, metric, old, new = units.at_rows(changed), metric[changed], old[changed], new[changed]
    had, has = had[changed], has[changed]
    leaving, entering = np.flatnonzero(counted[changed]), np.flatnonzero(units.arm != 0)
    block = blocks_of(metrics, metric, units.at)
    old_block = blocks_of(metrics, metric, units.old_at)
    # Who leaves for no arm was erased, or counts no more: outcomes that came sooner change nothing.
    await _count_late(connection, units.metric[(block == CLOSED) & (units.arm != 0)])
    came, went = (
        _Scored(units.metric, block, units.arm, units.profile, new),
        _Scored(units.metric, old_block, units.old_arm, units.old_profile, old),
    )
    quantile = np.array([m.made.kind == "quantile" for m in metrics])[metric]
    if quantile.any():
        valued = came.at_rows(np.flatnonzero(quantile & has & (units.arm != 0)))
        before = went.at_rows(np.flatnonzero(quantile & had & (units.old_arm != 0)))
        await change_histograms(
            connection,
            valued.places(),
            valued.scores()[:, 0],
            before.places(),
            before.scores()[:, 0],
        )
    # Quantiles are not broken down: a report would need the histograms of all segments.
    came = await _with_segments(connection, came.at_rows(entering), ~quantile[entering])
    went = await _with_segments(connection, went.at_rows(leaving), ~quantile[leaving])
    return [await _change_cells(connection, metrics, came, went)]


def _is_touched(state: Floats) -> NDArray[np.bool_]:
    touched: NDArray[np.bool_] = (state != 0.0).any(axis=1)
    return touched


def _absorb_all(
    aggregates: Sequence[Aggregate], state: Floats, units: Units, outcomes: Outcomes
) -> None:
    """Take outcomes into the states, part by part; `units` is in order."""
    row = np.searchsorted(
        unit_key(units.metric, units.ordinal), unit_key(outcomes.metric, outcomes.ordinal)
    )
    begin = 0
    for part, aggregate in enumerate(aggregates):
        end = begin + WIDTH[aggregate]
        mine = np.flatnonzero(outcomes.part == part)
        absorb(aggregate, state[:, begin:end], row[mine], outcomes.value[mine], outcomes.at[mine])
        begin = end


class _Scored(NamedTuple):
    """Units with their scores, and the block that they are counted in, a row for each."""

    metric: Integers
    block: Integers
    arm: Integers
    profile: Integers
    score: Floats

    def at_rows(self, rows: Integers) -> "_Scored":
        """These units only."""
        return _Scored(
            self.metric[rows],
            self.block[rows],
            self.arm[rows],
            self.profile[rows],
            self.score[rows],
        )

    def places(self) -> Keys:
        """The cells that they are in, each in two: that of its block, and that of all."""
        return Keys(
            np.concatenate([self.metric, self.metric]),
            np.concatenate([self.block, np.full_like(self.block, ALL)]),
            np.concatenate([self.arm, self.arm]),
        )

    def scores(self) -> Floats:
        """Their scores, for each of these cells."""
        return np.concatenate([self.score, self.score])


async def _with_segments(
    connection: Connection, scored: _Scored, broken_down: NDArray[np.bool_]
) -> _Scored:
    """Units in their arms, and once more in those of their segments."""
    profile = np.where(broken_down, scored.profile, 0)
    segment = await segments_of(connection, scored.arm, profile)
    if not len(segment.row):
        return scored
    again = scored.at_rows(segment.row)._replace(arm=segment.arm)
    return _Scored(*(np.concatenate(both) for both in zip(scored, again, strict=True)))


async def _change_cells(
    connection: Connection, metrics: Sequence[StoredMetric], came: _Scored, went: _Scored
) -> Changes:
    enter, leave = came.places(), went.places()
    every = Keys(*(np.concatenate(pair) for pair in zip(enter, leave, strict=True)))
    keys, place = distinct(every)
    cells, entering = len(keys.metric), len(enter.metric)
    before = await read_cells(connection, keys, came.score.shape[1])
    with_them = merge_tables(before, grouped(place[:entering], came.scores(), cells))
    after = remove_tables(with_them, grouped(place[entering:], went.scores(), cells))
    lost = worn(with_them, after)
    for metric in metrics if lost.any() else ():
        rows = np.flatnonzero(lost & (keys.metric == metric.id))
        if len(rows):
            fresh = await count_again(connection, metric, keys.at(rows))
            for column, values in zip(after, fresh, strict=True):
                column[rows] = values
    await keep_cells(connection, keys, after)
    return Changes(keys, before, after)


async def _count_late(connection: Connection, metric: Integers) -> None:
    numbers, counts = np.unique(metric, return_counts=True)
    late = list(zip(numbers.tolist(), counts.tolist(), strict=True))
    await connection.executemany(_COUNT_LATE, late)
