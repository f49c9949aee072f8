"""Histograms with fixed logarithmic boundaries: they add, subtract and know quantiles to 1 %.

A bucket holds the values x with GAMMA^(k-1) < x <= GAMMA^k, so its middle is within 1 % of all of
them. The boundaries depend on nothing, so histograms of any two sets of units fit together.

Source: Masson, Rim, Lee (2019), "DDSketch: a fast and fully-mergeable quantile sketch with
relative-error guarantees", section 2.1.
"""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ACCURACY: Final = 0.01
"""The relative error of a quantile, at most."""
GAMMA: Final = (1 + ACCURACY) / (1 - ACCURACY)
SHIFT: Final = 4096
LEAST: Final = GAMMA ** (1.5 - SHIFT)


def bucket(x: Floats) -> Integers:
    """The buckets of values: 0 for 0, 4096 + k for those above it with k as above, the negative of
    that for their opposites. What is nearer to 0 than 1e-35 goes to the least bucket."""
    size = np.maximum(np.abs(x), LEAST)
    number = np.ceil(np.log(size) / math.log(GAMMA)).astype(np.int64) + SHIFT
    return np.sign(x).astype(np.int64) * number


def edges(number: int) -> tuple[float, float]:
    """The least and the greatest value of a bucket."""
    if number == 0:
        return 0.0, 0.0
    inner, outer = GAMMA ** (abs(number) - SHIFT - 1), GAMMA ** (abs(number) - SHIFT)
    return (inner, outer) if number > 0 else (-outer, -inner)
