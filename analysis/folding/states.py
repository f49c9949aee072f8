"""States of units in Postgres: those who came one after another lie in one chunk."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from analysis.folding.aggregates import Floats, Integers
from analysis.folding.cells import CLOSED
from analysis.folding.metrics import StoredMetric
from analysis.folding.wire import UNIX_TO_POSTGRES, Columns, Layout, read_rows, write_rows
from experiments.store import Connection

CHUNK: Final = 128
"""Units whose states lie together: few enough that a lone outcome does not cost much."""
_ORDINAL_BITS: Final = 40
_CHUNK_BITS: Final = 7

_READ_STATES = """
    select metric, chunk, state
    from unit_value join unnest($1::int[], $2::int[]) as wanted (metric, chunk)
    using (metric, chunk)
"""
_MAKE_ROOM = """
    create temp table if not exists new_value (metric int, chunk int, state double precision[])
    on commit delete rows
"""
_KEEP_STATES = """
    insert into unit_value (metric, chunk, state) select * from new_value
    on conflict (metric, chunk) do update set state = excluded.state
"""
_READ_OPENINGS = """
    select metric, chunk, opening
    from unit_value join unnest($1::int[], $2::int[]) as wanted (metric, chunk)
    using (metric, chunk)
    where opening is not null
"""
_KEEP_OPENINGS = """
    insert into unit_value (metric, chunk, state, opening)
    select metric, chunk, array_fill(0::double precision, array[cardinality(state)]), state
    from new_value
    on conflict (metric, chunk) do update set opening = excluded.opening
"""


class Kind(NamedTuple):
    """What is kept of units, by the statements that read and keep it."""

    read: str
    keep: str


STATE: Final = Kind(_READ_STATES, _KEEP_STATES)
"""What all their outcomes came to."""
OPENING: Final = Kind(_READ_OPENINGS, _KEEP_OPENINGS)
"""What those of their outcomes came to that were dropped since: where a state begins afresh."""


class Units(NamedTuple):
    """Units of a metric, a row for each: which, enrolled where and when, and where before.

    `old_arm` is 0 for those that the metric does not count yet, `arm` for those that it does not
    count any more. `profile` and `old_profile` say which segments it is counted in (`segments.py`).
    `afresh` says that the state is made anew, from all outcomes. Times are microseconds since 2000.
    """

    metric: Integers
    ordinal: Integers
    arm: Integers
    at: Integers
    profile: Integers
    old_arm: Integers
    old_at: Integers
    old_profile: Integers
    afresh: Integers

    @classmethod
    def standing(cls, metric: Integers, rows: Columns) -> "Units":
        """Units that stay where they are: columns `ordinal`, `arm`, `at` and `profile`."""
        place = rows["arm"], rows["at"], rows["profile"]
        return cls(metric, rows["ordinal"], *place, *place, np.zeros(len(metric), np.int64))

    def at_rows(self, rows: Integers) -> "Units":
        """These units only."""
        return Units(*(column[rows] for column in self))


def blocks_of(metrics: Sequence[StoredMetric], metric: Integers, at: Integers) -> Integers:
    """The blocks of cells that units are counted in: `CLOSED` where theirs is closed.

    Args:
        metric: for each unit, the place of its metric in `metrics`.
        at: for each unit, its enrolment, in microseconds since 2000.
    """
    length = np.array([m.made.block_seconds for m in metrics], np.int64)[metric]
    closed_through = np.array([m.closed_through for m in metrics], np.int64)[metric]
    block = (at + UNIX_TO_POSTGRES) // 1_000_000 // length * length
    return np.where(block <= closed_through, CLOSED, block)


def caps_of(metrics: Sequence[StoredMetric]) -> Floats:
    """The caps of metrics with equally many parts, of shape (metrics, parts); infinite for none."""
    return np.array([[np.inf if p.cap is None else p.cap for p in m.made.parts] for m in metrics])


def unit_key(metric: Integers, ordinal: Integers) -> Integers:
    """One number for a unit of a metric, by which they are sorted and found.

    Raises:
        ValueError: beyond 8 million metrics or 2^40 units of a run.
    """
    if len(metric) and (metric.max() >= 1 << 23 or ordinal.max() >= 1 << _ORDINAL_BITS):
        raise ValueError("folding can number no more metrics, or units of a run")
    return (metric.astype(np.int64) << _ORDINAL_BITS) | ordinal.astype(np.int64)


class States:
    """The chunks that hold the states of some units, in numbers `[chunk, number, place]`."""

    def __init__(
        self, kind: Kind, keys: Integers, chunks: Floats, chunk: Integers, place: Integers
    ) -> None:
        self._kind = kind
        self._keys = keys
        self._chunks = chunks
        self._chunk = chunk
        self._place = place

    @classmethod
    async def read(
        cls, connection: Connection, wide: int, units: Units, kind: Kind = STATE
    ) -> "States":
        """The chunks of these units, zeros where there are none yet."""
        chunk_of = unit_key(units.metric, units.ordinal >> _CHUNK_BITS)
        keys, chunk = np.unique(chunk_of, return_inverse=True)
        rows = await read_rows(
            connection, kind.read, _layout(wide), *(part.tolist() for part in _split(keys))
        )
        chunks = np.zeros((len(keys), wide * CHUNK))
        found = unit_key(rows["metric"], rows["chunk"])
        chunks[np.searchsorted(keys, found)] = rows["state"]
        place = units.ordinal & (CHUNK - 1)
        return cls(kind, keys, chunks.reshape(len(keys), wide, CHUNK), chunk, place)

    def of_units(self) -> Floats:
        """The states, of shape (units, numbers): a copy."""
        state: Floats = self._chunks[self._chunk, :, self._place]
        return state

    async def keep(self, connection: Connection, state: Floats) -> None:
        """Store the chunks with the states as they are now."""
        kept = self._chunks.copy()
        kept[self._chunk, :, self._place] = state
        dirty = np.flatnonzero((kept != self._chunks).any(axis=(1, 2)))
        if not len(dirty):
            return
        metric, chunk = _split(self._keys[dirty])
        wide = kept.shape[1]
        columns = {
            "metric": metric,
            "chunk": chunk,
            "state": kept[dirty].reshape(len(dirty), wide * CHUNK),
        }
        await connection.execute(_MAKE_ROOM)
        await write_rows(connection, "new_value", _layout(wide), columns)
        await connection.execute(self._kind.keep)
        await connection.execute("truncate new_value")


def _split(keys: Integers) -> tuple[Integers, Integers]:
    return keys >> _ORDINAL_BITS, keys & ((1 << _ORDINAL_BITS) - 1)


def _layout(wide: int) -> Layout:
    return Layout({"metric": "int4", "chunk": "int4", "state": wide * CHUNK})
