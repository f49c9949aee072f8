"""The doors of a ramp: where it stands and what it waits for, and what a hand does to it."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from analysis.control import ramp, ramp_rule
from analysis.control.ramp import Code, Status
from analysis.control.ruling import STALE_AFTER
from experiments import lifecycle, ramp_hand, ramps, store
from experiments.acts import Reasoned, plain
from experiments.allocation import traffic_of
from experiments.doors import PathKey, json_response, principal_of, read_json
from experiments.lifecycle import Change
from experiments.model import Duration, RampPolicy, Reason, State
from experiments.problems import ProblemError
from experiments.proposals.acts import Act, of_record, on_experiment
from experiments.proposals.gate import PROPOSES, do, is_demanded
from experiments.proposals.model import APPROVED_BY
from experiments.ramp import RampState, current_step
from experiments.records import ExperimentRecord
from experiments.revisions import etag
from experiments.states import HOLDS_SLOTS
from experiments.writes import Control, ControlPlane

_WATERMARK: Final = "select nullif(watermark, '-infinity') from fold_position"
_STARTED_BY: Final = """
    select actor from epoch where experiment = $1 and run = $2 order by number limit 1
"""


class StepChosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `approve` and `jump`: steps are counted from 1."""

    step: Annotated[int, Meta(ge=1)]
    reason: Reason


class StepView(msgspec.Struct, frozen=True):
    """A step of a ramp, and how far it is. `approved` is None where it waits for no approval."""

    number: int
    place: Literal["done", "now", "ahead"]
    traffic: float
    hold: Duration | None
    units: int | None
    approval: bool
    approved: bool | None


class WatchedView(msgspec.Struct, frozen=True):
    """A guardrail that gates the step: whether the guard has seen the step, and evidence of
    harm."""

    guardrail: str
    variant: str
    seen: bool
    alarmed: bool


class RampView(msgspec.Struct, frozen=True):
    """Where a ramp stands, as of now.

    Arguments:
        status: in a word; `not_started` before the first run, `ended` once the run is over.
        code, reason: why it holds: the controller's own answer, given now.
        step: that is in force, counted from 1; None where there is no run.
        traffic: that routers use now.
        since: when the step's traffic came into force.
        due_at: when the step's hold is over, as far as its clock runs; None while it stands, or
            where nothing is held.
        units: how many were newly enrolled in the step, where it waits for some.
        waits_for: conditions of its own that the step has not met: `time`, `units`, `approval`.
        watched: what gates the step; nothing where the experiment has no guardrails.
        paused: whether a hand has paused the ramp.
    """

    experiment: str
    state: State
    run: int
    status: Status | Literal["not_started", "ended"]
    code: Code | None
    reason: str
    step: int | None
    traffic: float | None
    since: datetime | None
    due_at: datetime | None
    units: int | None
    waits_for: tuple[str, ...]
    watched: tuple[WatchedView, ...]
    paused: bool
    steps: tuple[StepView, ...]


async def view(connection: store.Connection, record: ExperimentRecord, now: datetime) -> RampView:
    """The ramp of an experiment as it stands.

    Raises:
        ProblemError: `conflict` where its policy is no ramp.
    """
    policy = ramp_hand.policy_of(record)
    state = await ramps.read(connection, record.id, record.run)
    if state is None or record.state not in HOLDS_SLOTS:
        return _idle(record, policy, state)
    epoch = await store.get_epoch(connection, record.id, record.epoch)
    watermark: datetime | None = await connection.fetchval(_WATERMARK)
    stale = watermark is None or now - watermark > STALE_AFTER
    observed = await ramp_rule.observe(connection, record, state, (), now=now, stale=stale)
    outcome, observed = await ramp_rule.rule(connection, record, state, observed)
    # What is due is done at the next tick, and shown once it is done.
    seen = state if outcome.code == "advance" else outcome.state
    unseen = ramp.unseen(seen, observed)
    clock = seen.clock(now)
    left = seen.begins + ramp.hold_of(policy, seen) - clock
    runs = seen.running_since is not None and current_step(policy, seen).hold is not None
    return RampView(
        experiment=record.key,
        state=record.state,
        run=record.run,
        status=ramp.STATUS[outcome.code],
        code=outcome.code,
        reason=ramp.reason(policy, outcome, observed),
        step=seen.step,
        traffic=traffic_of(epoch.allocation),
        since=seen.entered_at,
        due_at=now + left if runs else None,
        units=None if current_step(policy, seen).units is None else seen.units,
        waits_for=ramp.unmet_conditions(policy, seen, clock),
        watched=tuple(
            WatchedView(w.guardrail, w.variant, w not in unseen, w.alarmed)
            for w in observed.watched
        ),
        paused=seen.paused,
        steps=_steps(policy, seen),
    )


def _idle(record: ExperimentRecord, policy: RampPolicy, state: RampState | None) -> RampView:
    """The ramp of an experiment without a run that goes on."""
    ended = record.run > 0
    return RampView(
        experiment=record.key,
        state=record.state,
        run=record.run,
        status="ended" if ended else "not_started",
        code=None,
        reason=f"the experiment is {record.state}",
        step=None if state is None else state.step,
        traffic=None,
        since=None if state is None else state.entered_at,
        due_at=None,
        units=None,
        waits_for=(),
        watched=(),
        paused=False,
        steps=_steps(policy, state),
    )


def _steps(policy: RampPolicy, state: RampState | None) -> tuple[StepView, ...]:
    return tuple(
        StepView(
            number=number,
            place=_place(number, len(policy.steps), state),
            traffic=step.traffic,
            hold=step.hold,
            units=step.units,
            approval=step.approval,
            approved=(state is not None and number in state.approvals) if step.approval else None,
        )
        for number, step in enumerate(policy.steps, 1)
    )


def _place(number: int, last: int, state: RampState | None) -> Literal["done", "now", "ahead"]:
    if state is None or number > state.step:
        return "ahead"
    return "done" if number < state.step or (state.completed and number == last) else "now"


async def _show(
    connection: store.Connection,
    control: ControlPlane,
    _: ExperimentRecord,
    after: ExperimentRecord,
) -> RampView:
    """The answer to what a hand does: the ramp as it stands then."""
    return await view(connection, after, control.clock())


async def _approve(
    connection: store.Connection, record: ExperimentRecord, body: StepChosen, change: Change
) -> ExperimentRecord:
    """Approve a step. It is a second pair of eyes by itself, so that where the project demands one
    for moves of traffic, nobody approves a step of a run that they have started.

    Raises:
        ProblemError: `forbidden`.
    """
    if await is_demanded(connection, record.project, "allocation"):
        started: str | None = await connection.fetchval(_STARTED_BY, record.id, record.run)
        if started is not None and started.partition(APPROVED_BY)[0] == change.actor:
            raise ProblemError(
                "forbidden",
                "You have started this run: another has to approve its steps, with a key of their"
                " own",
            )
    return await ramp_hand.approve(connection, record, body.step, change)


async def _jump(
    connection: store.Connection, record: ExperimentRecord, body: StepChosen, change: Change
) -> ExperimentRecord:
    return await ramp_hand.jump(connection, record, body.step, change)


APPROVE: Final = on_experiment("approve", StepChosen, _approve, _show)
JUMP: Final = on_experiment("jump", StepChosen, _jump, _show, of_record(lambda _, __: "allocation"))
PAUSE: Final = on_experiment("ramp_pause", Reasoned, plain(ramp_hand.pause), _show)
RESUME: Final = on_experiment("ramp_resume", Reasoned, plain(ramp_hand.resume), _show)
ACTS: Final[tuple[Act, ...]] = (APPROVE, JUMP, PAUSE, RESUME)


@get("/v1/experiments/{key:str}/ramp", opt={"permission": "read", "gives": RampView}, tags=["ramp"])
async def read_ramp(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Where the ramp stands, what it waits for, and when that is due."""
    async with (
        store.borrow(control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, principal_of(request).project, key)
        shown = await view(connection, record, control.clock())
    return json_response(shown, headers=etag(record.revision))


@post(
    "/v1/experiments/{key:str}/ramp/approve",
    status_code=200,
    opt={"permission": "write", "takes": StepChosen, "gives": RampView},
    tags=["ramp"],
)
async def approve_step(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Approve a step that waits for it, or will: this one alone."""
    return await do(control, request, APPROVE, key, await read_json(request))


@post(
    "/v1/experiments/{key:str}/ramp/jump",
    status_code=200,
    opt={"permission": "write", "takes": StepChosen, "gives": RampView, **PROPOSES},
    tags=["ramp"],
)
async def jump_to_step(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Go to a step, ahead or back, whatever the ramp waits for; its time begins anew."""
    return await do(control, request, JUMP, key, await read_json(request))


@post(
    "/v1/experiments/{key:str}/ramp/pause",
    status_code=200,
    opt={"permission": "write", "takes": Reasoned, "gives": RampView},
    tags=["ramp"],
)
async def pause_ramp(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Let the steps wait; the traffic stays as it is, and the guard goes on watching."""
    return await do(control, request, PAUSE, key, await read_json(request))


@post(
    "/v1/experiments/{key:str}/ramp/resume",
    status_code=200,
    opt={"permission": "write", "takes": Reasoned, "gives": RampView},
    tags=["ramp"],
)
async def resume_ramp(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Let the steps go on, with as much of their time as had passed before the pause."""
    return await do(control, request, RESUME, key, await read_json(request))


ROUTES: Final[list[HTTPRouteHandler]] = [
    read_ramp,
    approve_step,
    jump_to_step,
    pause_ramp,
    resume_ramp,
]
