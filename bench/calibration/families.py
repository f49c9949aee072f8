"""Readings that are many: planned looks, variants and metrics together, breakdowns."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import numpy as np
from scipy import stats

from analysis.inference.interaction import Effect, cochran_q, sequence_of_differences
from analysis.inference.multiplicity import benjamini_hochberg, holm
from analysis.inference.planned import Look, boundaries, planned_reading
from bench.calibration import library
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, Shares, ever
from bench.calibration.twins import Counts, Floats, log_e, must_agree, of_counts, within_epochs

ALPHA: Final = 0.05
CHECKED: Final = 10
"""Experiments of a chunk that the library reads whole."""

_CRITICAL: Final = float(stats.norm.isf(ALPHA / 2))
_LONG_AGO: Final = datetime(2026, 1, 1, tzinfo=UTC)


def looked_at(
    rng: np.random.Generator, experiments: int, shares: tuple[float, ...]
) -> Mapping[str, Flags]:
    """A/A at a rate of .1, looked at where these shares of 10,000 units have finished."""
    upto = np.array([round(10_000 * share) for share in shares])
    new = np.diff(upto, prepend=0)
    treated = rng.binomial(new, 0.5, (experiments, len(new)))
    arms = np.stack([new - treated, treated], axis=2)
    n, x = arms.cumsum(axis=1), rng.binomial(arms, 0.1).cumsum(axis=1)
    mean, m2 = of_counts(n, x)
    found = within_epochs(n[:, :, None], mean[:, :, None], m2[:, :, None], "proportion")
    z = np.abs(found.difference) / found.std_error
    crossed = ever(z >= boundaries(shares, ALPHA))
    for experiment in np.argsort(-z.max(axis=1))[:CHECKED].tolist():
        looks = [
            Look(
                number=place + 1,
                taken_at=_LONG_AGO,
                units=int(upto[place]),
                information=share,
                difference=float(found.difference[experiment, place]),
                std_error=float(found.std_error[experiment, place]),
                statistic=float(z[experiment, place]),
            )
            for place, share in enumerate(shares)
        ]
        reading = planned_reading(looks, ALPHA)
        must_agree("crossed", float(crossed[experiment]), float(reading.crossed is not None))
    return {"planned": crossed, "z test": ever(z > _CRITICAL)}


def five_looks(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Looks evenly spaced."""
    return looked_at(rng, experiments, (0.2, 0.4, 0.6, 0.8, 1.0))


def realised_looks(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Looks as traffic brought them, not as they were planned."""
    return looked_at(rng, experiments, (0.13, 0.46, 0.49, 0.92, 1.0))


def family(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Three variants and two primary metrics that are alike in all of them; a unit that converts
    on one metric is likelier to on the other."""
    n = rng.multinomial(8_000, [0.25] * 4, experiments)
    first = rng.binomial(n, 0.2)
    second = rng.binomial(first, 0.5) + rng.binomial(n - first, 0.05)
    p_values = []
    for x in (first, second):
        for variant in (1, 2, 3):
            arms = [0, variant]
            p_values.append(_p_values(n[:, arms], x[:, arms]))
    p = np.stack(p_values, axis=1)
    adjusted = np.array([holm(row) for row in p.tolist()], dtype=float)
    return {"holm": ever(adjusted <= ALPHA), "raw": ever(p <= ALPHA)}


def _p_values(n: Counts, x: Counts) -> Floats:
    """The fixed reading's p-values of counts of shape (experiments, 2), one epoch."""
    mean, m2 = of_counts(n, x)
    found = within_epochs(n[:, None], mean[:, None], m2[:, None], "proportion")
    for experiment in range(CHECKED):
        compared = library.fixed(
            library.of_counts(n[experiment, None], x[experiment, None]), "proportion"
        )
        must_agree("p-value", float(found.p_value[experiment]), compared.p_value)
    return found.p_value


def breakdowns(rng: np.random.Generator, experiments: int) -> Mapping[str, Shares]:
    """A hundred segments, an effect in ten of them: which share of those found is none?"""
    shape = (experiments, 100)
    n = np.full((*shape, 2), 500)
    rates = np.where(np.arange(100) < 10, 0.3, 0.2)
    x = rng.binomial(500, np.stack([np.full(100, 0.2), rates], axis=1), (*shape, 2))
    p = _p_values(n.reshape(-1, 2), x.reshape(-1, 2)).reshape(shape)
    adjusted = np.array([benjamini_hochberg(row) for row in p.tolist()], dtype=float)
    return {"bh": _false_share(adjusted <= ALPHA), "raw": _false_share(p <= ALPHA)}


def _false_share(found: Flags) -> Shares:
    """Of each experiment, the share of those found that are not among the first ten."""
    return np.asarray(found[:, 10:].sum(axis=1) / np.maximum(found.sum(axis=1), 1))


def interaction(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Five segments of unlike sizes and rates, with the same effect in all of them."""
    n = rng.binomial(np.array([1_000, 2_000, 3_000, 1_500, 500])[:, None], 0.5, (experiments, 5, 2))
    base = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    x = rng.binomial(n, np.stack([base, base + 0.04], axis=1))
    mean, m2 = of_counts(n, x)
    found = within_epochs(n[:, :, None], mean[:, :, None], m2[:, :, None], "proportion")
    tests = [
        cochran_q([Effect(*numbers) for numbers in zip(*of_segments, strict=True)])
        for of_segments in zip(
            found.difference.tolist(),
            found.std_error.tolist(),
            n[..., 0].tolist(),
            n[..., 1].tolist(),
            strict=True,
        )
    ]
    significant = found.p_value <= ALPHA
    return {
        "cochran": np.array([test is not None and test.p_value <= ALPHA for test in tests]),
        "one but not another": ever(significant) & ever(~significant),
    }


def watched_interaction(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Three segments with the same effect in all of them, under fifty looks."""
    looks = 50
    base = np.array([0.1, 0.2, 0.3])
    new = rng.binomial(50, 0.5, (experiments, looks, 3))
    arms = np.stack([new, 50 - new], axis=3)
    n = arms.cumsum(axis=1)
    x = rng.binomial(arms, np.stack([base, base + 0.05], axis=1)).cumsum(axis=1)
    mean, m2 = of_counts(n, x)
    found = within_epochs(n[..., None, :], mean[..., None, :], m2[..., None, :], "proportion")
    d, error, size = found.difference, found.cautious, n.sum(axis=3)
    logs = []
    for segment in range(3):
        share = size / (size.sum(axis=2) - size[..., segment])[..., None]
        share[..., segment] = -1.0
        of_rest = (share * (d - d[..., segment, None])).sum(axis=2)
        combined = np.sqrt(((share * error) ** 2).sum(axis=2))
        logs.append(log_e(of_rest, combined, n.sum(axis=2)))
    evidence = np.logaddexp.reduce(logs, axis=0) - np.log(3)
    peak = evidence.max(axis=1)
    for experiment in np.argsort(peak)[-CHECKED:].tolist():
        look = int(evidence[experiment].argmax())
        place = experiment, look
        effects = [
            Effect(*numbers)
            for numbers in zip(
                d[place].tolist(),
                error[place].tolist(),
                n[place][:, 0].tolist(),
                n[place][:, 1].tolist(),
                strict=True,
            )
        ]
        test = sequence_of_differences(effects, ALPHA)
        must_agree("evidence", float(peak[experiment]), None if test is None else test.statistic)
    weight = 1.0 / np.where(found.std_error > 0.0, found.std_error, np.inf) ** 2
    centre = (weight * d).sum(axis=2, keepdims=True) / weight.sum(axis=2, keepdims=True)
    q = (weight * (d - centre) ** 2).sum(axis=2)
    enough = n.min(axis=(2, 3)) >= 30
    crossed = enough & (stats.chi2.sf(q, 2) <= ALPHA)
    return {"sequence": peak >= -np.log(ALPHA), "repeated q": ever(crossed)}


def _planned(words: str) -> Claim:
    return Claim(
        rate=f"false positives in {words}",
        method="planned looks, O'Brien-Fleming spending",
        event="planned",
        bound=Bound(0.04, ALPHA),
        naive="z test at every look",
        naive_event="z test",
    )


SCENARIOS: Final = (
    Scenario(
        "planned-even",
        "A/A, rate .1, 10,000 units, five looks as planned",
        581,
        five_looks,
        (_planned("5 looks"),),
    ),
    Scenario(
        "planned-realised",
        "A/A, rate .1, 10,000 units, five looks as traffic brought them",
        582,
        realised_looks,
        (_planned("5 looks"),),
    ),
    Scenario(
        "holm",
        "A/A, 3 variants x 2 primary metrics that go together",
        583,
        family,
        (
            Claim(
                rate="any false positive",
                method="Holm",
                event="holm",
                bound=Bound(high=ALPHA),
                naive="p-values as they are",
                naive_event="raw",
            ),
        ),
    ),
    Scenario(
        "breakdowns",
        "100 segments, an effect in 10 of them",
        584,
        breakdowns,
        (
            Claim(
                rate="false among the segments found, on average",
                method="Benjamini-Hochberg",
                event="bh",
                bound=Bound(high=ALPHA),
                naive="p-values as they are",
                naive_event="raw",
            ),
        ),
    ),
    Scenario(
        "interaction",
        "5 segments with the same effect",
        585,
        interaction,
        (
            Claim(
                rate="the effect is said to differ",
                method="Cochran's Q",
                event="cochran",
                bound=Bound(0.04, ALPHA),
                naive="significant in one segment and not in another",
                naive_event="one but not another",
            ),
        ),
    ),
    Scenario(
        "interaction-watched",
        "3 segments with the same effect, 50 looks",
        586,
        watched_interaction,
        (
            Claim(
                rate="the effect is ever said to differ",
                method="e-value of segment against rest",
                event="sequence",
                bound=Bound(high=ALPHA),
                naive="Cochran's Q at every look",
                naive_event="repeated q",
            ),
        ),
    ),
)
