"""Whether this process can serve, and what is degraded."""

import asyncio
from datetime import timedelta
from typing import Final, Protocol

import msgspec

from experiments import store
from experiments.doors import Clock
from router.journal import Journal
from router.refresher import Refresher
from router.shelf import Shelf
from turnout.joining import Joining

STALE_AFTER: Final = timedelta(seconds=15)
POSTGRES_PATIENCE: Final = 2.0


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at."""

    name: str
    ok: bool
    detail: str


class ReadyState(msgspec.Struct, frozen=True):
    """`ready` says that requests should come; `degraded` that something behind us is missing."""

    ready: bool
    degraded: bool
    checks: tuple[Check, ...]


class Health(Protocol):
    """Knows what a process needs."""

    async def check(self) -> ReadyState:
        """The state now."""
        ...


class RouterHealth:
    """Looks at what a router stands on. It asks nobody over the network: a router that is cut off
    from its database still serves."""

    def __init__(
        self,
        refresher: Refresher,
        journal: Journal,
        shelf: Shelf,
        joining: Joining,
        clock: Clock,
    ) -> None:
        self._refresher = refresher
        self._journal = journal
        self._shelf = shelf
        self._joining = joining
        self._clock = clock

    async def check(self) -> ReadyState:
        """The state now."""
        checks = (
            self._snapshot(),
            self._on_disk(),
            self._postgres(),
            self._redis(),
            self._recording(),
        )
        loaded = self._refresher.refreshed_at is not None
        return ReadyState(loaded, not all(check.ok for check in checks), checks)

    def _age(self) -> timedelta | None:
        """How long ago all of the snapshot was true."""
        refreshed_at = self._refresher.refreshed_at
        return None if refreshed_at is None else self._clock() - refreshed_at

    def _snapshot(self) -> Check:
        age = self._age()
        if age is None:
            return Check("snapshot", False, "no snapshot was loaded yet")
        old = f"{age.total_seconds():.1f} s old"
        if not self._joining.joined.is_set():
            return Check("snapshot", False, f"{old}, from disk")
        return Check("snapshot", age < STALE_AFTER, old)

    def _on_disk(self) -> Check:
        if self._shelf.refusal is not None:
            return Check("snapshot on disk", False, f"cannot be written: {self._shelf.refusal}")
        detail = "it is being written" if self._shelf.behind else "up to date"
        return Check("snapshot on disk", True, detail)

    def _postgres(self) -> Check:
        age = self._age()
        if not self._joining.joined.is_set():
            return Check("postgres", False, self._joining.refusal)
        if age is None or age >= STALE_AFTER:
            return Check("postgres", False, "it does not answer: nothing is shipped or changed")
        return Check("postgres", True, "it answers")

    def _redis(self) -> Check:
        if self._refresher.hinted:
            return Check("redis", True, "it sends news")
        return Check("redis", False, "it sends no news: changes are found by polling")

    def _recording(self) -> Check:
        if self._journal.full:
            return Check("journal", False, "full: outcomes are refused, exposures not recorded")
        if self._journal.refusal is not None:
            detail = f"cannot write: {self._journal.refusal}; outcomes are refused"
            return Check("journal", False, detail)
        return Check("journal", True, f"{self._journal.depth} bytes to ship")


class WorkerHealth:
    """Asks Postgres, without which a worker can do nothing."""

    def __init__(self, pool: store.Pool) -> None:
        self._pool = pool

    async def check(self) -> ReadyState:
        """The state now."""
        answers, detail = True, "it answers"
        try:
            async with asyncio.timeout(POSTGRES_PATIENCE), self._pool.acquire() as connection:
                await connection.execute("select 1")
        except (OSError, TimeoutError, *store.PostgresError):
            answers, detail = False, "it does not answer: nothing is folded or decided"
        return ReadyState(answers, not answers, (Check("postgres", answers, detail),))
