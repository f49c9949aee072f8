"""The door by which a hand overrules the guard."""

from typing import Any, Final

from litestar import Request, Response, post
from litestar.handlers import HTTPRouteHandler

from analysis.control.overruling import overrule
from experiments.api import ExperimentView, Reasoned, write_change
from experiments.doors import PathKey, read_as, read_json
from experiments.writes import Control


@post(
    "/v1/experiments/{key:str}/overrule",
    status_code=200,
    opt={"permission": "write", "takes": Reasoned, "gives": ExperimentView},
    tags=["experiments"],
)
async def overrule_experiment(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Overrule alarms of the guard that only alerted: gates and ramps go on, and the guard watches
    in a new generation, with alpha of its own."""
    sent = await read_json(request)
    body = read_as(Reasoned, sent)
    return await write_change(control, request, key, sent, body.reason, overrule)


ROUTES: Final[list[HTTPRouteHandler]] = [overrule_experiment]
