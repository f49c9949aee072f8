"""Planned looks: what the finished units say is frozen when enough of them are there.

A fixed reading looks once, when `analysis.units` have finished; a planned one at each share of them
in `analysis.looks`. A look is due for all primary metrics at once, when the slowest of them has
come so far, and is taken in the transaction that closed the blocks. It is taken once: what comes
later changes other readings, and not what a conclusion stood on. Who comes late, and finds two
shares passed, takes one look at the information that there is; nothing that depends on outcomes may
move a look, and this does not.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.folding.caps import open_caps, read_caps
from analysis.folding.cells import CLOSED
from analysis.folding.enrol import read_unit_sums
from analysis.folding.histogram import read_bins
from analysis.folding.metrics import RunMetric, run_metric
from analysis.folding.totals import read_total
from analysis.folding.trails import read_trails
from analysis.inference.choice import read_fixed
from analysis.inference.epoch_sums import Population
from analysis.inference.estimate import Comparison
from analysis.inference.planned import EQUAL_LOOKS, Look, look_at
from analysis.inference.quantile import compare_quantiles
from experiments.model import AnalysisPlan, Experiment, Metric, QuantileMetric
from experiments.records import ExperimentRecord
from experiments.store import Connection

# The units of the closed blocks stand in the sums over epochs, by variant.
_FINISHED: Final = """
    select m.id, m.key, m.version,
        coalesce((select sum(u.value::bigint) from json_each_text(t.sums -> 'units') u), 0)::bigint
            as units
    from run_metric m left join metric_total t on t.metric = m.id and t.block = 0 and t.segment = 0
    where m.experiment = $1 and m.run = $2 and m.covered is null
"""
_LATEST: Final = """
    select coalesce(max(number), 0) as number, coalesce(max(information), 0) as information
    from look where experiment = $1 and run = $2
"""
_ADD: Final = """
    insert into look (experiment, run, metric, version, treatment, number, taken_at, units,
                      information, difference, std_error, statistic, comparison)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
"""
_READ: Final = """
    select metric, treatment, number, taken_at, units, information, difference, std_error,
           statistic, comparison
    from look where experiment = $1 and run = $2
    order by metric, treatment, number
"""

Looks = Mapping[str, Mapping[str, tuple[Look, ...]]]
"""By the metric's key and by treatment, in order."""


class _Finished(msgspec.Struct, frozen=True):
    """A primary metric, and how many of its units have finished."""

    metric: Metric
    made: RunMetric
    id: int
    units: int


def shares_of(plan: AnalysisPlan) -> tuple[float, ...]:
    """The shares of the planned units at which a plan looks; none of a reading without looks."""
    if plan.units is None or plan.reading not in {"fixed", "planned"}:
        return ()
    if plan.reading == "fixed":
        return (1.0,)
    return plan.looks or EQUAL_LOOKS


def information_of(plan: AnalysisPlan, finished: Sequence[int], looked_at: float) -> float | None:
    """The information at which a look is due now; None where none is.

    Arguments:
        plan: of the experiment.
        finished: units of each primary metric; there is none without one.
        looked_at: the information of the last look, 0 before the first.
    """
    shares = shares_of(plan)
    if not shares or not finished or plan.units is None:
        return None
    reached = min(1.0, min(finished) / plan.units)
    return reached if any(looked_at < share <= reached for share in shares) else None


async def take_look(connection: Connection, record: ExperimentRecord, now: datetime) -> int | None:
    """Take the look that is due; its number, or None where none is.

    The caller's transaction makes it one with the closing of the blocks, and its lock on the
    experiment keeps others from taking it, too.
    """
    plan = record.definition.analysis
    if not shares_of(plan) or record.run == 0:
        return None
    latest = await connection.fetchrow(_LATEST, record.id, record.run)
    assert latest is not None, "an aggregate has a row"  # noqa: S101 - an invariant
    if latest["information"] >= 1.0:
        return None
    definition = await read_caps(connection, record.id, record.run, record.definition)
    finished = await _finished(connection, record, definition)
    primary = [metric for metric in definition.metrics if metric.role == "primary"]
    waiting = open_caps(definition)
    if len(finished) < len(primary) or any(metric.key in waiting for metric in primary):
        return None  # one of them is still being filled in, or waits for its cap
    information = information_of(plan, [f.units for f in finished], latest["information"])
    if information is None:
        return None
    number: int = latest["number"] + 1
    comparisons = await _compare(connection, record, definition, finished)
    rows = []
    for metric, treatment, comparison in comparisons:
        look = look_at(comparison, number, now, metric.units, information)
        rows.append(
            (
                record.id,
                record.run,
                metric.made.key,
                metric.made.version,
                treatment,
                look.number,
                look.taken_at,
                look.units,
                look.information,
                look.difference,
                look.std_error,
                look.statistic,
                msgspec.json.encode(comparison).decode(),
            )
        )
    await connection.executemany(_ADD, rows)
    return number


async def read_looks(connection: Connection, experiment: int, run: int) -> Looks:
    """The looks of a run. A metric that has another version since then keeps its looks: what was
    spent stays spent."""
    found: dict[str, dict[str, list[Look]]] = defaultdict(lambda: defaultdict(list))
    for row in await connection.fetch(_READ, experiment, run):
        found[row["metric"]][row["treatment"]].append(
            Look(
                number=row["number"],
                taken_at=row["taken_at"],
                units=row["units"],
                information=row["information"],
                difference=row["difference"],
                std_error=row["std_error"],
                statistic=row["statistic"],
                comparison=msgspec.json.decode(row["comparison"], type=Comparison),
            )
        )
    return {
        metric: {treatment: tuple(looks) for treatment, looks in of_metric.items()}
        for metric, of_metric in found.items()
    }


async def _finished(
    connection: Connection, record: ExperimentRecord, definition: Experiment
) -> list[_Finished]:
    """The primary metrics whose values are all there."""
    rows = await connection.fetch(_FINISHED, record.id, record.run)
    stored = {(row["key"], row["version"]): row for row in rows}
    found = []
    for metric in definition.metrics:
        made = run_metric(metric)
        row = stored.get((made.key, made.version))
        if metric.role == "primary" and row is not None:
            found.append(_Finished(metric, made, row["id"], row["units"]))
    return found


async def _compare(
    connection: Connection,
    record: ExperimentRecord,
    definition: Experiment,
    metrics: Sequence[_Finished],
) -> list[tuple[_Finished, str, Comparison]]:
    """Every treatment against the control, on every metric, over its finished units."""
    enrolled = await read_unit_sums(connection, record.id, record.run)
    trails = await read_trails(connection, record.id, record.run)
    control, alpha = definition.control.key, definition.analysis.alpha
    treatments = [variant for variant in definition.weights if variant != control]
    found = []
    for finished in metrics:
        metric, number = finished.metric, finished.id
        population = await read_total(connection, number, CLOSED)
        values = {}
        if isinstance(metric, QuantileMetric) and not enrolled.reallocated:
            values = await read_bins(connection, number, CLOSED)
        for treatment in treatments:
            if isinstance(metric, QuantileMetric):
                comparison = (
                    _no_quantiles(population, control, treatment, alpha)
                    if enrolled.reallocated
                    else compare_quantiles(
                        values.get(control, ()),
                        values.get(treatment, ()),
                        metric.quantile,
                        enrolled.epochs,
                        alpha,
                    )
                )
            else:
                comparison = read_fixed(
                    population,
                    trails.get(number, {}).get(treatment),
                    control,
                    treatment,
                    finished.made.kind,
                    reallocated=enrolled.reallocated,
                    alpha=alpha,
                )
            found.append((finished, treatment, comparison))
    return found


def _no_quantiles(population: Population, control: str, treatment: str, alpha: float) -> Comparison:
    """Quantiles cannot be compared after a reallocation; the look says so."""
    return Comparison(
        n_control=population.units.get(control, 0),
        n_treatment=population.units.get(treatment, 0),
        epochs_used=0,
        epochs_left_out=0,
        units_left_out=0,
        alpha=alpha,
        notes=("reallocated",),
    )
