"""The doors of the project's holdout."""

from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
from litestar import Request, Response, get, put
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from experiments import store
from experiments.doors import json_response, principal_of, read_json
from experiments.holdout import Wish, put_holdout, share_of
from experiments.lifecycle import Change
from experiments.model import HOLDOUT, AttributeName, Metric, Reason
from experiments.once import Answer
from experiments.proposals.acts import Act, Asked, Done, Subject, subject_of
from experiments.proposals.gate import PROPOSES, do
from experiments.proposals.model import Demand
from experiments.revisions import etag
from experiments.writes import Control, ControlPlane


class HoldoutBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/holdout`: the share of units that take part in no experiment, 0 for
    none. Metrics and recorded attributes are those of the report of `$holdout`; without them they
    stay as they are."""

    share: Annotated[float, Meta(ge=0, lt=1)]
    reason: Reason
    metrics: Annotated[tuple[Metric, ...], Meta(max_length=64)] | None = None
    record: Annotated[tuple[AttributeName, ...], Meta(max_length=64)] | None = None


class HoldoutView(msgspec.Struct, frozen=True):
    """The holdout as it stands. `experiment` is where its report, epochs and revisions are; what is
    null was never set."""

    project: str
    experiment: str
    share: float
    unit_type: str | None
    revision: int
    run: int
    epoch: int
    salt: str | None
    metrics: tuple[Metric, ...]
    record: tuple[str, ...]
    updated_at: datetime | None


async def _view(connection: store.Connection, project: str) -> HoldoutView:
    record = await store.get_experiment(connection, project, HOLDOUT)
    if record is None:
        return HoldoutView(project, HOLDOUT, 0.0, None, 0, 0, 0, None, (), (), None)
    share, salt = 0.0, None
    if record.state == "running":
        epoch = await store.get_epoch(connection, record.id, record.epoch)
        share, salt = share_of(epoch.allocation), epoch.salt
    return HoldoutView(
        project=project,
        experiment=HOLDOUT,
        share=share,
        unit_type=record.definition.unit.type,
        revision=record.revision,
        run=record.run,
        epoch=record.epoch,
        salt=salt,
        metrics=record.definition.metrics,
        record=record.definition.record,
        updated_at=record.updated_at,
    )


@get("/v1/holdout", opt={"permission": "read", "gives": HoldoutView}, tags=["holdout"])
async def read_holdout(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """The project's holdout; its `ETag` is its revision."""
    async with store.borrow(control.pool) as connection:
        view = await _view(connection, principal_of(request).project)
    return json_response(view, headers=etag(view.revision))


async def _lock(connection: store.Connection, project: str, _: str | None) -> Subject:
    """The holdout as it stands; nobody else changes what it moves."""
    await store.enter_alone(connection, project)
    record = await store.get_experiment(connection, project, HOLDOUT)
    return Subject(HOLDOUT, 0, 0, 0) if record is None else subject_of(record)


async def _demand(_: store.Connection, __: Subject, ___: Asked) -> Demand | None:
    return "change"  # it moves what runs, and what is proposed is told by its share


async def _carry_out(
    connection: store.Connection,
    _: ControlPlane,
    subject: Subject,
    asked: Asked,
    change: Change,
) -> Done:
    wish = Wish(asked.body.share, asked.sent.get("metrics"), asked.sent.get("record"))
    after = await put_holdout(connection, asked.project, wish, change)
    view = await _view(connection, asked.project)
    moved = (after.revision, after.epoch) != (subject.revision, subject.epoch)
    return Done(Answer(200, etag(view.revision), msgspec.json.encode(view)), moved)


HOLD_OUT: Final = Act("holdout", HoldoutBody, _lock, _demand, _carry_out)
ACTS: Final[tuple[Act, ...]] = (HOLD_OUT,)


@put(
    "/v1/holdout",
    opt={"permission": "write", "takes": HoldoutBody, "gives": HoldoutView, **PROPOSES},
    tags=["holdout"],
)
async def set_holdout(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """Hold this share of the units out of all experiments, from now on."""
    return await do(control, request, HOLD_OUT, None, await read_json(request))


ROUTES: Final[list[HTTPRouteHandler]] = [read_holdout, set_holdout]
