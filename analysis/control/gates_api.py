"""The door of gates, as those who roll out canaries ask at it.

Flagger (https://docs.flagger.app/usage/webhooks) posts its canary and reads the status: 2xx lets it
go on, or, of a hook of the type `rollback`, makes it go back. Argo Rollouts' `web` metric
(https://argo-rollouts.readthedocs.io/en/stable/analysis/web/) takes any status but 2xx for an
error, and reads fields of the body. So the status speaks to whoever sends what Flagger sends, and
the body to all others.
"""

from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from analysis.control.gates import Reason, Verdict, look, verdict
from experiments import lifecycle, store
from experiments.doors import PathKey, json_response, parse_json, principal_of, read_body
from experiments.model import State
from experiments.problems import ProblemError
from experiments.records import ExperimentRecord
from experiments.writes import Control

_LONGEST_BODY: Final = 64 * 1024
_FLAGGERS: Final = frozenset({"name", "namespace", "phase"})
"""Fields that every call of Flagger's has."""

Question: TypeAlias = Annotated[
    Literal["go", "rollback"],
    QueryParameter(
        description="what the status answers a call of Flagger's: whether to go on, or to go back"
    ),
]


class GateCall(msgspec.Struct, frozen=True):
    """What Flagger sends. The body of any other caller is not read."""

    name: str = ""
    namespace: str = ""
    phase: str = ""
    checksum: str = ""
    metadata: dict[str, str] = {}


class GateView(msgspec.Struct, frozen=True):
    """A gate: `go` says whether to go on, `roll_back` whether to go back; `reasons` is why not to
    go on, and empty where it may."""

    experiment: str
    state: State
    run: int
    epoch: int
    go: bool
    roll_back: bool
    reasons: tuple[Reason, ...]


@post(
    "/v1/gates/{key:str}",
    status_code=200,
    opt={"permission": "read", "takes": GateCall, "gives": GateView},
    tags=["gates"],
)
async def ask_gate(
    request: Request[Any, Any, Any], control: Control, key: PathKey, gate: Question = "go"
) -> Response[bytes]:
    """Whether to go on, or back. A body with `name`, `namespace` and `phase`, as Flagger's has, is
    answered by the status: 200 for yes, 409 for no; any other, and none, by 200 and the fields."""
    body = await read_body(request, _LONGEST_BODY)
    sent = parse_json(body) if body.strip() else None
    record, said = await _ask(control, request, key)
    if isinstance(sent, dict) and sent.keys() >= _FLAGGERS:
        _answer_by_status(record, said, gate)
    return json_response(_view(record, said))


@get("/v1/gates/{key:str}", opt={"permission": "read", "gives": GateView}, tags=["gates"])
async def read_gate(
    request: Request[Any, Any, Any], control: Control, key: PathKey
) -> Response[bytes]:
    """Whether to go on, or back, by the fields of the answer."""
    return json_response(_view(*await _ask(control, request, key)))


async def _ask(
    control: Control, request: Request[Any, Any, Any], key: str
) -> tuple[ExperimentRecord, Verdict]:
    async with store.borrow(control.pool) as connection:
        record = await lifecycle.find(connection, principal_of(request).project, key)
        return record, verdict(await look(connection, record))


def _answer_by_status(record: ExperimentRecord, said: Verdict, gate: Question) -> None:
    """Let a yes pass.

    Raises:
        ProblemError: `conflict` for a no, with what Flagger shows of it.
    """
    if gate == "rollback":
        if not said.roll_back:
            raise ProblemError("conflict", f"{record.key}: nothing was rolled back")
    elif not said.go:
        why = "; ".join(reason.detail for reason in said.reasons)
        raise ProblemError("conflict", f"{record.key}: {why}")


def _view(record: ExperimentRecord, said: Verdict) -> GateView:
    return GateView(
        experiment=record.key,
        state=record.state,
        run=record.run,
        epoch=record.epoch,
        go=said.go,
        roll_back=said.roll_back,
        reasons=said.reasons,
    )


ROUTES: Final[list[HTTPRouteHandler]] = [ask_gate, read_gate]
