"""Two proportions with small counts, beside Wald's interval and the chi-square test."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import numpy as np
from scipy import stats

from analysis.inference.estimate import Comparison
from bench.calibration import library
from bench.calibration.runs import covers
from bench.calibration.scenario import Bound, Claim, Flags, Scenario, Simulate
from bench.calibration.twins import Counts

ALPHA: Final = 0.05
_CRITICAL: Final = float(stats.norm.isf(ALPHA / 2))


@lru_cache(maxsize=100_000)
def _compared(n_0: int, x_0: int, n_1: int, x_1: int) -> Comparison:
    """The library's comparison: there are far fewer pairs of counts than experiments."""
    cells = (library.proportion(n_0, x_0), library.proportion(n_1, x_1))
    return library.fixed([cells], "proportion")


def of_counts(sizes: tuple[int, int], rates: tuple[float, float]) -> Simulate:
    """The simulation of two arms of these units and rates."""
    truth = rates[1] - rates[0]

    def simulate(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
        n: Counts = np.array(sizes)
        x = rng.binomial(n, rates, (experiments, 2))
        read = [_compared(sizes[0], int(a), sizes[1], int(b)) for a, b in x]
        p = x / n
        error = np.sqrt((p * (1 - p) / n).sum(axis=1))
        off = np.abs(p[:, 1] - p[:, 0] - truth)
        return {
            "covers": np.array([covers(each, truth) for each in read]),
            "wald": off <= _CRITICAL * error,
            "wald rejects": np.abs(p[:, 1] - p[:, 0]) > _CRITICAL * error,
            "rejects": np.array(
                [each.p_value is not None and each.p_value <= ALPHA for each in read]
            ),
        }

    return simulate


def of_ramp(
    sizes: tuple[int, ...], shares: tuple[float, ...], rates: tuple[float, ...]
) -> Simulate:
    """The simulation of equal arms on a ramp.

    Arguments:
        sizes: units of each epoch.
        shares: of the treatment.
        rates: of either arm.
    """
    weight = np.array(sizes) / sum(sizes)

    def simulate(rng: np.random.Generator, experiments: int) -> Mapping[str, Flags]:
        n_1: Counts = np.clip(rng.binomial(sizes, shares, (experiments, len(sizes))), 1, None)
        n = np.stack([np.array(sizes) - n_1, n_1], axis=2)
        x = rng.binomial(n, np.array(rates)[:, None])
        read = [
            library.fixed(library.of_counts(n[e], x[e]), "proportion") for e in range(experiments)
        ]
        p = x / n
        error = np.sqrt((weight[:, None] ** 2 * p * (1 - p) / n).sum(axis=(1, 2)))
        difference = (p[..., 1] - p[..., 0]) @ weight
        return {
            "rejects": np.array(
                [each.p_value is not None and each.p_value <= ALPHA for each in read]
            ),
            "covers": np.array([covers(each, 0.0) for each in read]),
            "wald": np.abs(difference) <= _CRITICAL * error,
            "wald rejects": np.abs(difference) > _CRITICAL * error,
        }

    return simulate


_COVERS: Final = Claim(
    rate="coverage of the 95 % interval",
    method="Agresti-Caffo, Fisher's test below 1,000 units",
    event="covers",
    bound=Bound(low=0.935),
    naive="Wald's interval",
    naive_event="wald",
)
_SIZE: Final = Claim(
    rate="false positives",
    method="Fisher's test",
    event="rejects",
    bound=Bound(high=ALPHA),
    naive="Wald's test",
    naive_event="wald rejects",
)

_ON_A_RAMP: Final = (
    Claim(
        rate="false positives",
        method="score test within epochs",
        event="rejects",
        bound=Bound(high=ALPHA),
        naive="Wald's test",
        naive_event="wald rejects",
    ),
    Claim(
        rate="coverage of the 95 % interval",
        method="Newcombe's, agreeing with the test",
        event="covers",
        bound=Bound(low=0.935),
        naive="Wald's interval",
        naive_event="wald",
    ),
)

SCENARIOS: Final = (
    Scenario(
        "small-rare",
        "1,000 and 100 units, rate .005",
        561,
        of_counts((1_000, 100), (0.005, 0.005)),
        (_COVERS,),
    ),
    Scenario(
        "small-effect",
        "30 and 10 units, rates .02 and .1",
        562,
        of_counts((30, 10), (0.02, 0.1)),
        (_COVERS,),
    ),
    Scenario(
        "small-a-a",
        "100 and 20 units, rate .05",
        563,
        of_counts((100, 20), (0.05, 0.05)),
        (_COVERS, _SIZE),
    ),
    Scenario(
        "small-ramp",
        "A/A on a ramp, 20,000 units at 1 % and 2,000 at 50 %, rate .01 falling to .002",
        564,
        of_ramp((20_000, 2_000), (0.01, 0.5), (0.01, 0.002)),
        _ON_A_RAMP,
    ),
)
