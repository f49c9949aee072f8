"""Thompson allocation: the chance of each arm to be the best, and the weights that follow.

Probabilities come from quadrature, never from draws: the same cells give the same weights, and
there is no random seed to keep.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import special

from analysis.inference.epoch_sums import ArmSums, EpochSums
from analysis.inference.exact import quotient
from analysis.inference.kinds import Goal, Kind, Sampling
from analysis.inference.variance import weighted_mean_variance

Array = NDArray[np.float64]
Model = Literal["normal"]

_ROOT_2_PI = math.sqrt(2.0 * math.pi)
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


def posterior(
    sums: EpochSums, kind: Kind, warmup: int = 100, *, model: Model | None = None
) -> dict[str, ArmPosterior] | None:
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
        model: normal, where the posteriors are to be made comparable with those of other sums; as
            stated above if not named.

    Returns:
        By the arms' keys in their order; None, no decision, while an arm has fewer units than
        `warmup` or no variance.
    """
    if sums.epochs == 0 or any(arm.n < warmup for arm in sums.arms.values()):
        return None
    one_epoch = sums.epochs + sums.epochs_left_out == 1
    if kind == "proportion" and one_epoch and model is None:
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
    x, dx = grid(arms)
    densities, log_beats = [], []
    with np.errstate(divide="ignore"):  # ln 0 = -inf is the right value of an impossible win
        for arm in arms:
            pdf, log_cdf, log_sf = functions(arm)
            densities.append(pdf(x))
            log_beats.append(log_cdf(x) if goal == "increase" else log_sf(x))
    raw = [
        float(np.sum(dx * density * np.exp(sum_without(log_beats, k))))
        for k, density in enumerate(densities)
    ]
    total = math.fsum(raw)
    return {variant: p / total for variant, p in zip(posteriors, raw, strict=True)}


def sampled(p_best: Mapping[str, float], sampling: Sampling) -> dict[str, float]:
    """The shares of the traffic that follow from P(best), before floors. They sum to 1.

    - thompson: P(best) itself.
    - top_two: ψ_k = p_k/2 + Σ_{j≠k} p_j/2 · p_k/(1 - p_j): half of the units go to the arm that is
      drawn as the best, half to the best of the others. Source: Russo (2016), "Simple Bayesian
      algorithms for best arm identification", with β = 1/2.
    - exploration: q_k ∝ p_k (1 - p_k). Source: Kasy, Sautmann (2021), "Adaptive treatment
      assignment in experiments for policy choice".

    The last two look for the best arm rather than for reward, and no arm gets more than a half of
    the traffic; so with two arms both always give halves. They know the goal by way of P(best)
    only. Where an arm is certain to be the best, nothing is known of who comes second: the others
    share its half evenly.

    Arguments:
        p_best: by variant, at least one, summing to 1.
    """
    if sampling == "thompson" or len(p_best) == 1:
        return dict(p_best)
    # 1 - p as a sum of the others: where p is nearly 1 the difference has no digits.
    others = {k: math.fsum(p for j, p in p_best.items() if j != k) for k in p_best}
    if any(rest == 0.0 for rest in others.values()):
        second = 0.5 / (len(p_best) - 1)
        return {k: 0.5 if rest == 0.0 else second for k, rest in others.items()}
    if sampling == "exploration":
        raw = {k: p * others[k] for k, p in p_best.items()}
    else:
        raw = {
            k: p + math.fsum(q * (p / others[j]) for j, q in p_best.items() if j != k)
            for k, p in p_best.items()
        }
    total = math.fsum(raw.values())
    return {k: share / total for k, share in raw.items()}


def next_weights(
    shares: Mapping[str, float],
    current: Mapping[str, float],
    floor: float,
    max_step: float,
    *,
    floors: Mapping[str, float] | None = None,
    pinned: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """The weights to allocate next: shares with additive floors, reached in limited steps.

    Target f_k + (1 - Σ f - Σ pins) share_k. If an arm's weight would change by more than
    `max_step`, the whole move is scaled down, which keeps its direction; so floors and pins are
    reached in steps, too. The result sums to 1.

    Arguments:
        shares: by variant, summing to 1: P(best), or what `sampled` made of it.
        current: the weights now, for the same variants and the pinned ones, summing to 1.
        floor: the least weight of an arm once reached.
        max_step: the largest change of one weight, in (0, 1].
        floors: the least weight of single arms, where it is above `floor`.
        pinned: the weights of arms that take no part in the shares.

    Raises:
        ValueError: when an argument is outside these bounds.
    """
    pins = {} if pinned is None else pinned
    _check_weights(shares, current, pins, max_step)
    least = {k: max(floor, (floors or {}).get(k, 0.0)) for k in shares}
    taken = math.fsum([*least.values(), *pins.values()])
    if min([*least.values(), *pins.values()]) < 0.0 or taken > 1.0 + _SUM_TOLERANCE:
        raise ValueError(
            f"floors and pins of {taken:g} together for {len(current)} variants are more than "
            "there is"
        )
    rest = max(1.0 - taken, 0.0)
    targets = {k: pins[k] if k in pins else least[k] + rest * shares[k] for k in current}
    moves = {k: targets[k] - weight for k, weight in current.items()}
    largest = max(abs(move) for move in moves.values())
    scale = min(1.0, max_step / largest) if largest > 0.0 else 0.0
    weights = {k: weight + scale * moves[k] for k, weight in current.items()}
    if scale == 1.0:
        weights |= pins
    # Rounding goes where it matters least; fsum rounds once, so the whole is exactly 1.
    heaviest = max((k for k in weights if k in shares), key=lambda k: weights[k])
    weights[heaviest] = math.fsum([1.0, *(-w for k, w in weights.items() if k != heaviest)])
    return weights


def _check_weights(
    shares: Mapping[str, float],
    current: Mapping[str, float],
    pins: Mapping[str, float],
    max_step: float,
) -> None:
    if not shares or shares.keys() & pins.keys() or shares.keys() | pins.keys() != current.keys():
        raise ValueError(
            "shares and current name the same variants, at least one, and pins name others"
        )
    for name, values in (("shares", shares), ("current", current)):
        if min(values.values()) < 0.0 or abs(math.fsum(values.values()) - 1.0) > _SUM_TOLERANCE:
            raise ValueError(f"{name} are probabilities that sum to 1")
    if not 0.0 < max_step <= 1.0:
        raise ValueError(f"max_step lies in (0, 1], not at {max_step}")


def _beta(arm: ArmSums) -> ArmPosterior:
    a, b = 1.0 + arm.converted, 1.0 + arm.n - arm.converted
    mean, variance = a / (a + b), a * b / ((a + b) ** 2 * (a + b + 1.0))
    return ArmPosterior(n=arm.n, mean=mean, sd=math.sqrt(variance), beta=(a, b))


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


def grid(arms: Sequence[ArmPosterior]) -> tuple[Array, Array]:
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


def functions(
    arm: ArmPosterior,
) -> tuple[Callable[[Array], Array], Callable[[Array], Array], Callable[[Array], Array]]:
    """Density, log distribution function and log survival function of a posterior."""
    if arm.beta is not None:
        from scipy import stats  # noqa: PLC0415 - slow to load, and only young bandits need it

        beta = stats.beta(*arm.beta)
        return beta.pdf, beta.logcdf, beta.logsf
    mean, sd = arm.mean, arm.sd

    def pdf(x: Array) -> Array:
        density: Array = np.exp(-(((x - mean) / sd) ** 2) / 2.0) / (sd * _ROOT_2_PI)
        return density

    def log_cdf(x: Array) -> Array:
        found: Array = special.log_ndtr((x - mean) / sd)
        return found

    def log_sf(x: Array) -> Array:
        found: Array = special.log_ndtr((mean - x) / sd)
        return found

    return pdf, log_cdf, log_sf


def sum_without(terms: Sequence[Array], left_out: int) -> Array:
    """Σ of the arrays but one."""
    total = np.zeros_like(terms[0])
    for k, term in enumerate(terms):
        if k != left_out:
            total = total + term
    return total
