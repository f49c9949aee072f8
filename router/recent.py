"""A bounded memory of ids that are known to be on disk."""

from collections import OrderedDict
from collections.abc import Iterable
from uuid import UUID


class RecentIds:
    """The last `limit` ids that were acknowledged, so that a retry is answered as a duplicate.

    It is a help only: what counts once is settled where all routers' records meet, in Postgres.
    """

    def __init__(self, limit: int = 200_000) -> None:
        self._limit = limit
        self._ids: OrderedDict[UUID, None] = OrderedDict()

    def __contains__(self, item: UUID) -> bool:
        return item in self._ids

    def add(self, ids: Iterable[UUID]) -> None:
        """Remember ids whose records are on disk; the oldest are forgotten."""
        for item in ids:
            self._ids[item] = None
        while len(self._ids) > self._limit:
            self._ids.popitem(last=False)
