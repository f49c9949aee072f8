"""Sums over epochs, trails and histograms of cells."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.exact import combined, exact, product
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments, empty, merge
from analysis.inference.quantile import Bin, Histogram
from analysis.inference.ratio_check import UnitSums, VariantUnits, of_units
from analysis.inference.segments import MOST_ATTRIBUTES, MOST_VALUES, Segment, SegmentFacts
from analysis.inference.trail import Trail, TrailCell, follow, start
from analysis.library.cells import Cell, Epoch
from experiments.model import Experiment


class _Part(NamedTuple):
    """The cells of one block and epoch, by variant."""

    block: int
    epoch: int
    moments: dict[str, Moments]


def knows_propensities(epochs: Mapping[int, Epoch]) -> bool:
    """Whether the sample ratio can be checked: whether all propensities are known."""
    return bool(epochs) and all(epoch.propensities is not None for epoch in epochs.values())


def enrolled_of(definition: Experiment, epochs: Mapping[int, Epoch]) -> UnitSums:
    """Who enrolled. Without propensities nothing is expected, and the shares that the variants
    had tell whether traffic was reallocated."""
    stated = knows_propensities(epochs)
    sums = []
    for epoch in epochs.values():
        units = dict(epoch.units or {})
        total = sum(units.values())
        if total == 0:
            continue
        if stated and epoch.propensities is not None:
            sums.append(of_units(units, {}, epoch.propensities))
            continue
        shares = {variant: units.get(variant, 0) / total for variant in definition.weights}
        sums.append(
            UnitSums(
                epochs=1,
                variants={
                    variant: VariantUnits(
                        units=units.get(variant, 0),
                        expected=Decimal(0),
                        propensity=exact(share),
                        propensity_squared=product(share, share),
                    )
                    for variant, share in shares.items()
                },
            )
        )
    return combined(sums) if sums else UnitSums()


def population_of(cells: Iterable[Cell], definition: Experiment, kind: Kind) -> Population:
    """The sums over epochs of these cells."""
    by_epoch: dict[int, dict[str, Moments]] = defaultdict(dict)
    for cell in cells:
        _add(by_epoch[cell.epoch], cell.variant, cell.moments)
    variants, control = list(definition.weights), definition.control.key
    terms = [of_epoch(found, variants, control, kind) for found in by_epoch.values()]
    return combined(terms) if terms else Population()


def _add(found: dict[str, Moments], variant: str, more: Moments) -> None:
    found[variant] = merge(found[variant], more) if variant in found else more


def _parts(cells: Iterable[Cell]) -> list[_Part]:
    """The cells by block and epoch, in the order of time."""
    found: dict[tuple[int, int], dict[str, Moments]] = defaultdict(dict)
    for cell in cells:
        _add(found[cell.block, cell.epoch], cell.variant, cell.moments)
    return [_Part(block, epoch, moments) for (block, epoch), moments in sorted(found.items())]


def trails_of(
    cells: Sequence[Cell], definition: Experiment, epochs: Mapping[int, Epoch]
) -> dict[str, Trail]:
    """What adaptive inference needs; nothing where propensities are not known."""
    parts = _parts(cells)
    if not parts or not knows_propensities(epochs):
        return {}
    return {
        treatment: _trail(parts, epochs, definition.control.key, treatment)
        for treatment in definition.weights
        if treatment != definition.control.key
    }


def _trail(
    parts: Sequence[_Part], epochs: Mapping[int, Epoch], control: str, treatment: str
) -> Trail:
    d = next(iter(parts[0].moments.values())).d
    trail = start(d)
    for block, of_block in itertools.groupby(parts, key=lambda part: part.block):
        trail = follow(
            trail, [_trail_cell(block, part, epochs, control, treatment, d) for part in of_block]
        )
    return trail


def _trail_cell(
    block: int, part: _Part, epochs: Mapping[int, Epoch], control: str, treatment: str, d: int
) -> TrailCell:
    propensities = epochs[part.epoch].propensities or {}
    return TrailCell(
        block=block,
        epoch=part.epoch,
        propensity_control=propensities.get(control, 0.0),
        propensity_treatment=propensities.get(treatment, 0.0),
        units=sum(cell.n for cell in part.moments.values()),
        control=part.moments.get(control, empty(d)),
        treatment=part.moments.get(treatment, empty(d)),
    )


def values_of(cells: Iterable[Cell]) -> dict[str, Histogram]:
    """The values of each variant, in bins."""
    counts: dict[str, dict[tuple[float, float], int]] = defaultdict(lambda: defaultdict(int))
    for cell in cells:
        for part in cell.values:
            counts[cell.variant][part.low, part.high] += part.n
    return {
        variant: tuple(Bin(low, high, n) for (low, high), n in sorted(found.items()))
        for variant, found in counts.items()
    }


def segments_of(
    cells: Iterable[Cell], definition: Experiment, kind: Kind
) -> dict[Segment, SegmentFacts]:
    """The sums of each segment: of an attribute the largest ones, and all others together."""
    by_attribute: dict[str, dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in cells:
        if cell.segment is not None:
            attribute, value = cell.segment
            by_attribute[attribute][value].append(cell)
    found: dict[Segment, SegmentFacts] = {}
    for attribute in definition.record[:MOST_ATTRIBUTES]:
        by_value = by_attribute.get(attribute, {})
        largest = sorted(by_value, key=lambda value: -sum(c.moments.n for c in by_value[value]))
        groups: dict[Segment, list[Cell]] = defaultdict(list)
        for rank, value in enumerate(largest):
            apart = rank < MOST_VALUES
            segment = Segment(attribute, value if apart else None, other=not apart)
            groups[segment] += by_value[value]
        for segment, own in groups.items():
            sums = population_of(own, definition, kind)
            found[segment] = SegmentFacts(everyone=sums, finished=sums)
    return found
