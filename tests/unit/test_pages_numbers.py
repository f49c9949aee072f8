"""How numbers read on a page."""

from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboard import numbers

_FINITE: Final = st.floats(allow_nan=False, allow_infinity=False)
PER_CENT: Final = "\N{NARROW NO-BREAK SPACE}%"


def test_a_value_has_as_many_digits_as_its_interval_lets_be_known() -> None:
    assert numbers.signed(-0.27961, 0.0321) == "−0.280"
    assert numbers.points(0.1179, 0.0833) == "+11.8\N{NO-BREAK SPACE}pp"
    assert numbers.lift(0.03046, 0.15) == f"+3{PER_CENT}"
    assert numbers.number(1_234_567.89, 4_321.0) == "1,234,568"


def test_a_change_that_rounds_to_none_has_no_sign() -> None:
    assert numbers.signed(0.3, 15.0) == "0"
    assert numbers.lift(-0.001, 0.2) == f"0{PER_CENT}"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (0.012345, "0.0123"),
        (3.0, "3"),
        (-12_345.678, "−12,346"),
        (2.5e-9, "2.50·10⁻⁹"),
        (2.5e13, "2.50·10¹³"),
    ],
)
def test_without_an_interval_there_are_three_digits(value: float | None, words: str) -> None:
    assert numbers.number(value) == words


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (0.07262, "7.26"),
        (0.007505, "0.751"),
        (0.48, "48"),
        (0.0, "0"),
        (1.0, "100"),
        (0.9996, "99.96"),
        (0.99999, "99.999"),
    ],
)
def test_only_all_of_it_reads_as_all_of_it(share: float, words: str) -> None:
    assert numbers.share(share) == f"{words}{PER_CENT}"


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (None, "–"),
        (0.0, "below 0.0001"),
        (3.351e-9, "below 0.0001"),
        (0.0007497, "0.0007"),
        (0.04963, "0.0496"),
        (0.5, "0.500"),
        (1.0, "1"),
    ],
)
def test_a_p_value_that_is_tiny_is_below_a_ten_thousandth(p: float | None, words: str) -> None:
    assert numbers.p_value(p) == words


def test_a_chance_is_never_said_to_be_nothing_or_everything() -> None:
    assert numbers.chance(1.0) == f"above 99.99{PER_CENT}"
    assert numbers.chance(0.0) == f"below 0.01{PER_CENT}"
    assert numbers.chance(0.9761) == f"97.6{PER_CENT}"


def test_the_ends_of_an_interval_have_the_digits_of_its_width() -> None:
    assert numbers.interval(-1.23456, 3.45678) == "−1.2 to 3.5"
    assert numbers.interval_of_shares(0.03448, 0.2013) == "3.4 to 20.1"
    assert numbers.interval_of_shares(None, 0.2013, 0.1) == "−∞ to 20"
    assert numbers.interval(None, None) == ""


@given(_FINITE, st.none() | st.floats(min_value=0.0), st.floats(0.0, 1.0))
def test_every_number_can_be_read(value: float, spread: float | None, share: float) -> None:
    for text in (
        numbers.number(value, spread),
        numbers.signed(value, spread),
        numbers.lift(value, spread),
        numbers.points(value, spread),
        numbers.share(share),
        numbers.p_value(share),
        numbers.chance(share),
    ):
        assert "nan" not in text
        assert "e" not in text.removeprefix("below").removeprefix("above")
        assert len(text) < 40
