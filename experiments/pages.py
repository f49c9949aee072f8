"""Lists in parts: `limit` and `cursor` in, `{items, next_cursor}` out."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Generic, TypeAlias, TypeVar

import msgspec
from litestar import Request, Response
from litestar.params import QueryParameter

from experiments import lifecycle, store
from experiments.doors import json_response, principal_of
from experiments.problems import FieldProblem, invalid

T = TypeVar("T")
V = TypeVar("V")
Limit: TypeAlias = Annotated[
    int, QueryParameter(ge=1, le=500, description="the most items to give, 1 to 500")
]
Cursor: TypeAlias = Annotated[
    str | None, QueryParameter(description="the `next_cursor` of the page before")
]


class Page(msgspec.Struct, Generic[V], frozen=True):
    """A part of a list; `next_cursor` leads to the next, and is null at the end."""

    items: list[V]
    next_cursor: str | None


def page(items: list[T], limit: int, view: Callable[[T], V], place: Callable[[T], int]) -> Page[V]:
    """A page of `limit` out of items fetched with `limit + 1`."""
    more = len(items) > limit
    shown = items[:limit]
    return Page([view(i) for i in shown], str(place(shown[-1])) if more else None)


def read_cursor(cursor: str | None) -> int | None:
    """Where a list goes on.

    Raises:
        ProblemError: `invalid` where the cursor is none of ours.
    """
    if cursor is None:
        return None
    if not cursor.isascii() or not cursor.isdigit() or len(cursor) > 18:
        raise invalid([FieldProblem("cursor", "value", "must be a `next_cursor` of this list")])
    return int(cursor)


async def page_of_history(
    pool: store.Pool,
    request: Request[Any, Any, Any],
    key: str,
    limit: int,
    cursor: str | None,
    read: Callable[[store.Connection, int, int, int | None], Awaitable[list[T]]],
    view: Callable[[T], Any],
    place: Callable[[T], int],
) -> Response[bytes]:
    """A page of what an experiment has many of: `read` gives it by the experiment's id, a number of
    items, and the place to go on from."""
    async with store.borrow(pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        items = await read(connection, record.id, limit + 1, read_cursor(cursor))
    return json_response(page(items, limit, view, place))
