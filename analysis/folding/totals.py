"""Sums over epochs, kept beside the cells: what an estimate reads, however many epochs there are.

An epoch's terms are a function of the cells of its arms. Whenever one of those changes, the terms
of before leave the sums and those of now come in; the sums are exact, so they always are the sums
of the terms of the cells as they stand (`epoch_sums.py`).
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec
import numpy as np

from analysis.folding.cells import ALL, CLOSED, Keys, read_cells
from analysis.folding.metrics import StoredMetric
from analysis.folding.tables import Table
from analysis.folding.values import Changes
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.exact import combined
from analysis.inference.moments import Moments
from experiments import store
from experiments.store import Connection

Cell: TypeAlias = tuple[int, int, int]
"""Metric, block and arm."""

_ARMS_OF_THE_SAME_EPOCHS = """
    select distinct b.id, b.experiment, b.run, b.epoch, b.variant
    from arm a join arm b using (experiment, run, epoch)
    where a.id = any($1)
"""
_READ = "select sums from metric_total where metric = $1 and block = $2"
_KEEP = """
    insert into metric_total (metric, block, sums) values ($1, $2, $3)
    on conflict (metric, block) do update set sums = excluded.sums
"""
_SUMMED: Final = (CLOSED, ALL)
_AT_ONCE: Final = 200


async def read_total(connection: Connection, metric: int, block: int) -> Population:
    """The sums over epochs of a metric's cells of this block: `CLOSED` or `ALL`."""
    text = await connection.fetchval(_READ, metric, block)
    return Population() if text is None else msgspec.json.decode(text, type=Population)


async def keep_totals(
    connection: Connection, metrics: Sequence[StoredMetric], changes: Iterable[Changes]
) -> None:
    """Bring the sums from what stood to what stands, after cells have changed."""
    by_id = {metric.id: metric for metric in metrics}
    for change in changes:
        rows = np.flatnonzero(np.isin(change.keys.block, _SUMMED))
        if len(rows):
            keys = change.keys.at(rows)
            await _keep(connection, by_id, keys, change.before.at(rows), change.after.at(rows))


async def _keep(
    connection: Connection,
    metrics: Mapping[int, StoredMetric],
    keys: Keys,
    before: Table,
    after: Table,
) -> None:
    arms = await connection.fetch(_ARMS_OF_THE_SAME_EPOCHS, np.unique(keys.arm).tolist())
    epoch_of = {row["id"]: (row["experiment"], row["epoch"]) for row in arms}
    arms_of: dict[tuple[int, int], list[asyncpg.Record]] = defaultdict(list)
    for row in arms:
        arms_of[row["experiment"], row["epoch"]].append(row)
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
    plans = {
        experiment: await store.get_definition(connection, experiment)
        for experiment in {experiment for _, _, (experiment, _) in affected}
    }
    epochs: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for metric, block, epoch in sorted(affected):
        epochs[metric, block].append(epoch)
    for (metric, block), theirs in epochs.items():
        plan, kind = plans[theirs[0][0]], metrics[metric].made.kind
        variants, control = list(plan.weights), plan.control.key
        total = await read_total(connection, metric, block)
        for begin in range(0, len(theirs), _AT_ONCE):
            entering, leaving = (
                [
                    of_epoch(
                        {arm["variant"]: cells[metric, block, arm["id"]] for arm in arms_of[epoch]},
                        variants,
                        control,
                        kind,
                    )
                    for epoch in theirs[begin : begin + _AT_ONCE]
                ]
                for cells in (new, old)
            )
            total = combined([total, *entering], leaving)
            await asyncio.sleep(0)  # where doors are served beside this, they get their turn
        await connection.execute(_KEEP, metric, block, msgspec.json.encode(total).decode())


def _by_key(keys: Keys, table: Table) -> dict[Cell, Moments]:
    places: Any = zip(*(column.tolist() for column in keys), strict=True)
    rows = zip(*(column.tolist() for column in table), strict=True)
    return {
        place: Moments(n, tuple(mean), tuple(m2))
        for place, (n, mean, m2) in zip(places, rows, strict=True)
    }
