"""Trails in Postgres: what closed blocks have taught of each treatment of a metric.

A trail takes in a block at the moment that it is closed, once and in order, in the transaction that
closes it. What changes in the block afterwards, because an outcome comes late or a unit is erased,
is in the cells and their sums, and is counted as late; it does not come into the trail any more. A
trail has moments only, of no unit by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from analysis.folding.blocks import Closed
from analysis.folding.pause import Pause
from analysis.inference.moments import Cells, empty
from analysis.inference.trail import Trail, TrailCell, follow, start
from experiments.records import ExperimentRecord
from experiments.store import Connection

Propensities = Mapping[int, Mapping[str, float]]
"""The propensity of each variant, by epoch."""

_READ = """
    select m.id, m.key, m.version, t.since_block, t.trails
    from run_metric m left join metric_trail t on t.metric = m.id
    where m.experiment = $1 and m.run = $2
"""
_KEEP = """
    insert into metric_trail (metric, trails) values ($1, $2)
    on conflict (metric) do update set trails = excluded.trails
"""
_AT_ONCE: Final = 100


async def follow_closed(
    connection: Connection,
    record: ExperimentRecord,
    closed: Sequence[Closed],
    propensities: Propensities,
) -> None:
    """Take the blocks that closed just now into the trails of their metrics.

    Args:
        closed: the blocks of each metric. A quantile has no trail.
        propensities: of all epochs that these blocks name.
    """
    news = {
        (c.metric.key, c.metric.version): c
        for c in closed
        if c.blocks and c.metric.kind != "quantile"
    }
    if not news:
        return
    control = record.definition.control.key
    treatments = [variant for variant in record.definition.weights if variant != control]
    pause = Pause(connection)
    for row in await connection.fetch(_READ, record.id, record.run):
        of_metric = news.get((row["key"], row["version"]))
        if of_metric is None:
            continue
        kept = _decode(row["trails"])
        new = start(len(of_metric.metric.parts), row["since_block"])
        trails = {treatment: kept.get(treatment, new) for treatment in treatments}
        for place, (block, cells) in enumerate(of_metric.blocks, 1):
            for treatment, trail in trails.items():
                seen = _cells(block, cells, propensities, control, treatment, trail.control.d)
                trails[treatment] = follow(trail, seen)
            if place % _AT_ONCE == 0:
                await pause.after(_AT_ONCE * len(trails))
        await connection.execute(_KEEP, row["id"], msgspec.json.encode(kept | trails).decode())


async def read_trails(
    connection: Connection, experiment: int, run: int
) -> dict[int, dict[str, Trail]]:
    """The trails of a run, by the number of the metric and by treatment."""
    return {
        row["id"]: _decode(row["trails"]) for row in await connection.fetch(_READ, experiment, run)
    }


def _decode(trails: str | None) -> dict[str, Trail]:
    return {} if trails is None else msgspec.json.decode(trails, type=dict[str, Trail])


def _cells(
    block: int,
    cells: Cells,
    propensities: Propensities,
    control: str,
    treatment: str,
    d: int,
) -> list[TrailCell]:
    """What a block saw, epoch by epoch, for a treatment and the control."""
    units: dict[int, int] = {}
    for (epoch, _), moments in cells.items():
        units[epoch] = units.get(epoch, 0) + moments.n
    nothing = empty(d)
    return [
        TrailCell(
            block=block,
            epoch=epoch,
            propensity_control=propensities[epoch].get(control, 0.0),
            propensity_treatment=propensities[epoch].get(treatment, 0.0),
            units=count,
            control=cells.get((epoch, control), nothing),
            treatment=cells.get((epoch, treatment), nothing),
        )
        for epoch, count in units.items()
    ]
