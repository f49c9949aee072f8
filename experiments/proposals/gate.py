"""Where a project demands a second pair of eyes: a write is tried, taken back, and kept as a
proposal, which another approves.

What could never be done is refused at once, with the same problem as ever, for it has been tried:
in a savepoint of the same transaction, on the locked experiment. An approval carries it out with
all checks again. What was looked at has to be what is changed: where a hand, the guard or a ramp
has moved the experiment since, the proposal is stale. Moves of its bandit do not count: those are
what was approved when it was started, and they never stop.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

import msgspec
from litestar import Request, Response

from experiments import projects
from experiments import store as experiments_store
from experiments.audit.log import Entry, note
from experiments.doors import principal_of, require
from experiments.keys import Principal
from experiments.lifecycle import Change
from experiments.once import Answer
from experiments.problems import ProblemError
from experiments.proposals import store
from experiments.proposals.acts import Act, Acts, Asked, Done, Subject
from experiments.proposals.model import (
    APPROVED_BY,
    MOST_PENDING,
    Demand,
    Proposal,
    ProposalState,
    StaleError,
)
from experiments.revisions import expect_revision
from experiments.store import Connection
from experiments.writes import ControlPlane, write

_MOVED_BY_OTHERS: Final = """
    select exists (
        select from epoch e left join decision d on d.id = e.decision
        where e.experiment = $1 and e.number > $2 and d.rule is distinct from 'bandit'
    )
"""

_IS_LIVE: Final = """
    select exists (
        select from api_key where project = $1 and 'key:' || id = $2 and revoked_at is null
        and (expires_at is null or expires_at > $3)
    )
"""

PROPOSES: Final[dict[str, Any]] = {"proposes": Proposal}
"""What a door says of itself in its `opt`, where a project may demand approval: the answer 202."""


class _TakenBackError(Exception):
    """Takes back what was only tried."""


async def write_act(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    act: Act,
    asked: Asked,
    *,
    expect: Callable[[Subject], None] | None = None,
) -> Response[bytes]:
    """Do what a hand asks for, or propose it where the project demands that another approves it:
    then the answer is 202 with the proposal.

    Args:
        expect: what else has to hold of what is changed, once that is locked.
    """

    async def work(connection: Connection) -> Answer:
        caller = principal_of(request)
        subject = await act.lock(connection, asked.project, asked.key)
        expect_revision(request, subject.revision)
        if expect is not None:
            expect(subject)
        change = Change(caller.actor, asked.reason, control.clock())
        demand = await act.demand(connection, subject, asked)
        if demand is None or not await is_demanded(connection, asked.project, demand):
            return (await act.carry_out(connection, control, subject, asked, change)).answer
        done = await _try(connection, control, act, subject, asked, change)
        if not done.changed:
            return done.answer
        proposal = await _propose(connection, act, subject, asked, change, demand)
        location = {"Location": f"/v1/proposals/{proposal.id}"}
        return Answer(202, location, msgspec.json.encode(proposal))

    kind, target = "experiment", f"experiments/{asked.key}"
    if asked.key is None:
        kind, target = "project", f"projects/{asked.project}"
    return await write(
        control, request, asked.sent, work, action=f"{kind}.{act.verb}", target=target
    )


async def do(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    act: Act,
    key: str | None,
    sent: Any,
    reason: str | None = None,
) -> Response[bytes]:
    """Do what a body asks for, or propose it: what most doors are."""
    asked = act.read(principal_of(request).project, key, sent, reason)
    return await write_act(control, request, act, asked)


async def is_demanded(connection: Connection, project: str, demand: Demand) -> bool:
    """Whether a project demands approval for this. To demand less is itself demanded as long as
    there is anything that is."""
    approvals = await projects.approvals_of(connection, project)
    return bool(approvals) if demand == "approvals" else demand in approvals


async def _try(
    connection: Connection,
    control: ControlPlane,
    act: Act,
    subject: Subject,
    asked: Asked,
    change: Change,
) -> Done:
    """What would come of an act: nothing of it stays."""
    done: Done | None = None
    try:
        async with connection.transaction():
            done = await act.carry_out(connection, control, subject, asked, change)
            raise _TakenBackError
    except _TakenBackError:
        if done is None:
            raise
    return done


async def _propose(
    connection: Connection,
    act: Act,
    subject: Subject,
    asked: Asked,
    change: Change,
    demand: Demand,
) -> Proposal:
    """Keep a proposal, or find the same one that waits already.

    Raises:
        ProblemError: `conflict` where too many wait.
    """
    project, now = asked.project, change.at
    new = store.New(
        project=project,
        experiment=subject.key,
        verb=act.verb,
        demand=demand,
        body=asked.sent,
        reason=asked.reason,
        proposer=change.actor,
        revision=subject.revision,
        run=subject.run,
        epoch=subject.epoch,
        at=now,
    )
    number = await store.same_as(connection, new)
    if number is None:
        if await store.count_pending(connection, project, subject.key, now) >= MOST_PENDING:
            raise ProblemError(
                "conflict",
                f"{MOST_PENDING} proposals wait for approval already: have some approved, rejected"
                " or withdrawn",
            )
        number = await store.insert(connection, new)
    return await find(connection, project, number, now)


async def find(connection: Connection, project: str, number: int, now: datetime) -> Proposal:
    """A proposal of a project.

    Raises:
        ProblemError: `not-found`.
    """
    found = await store.find(connection, project, number, now)
    if found is None:
        raise ProblemError("not-found", f"Project {project} has no proposal {number}")
    return found


async def approve(
    control: ControlPlane, request: Request[Any, Any, Any], acts: Acts, number: int, reason: str
) -> Response[bytes]:
    """Carry out what somebody else has proposed, with all checks again.

    Raises:
        ProblemError: `forbidden` for one's own proposal; `conflict` where it is settled, has
            expired, or the experiment has moved on since: then it is stale from now on; and
            whatever the write itself would be answered, with which it goes on waiting.
    """

    told: dict[str, Any] = {"reason": reason}

    async def work(connection: Connection) -> Answer:
        caller, now = principal_of(request), control.clock()
        proposal, act, subject = await _lock(connection, acts, caller, number, now)
        require(caller, act.permission)
        _expect_pending(proposal)
        if proposal.proposer == caller.actor:
            raise ProblemError(
                "forbidden",
                "This is your own proposal: another has to approve it, with a key of their own",
            )
        why = await moved_since(connection, subject, proposal)
        if why:
            raise StaleError(why)
        if not await connection.fetchval(_IS_LIVE, proposal.project, proposal.proposer, now):
            raise ProblemError(
                "conflict",
                f"{proposal.proposer}, which has proposed it, was revoked or has expired since:"
                " reject it, and propose it anew",
            )
        asked = act.read(proposal.project, proposal.experiment, proposal.body, proposal.reason)
        actor = f"{proposal.proposer}{APPROVED_BY}{caller.actor}"
        await act.carry_out(
            connection, control, subject, asked, Change(actor, proposal.reason, now)
        )
        told.update(_told_of(proposal))
        settled = await store.settle(connection, proposal, "approved", now, caller.actor, reason)
        return Answer(200, {}, msgspec.json.encode(settled))

    try:
        return await write(
            control,
            request,
            {"reason": reason},
            work,
            action="proposal.approve",
            target=f"proposals/{number}",
            told=lambda: told,
        )
    except StaleError as stale:
        # What was begun is taken back by now; this stays.
        await _mark_stale(control, principal_of(request), number, stale.why)
        raise ProblemError(
            "conflict", f"Proposal {number} is stale, for {stale.why}: propose it anew"
        ) from stale


async def reject(
    control: ControlPlane, request: Request[Any, Any, Any], acts: Acts, number: int, reason: str
) -> Response[bytes]:
    """Say no to a proposal, with the permission that approving it takes."""
    return await _close(control, request, acts, number, reason, "rejected")


async def withdraw(
    control: ControlPlane, request: Request[Any, Any, Any], acts: Acts, number: int, reason: str
) -> Response[bytes]:
    """Take one's own proposal back."""
    return await _close(control, request, acts, number, reason, "withdrawn")


async def _close(
    control: ControlPlane,
    request: Request[Any, Any, Any],
    acts: Acts,
    number: int,
    reason: str,
    state: ProposalState,
) -> Response[bytes]:
    async def work(connection: Connection) -> Answer:
        caller, now = principal_of(request), control.clock()
        proposal, act, _ = await _lock(connection, acts, caller, number, now)
        if state == "rejected":
            require(caller, act.permission)
        elif proposal.proposer != caller.actor:
            raise ProblemError(
                "forbidden", "Whoever has proposed it can withdraw it; others can reject it"
            )
        _expect_pending(proposal)
        settled = await store.settle(connection, proposal, state, now, caller.actor, reason)
        return Answer(200, {}, msgspec.json.encode(settled))

    return await write(
        control,
        request,
        {"reason": reason},
        work,
        action="proposal.reject" if state == "rejected" else "proposal.withdraw",
        target=f"proposals/{number}",
    )


async def moved_since(connection: Connection, subject: Subject, proposal: Proposal) -> str:
    """How that which a proposal was made to has moved on; empty where it has not."""
    if subject.revision != proposal.revision:
        return f"the experiment is at revision {subject.revision}, not {proposal.revision}"
    if subject.run != proposal.run:
        return f"the experiment is in run {subject.run}, not {proposal.run}"
    if subject.record is not None and await connection.fetchval(
        _MOVED_BY_OTHERS, subject.record.id, proposal.epoch
    ):
        return f"the experiment is at epoch {subject.epoch}, not {proposal.epoch}"
    return ""


async def _lock(
    connection: Connection, acts: Acts, caller: Principal, number: int, now: datetime
) -> tuple[Proposal, Act, Subject]:
    """A proposal and what it is about, both locked; in this order, as those have it who propose."""
    found = await find(connection, caller.project, number, now)
    act = acts[found.verb]
    subject = await act.lock(connection, caller.project, found.experiment)
    locked = await store.find(connection, caller.project, number, now, lock=True)
    return locked or found, act, subject


def _told_of(proposal: Proposal) -> dict[str, Any]:
    """What the audit keeps of what was carried out: the table may tell otherwise one day."""
    kept = ("experiment", "verb", "body", "proposer")
    return {name: getattr(proposal, name) for name in kept}


def _expect_pending(proposal: Proposal) -> None:
    """Let pass what still waits.

    Raises:
        ProblemError: `conflict`, telling what became of it.
    """
    if proposal.state == "pending":
        return
    by = "" if proposal.settled_by is None else f", by {proposal.settled_by}"
    raise ProblemError("conflict", f"Proposal {proposal.id} is {proposal.state} already{by}")


async def _mark_stale(control: ControlPlane, caller: Principal, number: int, why: str) -> None:
    async with experiments_store.borrow(control.pool) as connection, connection.transaction():
        now = control.clock()
        proposal = await store.find(connection, caller.project, number, now, lock=True)
        if proposal is not None and proposal.state == "pending":
            await store.settle(connection, proposal, "stale", now, caller.actor, why)
            entry = Entry(
                project=caller.project,
                kind="write",
                action="proposal.stale",
                target=f"proposals/{number}",
                actor=caller.actor,
                at=now,
                detail={"why": why},
            )
            await note(connection, entry)
