"""Histograms of cells in Postgres: values counted in and out, in the buckets of `bins.py`."""

from collections import defaultdict
from typing import Final

import numpy as np

from analysis.folding.cells import Keys
from analysis.folding.wire import Layout, write_rows
from analysis.inference.bins import Floats, bucket, edges
from analysis.inference.quantile import Bin
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
# By variant: as many rows as there are buckets, from as many as there are in all epochs. Those are
# epochs of the same propensities, so they were made by hand, and are few.
_BINS = """
    select a.variant, h.bucket, sum(h.n)::bigint as n
    from histogram h join arm a on a.id = h.arm
    where h.metric = $1 and h.block = $2
    group by a.variant, h.bucket having sum(h.n) > 0
    order by h.bucket
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


async def read_bins(connection: Connection, metric: int, block: int) -> dict[str, tuple[Bin, ...]]:
    """The histogram of each variant, over all epochs."""
    bins: dict[str, list[Bin]] = defaultdict(list)
    for row in await connection.fetch(_BINS, metric, block):
        bins[row["variant"]].append(Bin(*edges(row["bucket"]), row["n"]))
    return {variant: tuple(found) for variant, found in bins.items()}
