"""Verify one metric of a run: states of units, cells of moments, histograms and sums over epochs.

`verify.py` has made the temporary tables: `first_met`, the units by their first exposures, and
`seen`, which is filled here with what outcomes make of the units that had any.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple, TypeAlias

import asyncpg

from analysis.folding.aggregates import WIDTH
from analysis.folding.cells import ALL, CLOSED, moments_of
from analysis.folding.metrics import StoredMetric
from analysis.folding.totals import read_total, terms_of
from analysis.inference.bins import GAMMA, LEAST, SHIFT
from analysis.inference.epoch_sums import Population
from analysis.inference.moments import Moments, pairs
from analysis.upkeep.differences import (
    RELATIVE,
    ROUNDING,
    Difference,
    Findings,
    Recounted,
    in_cell,
    in_histogram,
    in_sums,
)
from experiments.model import LARGEST_VALUE, Experiment
from experiments.store import Connection

STATEMENT_TIMEOUT: Final = 6 * 3600.0
"""Seconds; one statement may read all raw events that there are."""

# What outcomes make of each unit, by part: two numbers, as its state has them. What outcomes that
# were dropped made of it is one more such pair. `a_gross` and `gross` are what number and score are
# made of, by absolute value, as `differences.py` goes by.
_SEE = """
    insert into seen
    with part as (
        select * from unnest(
            $5::int[], $6::text[], $7::text[], $8::double precision[], $9::interval[],
            $10::interval[], $11::int[]
        ) as p (part, event, aggregate, cap, begins, ends, place)
    ),
    happened as (
        select f.ordinal, p.part, p.aggregate, count(*) as outcomes,
               count(*) filter (where o.value is distinct from 0) as conversions,
               count(v.value) as valued,
               coalesce(sum(v.value), 0) as total,
               coalesce(sum(abs(v.value)), 0) as gross,
               max(v.value) as greatest,
               max(array[1e6 * extract(epoch from o.at - timestamptz '2000-01-01Z'), v.value])
                   filter (where p.aggregate = 'last' and v.value is not null) as latest
        from part p
        join outcome o on o.event = p.event
        join segment s on s.id = o.segment and s.folded_at is not null
        join first_met f
            on f.unit = o.unit collate "C" and f.unit_type = o.unit_type and f.project = o.project
        cross join lateral (
            select case when o.value is not null then greatest(-$12::double precision,
                                                               least($12, o.value)) end as value
        ) as v
        where f.experiment = $1 and f.run = $2
          and ($3::bigint is null or f.ordinal < $3) and ($4::timestamptz is null or f.at >= $4)
          and o.at >= f.at + p.begins and o.at < f.at + p.ends
        group by f.ordinal, p.part, p.aggregate
    ),
    opening as (
        select v.chunk * 128::bigint + (u.place - 1) % 128 as ordinal, p.part, p.aggregate,
               coalesce(sum(u.value) filter (where (u.place - 1) / 128 = p.place), 0) as a,
               coalesce(sum(u.value) filter (where (u.place - 1) / 128 > p.place), 0) as b
        from unit_value v
        cross join unnest(v.opening) with ordinality as u (value, place)
        join part p
            on (u.place - 1) / 128 between p.place
               and p.place + (p.aggregate in ('mean', 'max', 'last'))::int
        where v.metric = $13 and v.opening is not null and u.value <> 0
        group by 1, 2, 3
    ),
    either as (
        select ordinal, part, aggregate,
               case aggregate
                   when 'any' then conversions when 'count' then outcomes
                   when 'max' then greatest when 'last' then latest[2]
                   when 'total' then total + (outcomes - valued) else total end as a,
               case aggregate
                   when 'mean' then valued when 'max' then valued when 'last' then latest[1]
                   else 0 end as b,
               case aggregate
                   when 'sum' then gross when 'mean' then gross
                   when 'total' then gross + (outcomes - valued) else 0 end as gross
        from happened
        union all
        select ordinal, part, aggregate, a, b,
               case when aggregate in ('sum', 'total', 'mean') then abs(a) else 0 end
        from opening
    ),
    whole as (
        select ordinal, part, aggregate, sum(gross) as a_gross,
               coalesce(
                   case aggregate
                       when 'max' then max(a) filter (where b > 0)
                       when 'last' then (max(array[b, a]) filter (where b > 0))[2]
                       else sum(a) end,
                   0
               ) as a,
               coalesce(case aggregate when 'last' then max(b) else sum(b) end, 0) as b
        from either group by ordinal, part, aggregate
    )
    select w.ordinal, w.part, w.a, w.b, w.a_gross, least(scored.score, p.cap),
           case when scored.score - $14 * scored.gross > p.cap then abs(p.cap) else scored.gross end
    from whole w
    join part p on p.part = w.part
    cross join lateral (
        select case w.aggregate
                   when 'any' then (w.a > 0)::int when 'mean' then w.a / greatest(w.b, 1)
                   else w.a end as score,
               case when w.aggregate = 'any' then (w.a > 0)::int
                    when w.aggregate = 'mean' then w.a_gross / greatest(w.b, 1)
                    else greatest(w.a_gross, abs(w.a)) end as gross
    ) as scored
"""
_STATES = """
    with part as (
        select * from unnest($2::int[], $3::text[], $4::int[]) as p (part, aggregate, place)
    ),
    stands as (
        select v.chunk * 128::bigint + (u.place - 1) % 128 as ordinal,
               (u.place - 1) / 128 as place, u.value
        from unit_value v cross join unnest(v.state) with ordinality as u (value, place)
        where v.metric = $1 and u.value <> 0
    ),
    should as (
        select s.ordinal, p.place + n.number as place, n.value, n.gross
        from seen s
        join part p on p.part = s.part
        cross join lateral (
            values (0, s.a, s.a_gross), (1, s.b, 0.0::double precision)
        ) as n (number, value, gross)
        where n.number = 0 or p.aggregate in ('mean', 'max', 'last')
    ),
    both_of_them as (
        select ordinal, place, coalesce(stands.value, 0) as stands,
               coalesce(should.value, 0) as should, coalesce(should.gross, 0) as gross
        from stands full join should using (ordinal, place)
    )
    select ordinal, place, stands, should, count(*) over () as found
    from both_of_them
    where stands <> should
      and (gross = 0 or abs(stands - should) > greatest($6 * abs(should), $7 * gross))
    order by ordinal, place limit $5
"""
_CELLS = """
    select epoch, variant, segment, coalesce(extract(epoch from block)::bigint, 0) as block,
           grouping(block) = 1 as every, i, j, count(*) as n, avg(x) as mean,
           covar_pop(y, x) * count(*) as product, sqrt(avg(gross * gross)) as gross
    from (
        select f.epoch, f.variant, of.segment, p.i, p.j,
               case when b.begins > to_timestamp($5) then b.begins end as block,
               least(coalesce(s.score, 0), p.cap) as x,
               least(coalesce(t.score, 0), p.other_cap) as y,
               coalesce(s.gross, 0) as gross
        from first_met f
        cross join lateral unnest(
            case when $11 then array[0] || f.segments else array[0] end
        ) as of (segment)
        cross join unnest(
            $7::int[], $8::int[], $9::double precision[], $10::double precision[]
        ) as p (i, j, cap, other_cap)
        cross join lateral (
            select date_bin(make_interval(secs => $6), f.at, 'epoch') as begins
        ) as b
        left join seen s on s.ordinal = f.ordinal and s.part = p.i
        left join seen t on t.ordinal = f.ordinal and t.part = p.j
        where f.experiment = $1 and f.run = $2
          and ($3::bigint is null or f.ordinal < $3) and ($4::timestamptz is null or f.at >= $4)
    ) as unit
    group by grouping sets (
        (i, j, epoch, variant, segment, block), (i, j, epoch, variant, segment)
    )
"""
_CELLS_KEPT = """
    select c.block, a.epoch, a.variant, coalesce(s.segment, 0) as segment, c.n, c.mean, c.m2
    from cell c
    left join segment_arm s on s.id = c.arm
    join arm a on a.id = coalesce(s.arm, c.arm)
    where c.metric = $1
"""
_SEGMENTS_SUMMED = "select distinct segment from metric_total where metric = $1"
# Values within 1e-9 of a boundary, measured in buckets, are in one bucket or in its neighbour.
_BUCKETS = """
    select epoch, variant, 0 as segment,
           coalesce(extract(epoch from block)::bigint, 0) as block,
           grouping(block) = 1 as every, low, high, count(*) as n
    from (
        select f.epoch, f.variant,
               case when b.begins > to_timestamp($5) then b.begins end as block,
               (sign(s.score) * (ceil(size.of - sign(s.score) * 1e-9) + $7))::int as low,
               (sign(s.score) * (ceil(size.of + sign(s.score) * 1e-9) + $7))::int as high
        from first_met f
        cross join lateral (
            select date_bin(make_interval(secs => $6), f.at, 'epoch') as begins
        ) as b
        join seen s on s.ordinal = f.ordinal and s.part = 0 and (s.a <> 0 or s.b <> 0)
        cross join lateral (
            select ln(greatest(abs(s.score), $8::double precision)) / ln($9::double precision) as of
        ) as size
        where f.experiment = $1 and f.run = $2
          and ($3::bigint is null or f.ordinal < $3) and ($4::timestamptz is null or f.at >= $4)
    ) as unit
    group by grouping sets ((epoch, variant, low, high, block), (epoch, variant, low, high))
"""
_BUCKETS_KEPT = """
    select h.block, a.epoch, a.variant, h.bucket, h.n
    from histogram h join arm a on a.id = h.arm where h.metric = $1 and h.n <> 0
"""


class Place(NamedTuple):
    """What a cell is of."""

    block: int
    epoch: int
    variant: str
    segment: int = 0

    def __str__(self) -> str:
        block = {ALL: "all blocks", CLOSED: "closed blocks"}.get(self.block, f"block {self.block}")
        segment = f", segment {self.segment}" if self.segment else ""
        return f"epoch {self.epoch}, variant {self.variant}{segment}, {block}"


Cells: TypeAlias = Mapping[Place, Moments]


async def compare_metric(
    connection: Connection, where: str, plan: Experiment, metric: StoredMetric, findings: Findings
) -> int:
    """Compare all that stands of a metric; how many cells that were.

    Args:
        where: what the metric is called in a difference.
        plan: the definition of its experiment.
    """
    await connection.execute("truncate seen")
    await _see(connection, metric)
    await connection.execute("analyze seen", timeout=STATEMENT_TIMEOUT)
    await _compare_states(connection, where, metric, findings)
    kept = await cells_kept(connection, metric)
    recounted = await _recount_cells(connection, metric)
    nothing = Recounted.nothing(len(metric.made.parts))
    for place in sorted(kept.keys() | recounted.keys()):
        stands = kept.get(place, nothing.moments)
        for found in in_cell(f"{where}, {place}", stands, recounted.get(place, nothing)):
            findings.add(found)
    if metric.made.kind == "quantile":
        await _compare_histograms(connection, where, metric, findings)
    summed = {row["segment"] for row in await _fetch(connection, _SEGMENTS_SUMMED, metric.id)}
    for segment in sorted({0} | summed | {place.segment for place in kept}):
        for block in (CLOSED, ALL):
            await compare_total(connection, where, plan, metric, (block, segment), kept, findings)
    return len(recounted)


async def _fetch(connection: Connection, query: str, *arguments: object) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(
        query, *arguments, timeout=STATEMENT_TIMEOUT
    )
    return rows


def _counted(metric: StoredMetric) -> tuple[object, ...]:
    """The units that a metric counts, as the statements take them."""
    return metric.experiment, metric.run, metric.covered, metric.since


def _places(metric: StoredMetric) -> list[int]:
    """The first number of each part in a unit's state."""
    widths = [WIDTH[part.aggregate] for part in metric.made.parts]
    return [sum(widths[:number]) for number in range(len(widths))]


async def _see(connection: Connection, metric: StoredMetric) -> None:
    parts = metric.made.parts
    await connection.execute(
        _SEE,
        *_counted(metric),
        list(range(len(parts))),
        [part.event for part in parts],
        [part.aggregate for part in parts],
        [part.cap for part in parts],
        [part.begins for part in parts],
        [part.ends for part in parts],
        _places(metric),
        LARGEST_VALUE,
        metric.id,
        ROUNDING,
        timeout=STATEMENT_TIMEOUT,
    )


async def _compare_states(
    connection: Connection, where: str, metric: StoredMetric, findings: Findings
) -> None:
    aggregates = [part.aggregate for part in metric.made.parts]
    rows = await _fetch(
        connection,
        _STATES,
        metric.id,
        list(range(len(aggregates))),
        aggregates,
        _places(metric),
        findings.room + 1,
        RELATIVE,
        ROUNDING,
    )
    for row in rows:
        unit = f"{where}, unit {row['ordinal']}"
        what = f"number {row['place'] + 1} of its state"
        findings.add(Difference(unit, what, repr(row["stands"]), repr(row["should"])))
    if rows:
        findings.add_unnamed(rows[0]["found"] - len(rows))


async def cells_kept(connection: Connection, metric: StoredMetric) -> dict[Place, Moments]:
    """The cells of a metric that stand."""
    return {
        Place(row["block"], row["epoch"], row["variant"], row["segment"]): moments_of(row)
        for row in await _fetch(connection, _CELLS_KEPT, metric.id)
    }


async def _recount_cells(connection: Connection, metric: StoredMetric) -> dict[Place, Recounted]:
    caps = [part.cap for part in metric.made.parts]
    d = len(caps)
    rows = await _fetch(
        connection,
        _CELLS,
        *_counted(metric),
        float(metric.closed_through),
        float(metric.made.block_seconds),
        [i for i, _ in pairs(d)],
        [j for _, j in pairs(d)],
        [caps[i] for i, _ in pairs(d)],
        [caps[j] for _, j in pairs(d)],
        metric.made.kind != "quantile",
    )
    by_pair: dict[Place, dict[tuple[int, int], asyncpg.Record]] = defaultdict(dict)
    for row in rows:
        by_pair[_place(row)][row["i"], row["j"]] = row
    return {
        place: Recounted(
            Moments(
                n=of_cell[0, 0]["n"],
                mean=tuple(of_cell[i, i]["mean"] for i in range(d)),
                m2=tuple(of_cell[pair]["product"] for pair in pairs(d)),
            ),
            gross=tuple(of_cell[i, i]["gross"] for i in range(d)),
        )
        for place, of_cell in by_pair.items()
    }


def _place(row: asyncpg.Record) -> Place:
    block = ALL if row["every"] else row["block"]
    return Place(block, row["epoch"], row["variant"], row["segment"])


async def _compare_histograms(
    connection: Connection, where: str, metric: StoredMetric, findings: Findings
) -> None:
    kept: dict[Place, dict[int, int]] = defaultdict(dict)
    for row in await _fetch(connection, _BUCKETS_KEPT, metric.id):
        kept[Place(row["block"], row["epoch"], row["variant"])][row["bucket"]] = row["n"]
    recounted: dict[Place, dict[tuple[int, int], int]] = defaultdict(dict)
    for row in await _fetch(
        connection,
        _BUCKETS,
        *_counted(metric),
        float(metric.closed_through),
        float(metric.made.block_seconds),
        SHIFT,
        LEAST,
        GAMMA,
    ):
        recounted[_place(row)][row["low"], row["high"]] = row["n"]
    for place in sorted(kept.keys() | recounted.keys()):
        named = f"{where}, {place}"
        for found in in_histogram(named, kept.get(place, {}), recounted.get(place, {})):
            findings.add(found)


async def compare_total(
    connection: Connection,
    where: str,
    plan: Experiment,
    metric: StoredMetric,
    summed: tuple[int, int],
    cells: Cells,
    findings: Findings,
) -> None:
    """The sums over epochs of a block and segment are those of the cells as they stand, to the last
    digit."""
    block, segment = summed
    of_segment = f", segment {segment}" if segment else ""
    where = f"{where}{of_segment}, {'closed' if block == CLOSED else 'all'} blocks"
    epochs: dict[int, dict[str, Moments]] = defaultdict(dict)
    for place, moments in cells.items():
        if (place.block, place.segment) == summed:
            epochs[place.epoch][place.variant] = moments
    should = Population()
    for of_variants in epochs.values():
        try:
            should += terms_of(of_variants, plan, metric.made.kind, segment)
        except ValueError as error:
            findings.add(Difference(where, "a cell", str(error), "one of zeros and ones"))
            return
    stands = await read_total(connection, metric.id, block, segment)
    for found in in_sums(where, stands, should):
        findings.add(found)
