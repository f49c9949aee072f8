"""The command that compares what folding keeps with what raw events say."""

from collections.abc import Callable

from analysis.upkeep.verify import Verdict, VerifyError, verify
from turnout.admin import database
from turnout.backends import CannotRunError
from turnout.settings import Settings


async def verify_database(
    settings: Settings, project: str | None, experiment: str | None, progress: Callable[[str], None]
) -> Verdict:
    """Count what folding keeps again from raw events, and compare.

    Args:
        project, experiment: keys of what to compare; None for all.
        progress: is told what is being compared, in a line.

    Raises:
        CannotRunError: if there is nothing to compare, or the database cannot be reached.
    """
    async with database(settings) as (pool, _), pool.acquire() as connection:
        try:
            return await verify(connection, project, experiment, progress)
        except VerifyError as error:
            raise CannotRunError(str(error)) from error
