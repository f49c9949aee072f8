"""The guard's ledger of alpha in Postgres: its rows, and its generations.

A row is what somebody was given, be it a (guardrail, variant) or a health check that may roll back,
with the rule that it goes by and its evidence, both as JSON. Nothing here decides.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import msgspec

from analysis.inference.generations import share_of
from experiments.model import Action
from experiments.records import ExperimentRecord
from experiments.store import Connection

FIRST: Final = 1
"""The generation that a run begins with."""

_COLUMNS: Final = (
    "id, generation, metric, version, variant, alpha, opened_block, acted, rule, state"
)
_OPEN_ROWS: Final = f"""
    select {_COLUMNS} from guard_ledger
    where experiment = $1 and run = $2 and closed_at is null order by id
"""  # noqa: S608 - made of a constant
_LAST_ROWS: Final = f"""
    select distinct on (metric, version, variant) {_COLUMNS} from guard_ledger
    where experiment = $1 and run = $2 and generation < $3
    order by metric, version, variant, id desc
"""  # noqa: S608 - made of a constant
_SPENT: Final = """
    select coalesce(sum(alpha), 0) as alpha, min(alpha) as least from guard_ledger
    where experiment = $1 and run = $2 and generation = $3
"""
_CLOSE_ROWS: Final = "update guard_ledger set closed_at = $2 where id = any($1)"
_OPEN_ROW: Final = """
    insert into guard_ledger (experiment, run, generation, metric, version, variant, alpha,
                              opened_block, opened_at, rule, state)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
_KEEP_STATE: Final = "update guard_ledger set state = $2 where id = $1"
_ACTED: Final = "update guard_ledger set acted = $2 where id = any($1)"
_GENERATION: Final = """
    select number, at, taken_in from guard_generation where experiment = $1 and run = $2
    order by number desc limit 1
"""
_TAKE_IN: Final = """
    update guard_generation set taken_in = true where experiment = $1 and run = $2
"""


class Generation(msgspec.Struct, frozen=True):
    """A generation of a run's guard.

    Arguments:
        number: from 1 on.
        at: when it was opened; None of the first, which begins with the run.
        taken_in: whether the ledger has its rows.
    """

    number: int = FIRST
    at: datetime | None = None
    taken_in: bool = True


class Row(msgspec.Struct, frozen=True):
    """A row of the ledger as it is stored. `acted` is what was done on its evidence."""

    id: int
    generation: int
    metric: str
    version: str
    variant: str
    alpha: float
    opened_block: int
    acted: Action | None
    rule: str
    state: str


class Opening(msgspec.Struct, frozen=True):
    """Who comes to the ledger: rule and evidence follow from the share that is given.

    `opened_block` is the last enrolment block that it does not see.
    """

    metric: str
    version: str
    variant: str
    opened_block: int
    begin: Callable[[float], tuple[msgspec.Struct, msgspec.Struct]]


async def generation_of(connection: Connection, record: ExperimentRecord) -> Generation:
    """The generation that the guard of a run is in."""
    row = await connection.fetchrow(_GENERATION, record.id, record.run)
    return Generation() if row is None else Generation(*row)


async def take_generation_in(connection: Connection, record: ExperimentRecord) -> None:
    """Note that the ledger has the rows of the run's generation."""
    await connection.execute(_TAKE_IN, record.id, record.run)


async def open_rows(connection: Connection, experiment: int, run: int) -> list[Row]:
    """The open rows of a run's ledger, in the order of their opening."""
    return [Row(*row) for row in await connection.fetch(_OPEN_ROWS, experiment, run)]


async def last_rows(connection: Connection, record: ExperimentRecord, before: int) -> list[Row]:
    """The last row that each had before a generation, open or closed."""
    rows = await connection.fetch(_LAST_ROWS, record.id, record.run, before)
    return [Row(*row) for row in rows]


async def admit(
    connection: Connection,
    record: ExperimentRecord,
    generation: int,
    comers: Sequence[Opening],
    now: datetime,
) -> None:
    """Give each of those that come to a generation its share, and open its row."""
    if not comers:
        return
    spent = await connection.fetchrow(_SPENT, record.id, record.run, generation)
    assert spent is not None, "a sum has a row"  # noqa: S101 - an invariant
    share = share_of(record.definition.guard.alpha, len(comers), *spent)
    for comer in comers:
        rule, state = comer.begin(share)
        await connection.execute(
            _OPEN_ROW,
            record.id,
            record.run,
            generation,
            comer.metric,
            comer.version,
            comer.variant,
            share,
            comer.opened_block,
            now,
            msgspec.json.encode(rule).decode(),
            msgspec.json.encode(state).decode(),
        )


async def close_rows(connection: Connection, rows: Sequence[int], now: datetime) -> None:
    """Close rows: their shares stay spent."""
    if rows:
        await connection.execute(_CLOSE_ROWS, rows, now)


async def keep_state(connection: Connection, row: int, state: msgspec.Struct) -> None:
    """Keep the evidence of a row."""
    await connection.execute(_KEEP_STATE, row, msgspec.json.encode(state).decode())


async def note_act(connection: Connection, rows: Sequence[int], action: Action) -> None:
    """Note what is done on the evidence of rows."""
    if rows:
        await connection.execute(_ACTED, rows, action)
