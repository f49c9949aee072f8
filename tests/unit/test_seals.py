"""The canonical form of JSON, and the seal over it: what Postgres does to JSON changes neither."""

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.seals import canonical, seal

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


class Point(msgspec.Struct, frozen=True):
    """Some Struct."""

    y: float
    x: float


@given(values)
def test_what_was_written_and_read_again_has_the_same_seal(value: Any) -> None:
    assert seal(json.loads(canonical(value))) == seal(value)


@given(st.dictionaries(st.text(), values))
def test_the_order_of_keys_does_not_matter(value: dict[str, Any]) -> None:
    assert canonical(dict(reversed(value.items()))) == canonical(value)


@given(numbers, numbers)
def test_two_numbers_have_one_form_exactly_if_they_are_equal(one: float, other: float) -> None:
    assert (canonical(one) == canonical(other)) is (one == other)


@pytest.mark.parametrize(
    ("written", "kept"),
    [("1e22", "10000000000000000000000"), ("-0.0", "0.0"), ("1.50", "1.5"), ("1.0", "1")],
)
def test_a_number_is_the_same_however_postgres_keeps_it(written: str, kept: str) -> None:
    assert canonical(json.loads(written)) == canonical(json.loads(kept))


@pytest.mark.parametrize(("one", "other"), [(True, 1), (0, False), (None, 0), ("1", 1)])
def test_what_is_no_number_is_not_taken_for_one(one: Any, other: Any) -> None:
    assert canonical(one) != canonical(other)


def test_structs_and_times_are_as_msgspec_writes_them() -> None:
    at = datetime(2026, 3, 2, tzinfo=UTC)
    assert canonical([Point(1.0, 0.1), at]) == b'[{"x":0.1,"y":1},"2026-03-02T00:00:00Z"]'


def test_a_number_that_json_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical(float("nan"))
