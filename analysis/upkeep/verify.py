"""Verify: all that folding keeps, counted again from the raw events by other means than its own.

Folding takes differences in, batch by batch, in numpy; here whole runs are counted by plain SQL, a
few statements for each metric, and what stands is compared with that (`differences.py` says how
exactly). It reads in one snapshot and holds up neither folding nor shipping.

Where raw events were dropped, what stands in the opening balances is taken as given
(`retention.py`). Of a metric that is still being filled in, the units that have their values are
compared. Sums over epochs are compared with those of the cells as they stand, to the last digit:
the cells were compared before.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple, TypeAlias

import asyncpg
import msgspec

from analysis.folding.metrics import read_every_metric
from analysis.inference.ratio_check import UnitSums, of_units
from analysis.inference.segments import LONGEST_VALUE
from analysis.upkeep.differences import Difference, Findings, in_sums
from analysis.upkeep.verify_metric import STATEMENT_TIMEOUT, compare_metric
from analysis.upkeep.verify_visits import compare_visits
from experiments.allocation import Allocation, propensities
from experiments.model import Experiment
from experiments.store import Connection

MOST_NAMED: Final = 20

# The lock keeps retention from dropping a partition that the snapshot still sees; all others read
# and write meanwhile. It comes before the first query, and so does the snapshot not.
_PREPARE = """
    set local statement_timeout = 0; set local idle_in_transaction_session_timeout = 0;
    set local work_mem = '64MB';
    lock table exposure, outcome in access share mode;
    create temp table first_met (
        experiment bigint, run int, unit text collate "C", unit_type text, project text,
        epoch int, variant text, at timestamptz, several boolean, segments int[], ordinal bigint
    ) on commit drop;
    create temp table seen (
        ordinal bigint, part int, a double precision, b double precision, a_gross double precision,
        score double precision, gross double precision
    ) on commit drop
"""
_RUNS = """
    select x.id, x.project, x.key, x.definition, r.number, r.enrolments, r.erased, r.unit_sums
    from experiment x join run r on r.experiment = x.id
    where ($1::text is null or x.project = $1) and ($2::text is null or x.key = $2)
    order by x.id, r.number
"""
_KEPT_FROM = "select nullif(kept_from, '-infinity') from fold_position"
# A unit counts by its first exposure; of two at one time by that of the lower epoch. Of two that
# differ in nothing but attributes either may be the one. Those of one that was dropped are known by
# the segments that stand. A unit that should be enrolled and is not gets a negative ordinal, so
# that it still is counted.
_FIRST_MET = """
    insert into first_met
    with stands as (
        select e.*, coalesce(p.segments, '{}') as segments
        from enrolment e left join profile p on p.id = e.profile
        where e.experiment = any($1)
    ),
    met as (
        select x.experiment, x.run, x.unit collate "C" as unit, x.unit_type, x.project,
               x.epoch, x.variant, x.at, false as several, mine.segments
        from exposure x
        join segment s on s.id = x.segment and s.folded_at is not null
        join epoch p on p.experiment = x.experiment and p.number = x.epoch and p.run = x.run
        cross join lateral (
            select coalesce(
                array_agg(number.of order by number.of) filter (where number.of is not null), '{}'
            ) as segments
            from run_attribute a
            cross join lateral (
                select case jsonb_typeof(x.attributes -> a.name)
                    when 'number' then trim_scale((x.attributes ->> a.name)::numeric)::text
                    else x.attributes ->> a.name
                end as plain
            ) as given
            left join unit_segment own
                on own.attribute = a.id and length(given.plain) <= $2
               and own.value = case jsonb_typeof(x.attributes -> a.name)
                   when 'number' then given.plain else (x.attributes -> a.name)::text end
            left join unit_segment other on other.attribute = a.id and other.other
            cross join lateral (select coalesce(own.id, other.id) as of) as number
            where a.experiment = x.experiment and a.run = x.run
              and jsonb_typeof(x.attributes -> a.name) in ('string', 'number', 'boolean')
        ) as mine
        where x.experiment = any($1)
        union all
        select e.experiment, e.run, e.unit, e.unit_type, e.project,
               a.epoch, a.variant, e.opening_at, e.opening_several, e.segments
        from stands e join arm a on a.id = e.opening_arm
    )
    select f.*, coalesce(e.ordinal, -row_number() over ())
    from (
        select distinct on (met.experiment, met.run, met.unit)
               met.experiment, met.run, met.unit, met.unit_type, met.project, met.epoch,
               met.variant, met.at,
               bool_or(met.several) over same or min(variant) over same <> max(variant) over same,
               met.segments
        from met
        left join stands e
            on e.unit = met.unit and e.experiment = met.experiment and e.run = met.run
        window same as (partition by met.experiment, met.run, met.unit)
        order by met.experiment, met.run, met.unit, met.at, met.epoch, met.variant,
                 met.segments is distinct from e.segments
    ) as f
    left join enrolment e
        on e.unit = f.unit and e.experiment = f.experiment and e.run = f.run
"""
_ENROLMENTS = """
    select coalesce(f.experiment, e.experiment) as experiment, coalesce(f.run, e.run) as run,
           coalesce(f.unit, e.unit) as unit,
           f.variant as f_variant, f.epoch as f_epoch, f.at as f_at, f.several as f_several,
           f.segments as f_segments,
           e.variant as e_variant, e.epoch as e_epoch, e.at as e_at, e.several as e_several,
           e.segments as e_segments, count(*) over () as found
    from first_met f
    full join (
        select e.*, a.epoch, a.variant, coalesce(p.segments, '{}') as segments
        from enrolment e
        left join arm a on a.id = e.arm
        left join profile p on p.id = e.profile
        where e.experiment = any($1)
    ) as e on e.unit = f.unit and e.experiment = f.experiment and e.run = f.run
    where (f.variant, f.epoch, f.at, f.several, f.segments) is distinct from
          (e.variant, e.epoch, e.at, e.several, e.segments)
    order by 1, 2, 3 limit $2
"""
_NUMBERED = """
    select experiment, run, coalesce(max(ordinal) + 1, 0) as numbered, count(*) as units
    from enrolment where experiment = any($1) group by experiment, run
"""
_ARMS_MET = """
    select experiment, run, epoch, variant, count(*) as units,
           count(*) filter (where several) as several
    from first_met group by experiment, run, epoch, variant
"""
_ARMS = """
    select experiment, run, epoch, variant, units, several from arm where experiment = any($1)
"""
_SEGMENTS_MET = """
    select f.experiment, f.run, f.epoch, f.variant, s.segment, count(*) as units
    from first_met f cross join lateral unnest(f.segments) as s (segment)
    group by f.experiment, f.run, f.epoch, f.variant, s.segment
"""
_SEGMENTS = """
    select a.experiment, a.run, a.epoch, a.variant, s.segment, s.units
    from segment_arm s join arm a on a.id = s.arm
    where a.experiment = any($1) and s.units <> 0
"""
_ALLOCATIONS = """
    select experiment, number, allocation from epoch
    where (experiment, number) in (select * from unnest($1::bigint[], $2::int[]))
"""

Run: TypeAlias = tuple[int, int]
Epoch: TypeAlias = tuple[int, int, int]
Counts: TypeAlias = dict[str, tuple[int, int]]
"""Units, and those of several variants, by variant."""


class VerifyError(Exception):
    """There is nothing to verify; one line says why."""


class Verdict(msgspec.Struct, frozen=True):
    """What was compared, and what differs.

    Args:
        named: the first differences, `MOST_NAMED` at most.
        found: how many there are.
        kept_from: raw events that were received before were dropped; None where none were.
        filling_in: what metrics were compared for some of their units only, in a line each.
    """

    runs: int
    metrics: int
    units: int
    cells: int
    named: tuple[Difference, ...]
    found: int
    kept_from: datetime | None
    filling_in: tuple[str, ...]

    def lines(self) -> list[str]:
        """What there is to say, the summary last."""
        said = [str(difference) for difference in self.named]
        if self.found > len(said):
            said.append(f"and {self.found - len(said):,} more")
        said += self.filling_in
        if self.kept_from is not None:
            said.append(
                f"raw events received before {self.kept_from:%Y-%m-%d} were dropped: what they came"
                " to is the opening balance, taken as given"
            )
        said.append(
            f"verified {self.runs:,} runs, {self.units:,} units, {self.metrics:,} metrics, "
            f"{self.cells:,} cells: {f'{self.found:,} differences' if self.found else 'all equal'}"
        )
        return said


class _Known(NamedTuple):
    """A run: what it is called, its experiment, and what stands of it."""

    name: str
    plan: Experiment
    enrolments: int
    erased: int
    unit_sums: UnitSums


async def verify(
    connection: Connection,
    project: str | None,
    experiment: str | None,
    progress: Callable[[str], None],
) -> Verdict:
    """Compare what stands with what the raw events say that were folded.

    Args:
        connection: in no transaction; the comparison is one of its own, and changes nothing.
        project, experiment: keys of what to compare; None for all.
        progress: is told what is being compared, in a line.

    Raises:
        VerifyError: where no experiment with these keys has been started.
    """
    async with connection.transaction(isolation="repeatable_read"):
        await connection.execute(_PREPARE, timeout=STATEMENT_TIMEOUT)
        runs = {
            (row["id"], row["number"]): _known(row)
            for row in await _fetch(connection, _RUNS, project, experiment)
        }
        if not runs:
            raise VerifyError(f"no experiment {_named(project, experiment)}has been started")
        findings = Findings(MOST_NAMED)
        ids = sorted({identity for identity, _ in runs})
        progress(f"exposures of {len(ids):,} experiments")
        await connection.execute(_FIRST_MET, ids, LONGEST_VALUE, timeout=STATEMENT_TIMEOUT)
        await connection.execute("analyze first_met", timeout=STATEMENT_TIMEOUT)
        await _compare_enrolments(connection, ids, runs, findings)
        units = await _compare_arms(connection, ids, runs, findings)
        await _compare_segments(connection, ids, runs, findings)
        metrics = await read_every_metric(connection, runs, [])
        filling_in, cells = [], 0
        for number, metric in enumerate(metrics, 1):
            run = runs[metric.experiment, metric.run]
            where = f"{run.name}, metric {metric.made.key} (version {metric.made.version})"
            progress(f"metric {number:,} of {len(metrics):,}: {where}")
            if metric.covered is not None:
                share = metric.covered / max(run.enrolments, 1)
                filling_in.append(f"{where}: filling in, compared for {share:.0%} of the units")
            compare = compare_visits if metric.made.scope == "exposure" else compare_metric
            cells += await compare(connection, where, run.plan, metric, findings)
        [(kept_from,)] = await _fetch(connection, _KEPT_FROM)
    return Verdict(
        runs=len(runs),
        metrics=len(metrics),
        units=units,
        cells=cells,
        named=tuple(findings.named),
        found=findings.count,
        kept_from=kept_from,
        filling_in=tuple(filling_in),
    )


async def _fetch(connection: Connection, query: str, *arguments: object) -> list[asyncpg.Record]:
    rows: list[asyncpg.Record] = await connection.fetch(
        query, *arguments, timeout=STATEMENT_TIMEOUT
    )
    return rows


def _named(project: str | None, experiment: str | None) -> str:
    named = "" if experiment is None else f"{experiment} "
    return named if project is None else f"{named}in project {project} "


def _known(row: asyncpg.Record) -> _Known:
    sums = row["unit_sums"]
    return _Known(
        name=f"{row['project']}/{row['key']}, run {row['number']}",
        plan=msgspec.json.decode(row["definition"], type=Experiment),
        enrolments=row["enrolments"],
        erased=row["erased"],
        unit_sums=UnitSums() if sums is None else msgspec.json.decode(sums, type=UnitSums),
    )


async def _compare_enrolments(
    connection: Connection, ids: Sequence[int], runs: Mapping[Run, _Known], findings: Findings
) -> None:
    rows = await _fetch(connection, _ENROLMENTS, ids, findings.room + 1)
    for row in rows:
        where = f"{runs[row['experiment'], row['run']].name}, unit {row['unit']}"
        stands, should = _enrolment(row, "e"), _enrolment(row, "f")
        findings.add(Difference(where, "its enrolment", stands, should))
    if rows:
        findings.add_unnamed(rows[0]["found"] - len(rows))
    numbered = {
        (row["experiment"], row["run"]): (row["numbered"], row["units"])
        for row in await _fetch(connection, _NUMBERED, ids)
    }
    for key, run in runs.items():
        numbers, units = numbered.get(key, (0, 0))
        # An ordinal whose unit was erased stays unused.
        if run.enrolments != units + run.erased or run.enrolments < numbers:
            stands = f"{run.enrolments}, with ordinals below {numbers},"
            should = str(units + run.erased)
            findings.add(Difference(run.name, "number of enrolments", stands, should))


def _enrolment(row: asyncpg.Record, whose: str) -> str:
    variant, epoch, at, several, segments = (
        row[f"{whose}_{name}"] for name in ("variant", "epoch", "at", "several", "segments")
    )
    if at is None:
        return "none"
    met = "of several variants" if several else "of one variant"
    of = f", segments {', '.join(map(str, segments))}" if segments else ""
    return f"variant {variant} in epoch {epoch} at {at.isoformat()} {met}{of}"


async def _compare_arms(
    connection: Connection, ids: Sequence[int], runs: Mapping[Run, _Known], findings: Findings
) -> int:
    """Compare units by variant and epoch, and their sums over epochs; how many units there are."""
    met = _by_epoch(await _fetch(connection, _ARMS_MET))
    kept = _by_epoch(await _fetch(connection, _ARMS, ids))
    for epoch in sorted(met.keys() | kept.keys()):
        stands, should = kept.get(epoch, {}), met.get(epoch, {})
        for variant in sorted(stands.keys() | should.keys()):
            where = f"{runs[epoch[:2]].name}, epoch {epoch[2]}, variant {variant}"
            pairs = zip(stands.get(variant, (0, 0)), should.get(variant, (0, 0)), strict=True)
            for what, (a, b) in zip(("units", "units of several variants"), pairs, strict=True):
                if a != b:
                    findings.add(Difference(where, f"number of {what}", str(a), str(b)))
    sums = await _unit_sums(connection, met)
    for key, run in runs.items():
        for found in in_sums(f"{run.name}, units over epochs", run.unit_sums, sums[key]):
            findings.add(found)
    return sum(n for counts in met.values() for n, _ in counts.values())


async def _compare_segments(
    connection: Connection, ids: Sequence[int], runs: Mapping[Run, _Known], findings: Findings
) -> None:
    """Compare units by variant, epoch and segment."""
    met, kept = (
        {
            (row["experiment"], row["run"], row["epoch"], row["variant"], row["segment"]): row
            for row in rows
        }
        for rows in (
            await _fetch(connection, _SEGMENTS_MET),
            await _fetch(connection, _SEGMENTS, ids),
        )
    )
    for place in sorted(met.keys() | kept.keys()):
        stands, should = (found[place]["units"] if place in found else 0 for found in (kept, met))
        if stands != should:
            name = runs[place[:2]].name
            where = f"{name}, epoch {place[2]}, variant {place[3]}, segment {place[4]}"
            findings.add(Difference(where, "number of units", str(stands), str(should)))


async def _unit_sums(
    connection: Connection, met: Mapping[Epoch, Counts]
) -> defaultdict[Run, UnitSums]:
    shares = {
        (row["experiment"], row["number"]): propensities(
            msgspec.json.decode(row["allocation"], type=Allocation)
        )
        for row in await _fetch(
            connection,
            _ALLOCATIONS,
            [experiment for experiment, _, _ in met],
            [epoch for _, _, epoch in met],
        )
    }
    sums: defaultdict[Run, UnitSums] = defaultdict(UnitSums)
    for (experiment, run, epoch), counts in met.items():
        units = {variant: n for variant, (n, _) in counts.items()}
        several = {variant: n for variant, (_, n) in counts.items()}
        sums[experiment, run] += of_units(units, several, shares[experiment, epoch])
    return sums


def _by_epoch(rows: Sequence[asyncpg.Record]) -> dict[Epoch, Counts]:
    counts: dict[Epoch, Counts] = defaultdict(dict)
    for row in rows:
        epoch = row["experiment"], row["run"], row["epoch"]
        counts[epoch][row["variant"]] = (row["units"], row["several"])
    return counts
