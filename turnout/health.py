"""Whether this process can serve, and what is degraded."""

from datetime import timedelta
from typing import Final

import msgspec

from experiments.doors import Clock
from router.journal import Journal
from router.refresher import Refresher

STALE_AFTER: Final = timedelta(seconds=15)


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


class Readiness:
    """Looks at what the router stands on. It asks nobody over the network: a router that is cut off
    from its database still serves."""

    def __init__(self, refresher: Refresher, journal: Journal, clock: Clock) -> None:
        self._refresher = refresher
        self._journal = journal
        self._clock = clock

    def check(self) -> ReadyState:
        """The state now."""
        checks = (self._snapshot(), self._recording())
        loaded = self._refresher.refreshed_at is not None
        return ReadyState(loaded, not all(check.ok for check in checks), checks)

    def _snapshot(self) -> Check:
        refreshed_at = self._refresher.refreshed_at
        if refreshed_at is None:
            return Check("snapshot", False, "no snapshot was loaded yet")
        age = self._clock() - refreshed_at
        return Check("snapshot", age < STALE_AFTER, f"{age.total_seconds():.1f} s old")

    def _recording(self) -> Check:
        if self._journal.full:
            return Check("journal", False, "full: outcomes are refused, exposures not recorded")
        return Check("journal", True, f"{self._journal.depth} bytes to ship")
