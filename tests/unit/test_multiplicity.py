"""Adjusted p-values: Holm for what was planned, Benjamini-Hochberg for what is explored."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from analysis.inference.multiplicity import benjamini_hochberg, holm

Adjust = Callable[[Sequence[float | None]], tuple[float | None, ...]]


def test_the_three_campaigns() -> None:
    """0.0315 alone would have been a winner; in its family it is none."""
    assert holm([0.0315, 0.654, 1.0])[0] == pytest.approx(0.0945)


def test_what_is_not_defined_stays_in_the_family() -> None:
    """A variant that has too few units yet must not lend its share of alpha to the others."""
    assert holm([None, 0.02, None, 0.03]) == (None, 0.08, None, 0.09)
    assert holm([]) == ()
    assert holm([None]) == (None,)


def test_what_is_not_defined_leaves_an_exploration() -> None:
    assert benjamini_hochberg([None, 0.02, None, 0.03]) == (None, 0.03, None, 0.03)
    assert benjamini_hochberg([]) == ()
    assert benjamini_hochberg([None]) == (None,)


@pytest.mark.parametrize(
    ("adjust", "method"), [(holm, "holm"), (benjamini_hochberg, "fdr_bh")], ids=["holm", "bh"]
)
def test_agrees_with_statsmodels(adjust: Adjust, method: str) -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 7, 20):
        p_values = np.round(rng.random(size) ** 3, 2).tolist()  # rounded, so that some tie
        _, adjusted, *_ = multipletests(p_values, method=method)
        assert adjust(p_values) == pytest.approx(adjusted.tolist())


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
@pytest.mark.parametrize("p_value", [float("nan"), -0.1, 1.1])
def test_what_is_refused(adjust: Adjust, p_value: float) -> None:
    with pytest.raises(ValueError, match="p-value"):
        adjust([p_value])
