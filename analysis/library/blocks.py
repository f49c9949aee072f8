"""Stretches of time: into how many a table's rows are cut."""

from typing import Final

MOST_BLOCKS: Final = 200
"""Stretches of time that rows are cut into where traffic was reallocated, at most."""
UNITS_PER_BLOCK: Final = 100
"""Units of such a stretch, at least."""


def blocks_for(units: int) -> int:
    """How many stretches there are of so many units: one at least."""
    return max(1, min(MOST_BLOCKS, units // UNITS_PER_BLOCK))
