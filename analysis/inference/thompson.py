"""Thompson allocation: the chance of each arm to be the best, and the weights that follow.

Probabilities come from quadrature, never from draws: the same cells give the same weights.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.inference.epoch_sums import ArmSums, EpochSums
from analysis.inference.exact import quotient
from analysis.inference.kinds import Goal, Kind
from analysis.inference.variance import weighted_mean_variance

Array = NDArray[np.float64]

_SUM_TOLERANCE = 1e-9

# Breakpoints of the quadrature, in standard deviations of each arm: dense where a posterior
# bends, reaching far enough for the exponential tail of a Beta posterior without conversions.
_BREAKS = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 9.0, 14.0, 22.0, 40.0])
_NODES, _NODE_WEIGHTS = np.polynomial.legendre.leggauss(16)


class ArmPosterior(msgspec.Struct, frozen=True):
    """The posterior of one arm's mean.

    Arguments:
        n: units behind it.
        mean, sd: of the posterior, in the metric's unit.
        beta: (a, b) of a Beta posterior; None for a normal one.
    """

    n: int
    mean: float
    sd: float
    beta: tuple[float, float] | None = None


def posterior(sums: EpochSums, kind: Kind, warmup: int = 100) -> dict[str, ArmPosterior] | None:
    """The posteriors of the arms' means, by variant.

    One epoch, proportions: Beta(1 + conversions, 1 + others). Otherwise normal around the arm's
    mean standardised over the epochs in which every arm has units, mean_k = Σ w_e mean_ke with w_e
    the epoch's share of their units, and the variance of that mean; under a flat prior this is
    the large-sample posterior. Counts are never pooled over epochs: a bandit's favourite would be
    credited with the good days. For proportions the variance is shrunk towards that of the
    smoothed rate (conversions + 1)/(units + 2), so that an arm without conversions is not certain.

    Source: Thompson (1933); Chapelle, Li (2011), "An empirical evaluation of Thompson sampling".

    Arguments:
        sums: over the epochs, of all arms, of one number a unit; the caller gives closed blocks
            only.
        kind: proportion or mean.
        warmup: units that every arm needs (in epochs that all arms share).

    Returns:
        By the arms' keys in their order; None, no decision, while an arm has fewer units than
        `warmup` or no variance.
    """
    if sums.epochs == 0 or any(arm.n < warmup for arm in sums.arms.values()):
        return None
    if kind == "proportion" and sums.epochs + sums.epochs_left_out == 1:
        return {variant: _beta(arm) for variant, arm in sorted(sums.arms.items())}
    result = {}
    for variant in sorted(sums.arms):
        arm = _normal(sums, variant, kind)
        if arm is None:
            return None
        result[variant] = arm
    return result


def probability_best(posteriors: Mapping[str, ArmPosterior], goal: Goal) -> dict[str, float]:
    """P(arm k has the best mean) = ∫ f_k Π_{j≠k} F_j, by composite Gauss-Legendre quadrature.

    Independent posteriors; for goal "decrease" F_j is replaced by 1 - F_j. The probabilities are
    normalised to sum to 1 (the quadrature itself is good to about 1e-10).

    Raises:
        ValueError: without arms, or where a posterior has no spread.
    """
    if not posteriors:
        raise ValueError("the best of no arms is not defined")
    arms = list(posteriors.values())
    if any(not (math.isfinite(arm.mean) and 0.0 < arm.sd < math.inf) for arm in arms):
        raise ValueError("every posterior needs a finite mean and a positive spread")
    x, dx = _grid(arms)
    densities, log_beats = [], []
    with np.errstate(divide="ignore"):  # ln 0 = -inf is the right value of an impossible win
        for arm in arms:
            pdf, log_cdf, log_sf = _functions(arm)
            densities.append(pdf(x))
            log_beats.append(log_cdf(x) if goal == "increase" else log_sf(x))
    raw = [
        float(np.sum(dx * density * np.exp(_sum_without(log_beats, k))))
        for k, density in enumerate(densities)
    ]
    total = math.fsum(raw)
    return {variant: p / total for variant, p in zip(posteriors, raw, strict=True)}


def next_weights(
    p_best: Mapping[str, float], current: Mapping[str, float], floor: float, max_step: float
) -> dict[str, float]:
    """The weights to allocate next: P(best) with an additive floor, reached in limited steps.

    Target f + (1 - K f) P(best) for K arms. If an arm's weight would change by more than
    `max_step`, the whole move is scaled down, which keeps its direction. The result sums to 1.

    Arguments:
        p_best: P(best) by variant, summing to 1.
        current: the weights now, for the same variants, summing to 1.
        floor: f, the least weight of an arm once reached, with K f <= 1.
        max_step: the largest change of one weight, in (0, 1].

    Raises:
        ValueError: when an argument is outside these bounds.
    """
    if set(p_best) != set(current) or not current:
        raise ValueError("p_best and current name the same variants, at least one")
    for name, values in (("p_best", p_best), ("current", current)):
        if min(values.values()) < 0.0 or abs(math.fsum(values.values()) - 1.0) > _SUM_TOLERANCE:
            raise ValueError(f"{name} are probabilities that sum to 1")
    arms = len(current)
    if not 0.0 <= floor * arms <= 1.0:
        raise ValueError(f"a floor of {floor} for {arms} variants is more than there is")
    if not 0.0 < max_step <= 1.0:
        raise ValueError(f"max_step lies in (0, 1], not at {max_step}")
    moves = {k: floor + (1.0 - arms * floor) * p_best[k] - weight for k, weight in current.items()}
    largest = max(abs(move) for move in moves.values())
    scale = min(1.0, max_step / largest) if largest > 0.0 else 0.0
    weights = {k: weight + scale * moves[k] for k, weight in current.items()}
    # Rounding goes where it matters least; fsum rounds once, so the whole is exactly 1.
    heaviest = max(weights, key=lambda k: weights[k])
    weights[heaviest] = math.fsum([1.0, *(-w for k, w in weights.items() if k != heaviest)])
    return weights


def _beta(arm: ArmSums) -> ArmPosterior:
    a, b = 1.0 + arm.converted, 1.0 + arm.n - arm.converted
    mean, sd = float(stats.beta.mean(a, b)), float(stats.beta.std(a, b))
    return ArmPosterior(n=arm.n, mean=mean, sd=sd, beta=(a, b))


def _normal(sums: EpochSums, variant: str, kind: Kind) -> ArmPosterior | None:
    arm = sums.arms[variant]
    prior = None
    if kind == "proportion":
        rate = (arm.converted + 1.0) / (arm.n + 2.0)
        prior = rate * (1.0 - rate)
    of_mean = weighted_mean_variance(sums, variant, kind, prior)
    if of_mean is None or not 0.0 < of_mean.variance < math.inf:
        return None
    mean = quotient(arm.mean[0], sums.weight)
    return ArmPosterior(n=arm.n, mean=mean, sd=math.sqrt(of_mean.variance))


def _grid(arms: Sequence[ArmPosterior]) -> tuple[Array, Array]:
    """Nodes and weights of Gauss-Legendre between the breakpoints of all arms."""
    breaks = np.concatenate(
        [arm.mean + arm.sd * side * _BREAKS for arm in arms for side in (-1.0, 1.0)]
    )
    if any(arm.beta is not None for arm in arms):
        breaks = np.concatenate([np.clip(breaks, 0.0, 1.0), [0.0, 1.0]])
    breaks = np.unique(breaks)
    half = np.diff(breaks) / 2.0
    middle = (breaks[1:] + breaks[:-1]) / 2.0
    x = (middle[:, None] + half[:, None] * _NODES).ravel()
    dx = (half[:, None] * _NODE_WEIGHTS).ravel()
    return x, dx


def _functions(
    arm: ArmPosterior,
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], Callable[[Array], Array]]:
    """Density, log distribution function and log survival function of a posterior."""
    frozen = (
        stats.norm(arm.mean, arm.sd) if arm.beta is None else stats.beta(arm.beta[0], arm.beta[1])
    )
    return frozen.pdf, frozen.logcdf, frozen.logsf


def _sum_without(terms: Sequence[Array], left_out: int) -> Array:
    """Σ of the arrays but one."""
    total = np.zeros_like(terms[0])
    for k, term in enumerate(terms):
        if k != left_out:
            total = total + term
    return total
