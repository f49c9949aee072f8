"""The continuous reading, looked at a hundred times, beside tests that allow for one look only.

It is two-sided and knows no goal, so that "increase" and "decrease" are one case.
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import stats
from scipy.special import ndtr

from analysis.inference.bayes import bayesian_reading
from analysis.inference.kinds import Kind
from analysis.inference.moments import Moments
from analysis.inference.moments import of_rows as moments_of
from analysis.inference.sequence import MIN_UNITS_PER_ARM
from bench.calibration import library
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, ever
from bench.calibration.twins import (
    Counts,
    Difference,
    Floats,
    linear_form,
    log_e,
    must_agree,
    of_counts,
    within_epochs,
)
from experiments.model import Prior

LOOKS = 100
CHECKED = 3
"""Experiments of a chunk whose chance to win is compared with the library's."""

ALPHA = 0.05
_CRITICAL = float(stats.norm.isf(ALPHA / 2))
_ONE_SIDED = float(stats.norm.isf(ALPHA))
_AT_MOST_ALPHA = Bound(high=ALPHA)
_CAUTIOUS = "asymptotic confidence sequence"
_REPEATED = "z test at every look"

CellsAt = Callable[[int, int], list[tuple[Moments, Moments]]]
"""The cells of an experiment as they stand at a look."""


def ever_wrong(
    found: Difference, n: Counts, truth: float, cells_at: CellsAt, kind: Kind
) -> Mapping[str, Flags]:
    """Of each experiment, whether a reading ever excluded the truth.

    The sequence excludes the truth at some look exactly where it does so at the one with the most
    evidence against it. The library reads that look, in the fifth of the experiments that come
    nearest to it.

    Arguments:
        found: of shape (experiments, looks).
        n: units of the arms, of shape (experiments, looks, 2).
        truth: the true difference.
    """
    away = found.difference - truth
    evidence = log_e(away, found.cautious, n)
    against_0 = log_e(found.difference, found.cautious, n)
    peak = evidence.max(axis=1)
    wrong = np.asarray(peak >= -np.log(ALPHA))
    for experiment in np.argsort(peak)[-len(peak) // 5 :].tolist():
        look = int(evidence[experiment].argmax())
        if peak[experiment] == -np.inf:
            continue
        reading = library.any_time(cells_at(experiment, look), kind)
        must_agree("difference", float(found.difference[experiment, look]), reading.difference)
        must_agree("evidence", float(against_0[experiment, look]), reading.reading.log_e)
        crossed = library.excludes(reading.reading, truth)
        must_agree("crossed", float(wrong[experiment]), float(crossed))
    _check_chance_to_win(found, cells_at, kind)
    enough = (n.min(axis=-1) >= MIN_UNITS_PER_ARM) & (found.std_error > 0.0)
    z = np.where(enough, np.abs(away) / np.where(enough, found.std_error, 1.0), 0.0)
    own = log_e(away, found.std_error, n) >= -np.log(ALPHA)
    return {
        "sequence": wrong,
        "own variances": ever(own),
        "z test": ever(z > _CRITICAL),
        "chance to win": ever(z > _ONE_SIDED),
    }


def _check_chance_to_win(found: Difference, cells_at: CellsAt, kind: Kind) -> None:
    """That a chance to win above 95 % is a z above 1.64, under a flat prior.

    Raises:
        DisagreementError: where it is not.
    """
    last = found.difference.shape[1] - 1
    for experiment in range(CHECKED):
        compared = library.fixed(cells_at(experiment, last), kind)
        if compared.test in {"agresti_caffo", "fisher"}:
            continue
        z = found.difference[experiment, last] / found.std_error[experiment, last]
        belief = bayesian_reading(compared, "increase", kind, Prior())
        must_agree("chance to win", float(ndtr(z)), belief.chance_to_win)


def of_proportion(
    rng: np.random.Generator, experiments: int, rate: float, share: float, per_look: int
) -> Mapping[str, Flags]:
    """A/A on a proportion, with this share of the traffic in the treatment."""
    treated = rng.binomial(per_look, share, (experiments, LOOKS))
    new = np.stack([per_look - treated, treated], axis=2)
    n = new.cumsum(axis=1)
    x = rng.binomial(new, rate).cumsum(axis=1)
    mean, m2 = of_counts(n, x)
    found = within_epochs(n[:, :, None], mean[:, :, None], m2[:, :, None], "proportion")

    def cells_at(experiment: int, look: int) -> list[tuple[Moments, Moments]]:
        return library.of_counts(n[experiment, look, None], x[experiment, look, None])

    return ever_wrong(found, n, 0.0, cells_at, "proportion")


def of_rows(
    control: Floats, treatment: Floats, truth: float, kind: Kind, centre: Floats | float = 0.0
) -> Mapping[str, Flags]:
    """Any metric of one number or more a unit.

    Arguments:
        control, treatment: the units of a look, of shape (experiments, looks, units, d).
        truth: the true difference.
        centre: about where the numbers lie, so that their squares lose no digits.
    """
    arms = [library.packed(rows - centre) for rows in (control, treatment)]
    mean = np.stack([m for m, _ in arms], axis=2) + centre
    cross = np.stack([c for _, c in arms], axis=2)
    looks = np.arange(1, control.shape[1] + 1)
    n = np.stack([looks * control.shape[2], looks * treatment.shape[2]], axis=1)
    if mean.shape[-1] == 1:
        found = within_epochs(
            n[:, None, :], mean[:, :, None, :, 0], cross[:, :, None, :, 0, 0], kind
        )
    else:
        found = linear_form(n, mean, cross, kind)

    def cells_at(experiment: int, look: int) -> list[tuple[Moments, Moments]]:
        cells = (
            library.moments(int(n[look, arm]), mean[experiment, look, arm], products)
            for arm, products in enumerate(cross[experiment, look])
        )
        return [(next(cells), next(cells))]

    return ever_wrong(found, np.broadcast_to(n, (*mean.shape[:2], 2)), truth, cells_at, kind)


def a_a(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A rate of .1, half of the traffic each."""
    return of_proportion(rng, experiments, 0.1, 0.5, 50)


def rare(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A rate of .004, 5 % of the traffic."""
    return of_proportion(rng, experiments, 0.004, 0.05, 200)


def skewed(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Log-normal values, a real lift of 10 %, 40 % of the traffic."""
    control = rng.lognormal(0.0, 1.0, (experiments, LOOKS, 30, 1))
    treatment = 1.1 * rng.lognormal(0.0, 1.0, (experiments, LOOKS, 20, 1))
    level = float(np.exp(0.5))
    return of_rows(control, treatment, 0.1 * level, "mean", level)


def adjusted(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Log-normal values with those of the time before as a covariate, 40 % of the traffic."""

    def units(number: int) -> Floats:
        own = rng.normal(0.0, 0.8, (experiments, LOOKS, number, 1))
        return np.exp(own + rng.normal(0.0, 0.6, (experiments, LOOKS, number, 2)))

    return of_rows(units(30), units(20), 0.0, "mean", float(np.exp(0.5)))


def _requests(rng: np.random.Generator, y: Floats, own: Floats) -> Floats:
    """Errors among the requests of units, each of which has a rate of its own."""
    return np.stack([rng.binomial(y.astype(np.int64), own).astype(np.float64), y], axis=-1)


def ratio(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Errors per request, a unit's requests alike, 40 % of the traffic."""

    def units(number: int) -> Floats:
        shape = (experiments, LOOKS, number)
        return _requests(rng, rng.geometric(0.25, shape).astype(float), rng.beta(2.0, 8.0, shape))

    control, treatment = units(24), units(16)
    flags = of_rows(control, treatment, 0.0, "ratio", np.array([0.8, 4.0]))
    return {**flags, **_ratio_at_end(control, treatment)}


def _ratio_at_end(control: Floats, treatment: Floats) -> Mapping[str, Flags]:
    """Whether the fixed reading finds a difference in all units, and whether a test does that
    takes the requests of a unit for independent ones."""
    found, independent = [], []
    for arms in zip(control, treatment, strict=True):
        rows = [arm.reshape(-1, 2) for arm in arms]
        cells = (moments_of(rows[0]), moments_of(rows[1]))
        p_value = library.fixed([cells], "ratio").p_value
        found.append(p_value is not None and p_value <= ALPHA)
        x, y = np.stack([arm.sum(axis=0) for arm in rows], axis=1)
        pooled = x.sum() / y.sum()
        error = np.sqrt(pooled * (1.0 - pooled) * (1.0 / y).sum())
        independent.append(abs(x[1] / y[1] - x[0] / y[0]) > _CRITICAL * error)
    return {"at end": np.array(found), "requests": np.array(independent)}


def adjusted_ratio(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Errors per request, with those of the time before as a covariate."""

    def units(number: int) -> Floats:
        shape = (experiments, LOOKS, number)
        own = rng.beta(2.0, 8.0, shape)
        now, before = (
            _requests(rng, rng.geometric(0.25, shape).astype(float), own) for _ in range(2)
        )
        return np.concatenate([now, before], axis=-1)

    return of_rows(units(12), units(8), 0.0, "ratio", np.array([0.8, 4.0] * 2))


def _claim(naive: str = _REPEATED, naive_event: str = "z test", rate: str = "") -> Claim:
    return Claim(
        rate=rate or f"false positives under {LOOKS} looks",
        method=_CAUTIOUS,
        event="sequence",
        bound=_AT_MOST_ALPHA,
        naive=naive,
        naive_event=naive_event,
    )


SCENARIOS = (
    Scenario(
        "continuous-proportion",
        "A/A, rate .1, 5,000 units",
        501,
        a_a,
        (_claim(), _claim("stop when chance to win > 95 %", "chance to win")),
    ),
    Scenario(
        "continuous-rare",
        "A/A, rate .004, treatment at 5 % of the traffic, 20,000 units",
        502,
        rare,
        (_claim(), _claim("the same sequence on each variant's own variance", "own variances")),
    ),
    Scenario(
        "continuous-mean",
        "log-normal values, a lift of 10 %, 40 % of the traffic, 5,000 units",
        503,
        skewed,
        (_claim(rate=f"the truth ever excluded in {LOOKS} looks"),),
    ),
    Scenario(
        "continuous-cuped",
        "A/A on log-normal values with a covariate, 5,000 units",
        504,
        adjusted,
        (_claim(),),
    ),
    Scenario(
        "continuous-ratio",
        "A/A on errors per request, requests of a unit alike, 4,000 units",
        505,
        ratio,
        (
            _claim(),
            Claim(
                rate="false positives at the end",
                method="delta method",
                event="at end",
                bound=Bound(0.04, ALPHA),
                naive="requests taken for independent",
                naive_event="requests",
            ),
        ),
    ),
    Scenario(
        "continuous-ratio-cuped",
        "A/A on errors per request with a covariate, 2,000 units",
        506,
        adjusted_ratio,
        (_claim(),),
    ),
)
