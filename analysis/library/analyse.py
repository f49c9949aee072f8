"""From columns or from moments to a report, by the estimators that the service uses."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import msgspec
import numpy as np

from analysis.library.cells import Cell, Epoch
from analysis.library.columns import EPOCH, names
from analysis.library.facts import facts_of
from analysis.library.grouping import cells_of, count_units, even_cuts
from analysis.library.layout import Layout, Missing, Weights
from analysis.library.looks import units_at_looks, with_units
from analysis.library.measures import (
    Measurable,
    Measure,
    definition_of,
    measure_of,
)
from analysis.library.rows import Rows, read_rows
from analysis.library.sums import knows_propensities
from analysis.reports.model import EXPERIMENT, QualityCheck
from analysis.reports.report import Report, make_report
from experiments.definition import parse_definition
from experiments.model import AnalysisPlan, Experiment
from experiments.problems import ProblemError

_OF_TWO: Final[Mapping[str, Any]] = {
    "key": "a-plan",
    "variants": [
        {"key": "a", "control": True, "weight": 0.5, "value": 0},
        {"key": "b", "weight": 0.5, "value": 1},
    ],
}
"""A definition with nothing in it that could be wrong, to check a plan with."""

AS_GIVEN: Final = "as given"
"""Stands in the place of a metric's window, which numbers that are there already have not."""


def analyse(
    table: Any,
    metrics: Sequence[Measurable],
    *,
    variant: str,
    control: str,
    weights: Weights | None = None,
    segments: Sequence[str] = (),
    unit: str | None = None,
    time: str | None = None,
    epoch: str | None = None,
    propensity: str | Mapping[str, str] | None = None,
    missing: Missing = "refuse",
    plan: AnalysisPlan | None = None,
    name: str = "experiment",
) -> Report:
    """The report of a table with a row for each unit.

    Where propensities varied, rows of the same ones are an epoch. Effects are taken within epochs,
    or, where these are small, from AIPW scores over stretches of time.

    Arguments:
        table: anything that gives a column for its name: a dictionary of lists or arrays, a frame
            of pandas or polars, a table of pyarrow.
        metrics: what to compare.
        variant: the column with the variant of each unit.
        control: the variant that the others are compared with.
        weights: the shares of the traffic that the variants were to get, in any unit; or these by
            the name of the epoch. Without weights or propensities the sample ratio is not checked.
        segments: columns to break the metrics down by.
        unit, time, epoch, propensity, missing: as in `Layout`.
        plan: how to read; without it continuously, which is good at any time. The readings `fixed`
            and `planned` need `units`, the size that was planned, and take all of the table where
            it is not given.
        name: of the experiment, in the report.

    Raises:
        DataError: for the first thing that is wrong with the data, by column and row.
        ValueError: where the plan, or a metric, contradicts itself.
    """
    layout = Layout(
        variant=variant,
        unit=unit,
        time=time,
        epoch=epoch,
        propensity=propensity,
        segments=tuple(segments),
        missing=missing,
    )
    measures = [metric.measure() for metric in metrics]
    rows = read_rows(table, layout, measures, str(control), _by_name(weights))
    definition = definition_of(
        name,
        [measure.metric for measure in measures],
        str(control),
        _weights_of(rows),
        layout.segments,
        plan or AnalysisPlan(),
    )
    report = _report_of_rows(definition, measures, rows)
    covariates = {
        measure.metric.key: " and ".join(measure.columns[len(measure.columns) // 2 :])
        for measure in measures
    }
    return _without_times(report, covariates)


def report_from_columns(definition: Experiment, table: Any, layout: Layout) -> Report:
    """The report of a table with a row for each unit, by an experiment's definition.

    The columns of its metrics are named as their events are; that of a covariate has `_before`
    after it. Windows and aggregates are taken to have been applied. The definition's weights say
    what the traffic was to be, unless the layout names propensities.

    Arguments:
        definition: of the experiment.
        table, layout: as for `analyse`; segments are those of the layout, or the attributes that
            the definition records, as far as there are columns of these names.

    Raises:
        DataError: for the first thing that is wrong with the data, by column and row.
    """
    there = names(table)
    segments = layout.segments or tuple(name for name in definition.record if name in there)
    layout = msgspec.structs.replace(layout, segments=segments)
    definition = msgspec.structs.replace(definition, record=segments)
    measures = [measure_of(metric) for metric in definition.metrics]
    weights = definition.weights if layout.propensity is None else None
    rows = read_rows(table, layout, measures, definition.control.key, weights)
    return _report_of_rows(definition, measures, rows)


def analyse_cells(
    cells: Iterable[Cell],
    metrics: Sequence[Measurable],
    *,
    control: str,
    variants: Sequence[str] = (),
    epochs: Mapping[int, Epoch] | None = None,
    segments: Sequence[str] = (),
    plan: AnalysisPlan | None = None,
    name: str = "experiment",
) -> Report:
    """The report of moments.

    Arguments:
        cells: of these metrics, by their keys.
        metrics: what to compare; their columns are not read.
        control: the variant that the others are compared with.
        variants: the keys of all variants; those that have cells where they are not given.
        epochs: what is known of the allocations.
        segments: the attributes that cells have.
        plan, name: as for `analyse`.

    Raises:
        ValueError: for cells that do not fit, and where the plan contradicts itself.
    """
    found = list(cells)
    known = list(dict.fromkeys([control, *variants, *(cell.variant for cell in found)]))
    definition = definition_of(
        name,
        [metric.measure().metric for metric in metrics],
        control,
        dict.fromkeys(known, 1.0 / len(known)),
        segments,
        plan or AnalysisPlan(),
    )
    covariates = dict.fromkeys((metric.key for metric in definition.metrics), "a covariate")
    return _without_times(report_from_cells(definition, found, epochs), covariates)


def report_from_cells(
    definition: Experiment,
    cells: Iterable[Cell],
    epochs: Mapping[int, Epoch] | None = None,
    *,
    began: datetime | None = None,
    ends: Mapping[int, datetime] | None = None,
) -> Report:
    """The report of moments, by an experiment's definition.

    Arguments:
        definition: of the experiment.
        cells: of its metrics.
        epochs: what is known of the allocations, by number.
        began: when the first unit enrolled.
        ends: when the last unit of each block did.

    Raises:
        ValueError: for cells that do not fit the definition.
    """
    found = list(cells)
    units: dict[str, int] = {}
    for cell in found:
        if cell.segment is None:
            units[cell.metric] = units.get(cell.metric, 0) + cell.moments.n
    definition = _checked(with_units(definition, units))
    facts = facts_of(definition, found, epochs, began=began, ends=ends)
    return _with_remarks(make_report(facts), epochs or {}, ())


def _report_of_rows(definition: Experiment, measures: Sequence[Measure], rows: Rows) -> Report:
    units = {
        measure.metric.key: count_units(measure, rows.values[measure.metric.key])
        for measure in measures
    }
    definition = _checked(with_units(definition, units))
    cuts = _cuts(definition, rows)
    began, ends = None, None
    if rows.at is not None and len(rows.at):
        began, *until = (
            EPOCH + timedelta(seconds=at)
            for at in rows.at[[0, *(cut - 1 for cut in cuts), len(rows.at) - 1]].tolist()
        )
        ends = dict(enumerate(until))
    cells = cells_of(rows, measures, cuts)
    facts = facts_of(definition, cells, rows.epochs, began=began, ends=ends)
    remarks = list(rows.remarks)
    if definition.analysis.reading == "planned" and not rows.in_order:
        remarks.append(
            "Without the time at which units enrolled this is the only look: what earlier ones "
            "spent of the alpha is not allowed for."
        )
    return _with_remarks(make_report(facts), rows.epochs, remarks)


def _by_name(weights: Weights | None) -> Weights | None:
    """Weights by names that are written as the columns' are: 0 is `0`."""
    if weights is None:
        return None
    return {
        str(key): {str(k): w for k, w in value.items()} if isinstance(value, Mapping) else value
        for key, value in weights.items()
    }


def _checked(definition: Experiment) -> Experiment:
    """The definition, its plan held to the rules that definitions are held to. The data are of
    units, whatever the scope that a service counts a guardrail by.
    """
    try:
        parse_definition({**_OF_TWO, "analysis": msgspec.to_builtins(definition.analysis)})
    except ProblemError as error:
        wrong = "; ".join(f"{problem.path}: {problem.detail}" for problem in error.errors)
        raise ValueError(wrong) from error
    of_units = (msgspec.structs.replace(m, scope="enrolment") for m in definition.metrics)
    return msgspec.structs.replace(definition, metrics=tuple(of_units))


def _cuts(definition: Experiment, rows: Rows) -> list[int]:
    """Where blocks begin: at the looks, and often where traffic was reallocated. Rows without an
    order are one block."""
    units = len(rows.variant)
    if not rows.in_order:
        return []
    cuts = {cut for cut in units_at_looks(definition.analysis) if cut < units}
    if len(rows.epochs) > 1:
        cuts.update(even_cuts(units))
    return sorted(cuts)


def _weights_of(rows: Rows) -> dict[str, float]:
    """The weights of the variants in the last epoch, or else the shares that they had."""
    last = rows.epochs[max(rows.epochs)]
    if last.propensities is not None:
        return {variant: last.propensities[variant] for variant in rows.variants}
    counts = np.bincount(rows.variant, minlength=len(rows.variants)) / max(1, len(rows.variant))
    return dict(zip(rows.variants, counts.tolist(), strict=True))


def _with_remarks(report: Report, epochs: Mapping[int, Epoch], remarks: Sequence[str]) -> Report:
    """The report with what is to be known of data that came from elsewhere."""
    notes = [*report.notes, *remarks]
    comparisons = [c for metric in report.metrics for c in metric.comparisons]
    if any("approximate_small_epochs" in c.fixed.notes for c in comparisons):
        notes.append(
            "Small epochs are compared as large ones are, which is rough: with propensities and "
            "the time at which units enrolled it would not be."
        )
    report = msgspec.structs.replace(report, notes=tuple(notes))
    return report if knows_propensities(epochs) else _without_expectation(report)


def _without_expectation(report: Report) -> Report:
    """The report where nothing is known of how many units each variant was to have."""
    unchecked = QualityCheck(
        "sample_ratio",
        "info",
        EXPERIMENT,
        "Neither weights nor propensities were stated, so whether the units of the variants fit "
        "them was not checked.",
        "State the weights that the variants were to have.",
    )
    return msgspec.structs.replace(
        report,
        sample_ratio=msgspec.structs.replace(report.sample_ratio, expected={}),
        quality=tuple(
            unchecked if check.code == unchecked.code else check
            for check in report.quality
            if check.code != "sample_ratio_watch"
        ),
    )


def _without_times(report: Report, covariates: Mapping[str, str]) -> Report:
    """The report of metrics that have no windows, and whose covariates are columns."""
    metrics = tuple(
        msgspec.structs.replace(
            metric,
            window=AS_GIVEN,
            covariate=None if metric.covariate is None else covariates[metric.key],
        )
        for metric in report.metrics
    )
    return msgspec.structs.replace(report, metrics=metrics)
