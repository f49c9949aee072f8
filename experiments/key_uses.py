"""Uses of keys that are worth knowing: told to the audit and kept beside the key, never on a
request.

A door only counts in memory, by key and by what happened, in tables of bounded size. An owned task
of each router process brings it to Postgres every few seconds: when a key was used last, and, as
entries of the audit, its first use ever, its use after it was revoked or had expired, a wrong
secret, a permission that it lacks, and more requests than it may send. A use is told within
seconds; what follows it within the minute is told together, with its count, at the minute's end.
While Postgres is away the counting goes on.

A router forgets a key that was revoked. So an id that it does not know is kept with the digest of
the secret that came with it, and what they were is looked up when they are brought away: an id that
names no key is only counted.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import asyncpg
import msgspec
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from experiments import store
from experiments.audit.log import Entry, note
from experiments.keys import is_secret

What: TypeAlias = Literal[
    "first_use",
    "used_after_revocation",
    "used_after_expiry",
    "wrong_secret",
    "refused",
    "rate_limited",
]
"""What an entry of the audit says of a key, behind `key.`; `refused` is for want of permission."""
Refusal: TypeAlias = Literal[
    "no_key", "unknown_key", "wrong_secret", "expired", "permission", "rate_limited"
]
REFUSALS: Final[tuple[Refusal, ...]] = (
    "no_key",
    "unknown_key",
    "wrong_secret",
    "expired",
    "permission",
    "rate_limited",
)

FLUSH_SECONDS: Final = 3.0
QUERY_SECONDS: Final = 5.0
LAST_WORDS_SECONDS: Final = 2.0
"""How long a process that stops takes to tell what it has counted."""
MOST_NOTED: Final = 4_096
MOST_STRANGERS: Final = 1_024
_KEY_ID_CHARACTERS: Final = 12
_MINUTE: Final = timedelta(minutes=1)
_NOT_PROVEN: Final[frozenset[What]] = frozenset({"wrong_secret"})

# In the order of the ids, so that two processes wait for each other and no more. Whoever finds no
# time of last use is the first; of a key that is older than this record nobody knows.
_USED: Final = """
    with used as (
        select k.id, k.project, k.created_by is not null and k.last_used_at is null as is_first
        from api_key k
        where k.id = any($1)
          and (k.last_used_at is null or k.last_used_at < $2::timestamptz - interval '30 s')
        order by k.id for no key update
    )
    update api_key k set last_used_at = $2::timestamptz from used where k.id = used.id
    returning k.id, k.project, used.is_first
"""
_KEYS: Final = "select id, project, secret_hash, revoked_at from api_key where id = any($1)"

logger = logging.getLogger(__name__)


class Noted(msgspec.Struct):
    """How often something happened, and when first and last."""

    count: int
    first: datetime
    last: datetime

    def add(self, other: "Noted") -> None:
        """Take in what else happened."""
        self.count += other.count
        self.first = min(self.first, other.first)
        self.last = max(self.last, other.last)


class Happened(NamedTuple):
    """Of which key what is told; `permission` is the one that was lacking, if one was."""

    key_id: str
    what: What
    permission: str = ""


class Stranger(NamedTuple):
    """An id that the router did not know, and the digest of the secret that came with it."""

    key_id: str
    digest: bytes


class Uses:
    """What the doors of a process have counted, and nobody was told of yet."""

    def __init__(self) -> None:
        self.refusals: dict[Refusal, int] = dict.fromkeys(REFUSALS, 0)
        self.overlooked = 0
        """Uses of note that no table had room for: they are counted, and not told."""
        self.used: set[str] = set()
        """Keys that were used, of whom the gate does not remember it."""
        self._noted: dict[Happened, Noted] = {}
        self._strangers: dict[Stranger, Noted] = {}

    def refuse(self, refusal: Refusal) -> None:
        """Count what was refused."""
        self.refusals[refusal] += 1

    def note(self, happened: Happened, noted: Noted) -> None:
        """Note what happened to a key."""
        self._add(self._noted, happened, noted, MOST_NOTED)

    def meet(self, stranger: Stranger, noted: Noted) -> None:
        """Note an id that the router does not know. It is looked up later."""
        if len(stranger.key_id) == _KEY_ID_CHARACTERS and stranger.key_id.isascii():
            self._add(self._strangers, stranger, noted, MOST_STRANGERS)

    def take(self) -> tuple[dict[Happened, Noted], dict[Stranger, Noted], set[str]]:
        """All that was counted; the counting begins anew."""
        taken = self._noted, self._strangers, self.used
        self._noted, self._strangers, self.used = {}, {}, set()
        return taken

    def _add(self, table: dict[Any, Noted], key: object, noted: Noted, most: int) -> None:
        before = table.get(key)
        if before is not None:
            before.add(noted)
        elif len(table) < most:
            table[key] = noted
        else:
            self.overlooked += noted.count


class UsesKeeper:
    """Brings what was counted to Postgres. One for each router process."""

    def __init__(
        self,
        pool: store.Pool,
        uses: Uses,
        collect: Callable[[], Iterable[str]],
        clock: Callable[[], datetime],
        every: float = FLUSH_SECONDS,
    ) -> None:
        """`collect` gives the keys that the gate let in since it was asked last."""
        self._pool = pool
        self._uses = uses
        self._collect = collect
        self._clock = clock
        self._every = every
        self._written: dict[str, datetime] = {}
        """When a key's last use was written last, by this process."""
        self._told: dict[Happened, datetime] = {}
        """When something was told of a key last: what follows within the minute waits."""
        self._waiting: dict[Happened, Noted] = {}
        self._failing = False

    async def run(self) -> None:
        """Flush every few seconds, and once more when cancelled."""
        try:
            while True:
                await asyncio.sleep(self._every)
                await self._try_to_flush(everything=False)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_SECONDS):
                    await self._try_to_flush(everything=True)

    async def _try_to_flush(self, *, everything: bool) -> None:
        try:
            async with asyncio.timeout(QUERY_SECONDS):
                await self.flush(everything=everything)
        except (OSError, TimeoutError, *store.PostgresError) as error:
            if not self._failing:  # once for each time that Postgres goes away
                logger.warning("uses of keys not told", extra={"error": error})
            self._failing = True
        except Exception:  # a defect here must cost no router its doors
            logger.exception("uses of keys not told")
        else:
            self._failing = False

    async def flush(self, *, everything: bool = False) -> None:
        """Tell what was counted, in one transaction; what cannot be told is counted on.

        Args:
            everything: whether also what would wait for the end of its minute.
        """
        now = self._clock()
        noted, strangers, used = self._uses.take()
        used.update(self._collect())
        for happened, what in self._waiting.items():
            _merge(noted, happened, what)
        self._waiting = {}
        self._told = {h: at for h, at in self._told.items() if now - at < _MINUTE}
        due = {i for i in used if now - self._written.get(i, now - _MINUTE) >= _MINUTE}
        try:
            if not (noted or strangers or due):
                return
            async with self._pool.acquire() as connection, connection.transaction():
                firsts = await _write_used(connection, due, now)
                looked_up = await _keys(
                    connection, {h.key_id for h in noted} | {s.key_id for s in strangers}
                )
                for stranger, what in strangers.items():
                    if (met := _met(stranger, looked_up.get(stranger.key_id))) is not None:
                        _merge(noted, met, what)
                strangers = {}  # among what is noted from here on
                ready = {h: n for h, n in noted.items() if everything or h not in self._told}
                for entry in (*firsts, *_entries(ready, looked_up)):
                    await note(connection, entry)
        except BaseException:
            # Nothing of the transaction stands: all of it is told another time.
            self._return(noted, strangers, used)
            raise
        self._told |= dict.fromkeys(ready, now)
        self._waiting = {h: n for h, n in noted.items() if h not in ready}
        self._written |= dict.fromkeys(due, now)
        self._forget(now)

    def _return(
        self, noted: Mapping[Happened, Noted], strangers: Mapping[Stranger, Noted], used: set[str]
    ) -> None:
        for happened, what in noted.items():
            self._uses.note(happened, what)
        for stranger, what in strangers.items():
            self._uses.meet(stranger, what)
        self._uses.used |= used

    def _forget(self, now: datetime) -> None:
        self._written = {i: at for i, at in self._written.items() if now - at < _MINUTE}


class UsesCollector(Collector):
    """What was refused at the doors, read when Prometheus asks."""

    def __init__(self, uses: Uses) -> None:
        self._uses = uses

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        refused = CounterMetricFamily(
            "turnout_key_refusals",
            "Requests that were refused for their key, by why",
            labels=("reason",),
        )
        for reason, count in self._uses.refusals.items():
            refused.add_metric((reason,), float(count))
        yield refused
        yield CounterMetricFamily(
            "turnout_key_uses_overlooked",
            "Uses of keys that the audit was to be told of, and that no table had room for",
            value=float(self._uses.overlooked),
        )


async def _write_used(
    connection: store.Connection, used: Collection[str], now: datetime
) -> list[Entry]:
    rows = await connection.fetch(_USED, list(used), now) if used else []
    return [
        _entry(row["project"], Happened(row["id"], "first_use"), Noted(1, now, now))
        for row in rows
        if row["is_first"]
    ]


async def _keys(
    connection: store.Connection, key_ids: Collection[str]
) -> dict[str, asyncpg.Record]:
    rows = await connection.fetch(_KEYS, list(key_ids)) if key_ids else []
    return {row["id"]: row for row in rows}


def _met(stranger: Stranger, row: asyncpg.Record | None) -> Happened | None:
    """What it means that an id was unknown; None where it names no key, or one so new that the
    router had not heard of it."""
    if row is None:
        return None
    if not is_secret(stranger.digest, row["secret_hash"]):
        return Happened(stranger.key_id, "wrong_secret")
    return None if row["revoked_at"] is None else Happened(stranger.key_id, "used_after_revocation")


def _merge(table: dict[Happened, Noted], happened: Happened, noted: Noted) -> None:
    before = table.get(happened)
    if before is None:
        table[happened] = noted
    else:
        before.add(noted)


def _entries(
    noted: Mapping[Happened, Noted], keys: Mapping[str, asyncpg.Record]
) -> Iterator[Entry]:
    for happened, what in noted.items():
        if (row := keys.get(happened.key_id)) is not None:
            yield _entry(row["project"], happened, what)


def _entry(project: str, happened: Happened, noted: Noted) -> Entry:
    detail: dict[str, Any] = {
        "count": noted.count,
        "first": noted.first.isoformat(),
        "last": noted.last.isoformat(),
    }
    if happened.permission:
        detail["permission"] = happened.permission
    return Entry(
        project=project,
        kind="key",
        action=f"key.{happened.what}",
        target=f"keys/{happened.key_id}",
        # Who has only the id of a key is not its holder.
        actor="system" if happened.what in _NOT_PROVEN else f"key:{happened.key_id}",
        at=noted.last,
        detail=detail,
    )
