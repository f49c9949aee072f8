"""Intervals after a bandit has moved the traffic, beside those of pooled counts."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from scipy.special import ndtr

from analysis.inference.kinds import Kind
from bench.calibration.library import by_arm
from bench.calibration.runs import ALPHA, CRITICAL, Run, covers, fixed_flags, sequence_flags
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, Simulate
from bench.calibration.twins import Counts, Floats, of_counts

BATCHES: Final = 40
WARM_UP: Final = 100
"""Units of each arm in the first batch, which is split evenly."""

_COVERAGE: Final = Bound(0.935, 0.975)
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)


def probability_best(mean: Floats, sd: Floats) -> Floats:
    """The chance of each arm to be the best, of normal posteriors (experiments, arms)."""
    if mean.shape[1] == 2:
        z = (mean[:, 1] - mean[:, 0]) / np.hypot(sd[:, 0], sd[:, 1])
        return np.stack([ndtr(-z), ndtr(z)], axis=1)
    at = mean[:, :, None] + sd[:, :, None] * _NODES
    best = np.empty_like(mean)
    for arm in range(mean.shape[1]):
        others = [other for other in range(mean.shape[1]) if other != arm]
        beats = [ndtr((at[:, arm] - mean[:, o, None]) / sd[:, o, None]) for o in others]
        best[:, arm] = (np.prod(beats, axis=0) * _WEIGHTS).sum(axis=1)
    return np.asarray(best / best.sum(axis=1, keepdims=True))


def thompson(
    rng: np.random.Generator,
    experiments: int,
    *,
    levels: Floats,
    effect: float,
    arms: int,
    batch: int,
    floor: float,
    sd: float | None,
) -> Run:
    """Thompson sampling on all that came so far, as if nothing drifted, after an even warm-up.

    Arguments:
        levels: the control's rate or mean, by batch.
        effect: of every treatment.
        arms: how many, control included.
        batch: units between reallocations.
        floor: the least propensity.
        sd: of a normal mean; None for a proportion.
    """
    shape = (experiments, len(levels), arms)
    n = np.zeros(shape, dtype=np.int64)
    mean, m2, propensity = np.zeros(shape), np.zeros(shape), np.full(shape, 1.0 / arms)
    lift = effect * (np.arange(arms) > 0)
    for block, level in enumerate(levels.tolist()):
        if block:
            best = probability_best(*_seen(n, mean, m2, is_rate=sd is None))
            propensity[:, block] = floor + (1.0 - arms * floor) * best
        size = batch if block else WARM_UP * arms
        n[:, block] = rng.multinomial(size, propensity[:, block])
        if sd is None:
            x = rng.binomial(n[:, block], level + lift)
            mean[:, block], m2[:, block] = of_counts(n[:, block], x)
        else:
            some = np.maximum(n[:, block], 1)
            here = n[:, block] > 0
            mean[:, block] = here * rng.normal(level + lift, sd / np.sqrt(some))
            m2[:, block] = np.where(some > 1, sd**2 * rng.chisquare(np.maximum(some - 1, 1)), 0.0)
    kind: Kind = "mean" if sd is not None else "proportion"
    return Run(n, mean, m2, propensity, truth=effect, kind=kind)


def _seen(n: Counts, mean: Floats, m2: Floats, *, is_rate: bool) -> tuple[Floats, Floats]:
    """The posteriors of all units so far, pooled over the batches: mean and standard deviation."""
    units = n.sum(axis=1)
    total = (n * mean).sum(axis=1)
    if is_rate:
        rate = (total + 1.0) / (units + 2.0)
        return rate, np.sqrt(rate * (1.0 - rate) / (units + 2.0))
    level = total / units
    square = (m2 + n * mean**2).sum(axis=1) / units
    return level, np.sqrt((square - level**2) / units)


def after_thompson(
    *,
    first: float,
    last: float,
    arms: int,
    batch: int,
    floor: float,
    effect: float = 0.0,
    sd: float | None = None,
) -> Simulate:
    """The simulation of a bandit whose base rate, or mean, goes from first to last."""

    def simulate(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
        run = thompson(
            rng,
            experiments,
            levels=np.linspace(first, last, BATCHES),
            effect=effect,
            arms=arms,
            batch=batch,
            floor=floor,
            sd=sd,
        )
        return {**fixed_flags(run), **sequence_flags(run)}

    return simulate


def tiny_epochs(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Two hundred epochs of 20 units, in which the treatment's share falls from 30 to 10 % while
    the rate rises from .02 to .3; the first block has 300 units."""
    shares, rates = np.linspace(0.3, 0.1, 200), np.linspace(0.02, 0.3, 200)
    size = np.where(np.arange(200) == 0, 300, 20)
    treated = rng.binomial(size, shares, (experiments, 200))
    n = np.stack([size - treated, treated], axis=2)
    x = rng.binomial(n, rates[:, None])
    propensity = np.broadcast_to(np.stack([1 - shares, shares], axis=1), n.shape)
    return fixed_flags(Run(n, *of_counts(n, x), propensity))


def one_adaptive_block(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A mean of 200, standard deviation 50, an effect of 20; 200 units evenly, then one block of
    2,000 as Thompson would have it, floor 5 %."""
    effect = 20.0
    propensity = np.full((experiments, 2, 2), 0.5)
    moments: list[tuple[Counts, Floats, Floats]] = []
    for block, size in enumerate((200, 2_000)):
        if block:
            n, mean, m2 = moments[0]
            best = probability_best(mean, np.sqrt(m2) / n)
            propensity[:, block] = 0.05 + 0.9 * best
        treated = rng.random((experiments, size)) < propensity[:, block, 1:]
        values = rng.normal(200.0, 50.0, (experiments, size)) + effect * treated
        moments.append(by_arm(values, treated))
    n, mean, m2 = (np.stack(blocks, axis=1) for blocks in zip(*moments, strict=True))
    run = Run(n, mean, m2, propensity, truth=effect, kind="mean")
    found = run.aipw()
    # Each unit weighted by the inverse of its propensity, and nothing taken off.
    weighted = (n * mean / propensity).sum(axis=1) / run.every.sum(axis=1)[:, None]
    square = ((m2 + n * mean**2) / propensity**2).sum(axis=1) / run.every.sum(axis=1)[:, None]
    error = np.sqrt(((square - weighted**2) / run.every.sum(axis=1)[:, None]).sum(axis=1))
    return {
        "aipw": np.array([covers(each, effect) for each in found]),
        "aipw sees it": np.array([not covers(each, 0.0) for each in found]),
        "weighting sees it": np.abs(weighted[:, 1] - weighted[:, 0]) > CRITICAL * error,
    }


def _coverage(method: str, event: str) -> Claim:
    return Claim(
        rate="coverage of the 95 % interval",
        method=method,
        event=event,
        bound=_COVERAGE,
        naive="pooled units",
        naive_event="pooled",
    )


_AIPW: Final = _coverage("AIPW", "aipw")
_BATCHED: Final = _coverage("batched OLS", "batched")
_SEQUENCE: Final = Claim(
    rate=f"the truth ever excluded in {BATCHES} looks",
    method="confidence sequence, AIPW after the burn-in",
    event="sequence",
    bound=Bound(high=ALPHA),
    naive="z test of pooled units at every look",
    naive_event="pooled z",
)


def _bandit(seed: int, arms: int, floor: float, *, drift: bool) -> Scenario:
    batch = 200 if drift else 100
    first, last = (0.05, 0.15) if drift else (0.1, 0.1)
    rate = "rate drifting from .05 to .15" if drift else "rate .1"
    return Scenario(
        f"thompson-{arms}-{floor:.2f}{'-drift' if drift else ''}",
        f"Thompson, {arms} variants alike, floor {100 * floor:g} %, {rate}, batches of {batch}",
        seed,
        after_thompson(first=first, last=last, arms=arms, batch=batch, floor=floor),
        (_AIPW, _BATCHED, _SEQUENCE),
    )


SCENARIOS: Final = (
    _bandit(541, 2, 0.01, drift=False),
    _bandit(542, 2, 0.05, drift=False),
    _bandit(543, 3, 0.01, drift=False),
    _bandit(544, 2, 0.01, drift=True),
    _bandit(545, 2, 0.05, drift=True),
    _bandit(546, 3, 0.01, drift=True),
    _bandit(547, 3, 0.05, drift=True),
    Scenario(
        "thompson-effect-drift",
        "Thompson, an effect of .02, floor 5 %, rate drifting from .05 to .15, batches of 200",
        551,
        after_thompson(first=0.05, last=0.15, effect=0.02, arms=2, batch=200, floor=0.05),
        (_AIPW, _BATCHED, _SEQUENCE),
    ),
    Scenario(
        "thompson-mean-drift",
        "Thompson on a mean, floor 5 %, drifting from 10 to 12, standard deviation 4",
        552,
        after_thompson(first=10.0, last=12.0, arms=2, batch=200, floor=0.05, sd=4.0),
        (_AIPW, _BATCHED, _SEQUENCE),
    ),
    Scenario(
        "tiny-epochs",
        "A/A over 200 epochs of 20 units, share falling, rate rising",
        548,
        tiny_epochs,
        (_AIPW,),
    ),
    Scenario(
        "one-adaptive-block",
        "mean 200, standard deviation 50, effect 20, one adaptive block",
        549,
        one_adaptive_block,
        (
            Claim(
                rate="the effect is seen",
                method="AIPW",
                event="aipw sees it",
                bound=Bound(low=0.9),
                naive="inverse-probability weighting",
                naive_event="weighting sees it",
            ),
        ),
    ),
)
