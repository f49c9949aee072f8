"""One leader among many processes: a row with a term and an expiry by the database's clock."""

from datetime import timedelta

from experiments.store import Connection

_TAKE = """
    insert into lease (name, holder, term, expires_at)
    values ($1, $2, 1, clock_timestamp() + $3::interval)
    on conflict (name) do update
    set holder = excluded.holder, expires_at = excluded.expires_at,
        term = lease.term + (lease.holder <> excluded.holder
                             or lease.expires_at <= clock_timestamp())::int
    where lease.holder = excluded.holder or lease.expires_at <= clock_timestamp()
    returning term
"""
_HOLD = """
    update lease set expires_at = clock_timestamp() + $4::interval
    where name = $1 and holder = $2 and term = $3 and expires_at > clock_timestamp()
    returning set_config(
        'idle_in_transaction_session_timeout',
        (1000 * extract(epoch from $4::interval))::int::text,
        true
    )
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

    async def take(self, connection: Connection) -> int | None:
        """Take the lease, or prolong it; its term, or None while another process holds it.

        A term ends with its expiry: whoever takes the lease then, also its last holder, gets a
        new one.
        """
        self.term = await connection.fetchval(_TAKE, self._name, self._holder, self._time_to_live)
        return self.term

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
