"""What the tests of the statistics share: cells from counts, and the bound on simulated rates."""

import math
from collections.abc import Iterable, Sequence

from analysis.inference.epoch_sums import EpochSums, Population, of_epoch
from analysis.inference.estimate import Comparison, compare
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments


def proportion(n: int, converted: int) -> Moments:
    """The moments of `converted` ones and n - converted zeros."""
    if n == 0:
        return Moments(n=0, mean=(0.0,), m2=(0.0,))
    return Moments(n=n, mean=(converted / n,), m2=(converted * (n - converted) / n,))


def terms(cells: Sequence[Moments], kind: Kind) -> Population:
    """What an epoch adds to the sums, from the cells of its variants "a", the control, "b" and so
    on."""
    variants = [chr(ord("a") + place) for place in range(len(cells))]
    return of_epoch(dict(zip(variants, cells, strict=True)), variants, "a", kind)


def population(epochs: Iterable[Sequence[Moments]], kind: Kind) -> Population:
    """The sums over epochs."""
    return sum((terms(cells, kind) for cells in epochs), start=Population())


def contrast(epochs: Iterable[Sequence[Moments]], kind: Kind) -> EpochSums:
    """The sums over epochs for the comparison of "b" with "a"."""
    return sum((terms(cells, kind).contrasts["b"] for cells in epochs), start=EpochSums())


def compared(epochs: Iterable[Sequence[Moments]], kind: Kind, alpha: float = 0.05) -> Comparison:
    """The comparison of "b" with "a"."""
    return compare(contrast(epochs, kind), "a", "b", kind, alpha)


def at_most(rate: float, runs: int) -> float:
    """A bound on a simulated rate: the nominal one plus three Monte Carlo standard errors."""
    return rate + 3.0 * math.sqrt(rate * (1.0 - rate) / runs)
