"""The door by which a hand overrules the guard."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from analysis.control.overruling import overrule
from experiments.acts import Reasoned, plain, show_experiment
from experiments.doors import PathKey, read_json
from experiments.proposals.acts import Act, of_record, on_experiment
from experiments.proposals.gate import PROPOSES, do
from experiments.views import ExperimentView
from experiments.writes import Control

OVERRULE: Final = on_experiment(
    "overrule", Reasoned, plain(overrule), show_experiment, of_record(lambda _, __: "allocation")
)
ACTS: Final[tuple[Act, ...]] = (OVERRULE,)


@post(
    "/v1/experiments/{key:str}/overrule",
    status_code=200,
    opt={"permission": "write", "takes": Reasoned, "gives": ExperimentView, **PROPOSES},
    tags=["experiments"],
)
async def overrule_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Overrule alarms of the guard that only alerted: gates and ramps go on, and the guard watches
    in a new generation, with alpha of its own."""
    return await do(control, request, OVERRULE, key, await read_json(request))


ROUTES: Final[list[HTTPRouteHandler]] = [overrule_experiment]
