"""Traffic that was moved by hand while the days differed: within epochs, beside pooled counts."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from analysis.inference.kinds import Kind
from bench.calibration import library
from bench.calibration.library import by_arm
from bench.calibration.runs import Run, sequence_flags
from bench.calibration.scenario import Bound, Claim, Flags, Scenario
from bench.calibration.twins import Counts, Floats, must_agree, of_counts, within_epochs

ALPHA = 0.05
CHECKED = 25
"""Experiments of a chunk whose fixed reading is compared with the library's."""

_CRITICAL = float(stats.norm.isf(ALPHA / 2))
_RAMP = (0.01, 0.05, 0.1, 0.25, 0.5)
_DAYS = (0.3, 0.26, 0.22, 0.15, 0.1)
_ABOUT_ALPHA = Bound(low=0.04, high=ALPHA)


def _epochs(
    rng: np.random.Generator,
    experiments: int,
    units: Sequence[int],
    shares: Sequence[float],
    rates: Sequence[float],
) -> tuple[Counts, Counts]:
    """Units and conversions of an A/A ramp, of shape (experiments, epochs, 2)."""
    treated = rng.binomial(units, shares, (experiments, len(units)))
    n = np.stack([np.array(units) - treated, treated], axis=2)
    return n, rng.binomial(n, np.array(rates)[:, None])


def fixed_flags(n: Counts, mean: Floats, m2: Floats, kind: Kind) -> Mapping[str, Flags]:
    """Whether the fixed reading at the end, and two naive ones, miss a difference of 0.

    Arguments:
        n, mean, m2: of shape (experiments, epochs, 2).
    """
    found = within_epochs(n, mean, m2, kind)
    for experiment in range(CHECKED):
        cells = library.of_single(n[experiment], mean[experiment], m2[experiment])
        compared = library.fixed(cells, kind)
        must_agree("p-value", float(found.p_value[experiment]), compared.p_value)
        must_agree("error", float(found.std_error[experiment]), compared.std_error)
    units = n.sum(axis=1)
    pooled = (n * mean).sum(axis=1) / units
    spread = (m2 + n * (mean - pooled[:, None]) ** 2).sum(axis=1) / units
    pooled_error = np.sqrt((spread / units).sum(axis=1))
    # One variance for all epochs, each weighted by its units, in the estimate within epochs.
    weight = n.sum(axis=2, keepdims=True) / n.sum(axis=(1, 2))[:, None, None]
    one = m2.sum(axis=1) / units
    one_error = np.sqrt((weight**2 / np.maximum(n, 1) * one[:, None]).sum(axis=(1, 2)))
    # Each epoch's own mean square deviation, as p (1 - p) is for a proportion.
    own = np.sqrt((weight**2 * m2 / np.maximum(n, 1) ** 2).sum(axis=(1, 2)))
    return {
        "within epochs": found.p_value < ALPHA,
        "own p (1 - p)": np.abs(found.difference) > _CRITICAL * own,
        "pooled": np.abs(pooled[:, 1] - pooled[:, 0]) > _CRITICAL * pooled_error,
        "one variance": np.abs(found.difference) > _CRITICAL * one_error,
    }


def _of_counts(n: Counts, x: Counts) -> Mapping[str, Flags]:
    return fixed_flags(n, *of_counts(n, x), "proportion")


def ramp(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """From 1 to 50 % in five days, on each of which the rate falls."""
    return _of_counts(*_epochs(rng, experiments, [20_000] * 5, _RAMP, _DAYS))


def two_days(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """A treatment that met the day of great variance with few units needs that day's variance."""
    return _of_counts(*_epochs(rng, experiments, [25_000] * 2, (0.02, 0.5), (0.3, 0.05)))


def few_units_an_epoch(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Two hundred epochs of four treated units each: none can estimate its own variance."""
    rates = np.linspace(0.02, 0.3, 200).tolist()
    return _of_counts(*_epochs(rng, experiments, [20] * 200, [0.2] * 200, rates))


def means(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """Skewed values over three epochs of another level each."""
    moments = []
    for share, scale in ((0.1, 3.0), (0.3, 1.0), (0.5, 2.0)):
        values = scale * rng.lognormal(0.0, 0.5, (experiments, 3_000))
        # Units are alike, so the treated ones may as well be the first.
        treated = np.arange(3_000) < rng.binomial(3_000, share, (experiments, 1))
        moments.append(by_arm(values, treated))
    n, mean, m2 = (np.stack(epochs, axis=1) for epochs in zip(*moments, strict=True))
    return fixed_flags(n, mean, m2, "mean")


def watched(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
    """The ramp under a hundred looks, twenty on each day."""
    looks = 20
    shares, rates = np.repeat(_RAMP, looks), np.repeat(_DAYS, looks)
    treated = rng.binomial(200, shares, (experiments, len(shares)))
    n = np.stack([200 - treated, treated], axis=2)
    x = rng.binomial(n, rates[:, None])
    propensity = np.broadcast_to(np.stack([1 - shares, shares], axis=1), n.shape)
    epoch = np.repeat(np.arange(len(_RAMP)), looks)
    return sequence_flags(Run(n, *of_counts(n, x), propensity, epoch=epoch))


def _claim(naive: str, naive_event: str, bound: Bound = _ABOUT_ALPHA) -> Claim:
    return Claim(
        rate="false positives at the end",
        method="differences within epochs",
        event="within epochs",
        bound=bound,
        naive=naive,
        naive_event=naive_event,
    )


_POOLED = _claim("pooled counts", "pooled")
_ONE_VARIANCE = _claim("within epochs, one variance for all", "one variance")

SCENARIOS = (
    Scenario(
        "ramp",
        "A/A ramp from 1 to 50 % with a day effect, 100,000 units",
        511,
        ramp,
        (_POOLED, _ONE_VARIANCE),
    ),
    Scenario(
        "ramp-two-days",
        "A/A at 2 % on a day at rate .3, then at 50 % at .05",
        512,
        two_days,
        (_POOLED, _ONE_VARIANCE),
    ),
    Scenario(
        "few-units-an-epoch",
        "A/A over 200 epochs of 16 and 4 units, rate rising",
        513,
        few_units_an_epoch,
        (_claim("each epoch's own p (1 - p)", "own p (1 - p)"),),
    ),
    Scenario(
        "ramp-means",
        "A/A on skewed values over three epochs of unlike levels",
        514,
        means,
        (_POOLED,),
    ),
    Scenario(
        "ramp-watched",
        "the ramp with its day effect under 100 looks, 20,000 units",
        515,
        watched,
        (
            Claim(
                rate="false positives under 100 looks",
                method="confidence sequence",
                event="sequence",
                bound=Bound(high=ALPHA),
                naive="z test of pooled counts at every look",
                naive_event="pooled z",
            ),
        ),
    ),
)
