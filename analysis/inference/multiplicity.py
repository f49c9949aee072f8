"""Adjusted p-values for a family of comparisons."""

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Holm's step-down adjustment, in the order given; controls the family-wise error rate.

    p_(i) adjusted = max over j <= i of min(1, (m - j + 1) p_(j)), the p-values in rising order.
    There is no confidence interval that goes with it: show the raw one. One that is not defined
    (None) stays so, and counts as 1: the family is the plan's. Were it smaller while a variant has
    too few units, those that are ahead would spend alpha that it is given again when it joins.

    Source: Holm (1979), "A simple sequentially rejective multiple test procedure". Written out
    because statsmodels' `multipletests` runs a full garbage collection at each call, which would
    hold the whole process up for 50 ms a report; the tests compare the two.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(sorted(_defined(p_values))):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[i] = largest
    return tuple(adjusted)


def benjamini_hochberg(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Benjamini and Hochberg's step-up adjustment, in the order given; controls the false discovery
    rate: of those adjusted to at most q, a share of at most q is false on average.

    p_(i) adjusted = min over j >= i of min(1, m p_(j)/j), the p-values in rising order. It holds
    for independent p-values, and for those that depend positively (Benjamini, Yekutieli 2001), as
    those of variants that share a control do. One that is not defined (None) stays so and leaves
    the family: an exploration has no plan that it would lend its share of alpha to.

    Source: Benjamini, Hochberg (1995), "Controlling the false discovery rate: a practical and
    powerful approach to multiple testing". Written out for the reason given at `holm`.

    Raises:
        ValueError: for a p-value outside [0, 1].
    """
    falling = sorted(_defined(p_values), reverse=True)
    adjusted: list[float | None] = [None] * len(p_values)
    smallest = 1.0
    for rank, (p, i) in zip(range(len(falling), 0, -1), falling, strict=True):
        smallest = min(smallest, len(falling) * p / rank)
        adjusted[i] = smallest
    return tuple(adjusted)


def _defined(p_values: Sequence[float | None]) -> list[tuple[float, int]]:
    """The p-values that are defined, each with its place."""
    defined = [(p, i) for i, p in enumerate(p_values) if p is not None]
    if any(not 0.0 <= p <= 1.0 for p, _ in defined):
        raise ValueError("a p-value lies between 0 and 1")
    return defined
