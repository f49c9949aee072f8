"""All that is held, in the order in which it is shown."""

from typing import Final

from bench.calibration import (
    adaptive,
    continuous,
    families,
    guard,
    guard_kinds,
    quantiles,
    ramps,
    sample_ratio,
    small,
)
from bench.calibration.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *continuous.SCENARIOS,
    *adaptive.SCENARIOS,
    *ramps.SCENARIOS,
    *guard.SCENARIOS,
    *guard_kinds.SCENARIOS,
    *sample_ratio.SCENARIOS,
    *families.SCENARIOS,
    *small.SCENARIOS,
    *quantiles.SCENARIOS,
)
