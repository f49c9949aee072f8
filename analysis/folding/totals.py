"""Sums over epochs, kept beside the cells: what an estimate reads, however many epochs there are.

An epoch's terms are a function of the cells of its arms. Whenever one of those changes, the terms
of before leave the sums and those of now come in; the sums are exact, so they always are the sums
of the terms of the cells as they stand (`epoch_sums.py`). Sums that an older release made, of other
terms, are made again from the cells.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import asyncpg
import msgspec
import numpy as np

from analysis.folding.cells import ALL, CLOSED, Keys, moments_of, read_cells
from analysis.folding.metrics import StoredMetric, read_every_metric
from analysis.folding.pause import Pause
from analysis.folding.position import hold_moments
from analysis.folding.tables import Table
from analysis.folding.values import Changes
from analysis.inference.epoch_sums import BatchedSums, EpochSums, Population, of_epoch
from analysis.inference.exact import combined
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments
from experiments import store
from experiments.model import Experiment
from experiments.store import Connection

Cell: TypeAlias = tuple[int, int, int]
"""Metric, block and arm."""
Epoch: TypeAlias = tuple[int, int, int]
"""Segment, experiment and the epoch's number."""
Change: TypeAlias = tuple[dict[str, Moments], dict[str, Moments]]
"""An epoch's cells by variant, before and after."""


class Place(NamedTuple):
    """Which sums these are: of a metric, of the block `CLOSED` or `ALL`, and of a segment, of which
    0 are all units."""

    metric: int
    block: int
    segment: int


# Those of a segment are summed with others of the same segment; segment 0 are all units.
_ARMS_OF_THE_SAME_EPOCHS = """
    select distinct b.id, b.experiment, b.run, b.epoch, b.variant, 0 as segment
    from arm a join arm b using (experiment, run, epoch)
    where a.id = any($1)
    union all
    select distinct t.id, b.experiment, b.run, b.epoch, b.variant, s.segment
    from segment_arm s
    join arm a on a.id = s.arm
    join arm b using (experiment, run, epoch)
    join segment_arm t on t.arm = b.id and t.segment = s.segment
    where s.id = any($1)
"""
_READ = """
    select t.metric, t.block, t.segment, t.sums, t.form
    from unnest($1::int[], $2::bigint[], $3::int[]) as wanted (metric, block, segment)
    join metric_total t using (metric, block, segment)
"""
_KEEP = """
    insert into metric_total (metric, block, segment, sums, form)
    select metric, block, segment, sums::json, $5
    from unnest($1::int[], $2::bigint[], $3::int[], $4::text[])
        as made (metric, block, segment, sums)
    on conflict (metric, block, segment) do update set sums = excluded.sums, form = excluded.form
"""
_STALE = """
    select metric, block, segment from metric_total where form < $1
    order by metric, block, segment limit 1
"""
_CELLS = """
    select a.epoch, a.variant, c.n, c.mean, c.m2
    from cell c
    left join segment_arm s on s.id = c.arm
    join arm a on a.id = coalesce(s.arm, c.arm)
    where c.metric = $1 and c.block = $2 and coalesce(s.segment, 0) = $3
    order by a.epoch
"""
_SUMMED: Final = (CLOSED, ALL)
_AT_ONCE: Final = 200
FORM: Final = 3
"""The form of the sums that are made here: a whole number that grows with what is in the terms."""


async def read_total(
    connection: Connection, metric: int, block: int, segment: int = 0
) -> Population:
    """The sums over epochs of a metric's cells of this block, `CLOSED` or `ALL`: those of all its
    units, or of a segment's."""
    place = Place(metric, block, segment)
    total, _ = (await _read(connection, [place])).get(place, (Population(), FORM))
    return total


async def renew_totals(connection: Connection) -> bool:
    """Make the sums of one metric and block anew that are of an older form; whether there were any.

    The work is that of one total: it grows with the epochs behind it, of which fifty thousand are
    half a minute. What reads a total of an older form meanwhile has its estimates, but for what the
    form lacks.
    """
    await hold_moments(connection)
    row = await connection.fetchrow(_STALE, FORM)
    if row is None:
        return False
    [metric] = await read_every_metric(connection, (), [row["metric"]])
    plan = await store.get_definition(connection, metric.experiment)
    place = Place(metric.id, row["block"], row["segment"])
    await _store(connection, {place: await _made_anew(connection, metric, place, plan)})
    return True


async def keep_totals(
    connection: Connection, metrics: Sequence[StoredMetric], changes: Iterable[Changes]
) -> None:
    """Bring the sums from what stood to what stands, after cells have changed.

    However many metrics, blocks and segments that touches, their sums are read in one statement and
    stored in one.
    """
    changed: dict[Place, list[Change]] = defaultdict(list)
    for change in changes:
        rows = np.flatnonzero(np.isin(change.keys.block, _SUMMED))
        if len(rows):
            keys = change.keys.at(rows)
            before, after = change.before.at(rows), change.after.at(rows)
            for place, epoch in await _changed_epochs(connection, keys, before, after):
                changed[place].append(epoch)
    if not changed:
        return
    by_id = {metric.id: metric for metric in metrics}
    plans = {
        experiment: await store.get_definition(connection, experiment)
        for experiment in {by_id[place.metric].experiment for place in changed}
    }
    standing = await _read(connection, changed)
    kept: dict[Place, Population] = {}
    pause = Pause(connection)
    for place, epochs in changed.items():
        metric = by_id[place.metric]
        plan = plans[metric.experiment]
        total, form = standing.get(place, (Population(), FORM))
        if form < FORM:  # what is made from the cells as they stand has all changes in it
            kept[place] = await _made_anew(connection, metric, place, plan)
            continue
        for begin in range(0, len(epochs), _AT_ONCE):
            some = epochs[begin : begin + _AT_ONCE]
            leaving, entering = (
                [terms_of(cells, plan, metric.made.kind, place.segment) for cells in side]
                for side in zip(*some, strict=True)
            )
            total = combined([total, *entering], leaving)
            await pause.after(len(some))
        kept[place] = total
    await _store(connection, kept)


def terms_of(
    cells: Mapping[str, Moments], plan: Experiment, kind: Kind, segment: int
) -> Population:
    """What an epoch adds to the sums of a segment; 0 are all units.

    A segment is compared with the control only, by differences within epochs; so its sums lack what
    batched OLS and the comparison of all variants at once take, which is more than half of them.
    """
    terms = of_epoch(cells, list(plan.weights), plan.control.key, kind)
    if segment == 0:
        return terms
    contrasts = {
        treatment: msgspec.structs.replace(sums, batched=BatchedSums())
        for treatment, sums in terms.contrasts.items()
    }
    return msgspec.structs.replace(terms, contrasts=contrasts, together=EpochSums())


async def _changed_epochs(
    connection: Connection, keys: Keys, before: Table, after: Table
) -> list[tuple[Place, Change]]:
    """The epochs of which cells have changed, with all cells of each, by variant."""
    arms = await connection.fetch(_ARMS_OF_THE_SAME_EPOCHS, np.unique(keys.arm).tolist())
    epoch_of = {row["id"]: _epoch_of(row) for row in arms}
    arms_of: dict[Epoch, list[asyncpg.Record]] = defaultdict(list)
    for row in arms:
        arms_of[_epoch_of(row)].append(row)
    old, new = _by_key(keys, before), _by_key(keys, after)
    affected = {(metric, block, epoch_of[arm]) for metric, block, arm in new}
    others = sorted(
        {(metric, block, row["id"]) for metric, block, epoch in affected for row in arms_of[epoch]}
        - new.keys()
    )
    if others:
        unchanged = Keys(*(np.array(column, np.int64) for column in zip(*others, strict=True)))
        same = _by_key(unchanged, await read_cells(connection, unchanged, before.mean.shape[1]))
        old, new = old | same, new | same
    found = []
    for metric, block, epoch in sorted(affected):
        was, now = (
            {arm["variant"]: cells[metric, block, arm["id"]] for arm in arms_of[epoch]}
            for cells in (old, new)
        )
        found.append((Place(metric, block, epoch[0]), (was, now)))
    return found


async def _read(
    connection: Connection, places: Iterable[Place]
) -> dict[Place, tuple[Population, int]]:
    """The sums that there are, and their form."""
    columns = [list(column) for column in zip(*places, strict=True)]
    return {
        Place(row["metric"], row["block"], row["segment"]): (
            msgspec.json.decode(row["sums"], type=Population),
            row["form"],
        )
        for row in await connection.fetch(_READ, *columns)
    }


async def _store(connection: Connection, totals: Mapping[Place, Population]) -> None:
    columns = [list(column) for column in zip(*totals, strict=True)]
    texts = [msgspec.json.encode(total).decode() for total in totals.values()]
    await connection.execute(_KEEP, *columns, texts, FORM)


async def _made_anew(
    connection: Connection, metric: StoredMetric, place: Place, plan: Experiment
) -> Population:
    """The sums of the cells as they stand."""
    kind, segment = metric.made.kind, place.segment
    total, terms = Population(), list[Population]()
    rows = connection.cursor(_CELLS, *place, prefetch=_AT_ONCE)
    epoch, cells = None, dict[str, Moments]()
    async for row in rows:
        if row["epoch"] != epoch and cells:
            terms.append(terms_of(cells, plan, kind, segment))
            cells = {}
        epoch = row["epoch"]
        cells[row["variant"]] = moments_of(row)
        if len(terms) == _AT_ONCE:
            total, terms = combined([total, *terms]), []
    terms.append(terms_of(cells, plan, kind, segment))
    return combined([total, *terms])


def _epoch_of(arm: asyncpg.Record) -> Epoch:
    return arm["segment"], arm["experiment"], arm["epoch"]


def _by_key(keys: Keys, table: Table) -> dict[Cell, Moments]:
    places: Any = zip(*(column.tolist() for column in keys), strict=True)
    rows = zip(*(column.tolist() for column in table), strict=True)
    return {
        place: Moments(n, tuple(mean), tuple(m2))
        for place, (n, mean, m2) in zip(places, rows, strict=True)
    }
