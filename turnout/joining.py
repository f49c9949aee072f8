"""How a router that started alone comes together with Postgres, without a restart."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from turnout.backends import (
    CONNECT_TIMEOUT,
    CannotRunError,
    RefusedError,
    UnreachableError,
    line_of,
)
from turnout.migrate import MigrationError
from turnout.serving import Task

SHORTEST_WAIT: Final = 0.5
LONGEST_WAIT: Final = 5.0
_AWAY: Final = "it does not answer"
logger = logging.getLogger(__name__)


class Joining:
    """Tries to join until it has worked once; from then on each part copes with outages itself."""

    def __init__(
        self,
        join: Callable[[float], Awaitable[None]],
        joined: asyncio.Event,
        generator: random.Random,
    ) -> None:
        """`join` takes the seconds to wait for a connection; `joined` is set when it has worked;
        `generator` gives the jitter."""
        self._join = join
        self._random = generator
        self.joined = joined
        self.refusal = _AWAY
        """Why the last attempt failed, for everybody to read."""
        self._logged = ""

    async def now(self, patience: float) -> None:
        """Join.

        Raises:
            CannotRunError, MigrationError: if it cannot be done now.
        """
        try:
            await self._join(patience)
        except (CannotRunError, MigrationError) as error:
            self.refusal = _for_everybody(error)
            raise
        self.joined.set()

    async def then(self, task: Task) -> None:
        """Join, however often it has to be tried, and then go on with a task."""
        wait = SHORTEST_WAIT
        while not self.joined.is_set():
            # All routers wait for the same Postgres, and should not come back to it at once.
            await asyncio.sleep(wait * self._random.uniform(0.5, 1.0))
            wait = min(LONGEST_WAIT, 2.0 * wait)
            try:
                await self.now(CONNECT_TIMEOUT)
            except (CannotRunError, MigrationError) as error:
                self._failed(error)
            except Exception as error:  # whatever it is, the router goes on serving
                logger.exception("not joined")
                self.refusal = type(error).__name__
            else:
                logger.info("joined: Postgres is back")
        await task()

    def _failed(self, error: CannotRunError | MigrationError) -> None:
        line = line_of(error)
        if line != self._logged:  # once: it is the same with every attempt
            away = isinstance(error, UnreachableError) and not isinstance(error, RefusedError)
            logger.log(
                logging.WARNING if away else logging.ERROR, "not joined", extra={"error": line}
            )
        self._logged = line


def _for_everybody(error: CannotRunError | MigrationError) -> str:
    """What a line may say that anybody can read: no addresses, and no names of users."""
    if isinstance(error, RefusedError):
        return "it does not let us in: TURNOUT_DATABASE_URL is wrong, or its user has no right"
    return _AWAY if isinstance(error, UnreachableError) else line_of(error)
