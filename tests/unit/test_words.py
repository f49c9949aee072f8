"""Numbers in the reader's words."""

import pytest

from analysis.reports.words import about, chance, duration, number, p_value, signed


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.0, "2 seconds"),
        (59.0, "59 seconds"),
        (150.0, "2 minutes"),
        (7_100.0, "118 minutes"),
        (7_300.0, "2 hours"),
        (200_000.0, "2 days"),
        (86_400.0 * 40, "40 days"),
    ],
)
def test_a_duration_is_told_roughly(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("units", "words"),
    [(7, "7"), (42, "42"), (101, "110"), (21_549, "22,000"), (10**6, "1,000,000")],
)
def test_a_forecast_of_units_is_told_in_two_digits_and_never_too_low(
    units: int, words: str
) -> None:
    assert about(units) == words


def test_money_and_counts_are_shown_without_an_exponent() -> None:
    assert number(123_456.7) == "123,457"
    assert number(0.000012345) == "1.234e-05"
    assert number(None) == "–"
    assert (signed(0.5), signed(-0.5), signed(0.0)) == ("+0.5", "-0.5", "0")


def test_a_p_value_is_never_shown_as_nothing() -> None:
    assert p_value(0.03) == "0.03"
    assert p_value(2.3e-308, -1_234.56) == "10^-1234.6"
    assert p_value(2.3e-308) == "below 1e-300"


def test_a_chance_is_never_said_to_be_certain() -> None:
    assert chance(1.0) == "above 99.99 %"
    assert chance(0.0) == "below 0.01 %"
    assert chance(0.25) == "25 %"
    assert chance(None) == "–"
