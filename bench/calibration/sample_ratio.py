"""Alarms of the sample ratio checks where nothing is wrong: watched, beside tests that look once
each time, or expect what the latest weights say."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy import special, stats

from analysis.inference.ratio_check import ALARM_P, UnitSums, check_ratio, of_units
from analysis.inference.ratio_watch import LOG_THRESHOLD, PRIOR_UNITS, RatioWatch, watch
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, ever
from bench.calibration.twins import Counts, Floats, must_agree

ALPHA: Final = ALARM_P
CHECKED: Final = 3
"""Experiments of a chunk that the library is stepped through."""

_AT_MOST: Final = Bound(high=ALPHA)
_NAIVE_LEVEL: Final = 0.01


def peaks(units: Counts, propensities: Floats) -> Floats:
    """The largest log E of `watch` in each experiment, the library's on those with the most.

    Arguments:
        units: that are new in each batch, of shape (experiments, batches, variants).
        propensities: of each batch, of a shape that broadcasts to it; all positive.

    Raises:
        DisagreementError: when the library has another peak.
    """
    experiments, batches, variants = units.shape
    p_of = np.broadcast_to(propensities, units.shape)
    seen, expected, information = (np.zeros((experiments, variants)) for _ in range(3))
    evidence, peak = np.zeros(experiments), np.zeros(experiments)
    for batch in range(batches):
        new, p = units[:, batch], p_of[:, batch]
        spread = p * (1.0 - p)
        weight = PRIOR_UNITS + (information / spread).min(axis=1, keepdims=True)
        shift = (seen - expected) / (information + PRIOR_UNITS * spread)
        tilted = p * np.maximum(1.0 + (1.0 - p) * shift, PRIOR_UNITS / weight)
        a = weight * tilted / tilted.sum(axis=1, keepdims=True)
        total = new.sum(axis=1, keepdims=True)
        log_beta = (special.gammaln(a + new) - special.gammaln(a)).sum(axis=1, keepdims=True) - (
            special.gammaln(weight + total) - special.gammaln(weight)
        )
        evidence = evidence + log_beta[:, 0] - (new * np.log(p)).sum(axis=1)
        peak = np.maximum(peak, evidence)
        seen = seen + new
        expected = expected + total * p
        information = information + total * spread
    for experiment in np.argsort(peak)[-CHECKED:].tolist():
        state = RatioWatch()
        for new, p in zip(units[experiment], p_of[experiment], strict=True):
            names = [str(variant) for variant in range(variants)]
            state = watch(
                state,
                dict(zip(names, new.tolist(), strict=True)),
                dict(zip(names, p.tolist(), strict=True)),
            )
        must_agree("peak", float(peak[experiment]), state.log_peak)
    return peak


def chi_square(observed: Floats | Counts, expected: Floats) -> Floats:
    """p-values of the chi-square test over the last axis."""
    statistic = ((observed - expected) ** 2 / expected).sum(axis=-1)
    return np.asarray(stats.chi2.sf(statistic, observed.shape[-1] - 1))


def _flags(units: Counts, propensities: Floats) -> Mapping[str, Flags]:
    """Alarms of the watch, of the library's chi-square at the end, and of naive tests."""
    p_of = np.broadcast_to(propensities, units.shape)
    n = units.cumsum(axis=1)
    expected = (units.sum(axis=2, keepdims=True) * p_of).cumsum(axis=1)
    latest = n.sum(axis=2, keepdims=True) * p_of
    at_end = chi_square(n[:, -1], expected[:, -1])
    for experiment in range(CHECKED):
        must_agree(
            "p-value", float(at_end[experiment]), _checked(units[experiment], p_of[experiment])
        )
    return {
        "watch": peaks(units, propensities) >= LOG_THRESHOLD,
        "chi-square at the end": at_end < ALARM_P,
        "chi-square at every look": ever(chi_square(n, expected) < _NAIVE_LEVEL),
        "chi-square at every look, .001": ever(chi_square(n, expected) < ALARM_P),
        "latest weights": chi_square(n[:, -1], latest[:, -1]) < ALARM_P,
    }


def _checked(units: Counts, propensities: Floats) -> float | None:
    """The p-value of the library's check after all batches, each an epoch of its own."""
    names = [str(variant) for variant in range(units.shape[1])]
    sums = sum(
        (
            of_units(
                dict(zip(names, new.tolist(), strict=True)),
                {},
                dict(zip(names, p.tolist(), strict=True)),
            )
            for new, p in zip(units, propensities, strict=True)
        ),
        start=UnitSums(),
    )
    return check_ratio(sums).p_value


def constant(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Half and half, a look after every 20 units."""
    p = np.array([0.5, 0.5])
    return _flags(rng.multinomial(20, p, (experiments, 500)), p)


def ramp(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A ramp from 1 to 50 % while traffic grows tenfold, 500 looks."""
    treated = np.repeat([0.01, 0.05, 0.1, 0.25, 0.5], 100)
    p = np.stack([1.0 - treated, treated], axis=1)
    size = np.linspace(10, 100, 500).astype(int)
    return _flags(rng.multinomial(size, p, (experiments, 500)), p)


def reallocated(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Three variants whose weights are what they enrolled so far says that they should not be: the
    more units a variant has beyond its due, the more it gets next."""
    batches, size = 300, 50
    units = np.zeros((experiments, batches, 3), dtype=np.int64)
    propensities = np.full((experiments, batches, 3), 1.0 / 3.0)
    beyond = np.zeros((experiments, 3))
    for batch in range(batches):
        if batch % 10 == 0:
            pull = np.exp(beyond / (20.0 + np.abs(beyond).max(axis=1, keepdims=True)))
            propensities[:, batch:] = (0.05 + 0.85 * pull / pull.sum(axis=1, keepdims=True))[
                :, None
            ]
        units[:, batch] = rng.multinomial(size, propensities[:, batch])
        beyond += units[:, batch] - size * propensities[:, batch]
    return _flags(units, propensities)


def _watched(naive: str, naive_event: str, looks: int) -> Claim:
    return Claim(
        rate=f"alarms in {looks} looks where nothing is wrong",
        method="Dirichlet-multinomial e-process",
        event="watch",
        bound=_AT_MOST,
        naive=naive,
        naive_event=naive_event,
    )


_AT_01 = "chi-square at .01 at every look", "chi-square at every look"
_AT_001 = "chi-square at .001 at every look", "chi-square at every look, .001"
_ONCE = Claim(
    rate="alarms at the end where nothing is wrong",
    method="chi-square on the sum of logged propensities",
    event="chi-square at the end",
    bound=_AT_MOST,
    naive="chi-square against the latest weights",
    naive_event="latest weights",
)

SCENARIOS = (
    Scenario(
        "srm-constant",
        "sample ratio, half and half, 10,000 units",
        531,
        constant,
        (_watched(*_AT_01, 500), _watched(*_AT_001, 500)),
    ),
    Scenario(
        "srm-ramp",
        "sample ratio on a ramp from 1 to 50 %, traffic growing tenfold",
        532,
        ramp,
        (_watched(*_AT_01, 500), _ONCE),
    ),
    Scenario(
        "srm-reallocated",
        "sample ratio of three variants, weights that follow who enrolled",
        533,
        reallocated,
        (_watched(*_AT_01, 300), _ONCE),
    ),
)
