"""Rows made into cells."""

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np

from analysis.folding.tables import grouped
from analysis.inference.bins import bucket, edges
from analysis.inference.moments import Moments
from analysis.inference.quantile import Bin
from analysis.library.blocks import blocks_for
from analysis.library.cells import Cell
from analysis.library.columns import Floats, Integers
from analysis.library.measures import Measure
from analysis.library.rows import Rows
from experiments.model import QuantileMetric

Place: TypeAlias = tuple[int, int, int]
Places: TypeAlias = tuple[Integers, Integers, Integers]


def cells_of(rows: Rows, measures: Sequence[Measure], cuts: Sequence[int]) -> Iterator[Cell]:
    """The cells of rows.

    Arguments:
        cuts: at which places of the order a new block begins, in rising order.
    """
    block = np.searchsorted(np.asarray(cuts, np.int64), np.arange(len(rows.variant)), side="right")
    for measure in measures:
        key, values = measure.metric.key, rows.values[measure.metric.key]
        is_quantile = isinstance(measure.metric, QuantileMetric)
        there = ~np.isnan(values).any(axis=1)
        histograms: dict[Place, tuple[Bin, ...]] = {}
        if is_quantile:
            own = np.flatnonzero(there)
            places = (block[own], rows.epoch[own], rows.variant[own])
            histograms = dict(_histograms(places, values[own, 0]))
            # A unit without a value is one of the metric's units; it is missing here only.
            values, there = np.nan_to_num(values), np.ones(len(values), np.bool_)
        own = np.flatnonzero(there)
        places = (block[own], rows.epoch[own], rows.variant[own])
        for place, moments in _moments(places, values[own]):
            number, epoch, variant = place
            yield Cell(
                metric=key,
                variant=rows.variants[variant],
                moments=moments,
                epoch=epoch,
                block=number,
                values=histograms.get(place, ()),
            )
        for attribute, found in {} if is_quantile else rows.segments.items():
            in_one = own[found.place[own] >= 0]
            places = (found.place[in_one], rows.epoch[in_one], rows.variant[in_one])
            for (segment, epoch, variant), moments in _moments(places, values[in_one]):
                yield Cell(
                    metric=key,
                    variant=rows.variants[variant],
                    moments=moments,
                    epoch=epoch,
                    segment=(attribute, found.names[segment]),
                )


def count_units(measure: Measure, values: Floats) -> int:
    """How many units a metric counts: of a quantile metric those without a value, too."""
    if isinstance(measure.metric, QuantileMetric):
        return len(values)
    return len(values) - int(np.isnan(values).any(axis=1).sum())


def even_cuts(units: int) -> list[int]:
    """Where blocks begin that have about as many units each."""
    blocks = blocks_for(units)
    return [units * k // blocks for k in range(1, blocks)]


def _moments(places: Places, values: Floats) -> Iterator[tuple[Place, Moments]]:
    """The moments of rows that are in the same three places."""
    found, cell = _together(places)
    table = grouped(cell, values, len(found))
    for row, place in enumerate(found):
        yield (
            place,
            Moments(
                n=int(table.n[row]),
                mean=tuple(table.mean[row].tolist()),
                m2=tuple(table.m2[row].tolist()),
            ),
        )


def _histograms(places: Places, values: Floats) -> Iterator[tuple[Place, tuple[Bin, ...]]]:
    """The values of rows that are in the same three places, in bins."""
    found, cell = _together(places)
    bins: list[list[Bin]] = [[] for _ in found]
    number = bucket(values)
    least = int(number.min(initial=0))
    span = int(number.max(initial=0)) - least + 1
    codes, counts = np.unique(cell * span + (number - least), return_counts=True)
    for code, n in zip(codes.tolist(), counts.tolist(), strict=True):
        bins[code // span].append(Bin(*edges(code % span + least), n))
    yield from zip(found, map(tuple, bins), strict=True)


def _together(places: Places) -> tuple[list[Place], Integers]:
    """Which three places there are, and for each row the number of its own."""
    sizes = [int(place.max(initial=0)) + 1 for place in places]
    code = np.ravel_multi_index(places, sizes)
    found, cell = np.unique(code, return_inverse=True)
    there = [place.tolist() for place in np.unravel_index(found, sizes)]
    return list(zip(*there, strict=True)), cell
