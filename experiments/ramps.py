"""The ramps of runs in Postgres: one row for each. Whoever changes one has locked its
experiment."""

from datetime import datetime
from typing import Final

import msgspec

from experiments import ramp
from experiments.ramp import RampState
from experiments.store import Connection

_READ: Final = "select state from ramp where experiment = $1 and run = $2"
_KEEP: Final = """
    insert into ramp (experiment, run, state) values ($1, $2, $3)
    on conflict (experiment, run) do update set state = excluded.state
"""
_ENROLLED: Final = "select enrolments from run where experiment = $1 and number = $2"


async def read(connection: Connection, experiment: int, run: int) -> RampState | None:
    """Where the ramp of a run stands; None where it began without one."""
    text = await connection.fetchval(_READ, experiment, run)
    return None if text is None else msgspec.json.decode(text, type=RampState)


async def begin(
    connection: Connection, experiment: int, run: int, at: datetime, epoch: int
) -> None:
    """Begin the ramp of a run that starts, with this epoch."""
    await keep(connection, experiment, run, ramp.begin(at, epoch))


async def keep(connection: Connection, experiment: int, run: int, state: RampState) -> None:
    """Store where the ramp of a run stands."""
    text = msgspec.json.encode(state).decode()
    await connection.execute(_KEEP, experiment, run, text)


async def keep_time(
    connection: Connection, experiment: int, run: int, at: datetime, *, runs: bool
) -> None:
    """Let the clock of a run's ramp run or stand, as the experiment does from now on."""
    state = await read(connection, experiment, run)
    if state is not None:
        after = ramp.go_on(state, at) if runs else ramp.stop(state, at)
        await keep(connection, experiment, run, after)


async def note_amendment(connection: Connection, experiment: int, run: int, at: datetime) -> None:
    """Let the ramp of a run know that its steps were changed."""
    state = await read(connection, experiment, run)
    if state is not None:
        await keep(connection, experiment, run, ramp.amend(state, at))


async def enrolled(connection: Connection, experiment: int, run: int) -> int:
    """How many ordinals a run has given to units."""
    number: int = await connection.fetchval(_ENROLLED, experiment, run)
    return number
