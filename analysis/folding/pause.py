"""Long work between two statements of a transaction, done a piece at a time."""

import asyncio
from typing import Final

from experiments.store import Connection

PIECE: Final = 1_000
"""Epochs or blocks: a few tenths of a second."""


class Pause:
    """Lets others have their turn, and the server know that the transaction goes on.

    Where doors are served beside this, they wait otherwise; and the server ends a transaction that
    is silent for as long as a lease lives (`control/lease.py`).
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._done = 0

    async def after(self, steps: int) -> None:
        """So many epochs, or blocks, were worked on since the last pause."""
        self._done += steps
        if self._done < PIECE:
            await asyncio.sleep(0)
            return
        self._done = 0
        await self._connection.execute("select")
