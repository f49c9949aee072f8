"""Metrics of a run, as folding reads them, and what the guard watches of them."""

import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec

from analysis.folding.aggregates import Aggregate
from analysis.inference.kinds import Kind
from experiments.model import (
    MeanMetric,
    Metric,
    ProportionMetric,
    QuantileCap,
    QuantileMetric,
    RatioMetric,
    Scope,
    parse_duration,
)
from experiments.store import Connection

MIN_BLOCK_SECONDS: Final = 1
MAX_BLOCK_SECONDS: Final = 300
MOST_AHEAD: Final = timedelta(minutes=5)
"""How far an outcome's time may be ahead of its receipt (DESIGN 6)."""
ALWAYS: Final = timedelta(days=36_500)
"""For how long after its enrolment a unit counts for a metric of the scope `exposure`."""


class Part(msgspec.Struct, frozen=True):
    """An aggregate of one event, from `begins` to `ends` after a unit's enrolment."""

    event: str
    aggregate: Aggregate
    cap: float | None
    begins: timedelta
    ends: timedelta


class RunMetric(msgspec.Struct, frozen=True):
    """What a metric makes of a unit. `version` changes with whatever makes its value another.

    One of the scope `exposure` is a ratio of what a unit does in a block of time: its blocks are of
    the time of outcomes (`visits.py`), those of others of the time of enrolment.
    """

    key: str
    version: str
    kind: Kind
    window: timedelta
    block_seconds: int
    parts: tuple[Part, ...]
    scope: Scope = "enrolment"

    def last_closed(self, watermark: datetime, lateness: timedelta) -> int:
        """The last block whose units have finished: its end, the window and the lateness allowed
        lie below the watermark.

        Half a window is allowed at most: who asks for a short window wants to know soon.
        """
        return self.block_before(watermark - self.window - min(lateness, self.window / 2))

    def block_before(self, at: datetime) -> int:
        """The last block that was over at a time."""
        return block_of(at, self.block_seconds) - self.block_seconds


class StoredMetric(msgspec.Struct, frozen=True):
    """A metric of a run, and how far its values have come.

    `closed_through` is the last block that is closed. Units with an ordinal below
    `covered` have their values; None means all. Of units enrolled before `since` not all raw events
    were there any more when the metric came, so it does not count them; None means that it counts
    all. A metric of the scope `exposure` counts outcomes from `since` on, whoever they are of.
    """

    id: int
    experiment: int
    run: int
    made: RunMetric
    closed_through: int
    covered: int | None
    since: datetime | None


_METRICS = """
    select m.id, m.experiment, m.run, m.key, m.version, m.kind, m.window_length, m.block_seconds,
           m.scope, m.closed_through, m.covered, m.since
    from run_metric m
    where m.id = any($3)
       or (m.experiment, m.run) in (select * from unnest($1::bigint[], $2::int[]))
    order by m.id
"""
_PARTS = """
    select metric, event, aggregate, cap, begins, ends from metric_part where metric = any($1)
    order by metric, part
"""
# Of a unit that was enrolled earlier some outcomes may have been dropped. What lies before its
# enrolment may be cut short, too, but that costs a covariate some of its use, and truth nothing.
_SINCE = """
    select kept_from + $2::interval from fold_position
    where kept_from > '-infinity' and kept_from + $2::interval > $1
"""
_ADD_METRIC = """
    insert into run_metric (experiment, run, key, version, kind, window_length, block_seconds,
                            scope, closed_through, covered, since)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
    on conflict (experiment, run, key, version) do nothing
    returning id
"""
_ADD_PART = """
    insert into metric_part (metric, part, experiment, run, event, aggregate, cap, begins, ends)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
# Where the other version is one of the run's already, it has its values.
_CHANGE_VERSION = """
    update run_metric m set version = $2, closed_through = $3, covered = 0, late = 0
    where m.id = $1 and not exists (
        select from run_metric same
        where (same.experiment, same.run, same.key, same.version)
            = (m.experiment, m.run, m.key, $2)
    )
    returning m.id
"""
_CHANGE_CAP = "update metric_part set cap = $3 where metric = $1 and part = $2"
_COUNT_ANEW: Final = (
    "delete from metric_total where metric = $1",
    "delete from metric_trail where metric = $1",
    "delete from cell where metric = $1",
)


def block_of(at: datetime, block_seconds: int) -> int:
    """The enrolment block of a time: the Unix time at which the block begins."""
    return int(at.timestamp() // block_seconds) * block_seconds


def run_metric(metric: Metric) -> RunMetric:
    """A metric of a definition in the form that folding reads."""
    window = parse_duration(metric.window)
    if metric.scope == "exposure":
        return _of_visits(metric, window)
    kind, outcome = _outcome(metric, window)
    parts = (*outcome, *_covariates(metric, outcome))
    first, *others = parts
    made_of: tuple[object, ...] = (
        *(kind, first.event, first.aggregate, first.cap, window.total_seconds()),
        *(
            (p.event, p.aggregate, p.cap, p.begins.total_seconds(), p.ends.total_seconds())
            for p in others
        ),
    )
    return RunMetric(
        key=metric.key,
        version=_hash(made_of),
        kind=kind,
        window=window,
        block_seconds=block_seconds(window),
        parts=parts,
    )


def _of_visits(metric: Metric, window: timedelta) -> RunMetric:
    """A metric of the scope `exposure`: numerator and denominator of what a unit does in a block. A
    mean's are the values of its outcomes, each capped by itself, and how many outcomes there are.
    """

    def part(event: str, aggregate: Aggregate, cap: float | None = None) -> Part:
        return Part(event, aggregate, cap, timedelta(0), ALWAYS)

    match metric:
        case RatioMetric():
            parts = part(metric.numerator, "total"), part(metric.denominator, "total")
        case MeanMetric():
            cap = None if isinstance(metric.cap, QuantileCap) else metric.cap
            parts = part(metric.event, "sum", cap), part(metric.event, "count")
        case _:
            raise ValueError(f"a metric of kind {metric.__struct_config__.tag} has no visits")
    made_of = tuple((p.event, p.aggregate, p.cap) for p in parts)
    return RunMetric(
        key=metric.key,
        version=_hash(("exposure", window.total_seconds(), made_of)),
        kind="ratio",
        window=window,
        block_seconds=block_seconds(window),
        parts=parts,
        scope="exposure",
    )


def _hash(made_of: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(made_of), digest_size=4).hexdigest()


def _outcome(metric: Metric, window: timedelta) -> tuple[Kind, tuple[Part, ...]]:
    """What comes of a unit within its window: one number, or two of a ratio."""

    def part(event: str, aggregate: Aggregate, cap: float | None = None) -> Part:
        return Part(event, aggregate, cap, timedelta(0), window)

    match metric:
        case ProportionMetric():
            return "proportion", (part(metric.event, "any"),)
        case MeanMetric():
            # One at a quantile is a number once it is resolved (`caps.py`), and none before.
            cap = None if isinstance(metric.cap, QuantileCap) else metric.cap
            return "mean", (part(metric.event, metric.aggregate, cap),)
        case RatioMetric():
            return "ratio", (part(metric.numerator, "total"), part(metric.denominator, "total"))
        case QuantileMetric():
            return "quantile", (part(metric.event, "mean"),)


def _covariates(metric: Metric, outcome: tuple[Part, ...]) -> tuple[Part, ...]:
    """The same of the time before enrolment, which no variant can have had a hand in."""
    covariate = metric.covariate if isinstance(metric, MeanMetric | RatioMetric) else None
    if covariate is None:
        return ()
    before = {"begins": -parse_duration(covariate), "ends": timedelta(0)}
    return tuple(msgspec.structs.replace(part, **before) for part in outcome)


def block_seconds(window: timedelta) -> int:
    """How long a block is: a tenth of the window, a second to five minutes.

    Short blocks let a short window close soon; long ones keep the cells of a long window few.
    """
    tenth = int(window.total_seconds() // 10)
    return max(MIN_BLOCK_SECONDS, min(MAX_BLOCK_SECONDS, tenth))


async def add_metric(
    connection: Connection,
    experiment: int,
    run: int,
    metric: RunMetric,
    started_at: datetime,
    covered: int | None,
) -> None:
    """Make a metric one of a run's, if it is not yet.

    If raw events of the run were dropped by then, it counts only those units that were enrolled
    later.

    Args:
        started_at: when the run started; for a metric of the scope `exposure`, from when on it is
            to count.
        covered: 0 where there are units whose values are still to be filled in, None otherwise.
    """
    closed_through = metric.block_before(started_at)
    since = started_at
    if metric.scope == "enrolment":
        since = await connection.fetchval(_SINCE, started_at, MOST_AHEAD)
    added = await connection.fetchval(
        _ADD_METRIC,
        experiment,
        run,
        metric.key,
        metric.version,
        metric.kind,
        metric.window,
        metric.block_seconds,
        metric.scope,
        closed_through,
        covered,
        since,
    )
    if added is not None:
        await connection.executemany(
            _ADD_PART,
            [
                (
                    added,
                    place,
                    experiment,
                    run,
                    part.event,
                    part.aggregate,
                    part.cap,
                    part.begins,
                    part.ends,
                )
                for place, part in enumerate(metric.parts)
            ],
        )


async def change_caps(
    connection: Connection, metric: int, capped: RunMetric, started_at: datetime
) -> None:
    """Make a metric of a run its version with other caps, which is to be one of no quantile.

    A state is what the outcomes of a unit came to before any cap. So the units keep their states
    and opening balances, and a backfill counts them anew, also those whose raw events were dropped.
    """
    closed_through = capped.block_before(started_at)
    changed = await connection.fetchval(_CHANGE_VERSION, metric, capped.version, closed_through)
    if changed is None:
        return
    for place, part in enumerate(capped.parts):
        await connection.execute(_CHANGE_CAP, metric, place, part.cap)
    for statement in _COUNT_ANEW:
        await connection.execute(statement, metric)


async def read_metrics(
    connection: Connection, runs: Iterable[tuple[int, int]], ids: Sequence[int]
) -> list[StoredMetric]:
    """The metrics of these runs (experiment, number), and those with these ids, in the order of
    their ids; but for those of the scope `exposure`."""
    every = await read_every_metric(connection, runs, ids)
    return [metric for metric in every if metric.made.scope == "enrolment"]


async def read_every_metric(
    connection: Connection, runs: Iterable[tuple[int, int]], ids: Sequence[int]
) -> list[StoredMetric]:
    """As `read_metrics`, whatever their scope."""
    wanted = sorted(runs)
    rows = await connection.fetch(
        _METRICS, [experiment for experiment, _ in wanted], [run for _, run in wanted], ids
    )
    parts: dict[int, list[Part]] = {row["id"]: [] for row in rows}
    for row in await connection.fetch(_PARTS, list(parts)):
        values: dict[str, Any] = {name: row[name] for name in Part.__struct_fields__}
        parts[row["metric"]].append(Part(**values))
    return [
        StoredMetric(
            id=row["id"],
            experiment=row["experiment"],
            run=row["run"],
            made=RunMetric(
                key=row["key"],
                version=row["version"],
                kind=row["kind"],
                window=row["window_length"],
                block_seconds=row["block_seconds"],
                parts=tuple(parts[row["id"]]),
                scope=row["scope"],
            ),
            closed_through=row["closed_through"],
            covered=row["covered"],
            since=row["since"],
        )
        for row in rows
    ]
