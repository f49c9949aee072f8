"""Verify one metric of the scope `exposure`: its open visits, and the sums of those that closed.

What closed keeps moments of visits only, and is not made again: outcomes that came too late for it
are not in it, and an erasure does not take its unit out.
"""

import math
from datetime import datetime
from typing import Final, NamedTuple

import asyncpg

from analysis.folding.cells import ALL, CLOSED
from analysis.folding.meetings import ROUTERS_FOLLOW
from analysis.folding.metrics import MOST_AHEAD, StoredMetric
from analysis.folding.visits import read_open
from analysis.upkeep.differences import RELATIVE, ROUNDING, Difference, Findings
from analysis.upkeep.verify_metric import STATEMENT_TIMEOUT, cells_kept, compare_total
from experiments.model import LARGEST_VALUE, Experiment
from experiments.store import Connection

# What a unit met is what its exposures say that are there; of what was dropped, its enrolment and
# the meetings that stand are taken as given.
_OPEN: Final = """
    with happened as (
        select e.ordinal, e.unit, e.arm, e.at as enrolled_at, p.part, p.aggregate, p.cap, o.at,
               case when o.value is not null then greatest(-$9::double precision,
                                                           least($9, o.value)) end as value
        from metric_part p
        join outcome o on o.event = p.event
        join segment s on s.id = o.segment and s.folded_at is not null
        join enrolment e
            on e.unit = o.unit collate "C" and e.unit_type = o.unit_type and e.project = o.project
        where p.metric = $1 and e.experiment = $2 and e.run = $3
          and o.received_at >= to_timestamp($5) - $8::interval
          and o.at >= e.at and o.at < e.at + p.ends and o.at >= $4 and o.at >= to_timestamp($5)
    ),
    scored as (
        select h.*,
               least(
                   case h.aggregate
                       when 'total' then coalesce(h.value, 1) when 'sum' then coalesce(h.value, 0)
                       else 1 end,
                   h.cap
               ) as score
        from happened h
    )
    select (floor(extract(epoch from h.at) / $6::int) * $6::int)::bigint as block, h.ordinal,
           met.arm,
           coalesce(sum(h.score) filter (where h.part = 0), 0) as numerator,
           coalesce(sum(h.score) filter (where h.part = 1), 0) as denominator,
           sum(abs(h.score)) as gross
    from scored h
    cross join lateral (
        select a.id as arm, a.epoch
        from (
            select h.enrolled_at as at, h.arm
            union all
            select x.at, a.id
            from exposure x
            join segment s on s.id = x.segment and s.folded_at is not null
            join arm a
                on a.experiment = x.experiment and a.epoch = x.epoch and a.variant = x.variant
               and a.run = x.run
            where hashtextextended(x.unit, 0) = hashtextextended(h.unit, 0)
              and x.unit collate "C" = h.unit and x.experiment = $2 and x.run = $3
              and x.at <= h.at
            union all
            select m.at, m.arm
            from meeting m cross join fold_position f
            where m.experiment = $2 and m.run = $3 and m.ordinal = h.ordinal and m.at <= h.at
              and m.at < f.kept_from
        ) as of
        join arm a on a.id = of.arm
        order by of.at desc, a.epoch desc, a.id desc limit 1
    ) as met
    left join lateral (
        select e.number, e.state = 'running' and e.stickiness = 'sticky' as keeps
        from epoch e where e.experiment = $2 and e.at <= h.at - $7::interval
        order by e.at desc, e.number desc limit 1
    ) as in_force on true
    where in_force.number is null or met.epoch >= in_force.number or in_force.keeps
    group by 1, 2, 3
"""


class _Visit(NamedTuple):
    numerator: float
    denominator: float
    gross: float


_NONE: Final = _Visit(0.0, 0.0, 0.0)


async def compare_visits(
    connection: Connection, where: str, plan: Experiment, metric: StoredMetric, findings: Findings
) -> int:
    """Compare all that stands of a metric of the scope `exposure`; how many cells that were.

    Args:
        where: what the metric is called in a difference.
        plan: the definition of its experiment.
    """
    stands = await read_open(connection, metric)
    should = await _recounted(connection, metric)
    for place in sorted(stands.keys() | should.keys()):
        block, unit, arm = place
        kept, visit = stands.get(place, (0.0, 0.0)), should.get(place, _NONE)
        for what, is_now, is_right in (
            ("numerator", kept[0], visit.numerator),
            ("denominator", kept[1], visit.denominator),
        ):
            allowed = ROUNDING * visit.gross
            if not math.isclose(is_now, is_right, rel_tol=RELATIVE, abs_tol=allowed):
                visited = f"{where}, block {block}, unit {unit} in arm {arm}"
                findings.add(Difference(visited, what, repr(is_now), repr(is_right)))
    cells = await cells_kept(connection, metric)
    for block in (CLOSED, ALL):
        await compare_total(connection, where, plan, metric, (block, 0), cells, findings)
    return len(cells)


async def _recounted(
    connection: Connection, metric: StoredMetric
) -> dict[tuple[int, int, int], _Visit]:
    since: datetime | None = metric.since
    rows: list[asyncpg.Record] = await connection.fetch(
        _OPEN,
        metric.id,
        metric.experiment,
        metric.run,
        since,
        float(metric.closed_through + metric.made.block_seconds),
        metric.made.block_seconds,
        max(metric.made.window, ROUTERS_FOLLOW),
        MOST_AHEAD,
        LARGEST_VALUE,
        timeout=STATEMENT_TIMEOUT,
    )
    return {
        (row["block"], row["ordinal"], row["arm"]): _Visit(
            row["numerator"], row["denominator"], row["gross"]
        )
        for row in rows
    }
