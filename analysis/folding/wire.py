"""Rows of fixed width between numpy and Postgres, by binary COPY: a tenth of a microsecond each.

The format is Postgres': a header, for each row the number of its fields, for each field its length
and its bytes in network order, and a trailer. Where no field can be null or vary in length, that is
an array of one numpy type.

Source: PostgreSQL, "COPY", section "Binary Format"; arrays as `array_send` writes them.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from experiments.store import Connection

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Columns by name, of one length; a column of arrays has the shape (rows, elements)."""

_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_TYPES: Final = {"int4": ">i4", "int8": ">i8", "float8": ">f8", "time": ">i8", "bool": "?"}
_FLOAT8_OID: Final = 701
_PIECE: Final = 1024 * 1024
UNIX_TO_POSTGRES: Final = 946_684_800_000_000
"""Microseconds from 1970 to 2000, from which Postgres counts its times."""


class Layout(NamedTuple):
    """The columns of a row: `int4`, `int8`, `float8`, `bool`, `time` (microseconds since 2000), or
    a number, which is that of the elements of an array of float8."""

    columns: Mapping[str, str | int]

    @property
    def dtype(self) -> np.dtype[Any]:
        """A row as it stands in the stream."""
        fields: list[Any] = [("fields", ">i2")]
        for name, kind in self.columns.items():
            fields.append((f"{name}.size", ">i4"))
            if isinstance(kind, str):
                fields.append((name, _TYPES[kind]))
            else:
                fields.append((f"{name}.head", ">i4", (5,)))
                fields.append((name, [("size", ">i4"), ("value", ">f8")], (kind,)))
        return np.dtype(fields)


async def read_rows(
    connection: Connection, query: str, layout: Layout, *arguments: object
) -> Columns:
    """The rows of a query, whose columns are those of the layout, in order, none of them null.

    Raises:
        ValueError: if the rows have another form.
    """
    parts: list[bytes] = []

    # asyncpg hands what it reads to a file by a thread, piece by piece, to a coroutine at once.
    async def keep(data: bytes) -> None:
        parts.append(data)

    await connection.copy_from_query(query, *arguments, output=keep, format="binary")
    return decode(b"".join(parts), layout)


async def write_rows(connection: Connection, table: str, layout: Layout, columns: Columns) -> None:
    """Store rows in a table, whose columns of these names have the layout's types."""
    stream = encode(layout, columns)

    async def pieces() -> AsyncIterator[bytes]:
        for begin in range(0, len(stream), _PIECE):
            yield stream[begin : begin + _PIECE]

    await connection.copy_to_table(
        table, source=pieces(), columns=list(layout.columns), format="binary"
    )


def decode(stream: bytes, layout: Layout) -> Columns:
    """The columns in a stream of binary COPY.

    Raises:
        ValueError: if it is none, or its rows have another form.
    """
    dtype = layout.dtype
    body = memoryview(stream)[len(_HEADER) : -len(_TRAILER)]
    if not stream.startswith(_HEADER[:11]) or len(body) % dtype.itemsize:
        raise ValueError(f"the stream has no rows of {dtype.itemsize} bytes")
    rows = np.frombuffer(body, dtype=dtype)
    if not (rows["fields"] == len(layout.columns)).all():
        raise ValueError(f"the rows have not {len(layout.columns)} columns")
    columns: Columns = {}
    for name, kind in layout.columns.items():
        values = rows[name]
        if not isinstance(kind, str):
            values = values["value"]
        if not (rows[f"{name}.size"] == _size(dtype, name, kind)).all():
            raise ValueError(f"column {name} is null somewhere, or of another type")
        columns[name] = values.astype(values.dtype.newbyteorder("="))
    return columns


def encode(layout: Layout, columns: Columns) -> bytes:
    """The stream of binary COPY that has these columns."""
    dtype = layout.dtype
    rows = np.zeros(len(next(iter(columns.values()))), dtype=dtype)
    rows["fields"] = len(layout.columns)
    for name, kind in layout.columns.items():
        rows[f"{name}.size"] = _size(dtype, name, kind)
        if isinstance(kind, str):
            rows[name] = columns[name]
        else:
            rows[f"{name}.head"] = (1, 0, _FLOAT8_OID, kind, 1)
            rows[name]["size"] = 8
            rows[name]["value"] = columns[name]
    return _HEADER + rows.tobytes() + _TRAILER


def _size(dtype: np.dtype[Any], name: str, kind: str | int) -> int:
    size = dtype[name].itemsize
    return size if isinstance(kind, str) else size + dtype[f"{name}.head"].itemsize
