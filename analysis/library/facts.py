"""What a report is made from, made of cells."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from analysis.folding.metrics import run_metric
from analysis.inference.planned import Look
from analysis.library.cells import Cell, Epoch
from analysis.library.looks import take_looks
from analysis.library.sums import (
    enrolled_of,
    population_of,
    segments_of,
    trails_of,
    values_of,
)
from analysis.reports.model import Facts, MetricFacts
from experiments.model import Experiment, Metric, QuantileMetric, RatioMetric


def facts_of(
    definition: Experiment,
    cells: Iterable[Cell],
    epochs: Mapping[int, Epoch] | None = None,
    *,
    began: datetime | None = None,
    ends: Mapping[int, datetime] | None = None,
) -> Facts:
    """What a report is made from.

    Arguments:
        definition: variants, metrics and the plan.
        cells: of its metrics.
        epochs: what is known of them, by number; one that is not there has the units that its
            cells have, and no propensities.
        began: when the first unit enrolled.
        ends: when the last unit of each block did.

    Raises:
        ValueError: for a cell of a variant, or a metric, that the definition has not, or whose
            moments are not those of its metric.
    """
    by_metric: dict[str, list[Cell]] = defaultdict(list)
    for cell in cells:
        by_metric[cell.metric].append(cell)
    _check(definition, by_metric)
    known = _known(definition, by_metric, epochs or {})
    enrolled = enrolled_of(definition, known)
    of_all = {key: [cell for cell in own if cell.segment is None] for key, own in by_metric.items()}
    looks = take_looks(definition, of_all, known, ends or {})
    metrics = {
        metric.key: _metric_facts(
            metric,
            definition,
            by_metric.get(metric.key, []),
            known,
            looks.get(metric.key, {}),
            reallocated=enrolled.reallocated,
        )
        for metric in definition.metrics
    }
    return Facts(
        project="",
        key=definition.key,
        state="running",
        run=1,
        epoch=max(known, default=1),
        definition=definition,
        ship=None,
        started_at=began,
        watermark=max((ends or {}).values(), default=None),
        rolled_back=None,
        enrolled=enrolled,
        metrics=metrics,
        guard=(),
    )


def _check(definition: Experiment, cells: Mapping[str, Sequence[Cell]]) -> None:
    metrics = {metric.key: metric for metric in definition.metrics}
    for key, own in cells.items():
        if key not in metrics:
            raise ValueError(f"there is no metric {key!r}; there are {', '.join(metrics)}")
        numbers = _numbers(metrics[key])
        for cell in own:
            if cell.variant not in definition.weights:
                there = ", ".join(definition.weights)
                raise ValueError(f"{key}: there is no variant {cell.variant!r}; there are {there}")
            if cell.moments.d not in numbers:
                raise ValueError(
                    f"{key} of {cell.variant}: a unit has {' or '.join(map(str, numbers))} "
                    f"numbers, not {cell.moments.d}"
                )


def _numbers(metric: Metric) -> tuple[int, ...]:
    """How many numbers a unit may have: with a covariate it has as many again."""
    if isinstance(metric, QuantileMetric):
        return (1,)
    width = 2 if isinstance(metric, RatioMetric) else 1
    return (2 * width,) if getattr(metric, "covariate", None) is not None else (width,)


def _known(
    definition: Experiment, cells: Mapping[str, Sequence[Cell]], epochs: Mapping[int, Epoch]
) -> dict[int, Epoch]:
    """What is known of each epoch, all of its units counted."""
    counts: dict[int, dict[str, dict[str, int]]] = defaultdict(dict)
    for cell in itertools.chain.from_iterable(cells.values()):
        if cell.segment is None:
            of_metric = counts[cell.epoch].setdefault(cell.metric, {})
            of_metric[cell.variant] = of_metric.get(cell.variant, 0) + cell.moments.n
    known = {}
    for number in sorted(counts.keys() | epochs.keys()):
        epoch = epochs.get(number, Epoch())
        of_metrics = counts.get(number, {}).values()
        units = epoch.units or {
            variant: max((found.get(variant, 0) for found in of_metrics), default=0)
            for variant in definition.weights
        }
        known[number] = Epoch(units=units, propensities=epoch.propensities)
    return known


def _metric_facts(
    metric: Metric,
    definition: Experiment,
    cells: Sequence[Cell],
    epochs: Mapping[int, Epoch],
    looks: Mapping[str, tuple[Look, ...]],
    *,
    reallocated: bool,
) -> MetricFacts:
    kind = run_metric(metric).kind
    own = [cell for cell in cells if cell.segment is None]
    is_quantile = isinstance(metric, QuantileMetric)
    population = population_of(own, definition, kind)
    values = values_of(own) if is_quantile and not reallocated else {}
    return MetricFacts(
        everyone=population,
        finished=population,
        values=values,
        finished_values=values,
        trails={} if is_quantile or not reallocated else trails_of(own, definition, epochs),
        looks=looks,
        segments={} if is_quantile else segments_of(cells, definition, kind),
    )
