"""Columns of any table as arrays, and what is wrong with them by column and row.

A table is whatever gives a column for its name: a dictionary of lists or arrays, a frame of pandas
or polars, a table of pyarrow. None of these packages is imported. Rows are counted from 1.
"""

import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from experiments.model import LARGEST_VALUE

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

NOTHING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "<na>"})
"""How tables write that there is no number, in small letters."""
_NO_NAMES: Final = frozenset({"<NA>", "NaT"})
"""What pandas has in the place of a missing value, as text."""
WORDS: Final = {"true": "1", "false": "0"}
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class DataError(ValueError):
    """The data cannot be analysed as they are; one line says where and why."""


class Labels(NamedTuple):
    """A column of names: for each row the place of its name, or -1 where it has none."""

    names: tuple[str, ...]
    place: Integers


def column(table: Any, name: str) -> Any:
    """The column of a table.

    Raises:
        DataError: when there is none of that name.
    """
    there = names(table)
    if name not in there:
        raise DataError(f"there is no column {name!r}; there are {', '.join(there)}")
    return table[name]


def names(table: Any) -> list[str]:
    """The names of a table's columns.

    Raises:
        DataError: when it is no table.
    """
    for attribute in ("column_names", "columns"):
        found = getattr(table, attribute, None)
        if found is not None:
            return [str(name) for name in found]
    if hasattr(table, "keys"):
        return [str(name) for name in table.keys()]  # noqa: SIM118 - not every table is iterated so
    raise DataError(f"a table has columns by name; this is of type {type(table).__name__}")


def labels(values: Any) -> Labels:
    """Names as they are written: 1.0 is `1`. Nothing, NaN and empty text are no names; text such as
    `NA` is one, a country's, say."""
    items = _items(values)
    raw: dict[Any, int] = {}
    code = np.fromiter((raw.setdefault(value, len(raw)) for value in items), np.int64, len(items))
    found: dict[str | None, int] = {None: -1}
    place = [found.setdefault(_label(value), len(found) - 1) for value in raw]
    return Labels(
        tuple(text for text in found if text is not None), np.array(place, np.int64)[code]
    )


def numbers(values: Any, name: str) -> Floats:
    """Numbers, NaN where there is none.

    Raises:
        DataError: for what is no number, or is too large.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"column {name!r} has the shape {array.shape}, and needs one number a row")
    if array.dtype.kind in "biuf":
        result = array.astype(np.float64)
    else:
        result = _parsed(_items(values), name)
    too_large = np.abs(result) > LARGEST_VALUE  # what is not a number is not
    if too_large.any():
        row = int(np.argmax(too_large))
        raise DataError(
            f"column {name!r}, row {row + 1}: {result[row]:g} is beyond ±{LARGEST_VALUE:g}"
        )
    return result


def times(values: Any, name: str) -> tuple[Floats, bool]:
    """Times in seconds since 1970, and whether they are times: plain numbers are an order only.

    Raises:
        DataError: for what is neither a time nor a number, and for a row without one.
    """
    array = np.asarray(values)
    is_time = True
    if array.dtype.kind == "M":
        result = array.astype("datetime64[us]").astype(np.int64) / 1e6
        result[np.isnat(array)] = np.nan
    else:
        items = _items(values)
        try:
            result = np.fromiter((float(item) for item in items), np.float64, len(items))
            is_time = False
        except (TypeError, ValueError):
            result = np.fromiter(_seconds(items, name), np.float64, len(items))
    missing = ~np.isfinite(result)
    if missing.any():
        row = int(np.argmax(missing)) + 1
        raise DataError(f"column {name!r}, row {row}: there is no time")
    return result, is_time


def _items(values: Any) -> Sequence[Any]:
    """The values of a column as Python has them."""
    if isinstance(values, list | tuple):
        return values
    for convert in ("to_pylist", "tolist", "to_list"):
        if hasattr(values, convert):
            items: Sequence[Any] = getattr(values, convert)()
            return items
    return list(values)


def _label(value: Any) -> str | None:
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return f"{value:.0f}" if value.is_integer() else repr(value)
    text = str(value).strip()
    if isinstance(value, str):
        return text or None
    return None if value is None or text in _NO_NAMES else text


def _parsed(items: Sequence[Any], name: str) -> Floats:
    try:
        return np.array(items, dtype=np.float64)
    except (TypeError, ValueError):
        return np.fromiter(_one_by_one(items, name), np.float64, len(items))


def _one_by_one(items: Iterable[Any], name: str) -> Iterable[float]:
    for row, item in enumerate(items, start=1):
        text = "" if item is None else str(item).strip().lower()
        if text in NOTHING:
            yield float("nan")
            continue
        try:
            yield float(WORDS.get(text, text))
        except ValueError:
            raise DataError(f"column {name!r}, row {row}: {item!r} is no number") from None


def _seconds(items: Iterable[Any], name: str) -> Iterable[float]:
    """Seconds since 1970 of times, which are taken to be of UTC where they name no offset."""
    for row, item in enumerate(items, start=1):
        try:
            at = item if isinstance(item, datetime) else datetime.fromisoformat(str(item).strip())
        except ValueError:
            raise DataError(
                f"column {name!r}, row {row}: {item!r} is no time such as 2026-11-23T12:00:00Z"
            ) from None
        yield ((at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH).total_seconds()
