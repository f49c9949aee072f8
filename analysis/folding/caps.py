"""Caps at a quantile of the data: resolved once, pooled over variants, and a number from then on.

Until then the metric is folded without a cap. A cap is found among the first units that finished,
whichever variant they have, so it cannot lean towards one of them; and it stays, so a report does
not change because later units spent more. Resolving it makes the metric another version of itself:
its units keep their states, which know no cap, and are counted anew.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import asyncpg
import msgspec
import numpy as np

from analysis.folding.aggregates import scores, width
from analysis.folding.cells import CLOSED
from analysis.folding.metrics import StoredMetric, change_caps, read_metrics, run_metric
from analysis.folding.states import States, Units, blocks_of, caps_of
from analysis.folding.totals import read_total
from analysis.folding.wire import Layout, read_rows
from analysis.inference.bins import Floats
from experiments import store
from experiments.caps import MIN_UNITS, MOST_UNITS, values_needed
from experiments.model import Experiment, MeanMetric, Metric, QuantileCap
from experiments.store import Connection

Caps = Mapping[tuple[str, str, float], float]
"""The caps of a run that were resolved: by the metric's key, its version without a cap, and the
quantile."""

_READ = """
    select metric, version, quantile, cap from quantile_cap
    where experiment = $1 and run = $2 and cap is not null
"""
_ADD = """
    insert into quantile_cap (experiment, run, metric, version, quantile)
    values ($1, $2, $3, $4, $5) on conflict do nothing
"""
_OPEN = """
    select c.experiment, c.run, c.metric, c.version, c.quantile, c.tried_at, m.id, r.started_at
    from quantile_cap c
    join experiment x on x.id = c.experiment and x.run = c.run
    join run r on r.experiment = c.experiment and r.number = c.run
    join run_metric m
        on m.experiment = c.experiment and m.run = c.run and m.key = c.metric
       and m.version = c.version and m.covered is null
    where c.cap is null
    order by c.experiment, c.metric, c.quantile
"""
_RESOLVE = """
    update quantile_cap set cap = $6, units = $7, resolved_at = $8
    where experiment = $1 and run = $2 and metric = $3 and version = $4 and quantile = $5
"""
_TRIED = """
    update quantile_cap set tried_at = $6
    where experiment = $1 and run = $2 and metric = $3 and version = $4 and quantile = $5
"""
_FORGET = """
    delete from quantile_cap
    where experiment = $1 and run = $2 and metric = $3 and version = $4 and quantile = $5
"""
_FIRST_UNITS = """
    select ordinal, arm, at, profile from enrolment
    where experiment = $1 and run = $2 and ordinal >= 0 and ordinal < $3
      and ($4::timestamptz is null or at >= $4)
    order by ordinal
"""
_LAYOUT: Final = Layout({"ordinal": "int8", "arm": "int4", "at": "time", "profile": "int4"})


def with_caps(definition: Experiment, caps: Caps) -> Experiment:
    """A definition in which each cap at a quantile that was resolved is its number."""
    if not any(_is_open(metric) for metric in definition.metrics):
        return definition
    metrics = tuple(_with_cap(metric, caps) for metric in definition.metrics)
    return msgspec.structs.replace(definition, metrics=metrics)


def open_caps(definition: Experiment) -> list[str]:
    """The keys of the metrics whose caps wait for data."""
    return [metric.key for metric in definition.metrics if _is_open(metric)]


async def read_caps(
    connection: Connection, experiment: int, run: int, definition: Experiment
) -> Experiment:
    """A run's definition, its caps resolved as far as they are."""
    if not open_caps(definition):
        return definition
    rows = await connection.fetch(_READ, experiment, run)
    caps = {(row["metric"], row["version"], row["quantile"]): row["cap"] for row in rows}
    return with_caps(definition, caps)


async def note_caps(
    connection: Connection, experiment: int, run: int, definition: Experiment
) -> None:
    """Remember which caps of a run wait for data."""
    for metric in definition.metrics:
        if isinstance(metric, MeanMetric) and isinstance(metric.cap, QuantileCap):
            version = run_metric(metric).version
            await connection.execute(
                _ADD, experiment, run, metric.key, version, metric.cap.quantile
            )


async def resolve_caps(connection: Connection, now: datetime) -> None:
    """Resolve the caps for which enough units have finished, and have their metrics counted anew.

    Few runs have an open cap, and each costs a row; the units are read when their number has
    doubled since the last try. The caller holds the moments.
    """
    for row in await connection.fetch(_OPEN):
        finished = sum((await read_total(connection, row["id"], CLOSED)).units.values())
        if finished >= max(MIN_UNITS, 2 * row["tried_at"]):
            await _resolve(connection, row, finished, now)


async def _resolve(
    connection: Connection, row: asyncpg.Record, finished: int, now: datetime
) -> None:
    place = (row["experiment"], row["run"], row["metric"], row["version"], row["quantile"])
    try:
        definition = await store.get_definition(connection, row["experiment"])
    except msgspec.ValidationError:
        return  # a newer release wrote it, as `intake.py` reports; it waits for that
    open_metric = _open_metric(definition, *place[2:])
    if open_metric is None:
        # A revision took the cap back. The metric without one, of the same version, may be in use.
        await connection.execute(_FORGET, *place)
        return
    [metric] = await read_metrics(connection, (), [row["id"]])
    values = await _values(connection, metric)
    cap = quantile_cap(values, row["quantile"])
    if cap is None:
        await connection.execute(_TRIED, *place, finished)
        return
    await connection.execute(_RESOLVE, *place, cap, len(values), now)
    capped = run_metric(msgspec.structs.replace(open_metric, cap=cap))
    await change_caps(connection, metric.id, capped, row["started_at"])


def quantile_cap(values: Floats, level: float) -> float | None:
    """The quantile of the values, by linear interpolation between order statistics (Hyndman, Fan
    1996, type 7); None for too few of them, or where it is no positive number.

    Arguments:
        values: of the units that have one.
        level: strictly between 0 and 1.
    """
    if len(values) < values_needed(level):
        return None
    cap = float(np.quantile(values, level))
    return cap if cap > 0.0 else None


async def _values(connection: Connection, metric: StoredMetric) -> Floats:
    """The values of the first units that finished and have one."""
    rows = await read_rows(
        connection, _FIRST_UNITS, _LAYOUT, metric.experiment, metric.run, MOST_UNITS, metric.since
    )
    units = Units.standing(np.full(len(rows["ordinal"]), metric.id), rows)
    none = np.zeros(len(units.at), np.int64)
    finished = units.at_rows(np.flatnonzero(blocks_of([metric], none, units.at) == CLOSED))
    aggregates = [part.aggregate for part in metric.made.parts]
    states = await States.read(connection, width(aggregates), finished)
    state = states.of_units()
    first = width(aggregates[:1])
    has_value = (state[:, :first] != 0.0).any(axis=1)
    caps = np.repeat(caps_of([metric]), len(state), axis=0)
    values: Floats = scores(aggregates, state, caps)[has_value, 0]
    return values


def _is_open(metric: Metric) -> bool:
    return isinstance(metric, MeanMetric) and isinstance(metric.cap, QuantileCap)


def _open_metric(
    definition: Experiment, key: str, version: str, quantile: float
) -> MeanMetric | None:
    """The metric of a definition that waits for this cap, if it still does."""
    for metric in definition.metrics:
        if (
            isinstance(metric, MeanMetric)
            and metric.cap == QuantileCap(quantile=quantile)
            and (metric.key, run_metric(metric).version) == (key, version)
        ):
            return metric
    return None


def _with_cap(metric: Metric, caps: Caps) -> Metric:
    if not (isinstance(metric, MeanMetric) and isinstance(metric.cap, QuantileCap)):
        return metric
    cap = caps.get((metric.key, run_metric(metric).version, metric.cap.quantile))
    return metric if cap is None else msgspec.structs.replace(metric, cap=cap)
