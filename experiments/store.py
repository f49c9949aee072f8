"""Experiments in Postgres. Each function takes a connection, so that its caller owns the
transaction; none decides anything.

**Locks.** Whoever changes something takes these in this order, so that no two wait for each other
in a circle; each leaves out what it does not need.

1. the project as a whole (an advisory lock): shared by all who lock an experiment of it, taken
   alone by who changes the holdout, which is pinned in the epochs of many;
2. experiments, in the order of their ids where there are several;
3. a layer;
4. the project's row, for its version: held to the commit, so that versions commit in order.

Whoever folds, takes definitions in or erases has the lock of the moments before all of these, and
those of a run's metrics between 2 and 4.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

import asyncpg
import msgspec

from experiments.allocation import Allocation
from experiments.keys import ApiKey
from experiments.model import HOLDOUT, Experiment, State, Stickiness
from experiments.moves import AnyMove, read_move
from experiments.records import (
    Basis,
    Decision,
    Done,
    Epoch,
    ExperimentRecord,
    HoldoutPin,
    LayerPin,
    Live,
    Override,
    Publication,
    Revision,
    Sealed,
    Unread,
)
from experiments.seals import seal
from experiments.spans import current_trace
from experiments.units import UnitKey
from experiments.webhooks.model import event_type

Connection: TypeAlias = "asyncpg.Connection[Any] | asyncpg.pool.PoolConnectionProxy[Any]"
Pool: TypeAlias = "asyncpg.Pool[Any]"
# asyncpg calls it an error of its own where a connection is cut at an unexpected moment.
PostgresError = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_EXPERIMENT = """
    select id, project, key, state, revision, run, epoch, definition, ship, created_at, updated_at,
           rolled_back
    from experiment
"""
_EPOCH_COLUMNS = (
    "number, run, state, salt, allocation, weights, targeting, layer, holdout, stickiness, ship, "
    "at, actor, reason, decision, rolled_back"
)

_PINNED: Final[dict[str, Any]] = {"targeting": Any, "layer": LayerPin, "holdout": HoldoutPin}

_LIVE = """
    select x.id, x.project, x.key, x.state, x.revision, x.run, x.epoch, x.definition, x.ship,
           x.created_at, x.updated_at, x.rolled_back,
           e.number as e_number, e.run as e_run, e.state as e_state, e.salt as e_salt,
           e.allocation as e_allocation, e.weights as e_weights, e.targeting as e_targeting,
           e.layer as e_layer, e.holdout as e_holdout, e.stickiness as e_stickiness,
           e.ship as e_ship, e.at as e_at, e.actor as e_actor, e.reason as e_reason,
           e.decision as e_decision, e.rolled_back as e_rolled_back
    from experiment x join epoch e on e.experiment = x.id and e.number = x.epoch
"""
_NEW_LIVE = (
    _LIVE
    + """
    where x.project = $1 and x.state <> 'archived' and x.key <> $2
      and ($3::bigint is null or x.version > $3 or x.key = any($4::text[]))
    order by x.id
"""
)
_LIVE_HOLDOUT = _LIVE + " where x.project = $1 and x.key = $2 and x.state = 'running'"
_NEW_OVERRIDES = """
    select o.experiment, o.id, o.variant, o.unit, o.attribute, o.value, o.created_at, o.actor,
           o.reason, o.ended_at, o.ended_by
    from override o join experiment x on x.id = o.experiment
    where o.ended_at is null and x.project = $1 and x.state <> 'archived'
      and ($2::bigint is null or x.version > $2 or x.key = any($3::text[]))
    order by o.id
"""
_GONE = """
    select key from experiment
    where project = $1 and version > $2 and state = 'archived' order by id
"""
_DECISION_COLUMNS = (
    "d.id, d.run, d.kind, d.rule, d.code, d.epoch_before, d.epoch_after, d.term, d.at, d.actor, "
    "d.reason, d.evidence, d.basis, d.seal"
)
_DECISION = f"""
    select {_DECISION_COLUMNS}, x.key, e.move, e.seal as seal_of_epoch
    from decision d join experiment x on x.id = d.experiment
    left join epoch e on e.experiment = d.experiment and e.number = d.epoch_after
                     and d.epoch_after > d.epoch_before
    where x.project = $1 and d.id = $2
"""  # noqa: S608 - a constant
# One statement for each set of filters: each finds its rows in an index of theirs.
_DECISIONS = {
    (by_kind, by_rule, holds): f"""
        select {_DECISION_COLUMNS} from decision d
        where d.experiment = $1 and ($2::bigint is null or d.id < $2)
          {"and d.kind = $4" if by_kind else ""}
          {f"and d.rule = ${4 + by_kind}" if by_rule else ""}
          {"" if holds else "and d.kind <> 'hold'"}
        order by d.id desc limit $3
    """  # noqa: S608 - constants
    for by_kind in (False, True)
    for by_rule in (False, True)
    for holds in (False, True)
}
_ENTER = "select pg_advisory_xact_lock_shared($1, hashtext($2))"
_ENTER_ALONE = "select pg_advisory_xact_lock($1, hashtext($2))"
_LOCK_CLASS: Final = 0x7475726E  # the number only has to be ours

# For each webhook that asks for a decision, a delivery, and its place in the experiment's lane.
# Nothing but the lane is locked, which nobody who delivers holds for longer than a statement.
_OFFER: Final = """
    with offered as (
        insert into delivery (webhook, experiment, decision, type, offered_at, traceparent,
                              tracestate)
        select id, $3, $4, $5, clock_timestamp(), $6, $7 from webhook
        where project = $1 and deleted_at is null and enabled
          and case when types is null then $5 <> 'experiment.hold' else $5 = any(types) end
          and (experiments is null or $2 = any(experiments))
        order by id
        returning webhook, experiment, offered_at
    )
    insert into delivery_lane (webhook, experiment, due_at, waiting)
    select webhook, experiment, offered_at, 1 from offered
    on conflict (webhook, experiment) do update
    set waiting = delivery_lane.waiting + 1,
        due_at = case when delivery_lane.waiting = 0 then excluded.due_at
                      else delivery_lane.due_at end
"""

BORROW_SECONDS: Final = 5.0
SLICE: Final = 32
"""Rows that are decoded in one go: a millisecond or two, in which nothing else is done."""


class Found(NamedTuple):
    """A decision, its experiment, and of the epoch that it made, if any, the move and the seal;
    None where an older release kept none."""

    experiment: ExperimentRecord
    decision: Decision
    move: AnyMove | None
    seal_of_epoch: str | None


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _experiment(row: asyncpg.Record, prefix: str = "") -> ExperimentRecord:
    fields = {name: row[prefix + name] for name in ExperimentRecord.__struct_fields__}
    fields["definition"] = msgspec.json.decode(fields["definition"], type=Experiment)
    fields["rolled_back"] = tuple(fields["rolled_back"])
    return ExperimentRecord(**fields)


def _epoch(row: asyncpg.Record, prefix: str = "") -> Epoch:
    fields = {name: row[prefix + name] for name in Epoch.__struct_fields__}
    fields["allocation"] = msgspec.json.decode(fields["allocation"], type=Allocation)
    fields["weights"] = msgspec.json.decode(fields["weights"], type=dict[str, float])
    fields["rolled_back"] = tuple(fields["rolled_back"])
    # What a newer release means by a word of its own must not be taken for something else.
    msgspec.convert((fields["state"], fields["stickiness"]), tuple[State, Stickiness])
    for name, kind in _PINNED.items():
        text = fields[name]
        fields[name] = None if text is None else msgspec.json.decode(text, type=kind)
    return Epoch(**fields)


def borrow(pool: Pool) -> "asyncpg.pool.PoolAcquireContext[Any]":
    """A connection for a request at a door, which gives up rather than queue behind a database
    that hangs.

    Raises:
        TimeoutError: on entry, if none is free in time.
    """
    return pool.acquire(timeout=BORROW_SECONDS)


async def create_project(connection: Connection, project: str, now: datetime) -> None:
    """Make a project, unless it is there."""
    await connection.execute(
        "insert into project (key, created_at) values ($1, $2) on conflict do nothing", project, now
    )


async def touch_project(connection: Connection, project: str) -> int:
    """Raise the version of a project, in the transaction of what changed; the new version.

    The row stays locked until that ends, so that versions are committed in their order.
    """
    version: int = await connection.fetchval(
        "update project set version = version + 1 where key = $1 returning version", project
    )
    return version


async def mark_changed(connection: Connection, project: str, experiments: Sequence[int]) -> None:
    """Let routers read these experiments anew: their caller has locked them, and changed what
    stands beside their rows."""
    version = await touch_project(connection, project)
    await connection.execute(
        "update experiment set version = $2 where id = any($1)", experiments, version
    )


async def enter(connection: Connection, project: str) -> None:
    """Begin to change experiments of a project, as others may, too: what is in force for all of
    them stays so until the transaction ends."""
    await connection.execute(_ENTER, _LOCK_CLASS, project)


async def enter_alone(connection: Connection, project: str) -> None:
    """Begin to change what is in force for all experiments of a project: nobody else changes one of
    them until the transaction ends."""
    await connection.execute(_ENTER_ALONE, _LOCK_CLASS, project)


async def insert_key(connection: Connection, key: ApiKey) -> None:
    """Keep a new API key."""
    await connection.execute(
        """insert into api_key (id, project, role, secret_hash, note, created_at, expires_at, scope,
                                rate_limit, created_by)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)""",
        key.id,
        key.project,
        key.role,
        key.secret_hash,
        key.note,
        key.created_at,
        key.expires_at,
        key.scope,
        key.rate_limit,
        key.created_by,
    )
    await touch_project(connection, key.project)


async def revoke_key(connection: Connection, project: str, key_id: str, now: datetime) -> bool:
    """Revoke a key; whether there was one to revoke."""
    status = await connection.execute(
        """update api_key set revoked_at = $3
           where project = $1 and id = $2 and revoked_at is null""",
        project,
        key_id,
        now,
    )
    if status != "UPDATE 1":
        return False
    await touch_project(connection, project)
    return True


async def live_keys(connection: Connection, project: str) -> tuple[ApiKey, ...]:
    """The keys of a project that were not revoked."""
    rows = await connection.fetch(
        """select id, project, role, secret_hash, note, created_at, expires_at, scope, rate_limit,
                  created_by, last_used_at
           from api_key where project = $1 and revoked_at is null order by created_at, id""",
        project,
    )
    return tuple(
        ApiKey(**{**row, "scope": None if row["scope"] is None else tuple(row["scope"])})
        for row in rows
    )


async def any_key(connection: Connection) -> bool:
    """Whether any key was ever made."""
    found: bool = await connection.fetchval("select exists (select from api_key)")
    return found


async def insert_experiment(
    connection: Connection, project: str, definition: Experiment, now: datetime
) -> ExperimentRecord | None:
    """Store a draft; None where the project has, or ever had, an experiment of this key."""
    row = await connection.fetchrow(
        """insert into experiment (project, key, state, revision, definition, created_at,
                                   updated_at)
           values ($1, $2, 'draft', 1, $3, $4, $4)
           on conflict (project, key) do nothing
           returning id, project, key, state, revision, run, epoch, definition, ship, created_at,
                     updated_at, rolled_back""",
        project,
        definition.key,
        _json(definition),
        now,
    )
    return None if row is None else _experiment(row)


async def get_definition(connection: Connection, experiment: int) -> Experiment:
    """The definition of an experiment that there is, by its id."""
    text = await connection.fetchval("select definition from experiment where id = $1", experiment)
    return msgspec.json.decode(text, type=Experiment)


async def get_experiment(
    connection: Connection, project: str, key: str, *, lock: bool = False
) -> ExperimentRecord | None:
    """The experiment of this key, locked until the transaction ends where `lock` says so."""
    if lock:
        await enter(connection, project)
    # The weaker lock lets others refer to the row, which folding does while it holds its runs.
    locked = " for no key update" if lock else ""
    query = _EXPERIMENT + " where project = $1 and key = $2" + locked
    row = await connection.fetchrow(query, project, key)
    return None if row is None else _experiment(row)


async def list_experiments(
    connection: Connection,
    project: str,
    limit: int,
    after: int | None,
    state: State | None,
    *,
    built_in: bool = False,
) -> list[ExperimentRecord]:
    """Up to `limit` experiments, the newest first, from behind the id `after`; the built-in one
    among them only where `built_in` says so."""
    rows = await connection.fetch(
        _EXPERIMENT
        + """ where project = $1 and ($2::bigint is null or id < $2)
                and ($3::text is null or state = $3) and ($5 or key <> $6)
              order by id desc limit $4""",
        project,
        after,
        state,
        limit,
        built_in,
        HOLDOUT,
    )
    return [_experiment(row) for row in rows]


async def insert_revision(
    connection: Connection,
    record: ExperimentRecord,
    actor: str,
    reason: str,
) -> None:
    """Keep the record's definition as its revision."""
    await connection.execute(
        """insert into revision (experiment, number, definition, at, actor, reason)
           values ($1, $2, $3, $4, $5, $6)""",
        record.id,
        record.revision,
        _json(record.definition),
        record.updated_at,
        actor,
        reason,
    )


async def amend(
    connection: Connection,
    record: ExperimentRecord,
    definition: Experiment,
    at: datetime,
    actor: str,
    reason: str,
) -> ExperimentRecord:
    """The record with another definition, which is kept as its next revision."""
    amended = msgspec.structs.replace(
        record, definition=definition, revision=record.revision + 1, updated_at=at
    )
    await insert_revision(connection, amended, actor, reason)
    await save_experiment(connection, amended)
    return amended


async def list_revisions(
    connection: Connection, experiment: int, limit: int, after: int | None
) -> list[Revision]:
    """Up to `limit` revisions, the newest first, from behind the number `after`."""
    rows = await connection.fetch(
        """select number, at, actor, reason, definition from revision
           where experiment = $1 and ($2::bigint is null or number < $2)
           order by number desc limit $3""",
        experiment,
        after,
        limit,
    )
    return [
        Revision(
            row["number"],
            row["at"],
            row["actor"],
            row["reason"],
            msgspec.json.decode(row["definition"], type=Experiment),
        )
        for row in rows
    ]


async def save_experiment(connection: Connection, record: ExperimentRecord) -> None:
    """Store all of a record that can change, and raise its project's version."""
    version = await touch_project(connection, record.project)
    await connection.execute(
        """update experiment
           set state = $2, revision = $3, run = $4, epoch = $5, definition = $6, ship = $7,
               updated_at = $8, version = $9, rolled_back = $10
           where id = $1""",
        record.id,
        record.state,
        record.revision,
        record.run,
        record.epoch,
        _json(record.definition),
        record.ship,
        record.updated_at,
        version,
        record.rolled_back,
    )


async def insert_run(
    connection: Connection, experiment: int, number: int, salt: str, now: datetime
) -> None:
    """Begin a run."""
    await connection.execute(
        "insert into run (experiment, number, salt, started_at) values ($1, $2, $3, $4)",
        experiment,
        number,
        salt,
        now,
    )


async def end_run(connection: Connection, experiment: int, number: int, now: datetime) -> None:
    """End a run."""
    await connection.execute(
        "update run set ended_at = $3 where experiment = $1 and number = $2",
        experiment,
        number,
        now,
    )


async def resume_run(connection: Connection, record: ExperimentRecord) -> bool:
    """Note that a run goes on after a pause, at the time of its epoch; whether the guard had paused
    it."""
    paused_by_guard: bool = await connection.fetchval(
        """update run r set resumed_at = $3, paused_by_guard = false
           from run before
           where (r.experiment, r.number) = ($1, $2)
             and (before.experiment, before.number) = ($1, $2)
           returning before.paused_by_guard""",
        record.id,
        record.run,
        record.updated_at,
    )
    return paused_by_guard


async def note_guard_pause(connection: Connection, record: ExperimentRecord) -> None:
    """Note that the guard wants a run paused: resuming it is to open a generation."""
    await connection.execute(
        "update run set paused_by_guard = true where experiment = $1 and number = $2",
        record.id,
        record.run,
    )


async def note_rollback(connection: Connection, record: ExperimentRecord, variant: str) -> None:
    """Note that the record's epoch has rolled a variant back."""
    await connection.execute(
        """insert into variant_rollback (experiment, run, variant, epoch) values ($1, $2, $3, $4)
           on conflict (experiment, run, variant) do update set epoch = excluded.epoch""",
        record.id,
        record.run,
        variant,
        record.epoch,
    )


async def epoch_of_rollback(connection: Connection, record: ExperimentRecord, variant: str) -> int:
    """The epoch that rolled a variant of the current run back, the last time."""
    number: int | None = await connection.fetchval(
        """select epoch from variant_rollback
           where experiment = $1 and run = $2 and variant = $3""",
        record.id,
        record.run,
        variant,
    )
    assert number is not None, "who is rolled back was so by an epoch"  # noqa: S101 - an invariant
    return number


async def open_generation(connection: Connection, record: ExperimentRecord) -> None:
    """Begin the next generation of a run's guard, by the decision that was written last: a hand's,
    under the lock that the caller holds."""
    await connection.execute(
        """insert into guard_generation (experiment, run, number, epoch, at, actor, reason,
                                         decision)
           select d.experiment, d.run, 1 + coalesce(
                      (select max(g.number) from guard_generation g
                       where g.experiment = d.experiment and g.run = d.run), 1),
                  $2, d.at, d.actor, d.reason, d.id
           from decision d where d.experiment = $1 and d.kind <> 'hold'
           order by d.id desc limit 1""",
        record.id,
        record.epoch,
    )


async def insert_epoch(
    connection: Connection,
    experiment: int,
    epoch: Epoch,
    *,
    resized: bool,
    move: AnyMove | None = None,
) -> None:
    """Keep an epoch under a seal; it is never changed again. `resized` says whether it enrols other
    slots than the epoch before, and `move` how its allocation follows from that one's."""
    done = Done(epoch.decision, epoch.number, epoch.state, move, epoch.allocation)
    await connection.execute(
        """insert into epoch (experiment, number, run, state, salt, allocation, weights, targeting,
                              layer, holdout, stickiness, ship, resized, at, actor, reason,
                              decision, move, rolled_back, seal)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17,
                   $18, $19, $20)""",
        experiment,
        epoch.number,
        epoch.run,
        epoch.state,
        epoch.salt,
        _json(epoch.allocation),
        _json(epoch.weights),
        *(
            None if part is None else _json(part)
            for part in (epoch.targeting, epoch.layer, epoch.holdout)
        ),
        epoch.stickiness,
        epoch.ship,
        resized,
        epoch.at,
        epoch.actor,
        epoch.reason,
        epoch.decision,
        None if move is None else _json(move),
        epoch.rolled_back,
        seal(done),
    )


async def get_epoch(connection: Connection, experiment: int, number: int) -> Epoch:
    """An epoch of an experiment."""
    row = await connection.fetchrow(
        f"select {_EPOCH_COLUMNS} from epoch where experiment = $1 and number = $2",  # noqa: S608 - a constant
        experiment,
        number,
    )
    assert row is not None, "an experiment's epochs are never deleted"  # noqa: S101 - an invariant
    return _epoch(row)


async def get_epochs(connection: Connection, epochs: Sequence[tuple[int, int]]) -> dict[int, Epoch]:
    """One epoch of each of these experiments, given as (experiment, number), by experiment."""
    rows = await connection.fetch(
        f"""select experiment, {_EPOCH_COLUMNS}
            from epoch join unnest($1::bigint[], $2::int[]) as wanted (experiment, number)
            using (experiment, number)""",  # noqa: S608 - a constant
        [experiment for experiment, _ in epochs],
        [number for _, number in epochs],
    )
    return {row["experiment"]: _epoch(row) for row in rows}


async def get_allocations(
    connection: Connection, epochs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], Allocation]:
    """The allocations of epochs, by experiment and number."""
    rows = await connection.fetch(
        """select experiment, number, allocation
           from epoch join unnest($1::bigint[], $2::int[]) as wanted (experiment, number)
           using (experiment, number)""",
        [experiment for experiment, _ in epochs],
        [number for _, number in epochs],
    )
    return {
        (row["experiment"], row["number"]): msgspec.json.decode(row["allocation"], type=Allocation)
        for row in rows
    }


async def list_epochs(
    connection: Connection, experiment: int, limit: int, after: int | None
) -> list[Epoch]:
    """Up to `limit` epochs, the newest first, from behind the number `after`."""
    rows = await connection.fetch(
        f"""select {_EPOCH_COLUMNS} from epoch
            where experiment = $1 and ($2::bigint is null or number < $2)
            order by number desc limit $3""",  # noqa: S608 - a constant
        experiment,
        after,
        limit,
    )
    return [_epoch(row) for row in rows]


async def run_allocations(
    connection: Connection, experiment: int, run: int, through: int | None = None
) -> list[Allocation]:
    """The allocations of a run between which its traffic changed, in order: the first and the last
    of each stretch of epochs that enrol the same slots. However often weights moved in between,
    they are as few as the changes of traffic.

    Args:
        through: the epoch after which they were asked for; the last one unless told.
    """
    rows = await connection.fetch(
        """with resized as (
               select number from epoch
               where experiment = $1 and run = $2 and resized and number <= coalesce($3, number)
           )
           select allocation from epoch
           where experiment = $1 and run = $2
             and number in (
                 select number from resized union all select number - 1 from resized
             )
           order by number""",
        experiment,
        run,
        through,
    )
    return [msgspec.json.decode(row["allocation"], type=Allocation) for row in rows]


async def insert_decision(
    connection: Connection,
    record: ExperimentRecord,
    *,
    kind: str,
    rule: str,
    code: str,
    epoch_after: int,
    at: datetime,
    actor: str,
    reason: str,
    evidence: Any,
    term: int | None,
    basis: Basis | None = None,
) -> int:
    """Write into the ledger of decisions, under a seal; the number of the row."""
    sealed = Sealed(
        record.run,
        kind,
        rule,
        code,
        record.epoch,
        epoch_after,
        term,
        at.astimezone(UTC),
        actor,
        reason,
        evidence,
        basis,
    )
    number: int = await connection.fetchval(
        """insert into decision (experiment, run, kind, rule, code, epoch_before, epoch_after, term,
                                 at, actor, reason, evidence, basis, seal)
           values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) returning id""",
        record.id,
        record.run,
        kind,
        rule,
        code,
        record.epoch,
        epoch_after,
        term,
        at,
        actor,
        reason,
        _json(evidence),
        None if basis is None else _json(basis),
        seal(sealed),
    )
    told_as = event_type(kind, rule)
    trace = current_trace.get()
    await connection.execute(
        _OFFER,
        record.project,
        record.key,
        record.id,
        number,
        told_as,
        None if trace is None else trace.traceparent,
        None if trace is None else trace.state,
    )
    return number


async def list_decisions(
    connection: Connection,
    experiment: int,
    limit: int,
    after: int | None,
    *,
    kind: str | None = None,
    rule: str | None = None,
    holds: bool = True,
) -> list[Decision]:
    """Up to `limit` decisions, the newest first, from behind the id `after`.

    Args:
        kind, rule: those of this kind, of this rule.
        holds: whether those are among them that only hold.
    """
    rows = await connection.fetch(
        _DECISIONS[kind is not None, rule is not None, holds],
        experiment,
        after,
        limit,
        *(word for word in (kind, rule) if word is not None),
    )
    return [_decision(row) for row in rows]


async def get_decision(connection: Connection, project: str, number: int) -> Found | None:
    """A decision of a project; None where the project has none of this number."""
    row = await connection.fetchrow(_DECISION, project, number)
    if row is None:
        return None
    experiment = await get_experiment(connection, project, row["key"])
    assert experiment is not None, "experiments are never deleted"  # noqa: S101 - an invariant
    return Found(experiment, _decision(row), read_move(row["move"]), row["seal_of_epoch"])


def _decision(row: asyncpg.Record) -> Decision:
    """A decision out of a row that has its columns."""
    fields = {name: row[name] for name in Decision.__struct_fields__}
    fields["evidence"] = msgspec.json.decode(row["evidence"])
    fields["basis"] = row["basis"] and msgspec.json.decode(row["basis"], type=Basis)
    return Decision(**fields)


async def project_versions(connection: Connection) -> dict[str, int]:
    """The version of every project."""
    rows = await connection.fetch("select key, version from project")
    return {row["key"]: row["version"] for row in rows}


async def load_publication(
    connection: Connection, project: str, since: int | None = None, again: Collection[str] = ()
) -> Publication | None:
    """All that a router needs to know of a project, as of one moment, or what of it is new since a
    version: a draft has no epoch, so it is not part of it.

    Experiments come in slices, so that many of them do not hold up the event loop. One that cannot
    be read keeps back no other.

    Args:
        again: keys of experiments that are read even if they are not new.
    """
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        row = await connection.fetchrow(
            """select version, default_unit_type, erasures, sticky_id, origins,
                      case when units = 'hashed' then unit_key end as unit_key
               from project where key = $1""",
            project,
        )
        if row is None:
            return None
        if since is not None and since > row["version"]:
            since = None  # the database is an older one, restored: nothing is known of it
        overrides = await _new_overrides(connection, project, since, again)
        news = connection.cursor(_NEW_LIVE, project, HOLDOUT, since, [*again], prefetch=SLICE)
        read = [_live(row, overrides[row["id"]]) async for row in news]
        row_of_holdout = await connection.fetchrow(_LIVE_HOLDOUT, project, HOLDOUT)
        holdout = None if row_of_holdout is None else _live(row_of_holdout)
        gone = [] if since is None else await connection.fetch(_GONE, project, since)
        return Publication(
            project=project,
            version=row["version"],
            default_unit_type=row["default_unit_type"],
            keys=await live_keys(connection, project),
            experiments=tuple(found for found in read if isinstance(found, Live)),
            unit_key=None if row["unit_key"] is None else UnitKey(row["unit_key"]),
            erasures=row["erasures"],
            sticky_id=row["sticky_id"].hex,
            origins=tuple(row["origins"]),
            since=since,
            gone=tuple(r["key"] for r in gone),
            holdout=holdout if isinstance(holdout, Live) else None,
            unread=tuple(found for found in (*read, holdout) if isinstance(found, Unread)),
        )


def _live(row: asyncpg.Record, overrides: Iterable[Override] = ()) -> Live | Unread:
    try:
        return Live(_experiment(row), _epoch(row, "e_"), tuple(overrides))
    except Exception as error:  # whatever a newer release has put there
        return Unread(row["key"], str(error))


async def _new_overrides(
    connection: Connection, project: str, since: int | None, again: Collection[str]
) -> defaultdict[int, list[Override]]:
    """The current overrides of what changed after a version or is read again, by experiment."""
    found: defaultdict[int, list[Override]] = defaultdict(list)
    rows = connection.cursor(_NEW_OVERRIDES, project, since, [*again], prefetch=8 * SLICE)
    async for row in rows:
        found[row["experiment"]].append(read_override(row))
    return found


def read_override(row: asyncpg.Record) -> Override:
    """An override out of a row that has its columns."""
    fields = {name: row[name] for name in Override.__struct_fields__}
    fields["value"] = None if row["value"] is None else msgspec.json.decode(row["value"])
    return Override(**fields)
