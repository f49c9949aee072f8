"""The health of runs, kept up to date batch by batch: one row for each run, read as it stands.

What was received is counted for all live runs at once, from the batch alone; a run's row is written
only when something of its own came. These counters depend on the batches that events came in, so
they are not counted again by `verify`, and not taken back by an erasure.
"""

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias

import asyncpg
import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.folding.enrol import Batch
from analysis.folding.metrics import StoredMetric
from analysis.folding.states import unit_key
from analysis.folding.values import Outcomes
from analysis.folding.wire import UNIX_TO_POSTGRES, Columns
from analysis.inference.health import (
    BUCKETS_PER_DOUBLING,
    SHORTEST_DELAY,
    Arrivals,
    EventHealth,
    Health,
)
from analysis.inference.ratio_watch import watch
from experiments import store
from experiments.allocation import propensities
from experiments.store import Connection

Run: TypeAlias = tuple[int, int]

IMPORTED: Final = timedelta(days=7)
"""What was received longer after it happened was imported: no door takes it (DESIGN 6), and its
delay says nothing."""

_AT_ONCE: Final = 200
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MOST_PARTS: Final = 8
"""A metric has four at most: a ratio's two, and their covariates."""

EXACT: Final = 20_000
"""Records of a batch that are all looked at; of a larger one it is one in `SAMPLED`, which keeps
this at a twentieth of folding."""
SAMPLED: Final = 16

_RECORDS: Final = "select sum(records) from segment where id = any($1)"
# The bucket is that of `delay_bucket`. The sample is by a hash: every sixteenth outcome in order
# could be of one event always, where a client sends its events by turns.
_RECEIVED: Final = """
    select project, event, unit_type,
           floor($4::float8 * ln(greatest(date_part('epoch', received_at - at), $5::float8))
                 / ln(2::float8))::int as bucket,
           $7 * count(*) as n, min(received_at) as first, max(received_at) as last
    from outcome
    where segment = any($1) and received_at >= $2 and received_at <= $3
      and received_at - at <= $6
      and ($7 = 1 or hashint8((segment << 24) + ordinal) % $7 = 0)
    group by 1, 2, 3, 4
"""
_LIVE: Final = """
    select distinct m.experiment, m.run, m.event, x.project,
           x.definition #>> '{unit,type}' as unit_type
    from run r
    join experiment x on x.id = r.experiment
    join metric_part m on m.experiment = r.experiment and m.run = r.number
    where r.ended_at is null and m.event = any($1)
"""
_ARMS: Final = "select id, experiment, run, epoch, variant from arm where id = any($1)"
_READ: Final = """
    select h.experiment, h.run, h.health
    from run_health h join unnest($1::bigint[], $2::int[]) as wanted (experiment, run)
    using (experiment, run)
"""
_READ_ONE: Final = "select health from run_health where experiment = $1 and run = $2"
_KEEP: Final = """
    insert into run_health (experiment, run, health)
    select * from unnest($1::bigint[], $2::int[], $3::json[])
    on conflict (experiment, run) do update set health = excluded.health
"""


async def keep_health(
    connection: Connection,
    batch: Batch,
    metrics: Sequence[StoredMetric],
    moved: Columns,
    outcomes: Outcomes,
) -> None:
    """Take a batch into the health of the runs that it is about.

    Args:
        metrics: those that the outcomes count for.
        moved: the units whose enrolment is new, or another than before.
        outcomes: those taken into states: of new units all that came so far, of others those of
            the batch.
    """
    new = {name: column[moved["old_arm"] == 0] for name, column in moved.items()}
    came: dict[Run, Health] = defaultdict(Health)
    for run, events in (await _events(connection, batch)).items():
        came[run] = msgspec.structs.replace(came[run], events=events)
    for run, enrolments in _enrolments(new).items():
        came[run] = msgspec.structs.replace(came[run], enrolments=enrolments)
    for run, counted in _counted(metrics, moved, outcomes).items():
        came[run] = msgspec.structs.replace(came[run], counted=counted)
    if not came:
        return
    runs = sorted(came)
    columns = [list(column) for column in zip(*runs, strict=True)]
    standing = {
        (row["experiment"], row["run"]): msgspec.json.decode(row["health"], type=Health)
        for row in await connection.fetch(_READ, *columns)
    }
    health = {run: standing.get(run, Health()).then(came[run]) for run in runs}
    for place, (run, units, shares) in enumerate(await _epochs(connection, new)):
        ratio = watch(health[run].ratio, units, shares)
        health[run] = msgspec.structs.replace(health[run], ratio=ratio)
        if place % _AT_ONCE == 0:
            await asyncio.sleep(0)  # where doors are served beside this, they get their turn
    texts = [msgspec.json.encode(health[run]).decode() for run in runs]
    await connection.execute(_KEEP, *columns, texts)


async def read_health(connection: Connection, experiment: int, run: int) -> Health:
    """The health of a run's data."""
    text = await connection.fetchval(_READ_ONE, experiment, run)
    return Health() if text is None else msgspec.json.decode(text, type=Health)


async def _events(connection: Connection, batch: Batch) -> dict[Run, dict[str, EventHealth]]:
    """What was received in a batch, for the live runs whose metrics count it."""
    received: dict[tuple[str, str], list[asyncpg.Record]] = defaultdict(list)
    records = await connection.fetchval(_RECORDS, batch.segments)
    every = 1 if records <= EXACT else SAMPLED
    arguments = (BUCKETS_PER_DOUBLING, SHORTEST_DELAY, IMPORTED, every)
    for row in await connection.fetch(_RECEIVED, *batch, *arguments):
        received[row["project"], row["event"]].append(row)
    events: dict[Run, dict[str, EventHealth]] = defaultdict(dict)
    for live in await connection.fetch(_LIVE, [event for _, event in received]):
        rows = received.get((live["project"], live["event"]))
        if rows is not None:
            run = live["experiment"], live["run"]
            events[run][live["event"]] = _event(rows, live["unit_type"])
    return events


def _event(rows: Sequence[asyncpg.Record], unit_type: str) -> EventHealth:
    own = [row for row in rows if row["unit_type"] == unit_type]
    others = sum(row["n"] for row in rows) - sum(row["n"] for row in own)
    if not own:
        return EventHealth(of_other_types=others)
    return EventHealth(
        received=Arrivals(
            n=sum(row["n"] for row in own),
            first=min(row["first"] for row in own),
            last=max(row["last"] for row in own),
        ),
        of_other_types=others,
        delays={row["bucket"]: row["n"] for row in own},
    )


def _enrolments(new: Columns) -> dict[Run, Arrivals]:
    """When the new units of each run were enrolled."""
    found = {}
    for run in set(zip(new["experiment"].tolist(), new["run"].tolist(), strict=True)):
        at = new["at"][(new["experiment"] == run[0]) & (new["run"] == run[1])]
        found[run] = Arrivals(len(at), _time(at.min()), _time(at.max()))
    return found


async def _epochs(
    connection: Connection, new: Columns
) -> list[tuple[Run, dict[str, int], dict[str, float]]]:
    """The new units by variant, and the propensities, of each epoch that has any, in order."""
    arms, units = np.unique(new["arm"], return_counts=True)
    if not len(arms):
        return []
    number = dict(zip(arms.tolist(), units.tolist(), strict=True))
    epochs: dict[tuple[int, int, int], dict[str, int]] = defaultdict(dict)
    for row in await connection.fetch(_ARMS, arms.tolist()):
        epoch = row["experiment"], row["run"], row["epoch"]
        epochs[epoch][row["variant"]] = number[row["id"]]
    allocations = await store.get_allocations(connection, [(x, epoch) for x, _, epoch in epochs])
    return [
        ((experiment, run), by_variant, propensities(allocations[experiment, epoch]))
        for (experiment, run, epoch), by_variant in sorted(epochs.items())
    ]


def _counted(
    metrics: Sequence[StoredMetric], moved: Columns, outcomes: Outcomes
) -> dict[Run, dict[str, dict[str, int]]]:
    """How many outcomes count for the metrics of each run, but for covariates.

    Of a unit whose enrolment moved all outcomes are there again, so none of its are counted.
    """
    if not len(outcomes.metric):
        return {}
    by_id = {metric.id: metric for metric in metrics}
    again = (moved["old_arm"] != 0) & (
        (moved["arm"] != moved["old_arm"]) | (moved["at"] != moved["old_at"])
    )
    if again.any():
        keys = [
            unit_key(np.full(len(ordinals), metric.id), ordinals)
            for metric in metrics
            if len(ordinals := moved["ordinal"][again & _of_run(moved, metric)])
        ]
        if keys:
            once = ~np.isin(unit_key(outcomes.metric, outcomes.ordinal), np.concatenate(keys))
            outcomes = outcomes.at_rows(np.flatnonzero(once))
    found: dict[Run, dict[str, dict[str, int]]] = defaultdict(dict)
    places, numbers = np.unique(outcomes.metric * _MOST_PARTS + outcomes.part, return_counts=True)
    for place, n in zip(places.tolist(), numbers.tolist(), strict=True):
        metric = by_id[place // _MOST_PARTS]
        part = metric.made.parts[place % _MOST_PARTS]
        counts = found[metric.experiment, metric.run].setdefault(metric.made.version, {})
        if part.begins >= timedelta(0):
            counts[part.event] = n
    return found


def _of_run(moved: Columns, metric: StoredMetric) -> NDArray[np.bool_]:
    of_run: NDArray[np.bool_] = (moved["experiment"] == metric.experiment) & (
        moved["run"] == metric.run
    )
    return of_run


def _time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=int(microseconds) + UNIX_TO_POSTGRES)
