"""What a ruling does: a decision in the ledger, and the epoch that follows from it."""

from datetime import datetime
from typing import Final

from analysis.control.basis import basis_of
from analysis.control.ruling import (
    Act,
    Advance,
    Advise,
    Alert,
    Conclude,
    Pause,
    Reallocate,
    RollBack,
    RollBackVariant,
    Ruling,
)
from experiments import lifecycle, store
from experiments.allocation import traffic_of
from experiments.lifecycle import Change
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection

ACTOR: Final = "controller"
_SAID: Final = """
    select code from standing_ruling where experiment = $1 and run = $2 and rule = $3
"""
_SAY: Final = """
    insert into standing_ruling (experiment, run, rule, code, at) values ($1, $2, $3, $4, $5)
    on conflict (experiment, run, rule) do update set code = excluded.code, at = excluded.at
"""
_ADVISE: Final = "update run set advised = $3 where experiment = $1 and number = $2"


async def perform(
    connection: Connection, record: ExperimentRecord, ruling: Ruling, term: int, now: datetime
) -> ExperimentRecord:
    """Write a ruling into the ledger and carry its act out; the experiment as it stands then. What
    an earlier ruling of the same tick, or a hand, has done already is not done again.

    The caller's transaction makes it all one, and holds the lock on the experiment.
    """
    opens = _opens_epoch(ruling.act, record)
    change = await _decided(connection, record, ruling, term, now, record.epoch + opens)
    if isinstance(ruling.act, Advise):
        await connection.execute(_ADVISE, record.id, record.run, ruling.act.ship)
    return await _carry_out(connection, record, ruling.act, change) if opens else record


def _opens_epoch(act: Act | None, record: ExperimentRecord) -> bool:
    """Whether an act changes what assignment reads."""
    match act:
        case None | Alert() | Advise():
            return False
        case Pause():
            return record.state == "running"
        case _:
            return record.state in HOLDS_SLOTS


async def _carry_out(
    connection: Connection, record: ExperimentRecord, act: Act | None, change: Change
) -> ExperimentRecord:
    match act:
        case RollBack():
            record = await lifecycle.roll_back(connection, record, change)
        case RollBackVariant(variant):
            record = await lifecycle.roll_back_variant(connection, record, variant, change)
        case Pause():
            record = await lifecycle.pause(connection, record, change)
        case Reallocate(weights):
            epoch = await store.get_epoch(connection, record.id, record.epoch)
            traffic = traffic_of(epoch.allocation)
            split = await lifecycle.plan_split(connection, record, weights, traffic)
            assert split is not None, "a ruling moves 1 % or more"  # noqa: S101 - an invariant
            record = await lifecycle.open_epoch(connection, record, record.state, split, change)
        case Advance(_, traffic):
            split = await lifecycle.plan_traffic(connection, record, traffic)
            record = await lifecycle.open_epoch(connection, record, record.state, split, change)
        case Conclude(ship):
            record = await lifecycle.conclude(connection, record, ship, change)
    return record


async def hold(
    connection: Connection, record: ExperimentRecord, ruling: Ruling, term: int, now: datetime
) -> None:
    """Write into the ledger that a rule holds, if it did not say so, for this reason, last time."""
    if await connection.fetchval(_SAID, record.id, record.run, ruling.rule) != ruling.code:
        await _decided(connection, record, ruling, term, now, record.epoch)


async def _decided(
    connection: Connection,
    record: ExperimentRecord,
    ruling: Ruling,
    term: int,
    now: datetime,
    epoch_after: int,
) -> Change:
    """Write a ruling into the ledger; the change that follows from it."""
    await connection.execute(_SAY, record.id, record.run, ruling.rule, ruling.code, now)
    decision = await store.insert_decision(
        connection,
        record,
        kind="hold" if ruling.act is None else kind_of(ruling.act),
        rule=ruling.rule,
        code=ruling.code,
        epoch_after=epoch_after,
        at=now,
        actor=ACTOR,
        reason=ruling.reason,
        evidence=ruling.evidence,
        term=term,
        basis=await basis_of(connection, record),
    )
    return Change(ACTOR, ruling.reason, now, decision)


def kind_of(act: Act) -> str:
    """The kind of the decision that an act is: its tag."""
    return str(act.__struct_config__.tag)
