"""Units that are drawn instead of enrolled: the cells of a block, as folding would make them.

A cell of a proportion or a mean knows its units by their count, mean and spread only, so these are
drawn at once, whatever their number; those of a ratio or a quantile are drawn one by one.
"""

import math

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import special

from analysis.inference.bins import bucket
from analysis.inference.moments import Moments, of_rows
from analysis.simulation.world import Truth
from experiments.model import MeanMetric, Metric, ProportionMetric, RatioMetric


class Drawn(msgspec.Struct, frozen=True):
    """The moments of a variant's units in a block; of a quantile with its buckets of values."""

    moments: Moments
    buckets: tuple[tuple[int, int], ...] = ()


def draw(
    truth: Truth, metric: Metric, variant: str, at: float, units: int, random: Generator
) -> Drawn:
    """What so many units come to.

    Arguments:
        at: when they are enrolled, in seconds after the start.
        units: how many there are, at least one.
    """
    law, value = truth.law(metric.key, variant), truth.finished(metric, variant, at)
    match metric:
        case ProportionMetric():
            return Drawn(proportion(units, int(random.binomial(units, value))))
        case MeanMetric():
            return Drawn(_mean(units, value, abs(law.value) if law.sd is None else law.sd, random))
        case RatioMetric():
            return Drawn(_ratio(units, value, law.per_unit, random))
        case _:
            return _quantile(units, value, law.spread, metric.quantile, random)


def proportion(units: int, converted: int) -> Moments:
    """The moments of units of which so many converted."""
    return Moments(
        n=units, mean=(converted / units,), m2=(converted * (units - converted) / units,)
    )


def _mean(units: int, mean: float, sd: float, random: Generator) -> Moments:
    centre = float(random.normal(mean, sd / math.sqrt(units)))
    spread = float(sd * sd * random.chisquare(units - 1)) if units > 1 else 0.0
    return Moments(n=units, mean=(centre,), m2=(spread,))


def _ratio(units: int, ratio: float, per_unit: float, random: Generator) -> Moments:
    denominators = random.poisson(per_unit, units)
    # What there is at most one of to each of the denominator fails or not; what there may be more
    # of comes by itself.
    if ratio <= 1.0:
        numerators: NDArray[np.int64] = random.binomial(denominators, ratio)
    else:
        numerators = random.poisson(ratio * denominators)
    return of_rows(np.column_stack([numerators, denominators]))


def _quantile(units: int, value: float, spread: float, level: float, random: Generator) -> Drawn:
    centre = math.log(value) - spread * float(special.ndtri(level))
    values = random.lognormal(centre, spread, units)
    numbers, counts = np.unique(bucket(values), return_counts=True)
    pairs = tuple(zip(numbers.tolist(), counts.tolist(), strict=True))
    return Drawn(of_rows(values.reshape(-1, 1)), pairs)
