import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from analysis.multiplicity import holm


def test_the_three_campaigns() -> None:
    """0.0315 alone would have been a winner; in its family it is none."""
    family = holm([0.0315, 0.654, 1.0])
    assert family[0].p_adjusted == pytest.approx(0.0945)
    assert not any(member.rejected for member in family)
    assert family[0].p_value == 0.0315


def test_undefined_values_leave_the_family() -> None:
    family = holm([None, 0.02, None, 0.03])
    assert [member.p_adjusted for member in family] == [None, 0.04, None, 0.04]
    assert [member.rejected for member in family] == [False, True, False, True]
    assert holm([]) == ()
    assert holm([None])[0].p_adjusted is None


def test_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(1)
    for size in (1, 2, 3, 7, 20):
        p_values = np.round(rng.random(size) ** 3, 2).tolist()  # rounded, so that some tie
        rejected, adjusted, *_ = multipletests(p_values, alpha=0.05, method="holm")
        family = holm(p_values)
        assert [member.p_adjusted for member in family] == pytest.approx(adjusted.tolist())
        assert [member.rejected for member in family] == rejected.tolist()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha"):
        holm([0.1], alpha=1.0)
    with pytest.raises(ValueError, match="p-value"):
        holm([float("nan")])
