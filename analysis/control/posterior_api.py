"""The door of the posterior: what a bandit believes of its arms."""

from typing import Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler

from analysis.control.posterior import Posterior, read_posterior
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, principal_of
from experiments.problems import ProblemError
from experiments.writes import Control


@get(
    "/v1/experiments/{key:str}/posterior",
    opt={"permission": "read", "gives": Posterior},
    tags=["analysis"],
    name="read_posterior",
)
async def posterior(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """What the bandit of an experiment believes of its arms now, as its rule sees it."""
    async with (
        store.borrow(control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, principal_of(request).project, key)
        found = await read_posterior(connection, record)
    if found is None:
        detail = f"{record.key} has no bandit that has begun"
        raise ProblemError("not-found", detail)
    return json_response(found)


ROUTES: Final[list[HTTPRouteHandler]] = [posterior]
