"""Proposals in Postgres."""

from datetime import datetime
from typing import Any, Final

import asyncpg
import msgspec

from experiments.proposals.model import LIFE, Demand, Proposal, ProposalState
from experiments.store import Connection

# Nobody has to sweep for what has expired: it is found out by whoever looks.
_STATE: Final = "case when state = 'pending' and expires_at <= $1 then 'expired' else state end"
_COLUMNS: Final = f"""
    id, project, experiment, verb, demand, body, reason, proposer, revision, run, epoch, at,
    expires_at, {_STATE} as state, settled_at, settled_by, settled_reason
"""
# Made of constants, all three.
_FIND: Final = f"select {_COLUMNS} from proposal where project = $2 and id = $3"  # noqa: S608
_LOCK: Final = f"{_FIND} for update"
_LIST: Final = f"""
    select {_COLUMNS} from proposal
    where project = $2 and ($3::text is null or experiment = $3)
      and ($4::text is null or {_STATE} = $4) and ($5::bigint is null or id < $5)
    order by id desc limit $6
"""  # noqa: S608
_COUNT: Final = """
    select count(*) from proposal
    where project = $1 and experiment is not distinct from $2 and state = 'pending'
      and expires_at > $3
"""
_SAME: Final = """
    select id from proposal
    where project = $1 and experiment is not distinct from $2 and state = 'pending'
      and expires_at > $3 and (verb, proposer, revision, run, epoch) = ($4, $5, $6, $7, $8)
      and body::jsonb = $9::text::jsonb
    order by id limit 1
"""
_INSERT: Final = """
    insert into proposal (project, experiment, verb, demand, body, reason, proposer, revision, run,
                          epoch, at, expires_at)
    values ($1, $2, $3, $4, $5::text::json, $6, $7, $8, $9, $10, $11, $12) returning id
"""
_SETTLE: Final = """
    update proposal set state = $3, settled_at = $4, settled_by = $5, settled_reason = $6
    where project = $1 and id = $2 and state = 'pending'
"""
_AWAITED: Final = """
    select experiment, count(*) as waiting from proposal
    where project = $1 and state = 'pending' and expires_at > $2 and experiment is not null
    group by experiment
"""


class New(msgspec.Struct, frozen=True):
    """A proposal before it is stored."""

    project: str
    experiment: str | None
    verb: str
    demand: Demand
    body: Any
    reason: str
    proposer: str
    revision: int
    run: int
    epoch: int
    at: datetime


async def insert(connection: Connection, new: New) -> int:
    """Store a proposal; its id."""
    made: int = await connection.fetchval(
        _INSERT,
        new.project,
        new.experiment,
        new.verb,
        new.demand,
        _json(new.body),
        new.reason,
        new.proposer,
        new.revision,
        new.run,
        new.epoch,
        new.at,
        new.at + LIFE,
    )
    return made


async def same_as(connection: Connection, new: New) -> int | None:
    """The id of a proposal that waits and is the same, by the same hand; None without."""
    found: int | None = await connection.fetchval(
        _SAME,
        new.project,
        new.experiment,
        new.at,
        new.verb,
        new.proposer,
        new.revision,
        new.run,
        new.epoch,
        _json(new.body),
    )
    return found


async def count_pending(
    connection: Connection, project: str, experiment: str | None, now: datetime
) -> int:
    """How many proposals of an experiment (None: of the project's settings) wait."""
    waiting: int = await connection.fetchval(_COUNT, project, experiment, now)
    return waiting


async def find(
    connection: Connection, project: str, number: int, now: datetime, *, lock: bool = False
) -> Proposal | None:
    """A proposal of a project, or None."""
    row = await connection.fetchrow(_LOCK if lock else _FIND, now, project, number)
    return None if row is None else _proposal(row)


async def list_proposals(
    connection: Connection,
    project: str,
    now: datetime,
    limit: int,
    *,
    after: int | None = None,
    experiment: str | None = None,
    state: ProposalState | None = None,
) -> list[Proposal]:
    """A project's proposals, the newest first: those of one experiment, or in one state."""
    rows = await connection.fetch(_LIST, now, project, experiment, state, after, limit)
    return [_proposal(row) for row in rows]


async def awaited(connection: Connection, project: str, now: datetime) -> dict[str, int]:
    """How many proposals wait, of each experiment that has some."""
    rows = await connection.fetch(_AWAITED, project, now)
    return {row["experiment"]: row["waiting"] for row in rows}


async def settle(
    connection: Connection,
    proposal: Proposal,
    state: ProposalState,
    at: datetime,
    by: str,
    reason: str,
) -> Proposal:
    """Say what became of a proposal that waits."""
    await connection.execute(_SETTLE, proposal.project, proposal.id, state, at, by, reason)
    return msgspec.structs.replace(
        proposal, state=state, settled_at=at, settled_by=by, settled_reason=reason
    )


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _proposal(row: asyncpg.Record) -> Proposal:
    fields = {name: row[name] for name in Proposal.__struct_fields__}
    return Proposal(**{**fields, "body": msgspec.json.decode(row["body"])})
