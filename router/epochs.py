"""Epochs that are no longer, or not yet, in the snapshot: asked of Postgres, and remembered."""

import asyncio
from collections import OrderedDict
from collections.abc import Collection
from typing import Final

import msgspec

from experiments import store
from experiments.past import Moment, Past, load_past
from router.snapshot import Entry, compile_entry

LIMIT: Final = 1_024
"""How many epochs are remembered, over all projects: each takes some 12 KiB."""
AT_ONCE: Final = 256
"""How many epochs one request may have loaded."""
PATIENCE: Final = 2.0
"""Seconds that Postgres has to answer."""


class Bygone(msgspec.Struct, frozen=True):
    """An experiment as routers answered from it in one of its epochs, without overrides, and the
    holdout as it stood."""

    entry: Entry
    holdout: Entry | None


class Epochs:
    """A bounded memory of epochs. They are immutable, so what is remembered stays true."""

    def __init__(self, pool: store.Pool, limit: int = LIMIT, patience: float = PATIENCE) -> None:
        self._pool = pool
        self._limit = limit
        self._patience = patience
        self._known: OrderedDict[tuple[str, str, int], Bygone] = OrderedDict()

    async def of(
        self, project: str, moments: Collection[Moment]
    ) -> tuple[dict[Moment, Bygone], frozenset[Moment]]:
        """Those of these epochs of a project that there were; and those of which nobody can tell
        now, since Postgres does not answer in time, or more than `AT_ONCE` are not remembered."""
        found: dict[Moment, Bygone] = {}
        asked: list[Moment] = []
        for moment in moments:
            bygone = self._known.get((project, *moment))
            if bygone is None:
                asked.append(moment)
            else:
                self._known.move_to_end((project, *moment))
                found[moment] = bygone
        untold = frozenset(asked[AT_ONCE:])
        try:
            loaded = await self._load(project, asked[:AT_ONCE]) if asked else {}
        except (OSError, TimeoutError, *store.PostgresError):
            return found, frozenset(asked)
        for moment, past in loaded.items():
            found[moment] = await self._compiled(past)
            self._remember((project, *moment), found[moment])
        return found, untold

    async def _load(self, project: str, moments: Collection[Moment]) -> dict[Moment, Past]:
        async with asyncio.timeout(self._patience), self._pool.acquire() as connection:
            return await load_past(connection, project, moments)

    async def _compiled(self, past: Past) -> Bygone:
        await asyncio.sleep(0)  # others get their turn between any two
        holdout = past.holdout
        return Bygone(compile_entry(past.live), None if holdout is None else compile_entry(holdout))

    def _remember(self, key: tuple[str, str, int], bygone: Bygone) -> None:
        self._known[key] = bygone
        if len(self._known) > self._limit:
            self._known.popitem(last=False)
