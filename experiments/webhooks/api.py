"""The doors of webhooks. They are for admins: a webhook takes what is decided out of the project,
and its secret is shown here."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import SplitResult, urlsplit

import msgspec
from litestar import Request, Response, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.handlers import HTTPRouteHandler
from litestar.params import SkipValidation
from msgspec import Meta

from experiments import paths, store
from experiments.doors import (
    PathKey,
    json_response,
    parse_json,
    principal_of,
    read_as,
    read_body,
    read_json,
)
from experiments.once import Answer
from experiments.pages import Cursor, Limit, Page, page, read_cursor
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.webhooks import directory
from experiments.webhooks.courier import Courier
from experiments.webhooks.messages import test_body
from experiments.webhooks.model import (
    MOST_WEBHOOKS,
    Delivery,
    Experiments,
    Format,
    Note,
    Types,
    Webhook,
)
from experiments.webhooks.signing import SealError, SigningKey, shown, signed_headers
from experiments.writes import Control, write

Url: TypeAlias = Annotated[str, Meta(min_length=1, max_length=2_000)]


class WebhookPlane(msgspec.Struct, frozen=True):
    """What the doors of webhooks work with, beside the control plane. `key` is None where the
    installation has no signing key."""

    key: SigningKey | None
    courier: Courier


Webhooks: TypeAlias = NamedDependency[SkipValidation[WebhookPlane]]


class WebhookRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/webhooks`: where to send, in which form, and of which decisions;
    without `types` of all but `experiment.hold`, without `experiments` of all."""

    url: Url
    format: Format = "standard"
    types: Types | None = None
    experiments: Experiments | None = None
    note: Note = ""


class WebhookState(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /v1/webhooks/{id}`, a merge patch: what is left out stays, and null for
    `types` or `experiments` means all. `enabled: true` also forgets why it was disabled."""

    types: Types | None = None
    experiments: Experiments | None = None
    note: Note = ""
    enabled: bool = True
    url: Url | None = None


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty object, for which no body at all will do."""


class WebhookView(msgspec.Struct, frozen=True):
    """A webhook as it is shown: of its address only the origin. `secret` verifies its messages; it
    is given once, when it is made or rotated, and null at all other times and for Slack."""

    id: str
    origin: str
    format: Format
    types: tuple[str, ...] | None
    experiments: tuple[str, ...] | None
    note: str
    enabled: bool
    why_disabled: str
    failing_since: datetime | None
    created_at: datetime
    actor: str
    rotated_at: datetime | None
    secret: str | None = None


class Done(msgspec.Struct, frozen=True):
    """What was done to a webhook: how it stands, the status to answer with, and a new secret if it
    has one."""

    webhook: Webhook
    status: int = 200
    secret: str | None = None


class Trial(msgspec.Struct, frozen=True):
    """What came of a test: whether it arrived, the status of the answer (null where none came), and
    what was wrong."""

    arrived: bool
    status: int | None
    error: str


def _view(webhook: Webhook, secret: str | None = None) -> WebhookView:
    fields = {name: getattr(webhook, name) for name in WebhookView.__struct_fields__[:-1]}
    return WebhookView(**fields, secret=secret)


@post(
    "/v1/webhooks",
    opt={"permission": "administer", "takes": WebhookRequest, "gives": WebhookView},
    tags=["webhooks"],
)
async def create_webhook(
    request: Request[Any, Any, Any], control: Control, webhooks: Webhooks
) -> Response[bytes]:
    """Have decisions sent to an address. The secret that verifies them is shown this once."""
    sent = await read_json(request)
    body = read_as(WebhookRequest, sent)
    origin = _origin(body.url)
    key = signing_key_of(webhooks)
    caller = principal_of(request)
    identity = control.random_bytes(8).hex()
    webhook = Webhook(
        id=identity,
        project=caller.project,
        format=body.format,
        origin=origin,
        address=key.seal(body.url, identity, control.random_bytes),
        key_id=key.id,
        types=body.types,
        experiments=body.experiments,
        note=body.note,
        generation=1,
        rotated_at=None,
        enabled=True,
        why_disabled="",
        failing_since=None,
        created_at=control.clock(),
        actor=caller.actor,
    )

    async def act(connection: store.Connection) -> Done:
        await directory.enter_alone(connection, caller.project)
        if len(await directory.webhooks_of(connection, caller.project)) >= MOST_WEBHOOKS:
            detail = f"A project has at most {MOST_WEBHOOKS} webhooks: delete one first"
            raise ProblemError("conflict", detail)
        await _check_experiments(connection, caller.project, body.experiments)
        await directory.add(connection, webhook)
        return Done(webhook, 201, _secret_of(webhook, key))

    told = {**msgspec.to_builtins(body), "url": origin}
    return await _write(control, request, sent, act, "webhook.create", identity, told)


@get(
    "/v1/webhooks",
    opt={"permission": "administer", "gives": Page[WebhookView]},
    tags=["webhooks"],
)
async def list_webhooks(request: Request[Any, Any, Any], control: Control) -> Response[bytes]:
    """The webhooks of this project, the newest first."""
    async with store.borrow(control.pool) as connection:
        found = await directory.webhooks_of(connection, principal_of(request).project)
    return json_response(Page([_view(webhook) for webhook in found], None))


@get(
    "/v1/webhooks/{webhook:str}",
    opt={"permission": "administer", "gives": WebhookView},
    tags=["webhooks"],
)
async def read_webhook(
    request: Request[Any, Any, Any], control: Control, webhook: PathKey
) -> Response[bytes]:
    """A webhook, and whether messages arrive."""
    return json_response(_view(await _find(control, request, webhook)))


@patch(
    "/v1/webhooks/{webhook:str}",
    opt={"permission": "administer", "takes": WebhookState, "gives": WebhookView},
    tags=["webhooks"],
)
async def change_webhook(
    request: Request[Any, Any, Any], control: Control, webhooks: Webhooks, webhook: PathKey
) -> Response[bytes]:
    """Change where a webhook sends, of what, or whether at all. A new `url` shows a secret where
    the installation's signing key has changed since the last one."""
    sent = await read_json(request)
    asked = sent if isinstance(sent, dict) else {}
    body = read_as(WebhookState, sent)
    origin = None if body.url is None else _origin(body.url)
    project = principal_of(request).project

    async def act(connection: store.Connection) -> Done:
        found = await directory.find_to_change(connection, project, webhook)
        if found is None:
            raise _unknown(project, webhook)
        changes: dict[str, Any] = {
            name: getattr(body, name)
            for name in ("types", "experiments", "note", "enabled")
            if name in asked
        }
        if "experiments" in asked:
            await _check_experiments(connection, project, body.experiments)
        if asked.get("enabled") is True:
            changes |= {"why_disabled": "", "failing_since": None}
        other: SigningKey | None = None
        if body.url is not None and origin is not None:
            key = signing_key_of(webhooks)
            sealed = key.seal(body.url, webhook, control.random_bytes)
            changes |= {"origin": origin, "address": sealed, "key_id": key.id}
            other = key if key.id != found.key_id else None
        changed = msgspec.structs.replace(found, **changes)
        await directory.save(connection, changed)
        return Done(changed, secret=None if other is None else _secret_of(changed, other))

    told = {**asked, "url": origin} if "url" in asked else asked
    return await _write(control, request, sent, act, "webhook.change", webhook, told)


@delete("/v1/webhooks/{webhook:str}", opt={"permission": "administer"}, tags=["webhooks"])
async def delete_webhook(
    request: Request[Any, Any, Any], control: Control, webhook: PathKey
) -> None:
    """Delete a webhook, with what waits for it."""
    project = principal_of(request).project

    async def act(connection: store.Connection) -> Answer:
        if not await directory.delete(connection, project, webhook, control.clock()):
            raise _unknown(project, webhook)
        return Answer(204, {}, b"")

    target = f"webhooks/{webhook}"
    await write(control, request, None, act, action="webhook.delete", target=target)


@post(
    "/v1/webhooks/{webhook:str}/rotate",
    status_code=200,
    opt={"permission": "administer", "takes": Nothing, "gives": WebhookView},
    tags=["webhooks"],
)
async def rotate_webhook(
    request: Request[Any, Any, Any], control: Control, webhooks: Webhooks, webhook: PathKey
) -> Response[bytes]:
    """Make a new secret, shown this once. For 24 hours the one before signs, too."""
    await _read_nothing(request)
    key = signing_key_of(webhooks)
    project = principal_of(request).project

    async def act(connection: store.Connection) -> Done:
        found = await directory.find_to_change(connection, project, webhook)
        if found is None:
            raise _unknown(project, webhook)
        if found.format == "slack":
            raise ProblemError("conflict", "Slack verifies nothing: this webhook has no secret")
        _check_key(found, key)
        rotated = msgspec.structs.replace(
            found, generation=found.generation + 1, rotated_at=control.clock()
        )
        await directory.save(connection, rotated)
        return Done(rotated, secret=_secret_of(rotated, key))

    return await _write(control, request, {}, act, "webhook.rotate", webhook, None)


@post(
    "/v1/webhooks/{webhook:str}/test",
    status_code=200,
    opt={"permission": "administer", "takes": Nothing, "gives": Trial},
    tags=["webhooks"],
)
async def try_webhook(
    request: Request[Any, Any, Any], control: Control, webhooks: Webhooks, webhook: PathKey
) -> Response[bytes]:
    """Send a message of the type `turnout.test` now, once, and say what came of it."""
    await _read_nothing(request)
    key = signing_key_of(webhooks)
    found = await _find(control, request, webhook)
    _check_key(found, key)
    now = control.clock()
    body = test_body(found.project, found.format, now)
    headers = {}
    if found.format == "standard":
        message = f"test_{control.random_bytes(16).hex()}"
        headers = signed_headers(
            key.secrets(found.id, found.generation, found.rotated_at, now), message, now, body
        )
    try:
        url = key.unseal(found.address, found.id)
    except SealError as error:
        raise ProblemError("conflict", "The address cannot be opened: set `url` anew") from error
    attempt = await webhooks.courier.post(url, body, headers)
    return json_response(Trial(attempt.arrived, attempt.status, attempt.error))


@get(
    "/v1/webhooks/{webhook:str}/deliveries",
    opt={"permission": "administer", "gives": Page[Delivery]},
    tags=["webhooks"],
)
async def list_deliveries(
    request: Request[Any, Any, Any],
    control: Control,
    webhook: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[bytes]:
    """What was sent to a webhook in the last 7 days and what waits, the newest decision first."""
    after = read_cursor(cursor)
    await _find(control, request, webhook)
    async with store.borrow(control.pool) as connection:
        found = await directory.deliveries_to(connection, webhook, limit + 1, after)
    return json_response(page(found, limit, lambda d: d, lambda d: d.decision))


async def _write(
    control: Control,
    request: Request[Any, Any, Any],
    sent: Any,
    act: Callable[[store.Connection], Awaitable[Done]],
    action: str,
    webhook: str,
    told: Any,
) -> Response[bytes]:
    """Do something to a webhook, once for an `Idempotency-Key`. What is kept for a retry lacks the
    secret: a secret is stored nowhere. Nor is an address told, of which a part may be a token."""
    done: Done | None = None

    async def kept(connection: store.Connection) -> Answer:
        nonlocal done
        done = await act(connection)
        return Answer(done.status, {}, msgspec.json.encode(_view(done.webhook)))

    target = f"webhooks/{webhook}"
    response = await write(
        control, request, sent, kept, action=action, target=target, told=lambda: told
    )
    if done is None:
        return response
    return json_response(_view(done.webhook, done.secret), done.status)


async def _read_nothing(request: Request[Any, Any, Any]) -> None:
    """Make sure that a body asks for nothing that would not be done.

    Raises:
        ProblemError: `invalid` or `malformed`.
    """
    body = await read_body(request)
    if body:
        read_as(Nothing, parse_json(body))


async def _find(control: Control, request: Request[Any, Any, Any], webhook: str) -> Webhook:
    project = principal_of(request).project
    async with store.borrow(control.pool) as connection:
        found = await directory.find(connection, project, webhook)
    if found is None:
        raise _unknown(project, webhook)
    return found


def _unknown(project: str, webhook: str) -> ProblemError:
    return ProblemError("not-found", f"Project {project} has no webhook {webhook!r}")


async def _check_experiments(
    connection: store.Connection, project: str, keys: Experiments | None
) -> None:
    """Make sure that a webhook asks for experiments that there are.

    Raises:
        ProblemError: `invalid` with every wrong one.
    """
    if keys is None:
        return
    unknown = set(await directory.unknown_experiments(connection, project, keys))
    problems = [
        FieldProblem(
            paths.item("experiments", place), "reference", f"there is no experiment {key!r}"
        )
        for place, key in enumerate(keys)
        if key in unknown
    ]
    if problems:
        raise invalid(problems)


def _origin(url: str) -> str:
    """The scheme, host and port of an address, if it is one to send to.

    Raises:
        ProblemError: `invalid`, saying what is wrong with it.
    """
    parts = _split(url)
    if parts is None:
        detail = "must be an address such as https://example.com/hooks"
    elif parts.scheme not in {"http", "https"}:
        detail = "must begin with https:// or http://"
    elif parts.username is not None or parts.password is not None:
        detail = "must have no user name and no password: put a token into the path or the query"
    elif parts.fragment:
        detail = "must have no fragment: it is not sent"
    else:
        host = parts.hostname or ""
        shown_host = f"[{host}]" if ":" in host else host
        port = "" if parts.port is None else f":{parts.port}"
        return f"{parts.scheme}://{shown_host}{port}"
    raise invalid([FieldProblem("url", "value", detail)])


def _split(url: str) -> SplitResult | None:
    """The parts of an address, or None where it has no host, or none that can be read."""
    if not url.isascii() or any(c <= " " or c in {"\x7f", "\\"} for c in url):
        return None
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return None
    return parts if parts.hostname or not parts.scheme.startswith("http") else None


def signing_key_of(webhooks: WebhookPlane) -> SigningKey:
    """The signing key of this installation.

    Raises:
        ProblemError: `conflict` where there is none.
    """
    if webhooks.key is None:
        raise ProblemError(
            "conflict",
            "Webhooks need a signing key: set TURNOUT_SIGNING_KEY, to the same 32 characters or"
            " more for `turnout serve` and `turnout worker`, and start them again",
        )
    return webhooks.key


def _check_key(webhook: Webhook, key: SigningKey) -> None:
    """Make sure that a webhook is of the key that we have.

    Raises:
        ProblemError: `conflict` where it is of another.
    """
    if webhook.key_id != key.id:
        raise ProblemError(
            "conflict",
            "This webhook was made with another TURNOUT_SIGNING_KEY: set that key again, or set the"
            " webhook's `url` anew, which gives it a secret of this key",
        )


def _secret_of(webhook: Webhook, key: SigningKey) -> str | None:
    """The text of the secret that signs now; None where nothing is signed."""
    if webhook.format == "slack":
        return None
    return shown(key.secret(webhook.id, webhook.generation))


ROUTES: Final[list[HTTPRouteHandler]] = [
    create_webhook,
    list_webhooks,
    read_webhook,
    change_webhook,
    delete_webhook,
    rotate_webhook,
    try_webhook,
    list_deliveries,
]
