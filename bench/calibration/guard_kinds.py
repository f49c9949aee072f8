"""False rollbacks by the guard on ratios, quantiles and what has a covariate, beside what operators
would look at instead: z tests after every block, or the last blocks alone."""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

from analysis.inference.bins import bucket
from analysis.inference.evidence import GuardRule
from bench.calibration.guard import ALPHA, CHECKED
from bench.calibration.guard_kinds_twin import (
    Units,
    Values,
    of_rows,
    quantiles_watched,
    watched,
)
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, ever
from bench.calibration.twins import Floats

_BLOCKS: Final = 120
_UNITS: Final = 50
_LAST: Final = 10
"""Blocks that a threshold rule looks at."""


def _crowd(
    rng: np.random.Generator, experiments: int, share: float | Floats
) -> tuple[Flags, Floats]:
    """Who meets the treatment, of shape (experiments, blocks, units), and the propensity of each
    block."""
    shares = np.broadcast_to(share, (experiments, _BLOCKS))
    return rng.random((experiments, _BLOCKS, _UNITS)) < shares[..., None], shares


def _wave(periods: float, size: float) -> Floats:
    """A wave over the blocks around 1, the same for all units, of shape (blocks, 1)."""
    turn = 2.0 * np.pi * periods * np.arange(_BLOCKS) / _BLOCKS
    return np.exp(size * np.sin(turn))[:, None]


def repeated_delta(units: Units, rule: GuardRule) -> Flags:
    """A one-sided z test after every block, by the delta method on all units so far: of a ratio, or
    of the mean of the first number."""
    n = np.maximum(units.n.cumsum(axis=1), 1)
    mean = (units.mean * units.n[..., None]).cumsum(axis=1) / n[..., None]
    outer = units.mean[..., :, None] * units.mean[..., None, :] * units.n[..., None, None]
    cross = (units.cross + outer).cumsum(axis=1) / n[..., None, None]
    cross = cross - mean[..., :, None] * mean[..., None, :]
    if rule.kind == "ratio":
        x, y = mean[..., 0], np.where(mean[..., 1] > 0.0, mean[..., 1], 1.0)
        level = x / y
        spread = cross[..., 0, 0] - 2 * level * cross[..., 0, 1] + level**2 * cross[..., 1, 1]
        variance = np.maximum(spread, 0.0) / y**2 / n
    else:
        level, variance = mean[..., 0], np.maximum(cross[..., 0, 0], 0.0) / n
    s = 1.0 if rule.goal == "increase" else -1.0
    of_control = s - rule.margin if rule.relative else s
    harm = of_control * level[..., 0] - s * level[..., 1] - (0 if rule.relative else rule.margin)
    error = np.sqrt(of_control**2 * variance[..., 0] + variance[..., 1])
    enough = n.min(axis=2) >= 100
    return ever(enough & (harm > stats.norm.isf(rule.alpha_share) * error))


def _both(units: Units, rule: GuardRule) -> Mapping[str, Flags]:
    return {
        "guard": watched(units, rule, CHECKED).alarms,
        "z test": repeated_delta(units, rule),
    }


def rare_errors(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Errors per request, of which there are few, with the treatment at 5 % of the traffic; units
    differ much in how often they ask, and those of the treatment ask twice as often."""
    treated, share = _crowd(rng, experiments, 0.05)
    often = rng.lognormal(1.0, 1.0, treated.shape) * np.where(treated, 2.0, 1.0)
    requests = rng.poisson(often)
    errors = rng.binomial(requests, np.where(treated, 0.02, 0.01))
    rows = np.stack([errors, requests], axis=-1).astype(float)
    return _both(of_rows(rows, treated, share), GuardRule("ratio", "decrease", 0.01, ALPHA))


def errors_in_waves(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Errors per request and requests per unit that rise and fall in both variants, out of step
    with one another, while a ramp takes the treatment from 5 to 95 %; it was better than the
    control at first, and is at its margin from then on."""
    ramp = np.repeat([0.05, 0.25, 0.5, 0.75, 0.95], _BLOCKS // 5)
    treated, share = _crowd(rng, experiments, ramp)
    rate = 0.05 * _wave(1.0, -0.8)
    early = (np.arange(_BLOCKS) < _BLOCKS // 5)[:, None]
    requests = rng.poisson(3.0 * np.roll(_wave(1.0, -0.8), 20, axis=0), treated.shape)
    errors = rng.binomial(requests, rate * np.where(treated, np.where(early, 0.5, 1.2), 1.0))
    rows = np.stack([errors, requests], axis=-1).astype(float)
    rule = GuardRule("ratio", "decrease", 0.2, ALPHA, relative=True)
    return _both(of_rows(rows, treated, share), rule)


def errors_in_a_jump(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Errors per request that jump fivefold in both variants from a third on, while the units of
    the treatment begin to ask half as often again; it is at its margin all the time."""
    treated, share = _crowd(rng, experiments, 0.5)
    late = (np.arange(_BLOCKS) >= _BLOCKS // 3)[:, None]
    often = rng.lognormal(1.5, 0.7, treated.shape) * np.where(treated & late, 1.5, 1.0)
    requests = rng.poisson(often)
    rate = np.where(late, 0.1, 0.02) + np.where(treated, 0.01, 0.0)
    rows = np.stack([rng.binomial(requests, rate), requests], axis=-1).astype(float)
    return _both(of_rows(rows, treated, share), GuardRule("ratio", "decrease", 0.01, ALPHA))


def drifting_covariate(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A mean that follows its covariate, with a relative margin, while both rise and fall."""
    treated, share = _crowd(rng, experiments, 0.2)
    before = rng.lognormal(0.0, 0.8, treated.shape) * _wave(2.0, 0.5)
    value = 5.0 + 3.0 * before + rng.normal(0.0, 1.0, treated.shape)
    rows = np.stack([value * np.where(treated, 0.9, 1.0), before], axis=-1)
    rule = GuardRule("mean", "increase", 0.1, ALPHA, relative=True)
    return _both(of_rows(rows, treated, share), rule)


class _Shape(NamedTuple):
    """Log-normal values: how wide they are in the treatment, and how large in each block."""

    width: float
    scale: Floats


def _values(rng: np.random.Generator, experiments: int, share: float, shape: _Shape) -> Values:
    """Values of which the control's have a width of .3, and the treatment's 95 % quantile is 10 %
    above the control's; one unit in ten has none."""
    treated, shares = _crowd(rng, experiments, share)
    deviate = float(stats.norm.ppf(0.95))
    noise = rng.normal(0.0, 1.0, treated.shape)
    log_value = 3.0 + np.log(shape.scale) + 0.3 * noise
    worse = 3.0 + np.log(shape.scale) + 0.3 * deviate + np.log(1.1)
    log_value = np.where(treated, worse + shape.width * (noise - deviate), log_value)
    numbers = bucket(np.exp(log_value))
    first = int(numbers.min())
    buckets = int(numbers.max()) - first + 1
    counts = np.zeros((experiments, _BLOCKS, 2, buckets), dtype=np.int16)
    valued = rng.random(treated.shape) < 0.9
    where = np.nonzero(valued)
    np.add.at(counts, (*where[:2], treated[valued].astype(int), numbers[valued] - first), 1)
    n = np.stack([(~treated).sum(axis=-1), treated.sum(axis=-1)], axis=-1)
    return Values(n, counts, first, shares)


def thresholds(values: Values, level: float, margin: float) -> Flags:
    """Whether the treatment's quantile, of the last blocks, was ever above the control's by more
    than the margin."""
    through = values.counts.cumsum(axis=1, dtype=np.int16)
    ranks = (through[:, _LAST:] - through[:, :-_LAST]).cumsum(axis=-1, dtype=np.int16)
    enough = ranks[..., -1].min(axis=-1) > 0
    at = np.argmax(ranks >= level * ranks[..., -1:], axis=-1)
    # A bucket is 2 % wide.
    return ever(enough & (at[..., 1] - at[..., 0] > np.log(1.0 + margin) / 0.02))


def _quantiles(
    rng: np.random.Generator, experiments: int, share: float, shape: _Shape
) -> Mapping[str, Flags]:
    values = _values(rng, experiments, share, shape)
    rule = GuardRule("quantile", "decrease", 0.1, ALPHA, relative=True, quantile=0.95)
    return {
        "guard": quantiles_watched(values, rule, CHECKED).alarms,
        "threshold": thresholds(values, 0.95, 0.1),
    }


def another_shape(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A treatment whose values are half as wide, its tail at the margin, in a slow wave of both."""
    return _quantiles(rng, experiments, 0.2, _Shape(0.15, _wave(0.5, 0.3)))


def latency_jumps(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Values of both that are three times as large from a third on, and as before from two thirds
    on."""
    third = _BLOCKS // 3
    scale = np.repeat([1.0, 3.0, 1.0], third)[:, None]
    return _quantiles(rng, experiments, 0.2, _Shape(0.3, scale))


def another_shape_in_a_jump(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A treatment whose values are half as wide, its tail at the margin, while the values of both
    double from a third on."""
    scale = np.where(np.arange(_BLOCKS) < _BLOCKS // 3, 1.0, 2.0)[:, None]
    return _quantiles(rng, experiments, 0.5, _Shape(0.15, scale))


def _claim(naive: str, event: str) -> Claim:
    return Claim(
        rate="false rollbacks under continuous looks",
        method="guard",
        event="guard",
        bound=Bound(high=ALPHA),
        naive=naive,
        naive_event=event,
    )


_Z: Final = "one-sided delta-method z test of all units at every look"
_THRESHOLD: Final = f"the last {_LAST} blocks' quantiles compared with the margin"

SCENARIOS = (
    Scenario(
        "guard-ratio",
        "1 error in 100 requests, margin met exactly, treatment at 5 % asks twice as often",
        591,
        rare_errors,
        (_claim(_Z, "z test"),),
    ),
    Scenario(
        "guard-ratio-waves",
        "errors and requests in waves, ramp from 5 to 95 %, better first and then at its margin",
        592,
        errors_in_waves,
        (_claim(_Z, "z test"),),
    ),
    Scenario(
        "guard-ratio-jump",
        "errors jump fivefold in both variants, the treatment's units then ask half as often again",
        596,
        errors_in_a_jump,
        (_claim(_Z, "z test"),),
    ),
    Scenario(
        "guard-covariate",
        "a mean with a covariate, both in waves, relative margin met exactly",
        593,
        drifting_covariate,
        (_claim(_Z, "z test"),),
    ),
    Scenario(
        "guard-quantile",
        "95 % quantile at its margin, values half as wide, in a slow wave of both",
        594,
        another_shape,
        (_claim(_THRESHOLD, "threshold"),),
    ),
    Scenario(
        "guard-quantile-jump",
        "95 % quantile at its margin, all values three times as large for a while",
        595,
        latency_jumps,
        (_claim(_THRESHOLD, "threshold"),),
    ),
    Scenario(
        "guard-quantile-jump-shape",
        "95 % quantile at its margin, values half as wide, all values double for good",
        597,
        another_shape_in_a_jump,
        (_claim(_THRESHOLD, "threshold"),),
    ),
)
