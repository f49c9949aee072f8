"""Visits: what units do now, however long ago they were enrolled.

A metric of the scope `exposure` counts by the time of outcomes. A visit is a unit and a block in
which it had outcomes of the metric's events; its score is what they add up to, numerator and
denominator. It counts for the arm that the unit had met last (`meetings.py`), by whose epoch's
propensities it is weighed. A block's cells have a row for each visit, so their variance is
clustered by unit, but only within the block: a unit that comes back counts in each block that it
comes in, as if it were another one. So what is inferred from visits holds approximately: chance
puts more of the units that err often into one of the variants, and then they come again and again.
With errors of 2 % on average, which differ between units with a standard deviation of 5 points, and
at an alpha of 5 %, a variant that is no different raised an alarm within ten minutes of 100 visits
a second

- without a margin in 2 of 100 runs, where 10,000 units came 6 times each, and in 15 of 100, where
  1,000 units came 60 times each;
- with a margin of 1 point in none of 60, where 1,000 units came so; if it was worse by exactly that
  point, in 8 of 60.

A margin that is wider than what such a split may come to covers it.

While a block is open, what each fold adds to it is appended to a log, and nothing is looked up or
changed there; that costs little, however many units there are. Where a meeting comes to be known
after outcomes that followed it, the log is told that its unit's visits count no more, and they are
made anew from the raw outcomes. So the order in which segments come in does not matter. Once the
block closes, the log becomes moments by arm, which know of no unit, and is deleted; what comes
later is counted as late, and changes nothing.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from analysis.folding.aggregates import Floats, Integers
from analysis.folding.blocks import Closed
from analysis.folding.cells import ALL, CLOSED, Keys, distinct, keep_cells, read_cells
from analysis.folding.enrol import Batch
from analysis.folding.meetings import (
    ROUTERS_FOLLOW,
    Run,
    arms_at,
    epochs_of,
    microseconds,
    note_last,
    note_meetings,
    read_epochs,
    still_meets,
    time_of,
)
from analysis.folding.metrics import MOST_AHEAD, RunMetric, StoredMetric, read_every_metric
from analysis.folding.tables import Table, grouped, merge_tables
from analysis.folding.totals import keep_totals
from analysis.folding.values import Changes
from analysis.folding.wire import UNIX_TO_POSTGRES, Columns, Layout, read_rows
from analysis.inference.moments import Moments
from experiments.model import LARGEST_VALUE
from experiments.store import Connection

MOST_PIECES: Final = 1_000_000
"""What of a metric's log is closed at once, and one block at least; the rest is for the next
tick."""

PIECE: Final = np.dtype(
    [("ordinal", "<i8"), ("arm", "<i4"), ("numerator", "<f8"), ("denominator", "<f8")]
)
"""What a fold adds to a visit, as the log has it. Arm 0 says that what the log has of the unit up
to there counts no more."""

_SECOND: Final = 1_000_000

# In the order of live runs, however many metrics there were before.
_LIVE: Final = """
    select m.id
    from run r
    join run_metric m
        on m.experiment = r.experiment and m.run = r.number and m.scope = 'exposure'
    where r.ended_at is null
"""
_OF_RUNS: Final = """
    select m.id
    from unnest($1::bigint[], $2::int[]) as wanted (experiment, run)
    join run_metric m
        on m.experiment = wanted.experiment and m.run = wanted.run and m.scope = 'exposure'
"""
_LATEST: Final = """
    select m.experiment, m.run, max(v.last_at) as at
    from unnest($1::int[]) as wanted (metric)
    join run_metric m on m.id = wanted.metric
    join visit v on v.metric = m.id
    group by m.experiment, m.run
"""
_OPEN_BLOCKS: Final = "select distinct metric, block from visit where metric = any($1)"
OPEN_OUTCOMES: Final = """
    select p.metric, p.part, e.ordinal, coalesce(o.value, 'NaN'), o.at, e.at, e.arm
    from unnest($1::bigint[], $2::int[], $3::bigint[]) as wanted (experiment, run, ordinal)
    join enrolment e
        on e.experiment = wanted.experiment and e.run = wanted.run
       and e.ordinal = wanted.ordinal
    join run_metric m
        on m.experiment = e.experiment and m.run = e.run and m.scope = 'exposure'
    join metric_part p on p.metric = m.id
    join outcome o
        on hashtextextended(o.unit, 0) = hashtextextended(e.unit, 0)
       and o.unit collate "C" = e.unit and o.unit_type = e.unit_type and o.project = e.project
       and o.event = p.event
    join segment s on s.id = o.segment and s.folded_at is not null
    where o.received_at >= $4 and o.at >= e.at and o.at < e.at + p.ends
      and o.at >= to_timestamp(m.closed_through + m.block_seconds) and o.at >= m.since
"""
_LAYOUT: Final = Layout(
    {
        "metric": "int4",
        "part": "int4",
        "ordinal": "int8",
        "value": "float8",
        "at": "time",
        "enrolled_at": "time",
        "arm": "int4",
    }
)
_APPEND: Final = """
    insert into visit (metric, block, units, last_at, pieces) values ($1, $2, $3, $4, $5)
"""
_COUNT_LATE: Final = "update run_metric set late = late + $2 where id = $1"
# A run that is over, and whose last outcomes are in, is asked for no more.
_RETIRE: Final = """
    update metric_part p set ends = interval '0'
    from run_metric m
    join run r on r.experiment = m.experiment and r.number = m.run
    cross join fold_position f
    where m.id = any($1) and p.metric = m.id and p.ends > interval '0'
      and r.ended_at + m.window_length + $2::interval < f.watermark
"""
_SIZES: Final = """
    select block, sum(units)::bigint as units from visit
    where metric = $1 and block > $2 and block <= $3 group by block order by block
"""
_LOG: Final = """
    select block, pieces from visit where metric = $1 and block > $2 and block <= $3
    order by block, number
"""
_DELETE: Final = "delete from visit where metric = $1 and block > $2 and block <= $3"
_CLOSE: Final = "update run_metric set closed_through = $2 where id = $1"
_ARMS: Final = "select id, epoch, variant from arm where id = any($1)"
_LOGS_OF_MOVED: Final = """
    select v.metric, v.block, v.number, v.pieces, gone.ordinals
    from (
        select experiment, run, array_agg(ordinal) as ordinals from moved group by experiment, run
    ) as gone
    join run_metric m
        on m.experiment = gone.experiment and m.run = gone.run and m.scope = 'exposure'
    join visit v on v.metric = m.id
"""
_REWRITE: Final = """
    update visit set units = $4, pieces = $5 where (metric, block, number) = ($1, $2, $3)
"""


class _Seen(NamedTuple):
    """Outcomes of units, a row for each and every part of a metric that it counts in: which metric
    (by its place among those that are folded), when, and the arm that the unit had met last."""

    metric: Integers
    part: Integers
    ordinal: Integers
    value: Floats
    at: Integers
    arm: Integers

    def at_rows(self, rows: NDArray[Any]) -> "_Seen":
        """These outcomes only."""
        return _Seen(*(column[rows] for column in self))


async def fold_visits(
    connection: Connection, batch: Batch, moved: Columns, fresh: Columns, of_moved: Columns
) -> None:
    """Take a batch into the log of open blocks.

    Args:
        moved: the units whose enrolment is new, or another than before.
        fresh: the batch's outcomes that count for metrics of the scope `exposure`, of enrolled
            units: columns `metric`, `part`, `ordinal`, `value`, `at` and `arm_and_profile`.
        of_moved: all outcomes of the units in `moved`, whenever they came: columns `metric`,
            `part`, `ordinal`, `value` and `at`.
    """
    metrics = await _read_metrics(connection, np.unique(fresh["metric"]).tolist())
    if not metrics:
        return
    noted = await note_meetings(connection, batch, _open_from(metrics))
    new = moved["old_arm"] == 0
    met = _units_of(metrics, noted._asdict())
    again = met.at_rows(await _followed(connection, metrics, met, noted.at))
    elsewhere = (moved["arm"] != moved["old_arm"]) | (moved["at"] != moved["old_at"])
    again = again.joined(_units_of(metrics, _only(moved, ~new & elsewhere)))
    enrolled = _only(moved, new)
    first = _units_of(metrics, enrolled)
    again = again.without(first)  # nothing is in the log of those
    apart = again.joined(first)
    rows = _only(fresh, ~apart.has(metrics, fresh["metric"], fresh["ordinal"]))
    rows["arm"] = rows["arm_and_profile"] & 0xFFFFFFFF
    theirs = _first_outcomes(metrics, enrolled, of_moved)
    came = {name: np.concatenate([rows[name], theirs[name]]) for name in _COLUMNS}
    await _append(connection, metrics, came, again)
    await connection.execute(_RETIRE, [m.id for m in metrics], ROUTERS_FOLLOW)


async def fill_meetings(connection: Connection, metric: StoredMetric, begin: int, end: int) -> None:
    """Learn what units with ordinals from `begin` to `end` - 1 met last, for a metric of the scope
    `exposure` that joins a run."""
    metrics = await _read_metrics(connection, [metric.id])
    ordinal = await note_last(connection, metric.experiment, metric.run, (begin, end))
    units = {
        "experiment": np.full(len(ordinal), metric.experiment),
        "run": np.full(len(ordinal), metric.run),
        "ordinal": ordinal,
    }
    await _append(connection, metrics, _nothing(), _units_of(metrics, units))


async def close_visits(
    connection: Connection,
    metrics: Sequence[StoredMetric],
    watermark: datetime,
    lateness: timedelta,
) -> list[Closed]:
    """Close the blocks of visits that lie below the watermark, of those of these metrics that have
    the scope `exposure`; the caller holds them (`blocks.hold_closable`).

    Their moments go into the closed cells of their arms, and into the sums over epochs, for
    reports: `n` is the number of visits.
    """
    return [
        await _close(connection, metric, metric.made.last_closed(watermark, lateness))
        for metric in metrics
        if metric.made.scope == "exposure"
    ]


async def forget_visits(connection: Connection) -> None:
    """Take the units in `moved`, which are being erased, out of the log of open blocks."""
    for row in await connection.fetch(_LOGS_OF_MOVED):
        pieces = np.frombuffer(row["pieces"], PIECE)
        left = pieces[~np.isin(pieces["ordinal"], row["ordinals"])]
        if len(left) < len(pieces):
            place = row["metric"], row["block"], row["number"]
            await connection.execute(_REWRITE, *place, len(left), left.tobytes())


async def read_open(
    connection: Connection, metric: StoredMetric
) -> dict[tuple[int, int, int], tuple[float, float]]:
    """The open visits of a metric: numerator and denominator by block, ordinal and arm."""
    found = {}
    for block, pieces in await _read_log(connection, metric, metric.closed_through, None):
        visits = settled(pieces)
        for visit in visits.tolist():
            ordinal, arm, numerator, denominator = visit
            found[block, ordinal, arm] = (numerator, denominator)
    return found


def settled(pieces: NDArray[Any]) -> NDArray[Any]:
    """The visits of a block, each once, in the order of unit and arm, from its log.

    Args:
        pieces: records of `PIECE`, in the order in which they were written.

    Returns:
        records of `PIECE`.
    """
    _, unit = np.unique(pieces["ordinal"], return_inverse=True)
    unit = unit.reshape(-1)
    place = np.arange(len(pieces))
    void = pieces["arm"] == 0
    last_void = np.full(unit.max(initial=-1) + 1, -1)
    np.maximum.at(last_void, unit[void], place[void])
    return _summed(pieces[~void & (place > last_void[unit])])


def _summed(pieces: NDArray[Any]) -> NDArray[Any]:
    ordered = pieces[np.lexsort((pieces["arm"], pieces["ordinal"]))]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = (np.diff(ordered["ordinal"]) != 0) | (np.diff(ordered["arm"]) != 0)
    begins = np.flatnonzero(first)
    visits = ordered[begins]
    if len(begins):
        for name in ("numerator", "denominator"):
            visits[name] = np.add.reduceat(ordered[name], begins)
    return visits


class _Units(NamedTuple):
    """Units of runs, by one number for each."""

    key: Integers
    run: dict[Run, int]

    def joined(self, other: "_Units") -> "_Units":
        """These and those, each once."""
        return _Units(np.unique(np.concatenate([self.key, other.key])), self.run)

    def without(self, other: "_Units") -> "_Units":
        """These, but for those."""
        return _Units(np.setdiff1d(self.key, other.key), self.run)

    def at_rows(self, rows: NDArray[Any]) -> "_Units":
        """These units only."""
        return _Units(self.key[rows], self.run)

    def has(
        self, metrics: Sequence[StoredMetric], metric: Integers, ordinal: Integers
    ) -> NDArray[np.bool_]:
        """Whether units are among these.

        Args:
            metric: for each unit the number of a metric of its run.
        """
        if not len(self.key) or not len(metric):
            return np.zeros(len(metric), np.bool_)
        run = np.array([self.run[m.experiment, m.run] for m in metrics], np.int64)
        place = np.searchsorted([m.id for m in metrics], metric)
        return np.isin((run[place] << _ORDINAL_BITS) | ordinal, self.key)

    def columns(self) -> tuple[list[int], list[int], list[int]]:
        """Experiment, run and ordinal of each."""
        of_number = {number: run for run, number in self.run.items()}
        runs = [of_number[key] for key in (self.key >> _ORDINAL_BITS).tolist()]
        ordinal = (self.key & ((1 << _ORDINAL_BITS) - 1)).tolist()
        return [run[0] for run in runs], [run[1] for run in runs], ordinal


_ORDINAL_BITS: Final = 40
_COLUMNS: Final = ("metric", "part", "ordinal", "value", "at", "arm")


async def _read_metrics(connection: Connection, ids: Sequence[int]) -> list[StoredMetric]:
    """All metrics of the scope `exposure` of the runs that go on, and of those with these ones, in
    the order of their numbers."""
    live = [row["id"] for row in await connection.fetch(_LIVE)]
    if not live and not ids:
        return []
    metrics = await read_every_metric(connection, (), [*live, *ids])
    runs = sorted({(metric.experiment, metric.run) for metric in metrics})
    rows = await connection.fetch(_OF_RUNS, *(list(column) for column in zip(*runs, strict=True)))
    if {row["id"] for row in rows} == {metric.id for metric in metrics}:
        return metrics
    return await read_every_metric(connection, (), [row["id"] for row in rows])


def _numbered(metrics: Sequence[StoredMetric]) -> dict[Run, int]:
    """The runs of metrics, each with a number."""
    runs = sorted({(metric.experiment, metric.run) for metric in metrics})
    return {run: number for number, run in enumerate(runs)}


def _keys(
    number: Mapping[Run, int], experiment: Integers, run: Integers, ordinal: Integers
) -> Integers:
    """One number for each unit; -1 for those of other runs."""
    key = np.full(len(ordinal), -1)
    for (its_experiment, its_run), place in number.items():
        mine = (experiment == its_experiment) & (run == its_run)
        key[mine] = (place << _ORDINAL_BITS) | ordinal[mine]
    return key


def _units_of(metrics: Sequence[StoredMetric], rows: Columns) -> _Units:
    """The units of rows, which are of the runs of these metrics; all others are left out."""
    number = _numbered(metrics)
    key = _keys(number, rows["experiment"], rows["run"], rows["ordinal"])
    return _Units(key[key >= 0], number)


def _first_outcomes(
    metrics: Sequence[StoredMetric], enrolled: Columns, of_moved: Columns
) -> Columns:
    """The outcomes of units that are newly enrolled, with their arms."""
    rows = _only(of_moved, np.isin(of_moved["metric"], [metric.id for metric in metrics]))
    number = _numbered(metrics)
    known = _keys(number, enrolled["experiment"], enrolled["run"], enrolled["ordinal"])
    order = np.argsort(known)
    of_metric = np.array([number[m.experiment, m.run] for m in metrics], np.int64)
    place = of_metric[np.searchsorted([metric.id for metric in metrics], rows["metric"])]
    wanted = (place << _ORDINAL_BITS) | rows["ordinal"]
    if not len(known):
        return _nothing()
    found = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    theirs = known[order[found]] == wanted
    rows["arm"] = enrolled["arm"][order[found]]
    return _only(rows, theirs)


def _open_from(metrics: Sequence[StoredMetric]) -> dict[Run, datetime]:
    """The time from which on each run may have open blocks."""
    begins: dict[Run, datetime] = {}
    for metric in metrics:
        run = metric.experiment, metric.run
        begins[run] = min(_first_open(metric), begins.get(run, _first_open(metric)))
    return begins


def _first_open(metric: StoredMetric) -> datetime:
    return datetime.fromtimestamp(metric.closed_through + metric.made.block_seconds, UTC)


async def _followed(
    connection: Connection, metrics: Sequence[StoredMetric], met: _Units, at: Integers
) -> NDArray[np.bool_]:
    """Which meetings may have been followed by an outcome that is in the log already."""
    if not len(met.key):
        return np.zeros(0, np.bool_)
    latest = np.full(len(met.run), np.iinfo(np.int64).min)
    for row in await connection.fetch(_LATEST, [m.id for m in metrics]):
        latest[met.run[row["experiment"], row["run"]]] = microseconds(row["at"])
    followed: NDArray[np.bool_] = at <= latest[met.key >> _ORDINAL_BITS]
    return followed


async def _append(
    connection: Connection, metrics: Sequence[StoredMetric], came: Columns, again: _Units
) -> None:
    """Write what came into the log, and that of some units anew."""
    rows = [came]
    blocks: list[tuple[int, int]] = []
    if len(again.key):
        since = min(_open_from(metrics).values()) - MOST_AHEAD
        rows.append(await read_rows(connection, OPEN_OUTCOMES, _LAYOUT, *again.columns(), since))
        kept = await connection.fetch(_OPEN_BLOCKS, [metric.id for metric in metrics])
        blocks = sorted((row["metric"], row["block"]) for row in kept)
    both = {name: np.concatenate([part[name] for part in rows]) for name in _COLUMNS}
    seen = await _attributed(connection, metrics, await _counted(connection, metrics, both))
    await _write(connection, metrics, seen, blocks, again)


async def _counted(connection: Connection, metrics: Sequence[StoredMetric], rows: Columns) -> _Seen:
    """The outcomes that belong to open blocks; those of closed ones are late."""
    place = np.searchsorted([metric.id for metric in metrics], rows["metric"])
    since = np.array([microseconds(m.since) for m in metrics if m.since is not None], np.int64)
    closed = np.array([m.closed_through for m in metrics], np.int64)
    length = np.array([m.made.block_seconds for m in metrics], np.int64)
    at = rows["at"].astype(np.int64)
    asked = at >= since[place]
    open_now = _block(at, length[place]) > closed[place]
    late = np.unique(rows["metric"][asked & ~open_now], return_counts=True)
    counts = [(int(metric), int(count)) for metric, count in zip(*late, strict=True)]
    if counts:
        await connection.executemany(_COUNT_LATE, counts)
    seen = _Seen(
        place,
        rows["part"].astype(np.int64),
        rows["ordinal"].astype(np.int64),
        np.clip(rows["value"].astype(np.float64), -LARGEST_VALUE, LARGEST_VALUE),
        at,
        rows["arm"].astype(np.int64),
    )
    return seen.at_rows(asked & open_now)


def _block(at: Integers, length: Integers) -> Integers:
    block: Integers = (at + UNIX_TO_POSTGRES) // _SECOND // length * length
    return block


async def _attributed(
    connection: Connection, metrics: Sequence[StoredMetric], seen: _Seen
) -> _Seen:
    """The outcomes with the arms that their units had met last, without those of units that met no
    variant any more."""
    kept = []
    of_run: dict[Run, list[int]] = {}
    for place, metric in enumerate(metrics):
        of_run.setdefault((metric.experiment, metric.run), []).append(place)
    for run, places in of_run.items():
        mine = seen.at_rows(np.isin(seen.metric, places))
        if not len(mine.at):
            continue
        mine = mine._replace(arm=await arms_at(connection, run, mine.ordinal, mine.at, mine.arm))
        reach = np.array([_reach(metric.made) for metric in metrics], np.int64)[mine.metric]
        epochs = await read_epochs(
            connection,
            run[0],
            time_of(int((mine.at - reach).min())),
            time_of(int(mine.at.max())),
        )
        arms, of_arm = np.unique(mine.arm, return_inverse=True)
        by_arm = await epochs_of(connection, arms)
        epoch = np.array([by_arm[arm] for arm in arms.tolist()], np.int64)[of_arm.reshape(-1)]
        kept.append(mine.at_rows(still_meets(epoch, mine.at - reach, epochs)))
    if not kept:
        return seen.at_rows(np.zeros(len(seen.at), np.bool_))
    return _Seen(*map(np.concatenate, zip(*kept, strict=True)))


def _reach(metric: RunMetric) -> int:
    """For how many microseconds after its end an epoch is met, or what it did is felt."""
    return max(metric.window, ROUTERS_FOLLOW) // timedelta(microseconds=1)


async def _write(
    connection: Connection,
    metrics: Sequence[StoredMetric],
    seen: _Seen,
    blocks: Sequence[tuple[int, int]],
    again: _Units,
) -> None:
    """Append to the log, by metric and block: first who counts anew, then what was seen."""
    ids = [metric.id for metric in metrics]
    voids: Mapping[int, NDArray[Any]] = {
        metric.id: _voids(again, again.run[metric.experiment, metric.run]) for metric in metrics
    }
    written: dict[tuple[int, int], list[NDArray[Any]]] = {
        place: [voids[place[0]]] for place in blocks if len(voids[place[0]])
    }
    latest: dict[tuple[int, int], int] = {}
    length = np.array([metric.made.block_seconds for metric in metrics], np.int64)
    block = _block(seen.at, length[seen.metric])
    for place, metric in enumerate(metrics):
        of_metric = seen.metric == place
        for number in np.unique(block[of_metric]).tolist():
            mine = seen.at_rows(of_metric & (block == number))
            where = ids[place], number
            written.setdefault(where, []).append(_summed(_pieces(metric.made, mine)))
            latest[where] = int(mine.at.max())
    rows = [
        (*where, sum(map(len, parts)), _last(where, latest), np.concatenate(parts).tobytes())
        for where, parts in sorted(written.items())
    ]
    if rows:
        await connection.executemany(_APPEND, rows)


def _last(where: tuple[int, int], latest: Mapping[tuple[int, int], int]) -> datetime:
    if where in latest:
        return time_of(latest[where])
    return datetime.fromtimestamp(where[1], UTC)


def _voids(units: _Units, run: int) -> NDArray[Any]:
    key = units.key[units.key >> _ORDINAL_BITS == run]
    pieces = np.zeros(len(key), PIECE)
    pieces["ordinal"] = key & ((1 << _ORDINAL_BITS) - 1)
    return pieces


def _pieces(metric: RunMetric, seen: _Seen) -> NDArray[Any]:
    """What each outcome adds to numerator and denominator."""
    pieces = np.zeros(len(seen.at), PIECE)
    pieces["ordinal"], pieces["arm"] = seen.ordinal, seen.arm
    for place, (part, name) in enumerate(
        zip(metric.parts, ("numerator", "denominator"), strict=True)
    ):
        absent = np.isnan(seen.value)
        match part.aggregate:
            case "total":
                value = np.where(absent, 1.0, seen.value)
            case "sum":
                value = np.where(absent, 0.0, seen.value)
            case _:
                value = np.ones(len(seen.at))
        if part.cap is not None:
            value = np.minimum(value, part.cap)
        pieces[name] = np.where(seen.part == place, value, 0.0)
    return pieces


async def _close(connection: Connection, metric: StoredMetric, through: int) -> Closed:
    through = await _bounded(connection, metric, through)
    log = await _read_log(connection, metric, metric.closed_through, through)
    await connection.execute(_DELETE, metric.id, metric.closed_through, through)
    await connection.execute(_CLOSE, metric.id, through)
    visits = [(block, settled(pieces)) for block, pieces in log]
    arms = np.unique(np.concatenate([found["arm"] for _, found in visits])) if visits else ()
    if not len(arms):
        return Closed(metric.made, ())
    variants = {
        row["id"]: (row["epoch"], row["variant"])
        for row in await connection.fetch(_ARMS, [int(arm) for arm in arms])
    }
    everyone = np.concatenate([found for _, found in visits])
    await _compact(connection, metric, everyone)
    blocks = []
    for block, found in visits:
        if len(found):
            there, table = _moments(found)
            cells = {
                variants[arm]: Moments(n, tuple(mean), tuple(m2))
                for arm, n, mean, m2 in zip(
                    there.tolist(), *(column.tolist() for column in table), strict=True
                )
            }
            blocks.append((block, cells))
    return Closed(metric.made, tuple(blocks))


async def _bounded(connection: Connection, metric: StoredMetric, through: int) -> int:
    """The last block, up to this one, before which no more lies than is closed at once."""
    pieces, last = 0, metric.closed_through
    for row in await connection.fetch(_SIZES, metric.id, metric.closed_through, through):
        pieces += row["units"]
        if pieces > MOST_PIECES and last > metric.closed_through:
            return last
        last = row["block"]
    return through


async def _read_log(
    connection: Connection, metric: StoredMetric, after: int, through: int | None
) -> list[tuple[int, NDArray[Any]]]:
    """The log of open blocks, block by block."""
    rows = await connection.fetch(
        _LOG, metric.id, after, np.iinfo(np.int64).max if through is None else through
    )
    parts: dict[int, list[bytes]] = {}
    for row in rows:
        parts.setdefault(row["block"], []).append(row["pieces"])
    return [(block, np.frombuffer(b"".join(some), PIECE)) for block, some in parts.items()]


def _moments(visits: NDArray[Any]) -> tuple[Integers, Table]:
    """The arms of visits, and the moments of each."""
    arms, place = np.unique(visits["arm"], return_inverse=True)
    scores = np.stack([visits["numerator"], visits["denominator"]], axis=1)
    return arms.astype(np.int64), grouped(place.reshape(-1), scores, len(arms))


async def _compact(connection: Connection, metric: StoredMetric, visits: NDArray[Any]) -> None:
    """Merge visits into the closed cells of their arms; there are no others that a report would
    count."""
    arms, table = _moments(visits)
    twice = np.concatenate([arms, arms])
    keys, place = distinct(
        Keys(np.full(len(twice), metric.id), np.repeat([CLOSED, ALL], len(arms)), twice)
    )
    added = Table(*(np.empty_like(np.concatenate([column, column])) for column in table))
    for column, values in zip(added, table, strict=True):
        column[place] = np.concatenate([values, values])
    before = await read_cells(connection, keys, 2)
    after = merge_tables(before, added)
    await keep_cells(connection, keys, after)
    await keep_totals(connection, [metric], [Changes(keys, before, after)])


def _only(rows: Columns, which: NDArray[np.bool_]) -> Columns:
    return {name: column[which] for name, column in rows.items()}


def _nothing() -> Columns:
    return {name: np.empty(0, np.int64) for name in _COLUMNS}
