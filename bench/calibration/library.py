"""The library's readings of cells that are given as arrays: what a report would say of them."""

from collections.abc import Sequence

import numpy as np

from analysis.inference.choice import SequenceReading, read_continuous, read_fixed
from analysis.inference.epoch_sums import Population, of_epoch
from analysis.inference.estimate import Comparison
from analysis.inference.exact import combined
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments, pairs
from analysis.inference.sequence import AlwaysValid
from bench.calibration.scenario import Flags
from bench.calibration.twins import Counts, Floats

CONTROL, TREATMENT = "control", "treatment"


def proportion(n: int, converted: int) -> Moments:
    """The moments of `converted` ones and n - converted zeros."""
    if n == 0:
        return Moments(n=0, mean=(0.0,), m2=(0.0,))
    return Moments(n=n, mean=(converted / n,), m2=(converted * (n - converted) / n,))


def moments(n: int, mean: Floats, cross: Floats) -> Moments:
    """The moments of `n` units from their means, of shape (d,), and cross-products, (d, d)."""
    places = pairs(len(mean))
    return Moments(n, tuple(mean.tolist()), tuple(float(cross[i, j]) for i, j in places))


def of_counts(n: Counts, converted: Counts) -> list[tuple[Moments, Moments]]:
    """The cells of epochs, control and treatment, from counts of shape (epochs, 2)."""
    return [
        (proportion(units[0], ones[0]), proportion(units[1], ones[1]))
        for units, ones in zip(n.tolist(), converted.tolist(), strict=True)
    ]


def of_single(n: Counts, mean: Floats, m2: Floats) -> list[tuple[Moments, Moments]]:
    """The cells of epochs, control and treatment, from moments of shape (epochs, 2)."""
    cells = [
        [Moments(k, (m,), (s,)) for k, m, s in zip(*arms, strict=True)]
        for arms in zip(n.tolist(), mean.tolist(), m2.tolist(), strict=True)
    ]
    return [(control, treatment) for control, treatment in cells]


def population(epochs: Sequence[tuple[Moments, Moments]], kind: Kind) -> Population:
    """The sums over epochs of a control and one treatment."""
    variants = (CONTROL, TREATMENT)
    return combined(
        [
            of_epoch(dict(zip(variants, cells, strict=True)), variants, CONTROL, kind)
            for cells in epochs
        ]
    )


def fixed(epochs: Sequence[tuple[Moments, Moments]], kind: Kind) -> Comparison:
    """The fixed-horizon comparison of large epochs, at level .05."""
    return read_fixed(
        population(epochs, kind), None, CONTROL, TREATMENT, kind, reallocated=len(epochs) > 1
    )


def any_time(epochs: Sequence[tuple[Moments, Moments]], kind: Kind) -> SequenceReading:
    """The continuous reading of large epochs, at level .05."""
    return read_continuous(
        population(epochs, kind), None, CONTROL, TREATMENT, kind, reallocated=len(epochs) > 1
    )


def excludes(reading: AlwaysValid, truth: float) -> bool:
    """Whether a confidence sequence excludes the true difference at this look."""
    if reading.ci_low is None or reading.ci_high is None:
        return False
    return not reading.ci_low <= truth <= reading.ci_high


def packed(rows: Floats) -> tuple[Floats, Floats]:
    """Running means and centred cross-products of units that come in groups.

    Arguments:
        rows: of shape (experiments, looks, units, d), not far from 0 for their spread.

    Returns:
        Means of shape (experiments, looks, d) and cross-products (experiments, looks, d, d), of
        all units up to each look.
    """
    units = rows.shape[2] * np.arange(1, rows.shape[1] + 1)[:, None]
    sums = rows.sum(axis=2).cumsum(axis=1)
    products = (np.swapaxes(rows, 2, 3) @ rows).cumsum(axis=1)
    mean = sums / units
    return mean, products - units[..., None] * mean[..., :, None] * mean[..., None, :]


def by_arm(values: Floats, treated: Flags) -> tuple[Counts, Floats, Floats]:
    """Moments of the two arms, in the last axis, of units in the last axis of both arguments."""
    n, mean, m2 = [], [], []
    for arm in (~treated, treated):
        units = arm.sum(axis=-1)
        level = (values * arm).sum(axis=-1) / np.maximum(units, 1)
        n.append(units)
        mean.append(level)
        m2.append((((values - level[..., None]) * arm) ** 2).sum(axis=-1))
    return np.stack(n, axis=-1), np.stack(mean, axis=-1), np.stack(m2, axis=-1)
