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

from analysis.folding.metrics import read_metrics
from analysis.inference.ratio_check import UnitSums, of_units
from analysis.upkeep.differences import Difference, Findings, in_sums
from analysis.upkeep.verify_metric import STATEMENT_TIMEOUT, compare_metric
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
        epoch int, variant text, at timestamptz, several boolean, ordinal bigint
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
# A unit counts by its first exposure; of two at one time by that of the lower epoch. A unit that
# should be enrolled and is not gets a negative ordinal, so that it still is counted.
_FIRST_MET = """
    insert into first_met
    select f.*, coalesce(e.ordinal, -row_number() over ())
    from (
        select distinct on (experiment, run, unit)
               experiment, run, unit, unit_type, project, epoch, variant, at,
               bool_or(several) over same or min(variant) over same <> max(variant) over same
        from (
            select x.experiment, x.run, x.unit collate "C" as unit, x.unit_type, x.project,
                   x.epoch, x.variant, x.at, false as several
            from exposure x
            join segment s on s.id = x.segment and s.folded_at is not null
            join epoch p on p.experiment = x.experiment and p.number = x.epoch and p.run = x.run
            where x.experiment = any($1)
            union all
            select e.experiment, e.run, e.unit, e.unit_type, e.project,
                   a.epoch, a.variant, e.opening_at, e.opening_several
            from enrolment e join arm a on a.id = e.opening_arm
            where e.experiment = any($1)
        ) as met
        window same as (partition by experiment, run, unit)
        order by experiment, run, unit, at, epoch, variant
    ) as f
    left join enrolment e
        on e.unit = f.unit and e.experiment = f.experiment and e.run = f.run
"""
_ENROLMENTS = """
    select coalesce(f.experiment, e.experiment) as experiment, coalesce(f.run, e.run) as run,
           coalesce(f.unit, e.unit) as unit,
           f.variant as f_variant, f.epoch as f_epoch, f.at as f_at, f.several as f_several,
           e.variant as e_variant, e.epoch as e_epoch, e.at as e_at, e.several as e_several,
           count(*) over () as found
    from first_met f
    full join (
        select e.*, a.epoch, a.variant
        from enrolment e left join arm a on a.id = e.arm
        where e.experiment = any($1)
    ) as e on e.unit = f.unit and e.experiment = f.experiment and e.run = f.run
    where (f.variant, f.epoch, f.at, f.several) is distinct from
          (e.variant, e.epoch, e.at, e.several)
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
        await connection.execute(_FIRST_MET, ids, timeout=STATEMENT_TIMEOUT)
        await connection.execute("analyze first_met", timeout=STATEMENT_TIMEOUT)
        await _compare_enrolments(connection, ids, runs, findings)
        units = await _compare_arms(connection, ids, runs, findings)
        metrics = await read_metrics(connection, runs, [])
        filling_in, cells = [], 0
        for number, metric in enumerate(metrics, 1):
            run = runs[metric.experiment, metric.run]
            where = f"{run.name}, metric {metric.made.key} (version {metric.made.version})"
            progress(f"metric {number:,} of {len(metrics):,}: {where}")
            if metric.covered is not None:
                share = metric.covered / max(run.enrolments, 1)
                filling_in.append(f"{where}: filling in, compared for {share:.0%} of the units")
            cells += await compare_metric(connection, where, run.plan, metric, findings)
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
    variant, epoch, at, several = (
        row[f"{whose}_{name}"] for name in ("variant", "epoch", "at", "several")
    )
    if at is None:
        return "none"
    met = "of several variants" if several else "of one variant"
    return f"variant {variant} in epoch {epoch} at {at.isoformat()} {met}"


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
