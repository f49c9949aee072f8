"""The doors of snapshots: take one, list them, read one."""

import asyncio
import base64
from datetime import datetime
from typing import Annotated, Any, Final, get_args

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from msgspec import Meta

from analysis.reports.api import Analysis, AnalysisPlane, wanted_format
from analysis.reports.sheet import (
    MEDIA_TYPES,
    Format,
    Material,
    Press,
    Reader,
    make_sheet,
    name_file,
    read_material,
    write_as,
)
from analysis.reports.snapshots import (
    FileFacts,
    Packed,
    Snapshot,
    find_snapshot,
    insert_snapshot,
    list_snapshots,
    name_of_key,
    new_id,
    pack,
    read_file,
)
from experiments import store
from experiments.doors import PathKey, json_response, principal_of, read_as, read_json
from experiments.model import State
from experiments.once import Answer
from experiments.pages import Cursor, Limit, Page, page_of_history
from experiments.writes import Control, ControlPlane, write

_KEPT: Final = "private, max-age=31536000, immutable"
_SANDBOX: Final = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'self'"
)
"""For HTML that is kept: it gets no script, no address to load from, and not our origin."""


class SnapshotBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/experiments/{key}/snapshots`: why it is taken, if that should be
    kept."""

    note: Annotated[str, Meta(max_length=1_000)] = ""


class SnapshotView(msgspec.Struct, frozen=True):
    """A snapshot: of what, when, by whom, and the digest of each file. `id` makes its permanent
    addresses: `/v1/snapshots/{id}`, and `/snapshots/{id}` for people."""

    id: str
    project: str
    experiment: str
    run: int
    epoch: int
    state: State
    conclusion: str
    data_until: datetime | None
    taken_at: datetime
    actor: str
    taken_by: str
    note: str
    files: dict[Format, FileFacts]


class WholeSnapshot(SnapshotView, frozen=True, kw_only=True):
    """A snapshot with its report, byte for byte as it was."""

    report: msgspec.Raw


@post(
    "/v1/experiments/{key:str}/snapshots",
    # Whoever may read a report may keep it: nothing of the experiment changes by that, and analysts
    # are those who show reports to others.
    opt={"permission": "read", "takes": SnapshotBody, "gives": SnapshotView},
    tags=["analysis"],
    summary="Keep the report as it is now, for good",
)
async def take_snapshot_of(
    request: Request[Any, Any, Any], control: Control, analysis: Analysis, key: PathKey
) -> Response[bytes]:
    """Keep the report of the current run as it is now: a snapshot never changes, nor is it
    removed."""
    sent = await read_json(request)
    body = read_as(SnapshotBody, sent)
    return await take_snapshot(control, analysis, request, key, sent, body.note)


async def take_snapshot(
    control: ControlPlane,
    analysis: AnalysisPlane,
    request: Request[Any, Any, Any],
    key: str,
    sent: Any,
    note: str,
) -> Response[bytes]:
    """Take a snapshot; it is answered by a `SnapshotView`.

    Args:
        sent: the body, as it came.

    Raises:
        ProblemError: `not-found`, or `rate-limited`.
    """
    caller, identity = principal_of(request), new_id(control.random_bytes)
    async with (
        store.borrow(analysis.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        material = await read_material(
            connection,
            caller.project,
            key,
            analysis.clock(),
            analysis.lateness,
            analysis.press,
        )
        reader = Reader(caller.actor, await name_of_key(connection, caller.project, caller.key_id))
    snapshot, files = await asyncio.to_thread(
        _make, material, reader, identity, note, analysis.press
    )

    async def act(connection: store.Connection) -> Answer:
        kept = await insert_snapshot(connection, snapshot, material.record.id, files)
        headers = {"Location": f"/v1/snapshots/{kept.id}"}
        return Answer(201, headers, msgspec.json.encode(view_of(kept)))

    target = f"experiments/{key}"
    return await write(control, request, sent, act, action="snapshot.take", target=target)


@get(
    "/v1/experiments/{key:str}/snapshots",
    opt={"permission": "read", "gives": Page[SnapshotView]},
    tags=["analysis"],
)
async def list_snapshots_of(
    request: Request[Any, Any, Any],
    analysis: Analysis,
    key: PathKey,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response[bytes]:
    """The snapshots of an experiment's reports, the newest first."""
    return await page_of_history(
        analysis.pool, request, key, limit, cursor, list_snapshots, view_of, lambda s: s.number
    )


@get(
    "/v1/snapshots/{id:str}", opt={"permission": "read", "gives": WholeSnapshot}, tags=["analysis"]
)
async def read_snapshot(
    request: Request[Any, Any, Any],
    analysis: Analysis,
    id: PathKey,  # noqa: A002 - the name in the path
) -> Response[bytes]:
    """A snapshot with its report: JSON, or its HTML, Markdown or CSV file by `Accept`."""
    wanted = wanted_format(request, analysis.press)
    project = principal_of(request).project
    async with store.borrow(analysis.pool) as connection:
        snapshot = await find_snapshot(connection, project, id)
        content = await read_file(connection, project, id, wanted)
    if wanted == "json":
        whole = WholeSnapshot(
            **msgspec.structs.asdict(view_of(snapshot)), report=msgspec.Raw(content)
        )
        return json_response(whole, headers={"Cache-Control": _KEPT, "Vary": _VARY})
    answer = send_file(snapshot, wanted, content)
    answer.headers.update({"Cache-Control": _KEPT, "Vary": _VARY})
    return answer


_VARY: Final = "Accept, Authorization, X-API-Key"


def send_file(
    snapshot: Snapshot, wanted: Format, content: bytes, *, attached: bool = False
) -> Response[bytes]:
    """A file of a snapshot, byte for byte, with its digest (RFC 9530)."""
    name = name_file(snapshot.experiment, snapshot.run, snapshot.taken_at, wanted, is_snapshot=True)
    digest = base64.b64encode(bytes.fromhex(snapshot.files[wanted].sha256)).decode()
    headers = {
        "Content-Disposition": f'{"attachment" if attached else "inline"}; filename="{name}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "X-Content-Type-Options": "nosniff",
    }
    if wanted == "html":
        headers |= {"Content-Security-Policy": _SANDBOX, "X-Frame-Options": "SAMEORIGIN"}
    return Response(content, media_type=MEDIA_TYPES[wanted], headers=headers)


def view_of(snapshot: Snapshot) -> SnapshotView:
    """A snapshot as it is shown."""
    fields = msgspec.structs.asdict(snapshot)
    del fields["number"]
    return SnapshotView(**fields)


def _make(
    material: Material, reader: Reader, identity: str, note: str, press: Press | None
) -> tuple[Snapshot, dict[Format, Packed]]:
    """The snapshot and its files; its number comes when it is kept."""
    sheet = make_sheet(material, reader, identity, note)
    formats = [kind for kind in get_args(Format) if kind != "html" or press is not None]
    files: dict[Format, Packed] = {kind: pack(write_as(kind, sheet, press)) for kind in formats}
    report = sheet.report
    snapshot = Snapshot(
        number=0,
        id=identity,
        project=report.project,
        experiment=report.experiment,
        run=report.run,
        epoch=report.epoch,
        state=report.state,
        conclusion=report.conclusion,
        data_until=report.data_until,
        taken_at=sheet.read_at,
        actor=reader.actor,
        taken_by=reader.name,
        note=note,
        files={kind: FileFacts(file.digest.hex(), file.size) for kind, file in files.items()},
    )
    return snapshot, files


ROUTES: Final[list[HTTPRouteHandler]] = [take_snapshot_of, list_snapshots_of, read_snapshot]
