"""Rows of fixed width in binary COPY: what is written is read, and another form is refused."""

import numpy as np
import pytest

from analysis.folding.wire import Layout, decode, encode

LAYOUT = Layout({"a": "int4", "b": "int8", "c": "float8", "d": "time", "e": "bool", "f": 3})


def columns(rows: int) -> dict[str, np.ndarray]:
    """Columns of this layout."""
    random = np.random.default_rng(rows)
    return {
        "a": random.integers(-(2**31), 2**31, rows),
        "b": random.integers(-(2**62), 2**62, rows),
        "c": random.normal(size=rows),
        "d": random.integers(0, 2**60, rows),
        "e": random.integers(0, 2, rows).astype(np.bool_),
        "f": random.normal(size=(rows, 3)),
    }


@pytest.mark.parametrize("rows", [0, 1, 1_000])
def test_what_is_written_is_read(rows: int) -> None:
    given = columns(rows)
    found = decode(encode(LAYOUT, given), LAYOUT)
    assert found.keys() == given.keys()
    for name, values in given.items():
        assert np.array_equal(found[name], values)
        assert found[name].dtype.isnative


def test_rows_of_another_form_are_refused() -> None:
    stream = encode(LAYOUT, columns(3))
    with pytest.raises(ValueError, match="rows of"):
        decode(stream, Layout({"a": "int4"}))
    with pytest.raises(ValueError, match="rows of"):
        decode(b"PGCOPY" + stream[6:-1], LAYOUT)
    swapped = Layout({"b": "int8", "a": "int4", "c": "float8", "d": "time", "e": "bool", "f": 3})
    with pytest.raises(ValueError, match="null somewhere, or of another type"):
        decode(stream, swapped)
