"""Histograms of cells in Postgres: values counted in and out, in the buckets of `bins.py`."""

from typing import Final

import numpy as np

from analysis.folding.cells import Keys
from analysis.folding.wire import Layout, write_rows
from analysis.inference.bins import Floats, bucket
from experiments.store import Connection

_MAKE_ROOM = """
    create temp table if not exists new_count
        (metric int, block bigint, arm int, bucket int, n bigint) on commit delete rows
"""
_ADD = """
    insert into histogram as h (metric, block, arm, bucket, n)
    select metric, block, arm, bucket, sum(n) from new_count
    group by metric, block, arm, bucket having sum(n) <> 0
    on conflict (metric, block, arm, bucket) do update set n = h.n + excluded.n
"""
_LAYOUT: Final = Layout(
    {"metric": "int4", "block": "int8", "arm": "int4", "bucket": "int4", "n": "int8"}
)


async def change_histograms(
    connection: Connection, enter: Keys, entering: Floats, leave: Keys, leaving: Floats
) -> None:
    """Count values in the histograms of their cells, and others out of them."""
    every = Keys(*(np.concatenate(pair) for pair in zip(enter, leave, strict=True)))
    columns = every._asdict() | {
        "bucket": bucket(np.concatenate([entering, leaving])),
        "n": np.repeat([1, -1], [len(entering), len(leaving)]),
    }
    await connection.execute(_MAKE_ROOM)
    await write_rows(connection, "new_count", _LAYOUT, columns)
    await connection.execute(_ADD)
    await connection.execute("truncate new_count")
