"""False rollbacks by the guard, looked at after every block, beside z tests at every look."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from scipy import stats
from scipy.special import ndtr

from analysis.inference.evidence import GuardRule
from analysis.inference.kinds import Goal
from bench.calibration.guard_twin import Blocks
from bench.calibration.library import by_arm
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, ever
from bench.calibration.twins import Counts, Floats, of_counts

ALPHA: Final = 0.05
CHECKED: Final = 2
"""Experiments of a chunk, per guardrail and variant, that the library is stepped through."""

_TREATMENTS: Final = 3
_GUARDRAILS: Final = 5
_SHARE: Final = ALPHA / (_GUARDRAILS * _TREATMENTS)
"""All of alpha, where the ledger keeps half of it back: the harder promise."""

_BOUND: Final = Bound(high=ALPHA)


def _blocks(n: Counts, converted: Counts, share: Floats) -> Blocks:
    """Blocks of a proportion, from counts of shape (experiments, blocks, 2)."""
    return Blocks(n, *of_counts(n, converted), share)


def repeated_z(blocks: Blocks, rule: GuardRule) -> Flags:
    """A one-sided z test of the pooled units after every block, at the rule's share of alpha."""
    n = blocks.n.cumsum(axis=1)
    units = np.maximum(n, 1)
    mean = (blocks.n * blocks.mean).cumsum(axis=1) / units
    square = (blocks.m2 + blocks.n * blocks.mean**2).cumsum(axis=1) / units
    variance = np.maximum(square - mean**2, 0.0) / units
    s = 1.0 if rule.goal == "increase" else -1.0
    sign = np.sign(mean[..., 0])
    of_control = s - rule.margin * sign if rule.relative else np.full_like(sign, s)
    harm = -s * mean[..., 1] + of_control * mean[..., 0] - (0 if rule.relative else rule.margin)
    error = np.sqrt(variance[..., 1] + of_control**2 * variance[..., 0])
    enough = n.min(axis=2) >= 100
    crossed = enough & (harm > stats.norm.isf(rule.alpha_share) * error)
    return ever(crossed)


def _flags(watched: Sequence[tuple[Blocks, GuardRule]]) -> Mapping[str, Flags]:
    """Whether any of the pairs was rolled back: by the guard, and by repeated z tests."""
    guard = [blocks.watched_by(rule, CHECKED).alarms for blocks, rule in watched]
    naive = [repeated_z(blocks, rule) for blocks, rule in watched]
    return {"guard": np.any(guard, axis=0), "z test": np.any(naive, axis=0)}


def family(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Five guardrails, three treatments, every one exactly at its margin; 25 % of the traffic
    each, 120 blocks of 100 units."""
    blocks = 120
    n = rng.multinomial(100, [0.25] * 4, (experiments, blocks))
    share = np.full((experiments, blocks), 0.5)
    watched: list[tuple[Blocks, GuardRule]] = []
    proportions: tuple[tuple[Goal, float, float, bool], ...] = (
        ("decrease", 0.02, 0.01, False),
        ("increase", 0.3, 0.02, False),
        ("increase", 0.1, 0.2, True),
    )
    for goal, rate, margin, relative in proportions:
        harm = margin * rate if relative else margin
        worse = rate - harm if goal == "increase" else rate + harm
        x = rng.binomial(n, [rate, worse, worse, worse])
        rule = GuardRule("proportion", goal, margin, _SHARE, relative)
        for treatment in range(1, 4):
            arms = [0, treatment]
            watched.append((_blocks(n[..., arms], x[..., arms], share), rule))
    means: tuple[tuple[Goal, float, float], ...] = (
        ("decrease", 1.05, 0.05),
        ("increase", 0.9, 0.1),
    )
    for goal, factor, margin in means:
        rule = GuardRule("mean", goal, margin, _SHARE, relative=True)
        # Arms of exactly 25 units, with the enrolment of each its own.
        values = rng.lognormal(0.0, 1.0, (experiments, blocks, 4, 25))
        values[:, :, 1:] *= factor
        mean = values.mean(axis=3)
        m2 = ((values - mean[..., None]) ** 2).sum(axis=3)
        equal = np.full((experiments, blocks, 2), 25)
        for treatment in range(1, 4):
            arms = [0, treatment]
            watched.append((Blocks(equal, mean[..., arms], m2[..., arms], share), rule))
    return _flags(watched)


def ramp_and_drift(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """The same number of pairs on proportions, while the three treatments ramp from 1 to 75 % of
    the traffic in five steps and every base rate falls to a third."""
    blocks, units = 150, 120
    treated = np.repeat([0.01, 0.05, 0.15, 0.45, 0.75], blocks // 5)
    weights = np.stack([1 - treated, *[treated / 3] * 3], axis=1)
    n = rng.multinomial(units, weights, (experiments, blocks))
    share = np.broadcast_to(weights[:, 1] / (weights[:, 0] + weights[:, 1]), (experiments, blocks))
    fall = np.linspace(1.0, 1 / 3, blocks)[:, None]
    watched: list[tuple[Blocks, GuardRule]] = []
    guardrails: tuple[tuple[Goal, float], ...] = (
        ("increase", 0.3),
        ("increase", 0.15),
        ("increase", 0.6),
        ("decrease", 0.3),
        ("decrease", 0.15),
    )
    for goal, rate in guardrails:
        worse = 0.02 if goal == "decrease" else -0.02
        x = rng.binomial(n, rate * fall + np.array([0.0, worse, worse, worse]))
        rule = GuardRule("proportion", goal, 0.02, _SHARE)
        for treatment in range(1, 4):
            arms = [0, treatment]
            watched.append((_blocks(n[..., arms], x[..., arms], share), rule))
    return _flags(watched)


def bandit(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A bandit that feeds on the guardrail itself, while the base rate triples; at the margin."""
    blocks, units = 200, 50
    rule = GuardRule("proportion", "decrease", 0.02, ALPHA)
    n = np.zeros((experiments, blocks, 2), dtype=np.int64)
    x = np.zeros_like(n)
    share = np.full((experiments, blocks), 0.5)
    for block, rate in enumerate(np.linspace(0.1, 0.3, blocks)):
        if block and block % 10 == 0:
            seen, converted = n.sum(axis=1) + 2, x.sum(axis=1) + 1
            p = converted / seen
            z = (p[:, 1] - p[:, 0]) / np.sqrt((p * (1 - p) / seen).sum(axis=1))
            share[:, block:] = (0.05 + 0.9 * ndtr(z))[:, None]
        treated = rng.binomial(units, share[:, block])
        n[:, block] = np.stack([units - treated, treated], axis=1)
        x[:, block] = rng.binomial(n[:, block], [rate, rate + 0.02])
    return _flags([(_blocks(n, x, share), rule)])


def slow_conversions(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A treatment whose units convert as often, but later within the window of ten blocks.

    The guard sees a block when its window has passed. Who counts conversions as they come sees a
    treatment that lags behind.
    """
    blocks, units, window = 120, 60, 10
    rule = GuardRule("proportion", "increase", 0.02, ALPHA)
    treated = rng.binomial(units, 0.5, (experiments, blocks))
    n = np.stack([units - treated, treated], axis=2)
    x = rng.binomial(n, [0.3, 0.28])
    share = np.full((experiments, blocks), 0.5)
    # Of a block's conversions, how many come at once; the others come just before the window ends.
    at_once = rng.binomial(x, [0.9, 0.3])
    late = np.concatenate([np.zeros_like(x[:, :window]), (x - at_once)[:, :-window]], axis=1)
    closed = _blocks(n[:, :-window], x[:, :-window], share[:, :-window])
    as_they_come = _blocks(n, np.minimum(at_once + late, n), share)
    return {
        "guard": closed.watched_by(rule, CHECKED).alarms,
        "z test": repeated_z(as_they_come, rule),
    }


def returning_units(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Units that come again, and meet another variant when the ramp has moved them.

    A unit counts where it enrolled. That is the same whether it then keeps its variant or not, for
    its conversions have nothing to do with it. Who counts each visit for the variant that was met
    takes the visits of one unit for those of many.
    """
    blocks, people, window = 80, 600, 10
    rule = GuardRule("proportion", "increase", 0.0, ALPHA)
    weights = np.repeat([0.05, 0.2, 0.35, 0.5], blocks // 4)
    slot = rng.random((experiments, people, 1))
    often = rng.beta(0.5, 8.0, (experiments, people, 1))
    # Who comes often also converts more often.
    rate = np.clip(0.1 + 2.0 * often, 0.0, 0.9)
    visits = rng.random((experiments, people, blocks)) < often
    converts = visits & (rng.random((experiments, people, blocks)) < rate)
    treated = slot < weights
    first = visits.argmax(axis=2)
    came = visits.any(axis=2) & (first < blocks - window)
    arm = np.take_along_axis(treated, first[..., None], axis=2)[..., 0]
    total = converts.cumsum(axis=2)
    last = np.minimum(first + window, blocks - 1)
    until = np.take_along_axis(total, last[..., None], axis=2)[..., 0]
    before = np.take_along_axis(total - converts, first[..., None], axis=2)[..., 0]
    converted = until > before
    n, x = (np.zeros((experiments, blocks, 2), dtype=np.int64) for _ in range(2))
    which = np.broadcast_to(np.arange(experiments)[:, None], first.shape)
    np.add.at(n, (which[came], first[came], arm[came].astype(int)), 1)
    counted = came & converted
    np.add.at(x, (which[counted], first[counted], arm[counted].astype(int)), 1)
    share = np.broadcast_to(weights, (experiments, blocks))
    of_visits = _blocks(
        np.stack([(visits & ~treated).sum(axis=1), (visits & treated).sum(axis=1)], axis=2),
        np.stack([(converts & ~treated).sum(axis=1), (converts & treated).sum(axis=1)], axis=2),
        share,
    )
    return {
        "guard": _blocks(n, x, share).watched_by(rule, CHECKED).alarms,
        "z test": repeated_z(of_visits, rule),
    }


def _units(rng: np.random.Generator, shape: tuple[int, ...], name: str) -> Floats:
    """Values of units, of shape (experiments, blocks, units)."""
    block = np.arange(shape[1])[:, None]
    if name == "rare and skewed":
        # Revenue a user: 3 % buy, and what they pay is skewed.
        return (rng.random(shape) < 0.03) * rng.lognormal(0.0, 1.0, shape)
    if name == "jump":
        # Mean and standard deviation are five times as large from the middle on, in both arms.
        return rng.normal(5.0, 1.0, shape) * np.where(block < shape[1] / 2, 1.0, 5.0)
    # The standard deviation goes from 1 to 5 and back, every 15 blocks.
    return 5.0 + rng.normal(0.0, 1.0, shape) * np.where(block % 30 < 15, 1.0, 5.0)


def of_mean(rng: np.random.Generator, experiments: int, name: str) -> Mapping[str, Flags]:
    """A treatment at 10 % of the traffic, alike in all; margin 0, for both goals."""
    blocks, units = 120, 40
    values = _units(rng, (experiments, blocks, units), name)
    treated = rng.random(values.shape) < 0.1
    seen = Blocks(*by_arm(values, treated), np.full((experiments, blocks), 0.1))
    goals: tuple[Goal, ...] = ("increase", "decrease")
    return _flags([(seen, GuardRule("mean", goal, 0.0, ALPHA / 2)) for goal in goals])


def rare_and_skewed(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Revenue a user, of which few spend."""
    return of_mean(rng, experiments, "rare and skewed")


def jump(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A level and spread that jump in both arms."""
    return of_mean(rng, experiments, "jump")


def wild_variance(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A spread that comes and goes."""
    return of_mean(rng, experiments, "wild variance")


def _claim(naive: str = "one-sided z test at every look, the same share of alpha") -> Claim:
    return Claim(
        rate="false rollbacks under continuous looks",
        method="guard",
        event="guard",
        bound=_BOUND,
        naive=naive,
        naive_event="z test",
    )


SCENARIOS = (
    Scenario(
        "guard-family",
        "5 guardrails x 3 variants, margins met exactly, 120 blocks",
        521,
        family,
        (_claim(),),
    ),
    Scenario(
        "guard-ramp",
        "5 guardrails x 3 variants at their margins, ramp from 1 to 75 %, base rates falling",
        522,
        ramp_and_drift,
        (_claim("one-sided z test of pooled counts at every look, the same share of alpha"),),
    ),
    Scenario(
        "guard-bandit",
        "a bandit that feeds on the guardrail, base rate tripling, margin met exactly",
        523,
        bandit,
        (_claim("one-sided z test of pooled counts at every look"),),
    ),
    Scenario(
        "guard-slow",
        "conversions that come late within the window, margin met exactly",
        524,
        slow_conversions,
        (_claim("z test of conversions as they come"),),
    ),
    Scenario(
        "guard-returning",
        "returning units that a ramp moves to the other variant",
        525,
        returning_units,
        (_claim("z test of visits at every look"),),
    ),
    Scenario(
        "guard-rare-mean",
        "revenue of which 3 % of the units spend any, treatment at 10 %",
        526,
        rare_and_skewed,
        (_claim(),),
    ),
    Scenario(
        "guard-jump",
        "a mean whose level and spread jump fivefold in both variants, treatment at 10 %",
        527,
        jump,
        (_claim(),),
    ),
    Scenario(
        "guard-wild",
        "a mean whose spread comes and goes, treatment at 10 %",
        528,
        wild_variance,
        (_claim(),),
    ),
)
