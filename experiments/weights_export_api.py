"""The door of the weights: an experiment's split as Gateway API, Istio and nginx write it."""

import hashlib
from typing import Annotated, Any, Final

from litestar import Request, Response, get
from litestar.handlers import HTTPRouteHandler
from litestar.params import QueryParameter

from experiments import lifecycle, store
from experiments.doors import PathKey, names_tag, principal_of
from experiments.model import HOLDOUT
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.weights_export import (
    HOST,
    LABEL,
    MEDIA_TYPES,
    VARIABLE,
    Form,
    Target,
    Weights,
    weights_of,
    write,
)
from experiments.writes import Control


@get(
    "/v1/experiments/{key:str}/weights",
    opt={"permission": "read", "gives": Weights},
    tags=["allocations"],
)
async def read_weights(
    request: Request[Any, Any, Any],
    control: Control,
    key: PathKey,
    form: Annotated[Form, QueryParameter(name="format")] = "json",
    host: Annotated[
        str | None, QueryParameter(pattern=HOST, max_length=253, description="whose traffic it is")
    ] = None,
    service: Annotated[
        str | None,
        QueryParameter(
            min_length=1,
            max_length=64,
            description="the field of a variant's value that names its service; without it, its"
            " key does",
        ),
    ] = None,
    port: Annotated[
        int, QueryParameter(ge=1, le=65_535, description="the port of the services")
    ] = 80,
    namespace: Annotated[str | None, QueryParameter(pattern=LABEL)] = None,
    name: Annotated[
        str | None,
        QueryParameter(pattern=LABEL, description="of the object, or of nginx's variable"),
    ] = None,
    gateway: Annotated[
        str | None, QueryParameter(pattern=LABEL, description="what the route belongs to")
    ] = None,
    unit: Annotated[
        str, QueryParameter(pattern=VARIABLE, description="nginx's variable that is hashed")
    ] = "$request_id",
) -> Response[bytes]:
    """The weights as they are now, for a proxy that splits by itself: it shifts load, and records
    no exposures. The `ETag` changes with the epoch."""
    if form == "virtualservice" and host is None:
        raise invalid([FieldProblem("host", "missing", "a VirtualService is of a host")])
    if key == HOLDOUT:
        raise ProblemError("conflict", "The holdout routes nothing: it has no weights")
    target = Target(
        host or "", service or "", port, namespace or "", name or "", gateway or "", unit
    )
    async with (
        store.borrow(control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, principal_of(request).project, key)
        if not record.epoch:
            raise ProblemError("conflict", f"A {record.state} experiment routes nothing")
        epoch = await store.get_epoch(connection, record.id, record.epoch)
    body = write(weights_of(record, epoch, form, target), form, target)
    # Two forms of an epoch are two things to whoever keeps them.
    tag = f'"{epoch.number}-{hashlib.sha256(body).hexdigest()[:16]}"'
    if names_tag(request.headers.get("if-none-match", ""), tag):
        return Response(b"", status_code=304, headers={"ETag": tag})
    return Response(
        body, media_type=MEDIA_TYPES[form], headers={"ETag": tag, "Cache-Control": "no-cache"}
    )


ROUTES: Final[list[HTTPRouteHandler]] = [read_weights]
