"""Evidence that fades, in Postgres: what closed blocks taught a bandit that discounts older units.

It takes in a block at the moment that it is closed, once and in order, in the transaction that
closes it, as trails do. Blocks that were closed before the policy had a half-life are not in it;
and where it had none for a while, the evidence begins anew.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from analysis.folding.blocks import Closed
from analysis.folding.metrics import run_metric
from analysis.folding.pause import Pause
from analysis.folding.trails import Propensities
from analysis.inference.discounted import Discounted, ScoredCell, follow, start
from analysis.inference.moments import Cells
from experiments.model import ThompsonPolicy, parse_duration
from experiments.records import ExperimentRecord
from experiments.store import Connection

# The last block that was closed before is also the last one of the metric's trails.
_READ: Final = """
    select m.id, e.state, coalesce(
        (select max((trail.value ->> 'last_block')::bigint) from json_each(t.trails) trail),
        t.since_block
    ) as last_closed
    from run_metric m
    left join discounted_evidence e on e.metric = m.id
    left join metric_trail t on t.metric = m.id
    where m.experiment = $1 and m.run = $2 and m.key = $3 and m.version = $4
"""
_KEEP: Final = """
    insert into discounted_evidence (metric, state) values ($1, $2)
    on conflict (metric) do update set state = excluded.state
"""
_FIND: Final = "select state from discounted_evidence where metric = $1"
_AT_ONCE: Final = 100


async def follow_fading(
    connection: Connection,
    record: ExperimentRecord,
    closed: Sequence[Closed],
    propensities: Propensities,
) -> None:
    """Take the blocks that closed just now into the evidence of a bandit that discounts. Called
    before `follow_closed`, whose trails tell which block was the last one before these.

    Args:
        propensities: of all epochs that these blocks name.
    """
    policy = record.definition.policy
    if not isinstance(policy, ThompsonPolicy) or policy.half_life is None:
        return
    followed = next(m for m in record.definition.metrics if m.key == policy.metric)
    metric = run_metric(followed)
    blocks = [
        block
        for c in closed
        if (c.metric.key, c.metric.version) == (metric.key, metric.version)
        for block in c.blocks
    ]
    if not blocks:
        return
    row = await connection.fetchrow(_READ, record.id, record.run, metric.key, metric.version)
    assert row is not None, "what has closed blocks is a metric"  # noqa: S101 - an invariant
    state = _decode(row["state"])
    if state is None or state.last_block != row["last_closed"]:
        control = record.definition.control.key
        treatments = [variant for variant in record.definition.weights if variant != control]
        since = None if row["last_closed"] is None else blocks[0][0]
        state = start(control, treatments, since)
    half_life = parse_duration(policy.half_life).total_seconds()
    pause = Pause(connection)
    for place, (block, cells) in enumerate(blocks, 1):
        state = follow(state, scored_cells(block, cells, propensities), half_life)
        if place % _AT_ONCE == 0:
            await pause.after(_AT_ONCE)
    await connection.execute(_KEEP, row["id"], msgspec.json.encode(state).decode())


async def read_discounted(connection: Connection, metric: int) -> Discounted | None:
    """The evidence of a metric of a run, by its number; None before any block."""
    return _decode(await connection.fetchval(_FIND, metric))


def _decode(state: str | None) -> Discounted | None:
    return None if state is None else msgspec.json.decode(state, type=Discounted)


def scored_cells(block: int, cells: Cells, propensities: Propensities) -> list[ScoredCell]:
    """What a block saw, epoch by epoch."""
    return [
        ScoredCell(
            block=block,
            epoch=epoch,
            propensities=dict(propensities[epoch]),
            arms={variant: moments for (of, variant), moments in cells.items() if of == epoch},
        )
        for epoch in sorted({epoch for epoch, _ in cells})
    ]
