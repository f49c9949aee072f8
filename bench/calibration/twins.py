"""Functions of `analysis/inference` on arrays, for many experiments and looks at once.

A twin has no say of its own: who uses it has the library read what it points at, and
`must_agree` raises where the two differ.
"""

import math

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.epoch_sums import PRIOR_UNITS
from analysis.inference.kinds import Kind
from analysis.inference.sequence import DECISION_N, MIN_UNITS_PER_ARM
from analysis.inference.variance import CAUTIOUS_UNITS

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]

TOLERANCE = 1e-8
"""Relative, and absolute below 1: what the order of sums may change."""


class DisagreementError(Exception):
    """A twin says something else than the function that it stands for."""


def must_agree(what: str, twin: float | None, library: float | None) -> None:
    """Raises:
    DisagreementError: when the twin's number is not the library's.
    """
    if twin is None or library is None:
        agree = twin is library
    else:
        agree = math.isclose(twin, library, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if not agree:
        raise DisagreementError(f"{what}: the twin has {twin}, the library {library}")


class Difference(msgspec.Struct, frozen=True):
    """Differences of two arms within epochs, of shape (...).

    Arguments:
        difference, std_error: as `compare` has them.
        cautious: the standard error of `cautious_std_error`.
        p_value: two-sided, of the first two.
    """

    difference: Floats
    std_error: Floats
    cautious: Floats
    p_value: Floats


def of_counts(n: Counts, converted: Counts) -> tuple[Floats, Floats]:
    """Means and centred sums of squares of zeros and ones; zeros where there are no units."""
    units = np.maximum(n, 1)
    return converted / units, converted * (n - converted) / units


def within_epochs(
    n: Counts, mean: Floats, m2: Floats, kind: Kind, units_of_all: Counts | None = None
) -> Difference:
    """`compare` and `cautious_std_error` of arms whose units have one number.

    Arguments:
        n, mean, m2: moments, of shape (..., epochs, 2), control first. An epoch in which an arm has
            no units is left out; where all are, nothing is a number.
        kind: proportion or mean.
        units_of_all: of all variants, of shape (..., epochs); those of the two when None.
    """
    every = n.sum(axis=-1) if units_of_all is None else units_of_all
    with np.errstate(divide="ignore", invalid="ignore"):
        return _within_epochs(n, mean, m2, kind, every)


def _within_epochs(n: Counts, mean: Floats, m2: Floats, kind: Kind, every: Counts) -> Difference:
    used = (n.min(axis=-1, keepdims=True) > 0).astype(float)
    epochs = used.sum(axis=-2)
    units = np.where(used > 0.0, n, 1)
    weight = used * every[..., None]
    total = weight.sum(axis=-2)
    df = (units - 1) * used
    factor = weight**2 / units
    degrees = (n * used).sum(axis=-2) - epochs
    if kind == "proportion":
        degrees = degrees + (epochs == 1)
    pooled = (m2 * used).sum(axis=-2) / degrees
    # One epoch has its own variance, which is the pooled one.
    own_part = np.where(epochs[..., None, :] == 1, 0.0, m2 / (df + PRIOR_UNITS))
    lent_part = np.where(epochs[..., None, :] == 1, 1.0, PRIOR_UNITS / (df + PRIOR_UNITS))
    variance = (factor * (own_part + pooled[..., None, :] * lent_part)).sum(axis=-2) / total**2
    larger = pooled.max(axis=-1, keepdims=True)
    caution = CAUTIOUS_UNITS / (degrees + CAUTIOUS_UNITS) * factor.sum(axis=-2) / total**2
    cautious = np.sqrt((variance + caution * (larger - pooled)).sum(axis=-1))
    means = (weight * mean).sum(axis=-2) / total
    difference = means[..., 1] - means[..., 0]
    std_error = np.sqrt(variance.sum(axis=-1))
    size = np.abs(difference) / std_error
    if kind == "proportion":
        p_value = 2.0 * stats.norm.sf(size)
    else:
        through = factor * PRIOR_UNITS / (df + PRIOR_UNITS)
        b = np.where(epochs == 1, 0.0, through.sum(axis=-2) / degrees)[..., None, :]
        a = factor / np.where(epochs[..., None, :] == 1, df, df + PRIOR_UNITS) * used
        shrunk = own_part + pooled[..., None, :] * lent_part
        squares = (df * ((a + b) * shrunk) ** 2).sum(axis=-2) / total**4
        freedom = variance.sum(axis=-1) ** 2 / squares.sum(axis=-1)
        p_value = 2.0 * stats.t.sf(size, freedom)
    return Difference(difference, std_error, cautious, np.where(std_error > 0.0, p_value, 1.0))


def log_e(
    difference: Floats,
    std_error: Floats,
    n: Counts,
    alpha: float = 0.05,
    decision_n: int = DECISION_N,
    time: Floats | None = None,
) -> Floats:
    """`always_valid`'s evidence against "no difference"; -inf where it says nothing.

    Arguments:
        difference, std_error: of shape (...).
        n: units of the arms, of shape (..., 2).
        alpha, decision_n, time: as for `always_valid`.
    """
    both = n.sum(axis=-1) if time is None else time
    rho2 = (-2.0 * math.log(alpha) + math.log1p(-2.0 * math.log(alpha))) / decision_n
    grown = both * rho2 + 1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        t = difference / std_error
        evidence = both * rho2 * t * t / (2.0 * grown) - 0.5 * np.log(grown)
    says = (n.min(axis=-1) >= MIN_UNITS_PER_ARM) & (std_error > 0.0)
    return np.where(says, evidence, -np.inf)


def linear_form(n: Counts, mean: Floats, cross: Floats, kind: Kind) -> Difference:
    """`compare` and `cautious_std_error` of one epoch of a ratio, or of what has a covariate.

    Arguments:
        n: units of the arms, of shape (..., 2), at least two each.
        mean: of their d numbers, of shape (..., 2, d).
        cross: centred cross-products, of shape (..., 2, d, d).
        kind: mean or ratio.
    """
    width = 2 if kind == "ratio" else 1
    d = mean.shape[-1]
    form = np.zeros_like(mean)
    if kind == "ratio":
        form[..., :2] = _ratio_form(mean[..., 0], mean[..., 1])
        level = mean[..., 0] / mean[..., 1]
    else:
        form[..., 0] = 1.0
        level = mean[..., 0]
    if d > width:
        covariate = np.zeros_like(mean[..., :1, :])
        if kind == "ratio":
            ahead = mean[..., 2:].mean(axis=-2, keepdims=True)
            covariate[..., 2:] = _ratio_form(ahead[..., 0], ahead[..., 1])
        else:
            covariate[..., 1] = 1.0
        along = np.einsum("...i,...ij,...j->...", form, cross, covariate).sum(axis=-1)
        own = np.einsum("...i,...ij,...j->...", covariate, cross, covariate).sum(axis=-1)
        shift = (along / own)[..., None, None] * covariate
        level = level - (shift * mean).sum(axis=-1)
        form = form - shift
    pooled = np.einsum("...i,...ij,...j->...", form, cross, form) / (n - 1)
    larger = pooled.max(axis=-1, keepdims=True)
    caution = CAUTIOUS_UNITS / (n - 1 + CAUTIOUS_UNITS)
    difference = level[..., 1] - level[..., 0]
    std_error = np.sqrt((pooled / n).sum(axis=-1))
    cautious = np.sqrt(((pooled + caution * (larger - pooled)) / n).sum(axis=-1))
    p_value = 2.0 * stats.norm.sf(np.abs(difference) / std_error)
    return Difference(difference, std_error, cautious, p_value)


def _ratio_form(numerator: Floats, denominator: Floats) -> Floats:
    """(x - R y)/ȳ at these means."""
    return np.stack([1.0 / denominator, -numerator / denominator**2], axis=-1)
