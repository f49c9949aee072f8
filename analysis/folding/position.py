"""The lock of all that folding keeps: one transaction at a time may change it."""

from experiments.store import Connection

_LOCK = "select from fold_position for update"


async def hold_moments(connection: Connection) -> None:
    """Be the only one, to the end of the transaction, to fold, fill in or erase.

    It comes before every other lock on enrolments, runs and values, or two could wait for each
    other.
    """
    await connection.execute(_LOCK)
