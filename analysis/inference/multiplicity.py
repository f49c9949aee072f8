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
    defined = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    if any(not 0.0 <= p <= 1.0 for p, _ in defined):
        raise ValueError("a p-value lies between 0 and 1")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(defined):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[i] = largest
    return tuple(adjusted)
