"""What the columns of a table say of a unit, and what was to become of the traffic."""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

Missing: TypeAlias = Literal["refuse", "leave_out"]
Shares: TypeAlias = Mapping[str, float]
"""Of the traffic, by variant, in any unit: 0.5 and 0.5, or 1 and 1."""
Weights: TypeAlias = Mapping[str, float | Shares]
"""The shares of the traffic that the variants were to get; or these by the name of the epoch."""


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Which column says what of a unit.

    Arguments:
        variant: the variant that it met.
        unit: its name; then no unit may come twice.
        time: when it enrolled; a time, or any number that grows. Without it nothing is known of
            the order, as planned looks and small epochs need.
        epoch: the name of the allocation that it met.
        propensity: the probability with which it met its own variant; or, by variant, the column
            of the probability of that one.
        segments: what reports are broken down by.
        missing: whether an empty cell is an error, or its row is left out of that metric; an empty
            cell of a quantile metric is a unit without a value, and in order.
    """

    variant: str
    unit: str | None = None
    time: str | None = None
    epoch: str | None = None
    propensity: str | Mapping[str, str] | None = None
    segments: tuple[str, ...] = ()
    missing: Missing = "refuse"
