"""Cells of moments in Postgres: read and stored many at a time."""

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.folding.tables import Table, empty_table
from analysis.folding.wire import Columns, Layout, read_rows, write_rows
from analysis.inference.moments import Moments
from experiments.store import Connection

CLOSED: Final = 0
"""The block of a cell that holds all closed blocks of its arm."""
ALL: Final = -1
"""The block of a cell that holds all units of its arm, whether their block is closed or not."""

_KEY: Final = {"metric": "int4", "block": "int8", "arm": "int4"}
_READ = """
    select c.metric, c.block, c.arm, c.n, c.mean, c.m2
    from cell c join unnest($1::int[], $2::bigint[], $3::int[]) as wanted (metric, block, arm)
    using (metric, block, arm)
"""
_MAKE_ROOM = """
    create temp table if not exists new_cell (like cell) on commit delete rows
"""
_KEEP = """
    insert into cell select * from new_cell
    on conflict (metric, block, arm) do update
    set n = excluded.n, mean = excluded.mean, m2 = excluded.m2
"""


class Keys(NamedTuple):
    """What cells are keyed by, a row for each."""

    metric: NDArray[np.int64]
    block: NDArray[np.int64]
    arm: NDArray[np.int64]

    def at(self, rows: NDArray[Any]) -> "Keys":
        """These only."""
        return Keys(self.metric[rows], self.block[rows], self.arm[rows])


def distinct(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """The keys without repeats, in order, and for each of the given ones its place among them."""
    order = np.lexsort((keys.arm, keys.block, keys.metric))
    ordered = np.stack(keys.at(order))
    first = np.ones(len(order), np.bool_)
    first[1:] = (np.diff(ordered) != 0).any(axis=0)
    place = np.empty(len(order), np.int64)
    place[order] = np.cumsum(first) - 1
    return keys.at(order[first]), place


def _layout(d: int) -> Layout:
    return Layout(_KEY | {"n": "int8", "mean": d, "m2": d * (d + 1) // 2})


async def read_cells(connection: Connection, keys: Keys, d: int) -> Table:
    """The cells of these keys, which are distinct and in order; those that are not there, empty."""
    rows = await read_rows(connection, _READ, _layout(d), *(column.tolist() for column in keys))
    table = empty_table(len(keys.metric), d)
    if len(rows["n"]):
        found = Keys(*(rows[name].astype(np.int64) for name in Keys._fields))
        both = Keys(*(np.concatenate(pair) for pair in zip(keys, found, strict=True)))
        _, place = distinct(both)
        at = place[len(keys.metric) :]
        table.n[at], table.mean[at], table.m2[at] = rows["n"], rows["mean"], rows["m2"]
    return table


async def keep_cells(connection: Connection, keys: Keys, table: Table) -> None:
    """Store cells as they are now."""
    columns: Columns = keys._asdict() | table._asdict()
    await connection.execute(_MAKE_ROOM)
    await write_rows(connection, "new_cell", _layout(table.mean.shape[1]), columns)
    await connection.execute(_KEEP)
    await connection.execute("truncate new_cell")


def moments_of(row: Any) -> Moments:
    """The moments in a row of a cell."""
    return Moments(row["n"], tuple(row["mean"]), tuple(row["m2"]))
