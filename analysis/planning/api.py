"""The door of the planner."""

import asyncio
import threading
from typing import Any, Final, TypeAlias

import msgspec
from litestar import Request, Response, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation

from analysis.planning.answer import Plan
from analysis.planning.observed import completed, not_simulated, observe
from analysis.planning.plan import make_plan
from analysis.planning.request import PlanRequest, Simulation
from analysis.planning.simulate import with_bandit
from experiments import lifecycle, store
from experiments.doors import Clock, json_response, principal_of, read_as, read_json
from experiments.problems import FieldProblem, ProblemError, invalid

MOST_WORK: Final = 88_000
"""Of the simulated bandits in one request, by `move_cost`: some five seconds of a processor."""
_BUSY_SECONDS: Final = 5


class PlanningPlane(msgspec.Struct, frozen=True):
    """What the planner works with, handed in. One simulation at a time keeps a process free for
    what it is there for."""

    pool: store.Pool
    clock: Clock
    simulating: threading.Lock = msgspec.field(default_factory=threading.Lock)


Planning: TypeAlias = NamedDependency[SkipValidation[PlanningPlane]]


@post(
    "/v1/plan",
    status_code=200,
    opt={"permission": "read", "takes": PlanRequest, "gives": Plan},
    tags=["analysis"],
)
async def plan_experiment(request: Request[Any, Any, Any], planning: Planning) -> Response[bytes]:
    """Sample size, duration, detectable effect and power, and what each reading costs."""
    wanted = read_as(PlanRequest, await read_json(request))
    has_policy = wanted.policy is not None
    observed, left_out = None, tuple[str, ...]()
    if wanted.experiment is not None:
        async with (
            store.borrow(planning.pool) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            project = principal_of(request).project
            record = await lifecycle.find(connection, project, wanted.experiment)
            if not has_policy:
                left_out = not_simulated(record.definition)
            wanted = completed(wanted, record.definition)
            observed = await observe(connection, record, wanted, planning.clock())
    simulation = _simulation(wanted, has_policy=has_policy)
    plan = await asyncio.to_thread(make_plan, wanted, observed)
    if simulation is not None:
        plan = await asyncio.to_thread(_simulated, planning, plan, simulation)
        plan = msgspec.structs.replace(plan, notes=(*plan.notes, *left_out))
    return json_response(plan)


def _simulation(wanted: PlanRequest, *, has_policy: bool) -> Simulation | None:
    """The simulation that is asked for, of the default size or less where only a policy is named;
    None where there is neither.

    Raises:
        ProblemError: `invalid` for one that would take too long.
    """
    variants = 2 if wanted.weights is None else len(wanted.weights)
    moves, stated = MOST_WORK // move_cost(variants), wanted.simulation
    if stated is None:
        usual = Simulation()
        runs = max(2, min(usual.runs, moves // usual.steps))
        steps = min(usual.steps, moves // runs)
        return Simulation(runs=runs, steps=steps) if has_policy else None
    if stated.runs * stated.steps > moves:
        detail = (
            f"{stated.runs} runs of {stated.steps} steps are more than the {moves:,} moves that "
            f"there are for {variants} variants; `turnout plan` simulates them on your machine"
        )
        raise invalid([FieldProblem("simulation.runs", "value", detail)])
    return stated


def move_cost(variants: int) -> int:
    """What a move of a bandit costs: it compares each variant with all others, and has some work
    with each."""
    return variants * (variants + 20)


def _simulated(planning: PlanningPlane, plan: Plan, simulation: Simulation) -> Plan:
    """The plan with its bandit, from within a thread of its own, for it takes seconds.

    Raises:
        ProblemError: `unavailable` while another simulation is under way; `invalid` as
            `with_bandit`.
    """
    if not planning.simulating.acquire(blocking=False):
        raise ProblemError(
            "unavailable",
            "Another simulation is under way: send it again in a while",
            headers={"Retry-After": str(_BUSY_SECONDS)},
        )
    try:
        return with_bandit(plan, simulation)
    finally:
        planning.simulating.release()


ROUTES: Final[list[HTTPRouteHandler]] = [plan_experiment]
