import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from analysis.inference.multiplicity import holm


def test_the_three_campaigns() -> None:
    """0.0315 alone would have been a winner; in its family it is none."""
    assert holm([0.0315, 0.654, 1.0])[0] == pytest.approx(0.0945)


def test_what_is_not_defined_stays_in_the_family() -> None:
    """A variant that has too few units yet must not lend its share of alpha to the others."""
    assert holm([None, 0.02, None, 0.03]) == (None, 0.08, None, 0.09)
    assert holm([]) == ()
    assert holm([None]) == (None,)


def test_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 7, 20):
        p_values = np.round(rng.random(size) ** 3, 2).tolist()  # rounded, so that some tie
        _, adjusted, *_ = multipletests(p_values, method="holm")
        assert holm(p_values) == pytest.approx(adjusted.tolist())


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="p-value"):
        holm([float("nan")])
