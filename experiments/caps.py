"""What a cap at a quantile of the data needs before it is a number."""

import math
from typing import Final

MIN_UNITS: Final = 1_000
"""Finished units before a cap is looked for."""
MIN_VALUES: Final = 100
"""Units with a value that a quantile of the data needs at least."""
MIN_BEYOND: Final = 10
"""Units with a value that are to lie above the quantile: fewer would make the cap one unit's."""
MOST_UNITS: Final = 100_000
"""A cap is found among the first so many units of a run, so that it costs a bounded time."""
HIGHEST: Final = 1.0 - MIN_BEYOND / MOST_UNITS
"""The highest quantile that can be found among them."""


def values_needed(quantile: float) -> int:
    """Units with a value that a cap at this quantile needs; `quantile` is from 0 to below 1."""
    # 10 / (1 - 0.9) is 100.00000000000001 in floats.
    return max(MIN_VALUES, math.ceil(round(MIN_BEYOND / (1.0 - quantile), 6)))


def units_needed(quantile: float) -> int:
    """Finished units by which the cap is surely found where each of them has a value: a try that
    comes too early is repeated when their number has doubled."""
    return 2 * max(MIN_UNITS, values_needed(quantile))
