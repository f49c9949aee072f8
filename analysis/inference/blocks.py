"""The order of blocks: what takes in a block at a time, takes each once, and the next one later."""

from collections.abc import Sequence
from typing import Protocol


class CellOfBlock(Protocol):
    """What one enrolment block saw of one epoch, with the epoch's propensities of two arms."""

    @property
    def block(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def propensity_control(self) -> float: ...
    @property
    def propensity_treatment(self) -> float: ...


def next_block(cells: Sequence[CellOfBlock], last: int | None) -> int:
    """The number of the block that these cells are of.

    Arguments:
        cells: at least one, each of another epoch.
        last: the block that was taken in before; None for the first one.

    Raises:
        ValueError: for cells of several blocks, a block that does not come after the last one, an
            epoch that is named twice, or a propensity outside [0, 1].
    """
    block = cells[0].block
    if any(cell.block != block for cell in cells):
        raise ValueError("a step takes the cells of one block")
    if last is not None and block <= last:
        raise ValueError(f"block {block} does not come after block {last}")
    if len({cell.epoch for cell in cells}) != len(cells):
        raise ValueError(f"block {block} names an epoch twice")
    for cell in cells:
        if not all(0.0 <= e <= 1.0 for e in (cell.propensity_control, cell.propensity_treatment)):
            raise ValueError(f"a propensity of block {block} lies outside [0, 1]")
    return block
