"""Rows of a table, one for each unit, read and checked."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np

from analysis.folding.caps import quantile_cap
from analysis.library.allocations import epochs_of
from analysis.library.cells import Epoch
from analysis.library.columns import (
    DataError,
    Floats,
    Integers,
    Labels,
    Mask,
    column,
    labels,
    numbers,
    times,
)
from analysis.library.layout import Layout, Weights
from analysis.library.measures import Measure
from experiments.model import MeanMetric, ProportionMetric, QuantileCap, QuantileMetric

MOST_VARIANTS: Final = 64


class Rows(NamedTuple):
    """Units in the order of their enrolment, as places and numbers.

    Arguments:
        variants: their keys, the control first.
        variant: the place of each unit's variant.
        epochs: what is known of each, by number.
        epoch: the number of each unit's epoch.
        in_order: whether they are; without a column of time they are as they came.
        at: when each enrolled, in seconds since 1970; None where only the order is known.
        values: by metric, of shape (n, d); a row with NaN does not count, or has no value.
        segments: by attribute.
        remarks: what was done to the data, in words.
    """

    variants: tuple[str, ...]
    variant: Integers
    epochs: dict[int, Epoch]
    epoch: Integers
    in_order: bool
    at: Floats | None
    values: dict[str, Floats]
    segments: dict[str, Labels]
    remarks: tuple[str, ...]


def read_rows(
    table: Any,
    layout: Layout,
    measures: Sequence[Measure],
    control: str,
    weights: Weights | None,
) -> Rows:
    """The rows of a table, checked.

    Arguments:
        weights: the share of the traffic that each variant was to get, in any unit; or these by
            epoch; None where they are not known.

    Raises:
        DataError: for the first thing that is wrong, by column and row.
    """
    met = labels(column(table, layout.variant))
    if len(met.place) == 0:
        raise DataError("there are no rows")
    variants = _variants(met, layout.variant, control, weights)
    variant = np.array([variants.index(name) for name in met.names] + [-1])[met.place]
    remarks: list[str] = []
    present = variant >= 0
    if not present.all():
        first = int(np.argmin(present)) + 1
        if layout.missing == "refuse":
            raise DataError(f"column {layout.variant!r}, row {first}: there is no variant")
        remarks.append(f"{(~present).sum()} rows without a variant are left out.")
    if layout.unit is not None:
        _each_once(column(table, layout.unit), layout.unit, len(variant))

    at, is_time = None, False
    order = np.flatnonzero(present)
    if layout.time is not None:
        at, is_time = times(column(table, layout.time), layout.time)
        _same_length(at, layout.time, variant)
        order = order[np.argsort(at[order], kind="stable")]
    variant = variant[order]
    epoch, epochs = epochs_of(table, layout, variants, variant, order, weights)
    values = {}
    for measure in measures:
        read, remark = _values(table, measure, layout, order, len(met.place))
        values[measure.metric.key] = read
        remarks += remark
    segments = {}
    for name in layout.segments:
        found = labels(column(table, name))
        _same_length(found.place, name, met.place)
        segments[name] = Labels(found.names, found.place[order])
    return Rows(
        variants=variants,
        variant=variant,
        epochs=epochs,
        epoch=epoch,
        in_order=layout.time is not None,
        at=at[order] if at is not None and is_time else None,
        values=values,
        segments=segments,
        remarks=tuple(remarks),
    )


def _variants(met: Labels, name: str, control: str, weights: Weights | None) -> tuple[str, ...]:
    """The keys of the variants, the control first: those with weights, or those that were met."""
    named: list[str] = []
    for key, weight in ({} if weights is None else weights).items():
        named += weight.keys() if isinstance(weight, Mapping) else [key]
    known = list(dict.fromkeys(named))
    unknown = [found for found in met.names if found not in known]
    if known and unknown:
        row = int(np.argmax(met.place == met.names.index(unknown[0]))) + 1
        raise DataError(
            f"column {name!r}, row {row}: {unknown[0]!r} is no variant with a weight; those are "
            f"{', '.join(known)}"
        )
    found = known or sorted(met.names, key=_natural)
    if len(found) > MOST_VARIANTS:
        raise DataError(
            f"column {name!r} names {len(found)} variants, and there may be {MOST_VARIANTS}: "
            "is it the right one?"
        )
    if control not in found:
        raise DataError(f"the control {control!r} is not in column {name!r}: {', '.join(found)}")
    if len(found) < 2:
        raise DataError(f"column {name!r} has the control only, so there is nothing to compare")
    return (control, *(key for key in found if key != control))


def _natural(name: str) -> tuple[float, str]:
    """Numbers in their order, then names in theirs."""
    try:
        return float(name), name
    except ValueError:
        return math.inf, name


def _each_once(values: Any, name: str, rows: int) -> None:
    units = labels(values)
    _same_length(units.place, name, range(rows))
    if len(units.names) == rows:
        return
    first: dict[int, int] = {}
    for row, place in enumerate(units.place.tolist(), start=1):
        if place < 0:
            raise DataError(f"column {name!r}, row {row}: there is no unit")
        if place in first:
            raise DataError(
                f"column {name!r}, row {row}: the unit {units.names[place]!r} was in row "
                f"{first[place]} already; a table has one row for each unit, with its totals"
            )
        first[place] = row


def _same_length(values: Any, name: str, others: Any) -> None:
    if len(values) != len(others):
        raise DataError(f"column {name!r} has {len(values)} rows; others have {len(others)}")


def _values(
    table: Any, measure: Measure, layout: Layout, order: Integers, rows: int
) -> tuple[Floats, list[str]]:
    """A metric's numbers, in the order of enrolment, with what was left out in words."""
    metric = measure.metric
    read = []
    for name in measure.columns:
        found = numbers(column(table, name), name)
        _same_length(found, name, range(rows))
        read.append(found[order])
    values = np.column_stack(read)
    if isinstance(metric, ProportionMetric):
        wrong = ~(np.isnan(values[:, 0]) | (values[:, 0] == 0.0) | (values[:, 0] == 1.0))
        if wrong.any():
            row = int(order[wrong].min())
            raise DataError(
                f"column {metric.event!r}, row {row + 1}: {read[0][order == row][0]:g} is neither "
                "0 nor 1, as a proportion's values are"
            )
    remarks = []
    if not isinstance(metric, QuantileMetric):
        remarks = _left_out(np.isnan(values), measure, layout, order)
    if isinstance(metric, MeanMetric) and metric.cap is not None:
        cap = metric.cap
        if isinstance(cap, QuantileCap):
            outcome = values[:, 0]
            found_cap = quantile_cap(outcome[~np.isnan(outcome) & (outcome != 0.0)], cap.quantile)
            cap = math.inf if found_cap is None else found_cap
            remarks.append(
                f"{metric.key} has no cap: too few units have a value."
                if found_cap is None
                else f"{metric.key} is capped at {found_cap:g}."
            )
        values = np.minimum(values, cap)  # what is not a number stays so
    return values, remarks


def _left_out(nothing: Mask, measure: Measure, layout: Layout, order: Integers) -> list[str]:
    """In words, how many units have no value, if that is allowed."""
    without: Mask = np.logical_or.reduce(nothing, axis=1)
    left_out = int(without.sum())
    if not left_out:
        return []
    if layout.missing == "refuse":
        place = int(np.argmax(np.logical_or.reduce(nothing, axis=0)))
        rows = order[nothing[:, place]]
        raise DataError(
            f"column {measure.columns[place]!r}, row {rows.min() + 1}: there is no value, as in "
            f"{len(rows)} rows; fill them, or have them left out"
        )
    return [
        f"{measure.metric.key} leaves out {left_out:,} of {len(without):,} units, which have no "
        "value: that is honest only if the variant had no say in who has one."
    ]
