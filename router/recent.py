"""A bounded memory of ids that are known to be on disk."""

from collections.abc import Set


class RecentIds:
    """Ids that were acknowledged lately, so that a retry is answered as a duplicate.

    It is a help only: what counts once is settled where all routers' records meet, in Postgres.
    """

    def __init__(self, limit: int = 200_000) -> None:
        """`limit` is how many are kept at most; at least the last half of it always are."""
        self._half = limit // 2
        self._young: set[bytes] = set()
        self._old: set[bytes] = set()

    def __contains__(self, item: bytes) -> bool:
        return item in self._young or item in self._old

    def among(self, ids: set[bytes]) -> set[bytes]:
        """Those of these ids that are remembered."""
        return ids & self._young | ids & self._old

    def add(self, ids: Set[bytes]) -> None:
        """Remember ids whose records are on disk, at most `limit` / 2 at once; the oldest are
        forgotten."""
        # By generations, since forgetting ids one by one costs more than all else here.
        if len(self._young) + len(ids) > self._half:
            self._young, self._old = set(), self._young
        self._young.update(ids)
