"""The looks that a plan would have taken, had the units come in as the blocks tell."""

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from analysis.control.looks import information_of, shares_of
from analysis.folding.metrics import run_metric
from analysis.inference.choice import read_fixed
from analysis.inference.estimate import Comparison
from analysis.inference.planned import Look, look_at
from analysis.inference.quantile import compare_quantiles
from analysis.library.cells import Cell, Epoch
from analysis.library.sums import enrolled_of, population_of, trails_of, values_of
from experiments.model import AnalysisPlan, Experiment, Metric, QuantileMetric

Looks = dict[str, dict[str, tuple[Look, ...]]]
"""By the metric's key and by treatment, in order."""


def with_units(definition: Experiment, counted: Mapping[str, int]) -> Experiment:
    """The definition with the size that was planned: all that there is, where it was not said.

    Arguments:
        counted: how many units each metric counts.
    """
    plan = definition.analysis
    if plan.reading not in {"fixed", "planned"} or plan.units is not None:
        return definition
    primary = [metric.key for metric in definition.metrics if metric.role == "primary"]
    units = max(2, min((counted.get(key, 0) for key in primary), default=0))
    return msgspec.structs.replace(definition, analysis=msgspec.structs.replace(plan, units=units))


def units_at_looks(plan: AnalysisPlan) -> tuple[int, ...]:
    """After how many units the plan looks; never, where it does not say."""
    # Shares are decimals, so that their products with whole numbers are off by some 1e-16.
    return tuple(math.ceil(share * (plan.units or 0) - 1e-6) for share in shares_of(plan))


def take_looks(
    definition: Experiment,
    cells: Mapping[str, Sequence[Cell]],
    epochs: Mapping[int, Epoch],
    ends: Mapping[int, datetime],
) -> Looks:
    """The looks at the primary metrics, by the rule of the service: for all of them at once, after
    the block with which the slowest has reached a share of the units.

    Arguments:
        definition: with the planned units.
        cells: of all units, by metric.
        epochs: all of those in the cells.
        ends: when the last unit of each block enrolled, as far as that is known.
    """
    primary = [metric for metric in definition.metrics if metric.role == "primary"]
    own = [cell for metric in primary for cell in cells.get(metric.key, ())]
    taken: Looks = {}
    so_far: dict[str, list[Cell]] = {metric.key: [] for metric in primary}
    units = dict.fromkeys(so_far, 0)
    looked_at, number = 0.0, 0
    by_block = sorted(own, key=lambda cell: cell.block)
    for block, of_block in itertools.groupby(by_block, key=lambda cell: cell.block):
        for cell in of_block:
            so_far[cell.metric].append(cell)
            units[cell.metric] += cell.moments.n
        due = information_of(definition.analysis, list(units.values()), looked_at)
        if due is None:
            continue
        looked_at, number = due, number + 1
        for metric in primary:
            looks = taken.setdefault(metric.key, defaultdict(tuple))
            read = _readings(metric, so_far[metric.key], definition, epochs)
            for treatment, comparison in read.items():
                look = look_at(comparison, number, ends.get(block), units[metric.key], due)
                looks[treatment] = (*looks[treatment], look)
    return taken


def _readings(
    metric: Metric, cells: Sequence[Cell], definition: Experiment, epochs: Mapping[int, Epoch]
) -> dict[str, Comparison]:
    """The comparisons with the control, by treatment, on the cells so far."""
    alpha, control = definition.analysis.alpha, definition.control.key
    treatments = [variant for variant in definition.weights if variant != control]
    there = sorted({cell.epoch for cell in cells})
    enrolled = enrolled_of(definition, {number: epochs[number] for number in there})
    if isinstance(metric, QuantileMetric):
        if enrolled.reallocated:
            return {}
        values = values_of(cells)
        return {
            treatment: compare_quantiles(
                values.get(control, ()),
                values.get(treatment, ()),
                metric.quantile,
                len(there),
                alpha,
            )
            for treatment in treatments
        }
    kind = run_metric(metric).kind
    population = population_of(cells, definition, kind)
    trails = trails_of(cells, definition, epochs) if enrolled.reallocated else {}
    return {
        treatment: read_fixed(
            population,
            trails.get(treatment),
            control,
            treatment,
            kind,
            reallocated=enrolled.reallocated,
            alpha=alpha,
        )
        for treatment in treatments
    }
