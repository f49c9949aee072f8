"""One leader among many processes: a row with a term and an expiry by the database's clock."""

from datetime import datetime, timedelta
from typing import Final

import asyncpg

from experiments.store import Connection

_PATIENCE: Final = "set local lock_timeout = '1s'"

_TAKE = """
    insert into lease (name, holder, term, expires_at)
    values ($1, $2, 1, clock_timestamp() + $3::interval)
    on conflict (name) do update
    set holder = excluded.holder,
        -- By the time at which the row is ours: it may have been locked for a while.
        expires_at = clock_timestamp() + $3::interval,
        term = lease.term + (lease.holder <> excluded.holder
                             or lease.expires_at <= clock_timestamp()
                             or lease.expires_at > clock_timestamp() + 2 * $3::interval)::int
    where lease.holder = excluded.holder or lease.expires_at <= clock_timestamp()
       or lease.expires_at > clock_timestamp() + 2 * $3::interval
    returning term
"""
_HOLD = """
    update lease set expires_at = clock_timestamp() + $4::interval
    where name = $1 and holder = $2 and term = $3 and expires_at > clock_timestamp()
    returning set_config(
        'idle_in_transaction_session_timeout',
        (1000 * extract(epoch from $4::interval))::int::text,
        true
    ), set_config('application_name', 'turnout leader: ' || $1, true)
"""
# A backend in the middle of a statement that waits for its client.
_WAITING = """
    select pid, query_start, clock_timestamp() as now from pg_stat_activity
    where datname = current_database() and application_name = 'turnout leader: ' || $1
      and state = 'active' and wait_event_type = 'Client'
"""
_END = """
    select pg_terminate_backend(pid) from pg_stat_activity
    where pid = $1 and query_start = $2 and state = 'active' and wait_event_type = 'Client'
"""
_PROLONG = """
    update lease set expires_at = clock_timestamp() + $4::interval
    where name = $1 and holder = $2 and term = $3
"""
_GIVE_UP = """
    update lease set expires_at = '-infinity' where name = $1 and holder = $2 and term = $3
"""


class LostLeaseError(Exception):
    """Another process leads now: nothing of this transaction may be kept."""


class Lease:
    """A lease that this process holds, or does not."""

    def __init__(self, name: str, holder: str, time_to_live: timedelta) -> None:
        self.term: int | None = None
        self._name = name
        self._holder = holder
        self._time_to_live = time_to_live
        self._waiting: tuple[int, datetime] | None = None
        self._waiting_since: datetime | None = None

    async def take(self, connection: Connection) -> int | None:
        """Take the lease, or prolong it; its term, or None while another process holds it.

        A term ends with its expiry: whoever takes the lease then, also its last holder, gets a
        new one. An expiry that lies too far ahead to be of this clock was written before the clock
        was put back, or came with a backup of another machine: that lease is over, too.

        Where a transaction of the leader goes on for longer than a second, it leads.
        """
        try:
            async with connection.transaction():
                await connection.execute(_PATIENCE)
                self.term = await connection.fetchval(
                    _TAKE, self._name, self._holder, self._time_to_live
                )
        except asyncpg.LockNotAvailableError:
            self.term = None
            await self._end_frozen(connection)
        else:
            self._waiting = None
        return self.term

    async def _end_frozen(self, connection: Connection) -> None:
        """End the leader's transaction if it has waited in one statement, for half as long as a
        lease lives, for a process that reads nothing and sends nothing: to the server that is no
        idle time. Whoever works, however long, is found to read now and then."""
        row = await connection.fetchrow(_WAITING, self._name)
        if row is None:
            self._waiting = None
            return
        waiting, now = (row["pid"], row["query_start"]), row["now"]
        if waiting != self._waiting or self._waiting_since is None:
            self._waiting, self._waiting_since = waiting, now
        elif now - self._waiting_since >= self._time_to_live / 2:
            await connection.execute(_END, *waiting)

    async def hold(self, connection: Connection) -> int:
        """Make sure, to the end of the transaction, that the term still is ours, and prolong it.

        The row stays locked, so that no other process can begin a term before this transaction
        has ended. A process that freezes in it does not lock the others out: the server ends a
        transaction that is silent for as long as a lease lives.

        Raises:
            LostLeaseError: if it is not.
        """
        if self.term is None or not await connection.fetchval(
            _HOLD, self._name, self._holder, self.term, self._time_to_live
        ):
            raise LostLeaseError(f"{self._name} is led by another process")
        return self.term

    async def prolong(self, connection: Connection) -> None:
        """Prolong a lease that this transaction holds, as its last statement.

        Work may have taken longer than a lease lives; the row was locked all the while, so nobody
        else has begun a term. Without this, what follows a long transaction would find the term
        over, however often it is taken anew.
        """
        await connection.execute(_PROLONG, self._name, self._holder, self.term, self._time_to_live)

    async def give_up(self, connection: Connection) -> None:
        """Let another process lead at once."""
        if self.term is not None:
            await connection.execute(_GIVE_UP, self._name, self._holder, self.term)
            self.term = None
