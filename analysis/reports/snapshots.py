"""Snapshots of reports: what was shown at a time, kept as it was.

What is kept are the bytes of each format, not what they could be made of again: a later release may
word a report in another way, and a snapshot is what somebody saw. Neither the database nor any
function here changes or removes one.

They hold aggregates only, and no unit ids, so that erasing a unit leaves them as they are.
"""

import gzip
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Final

import msgspec

from analysis.reports.sheet import Format
from experiments.model import State
from experiments.problems import ProblemError
from experiments.store import Connection

MOST_A_DAY: Final = 1_000
"""Snapshots that a project takes in 24 hours. They are never removed, so their rate is bounded and
not their number: a permanent link must not have to give way to another."""
_DAY: Final = timedelta(days=1)
_ID_BYTES: Final = 16

_LOCK: Final = "select pg_advisory_xact_lock($1, hashtext($2))"
_LOCK_CLASS: Final = 0x736E6170  # the number only has to be ours
_TAKEN: Final = "select count(*) from report_snapshot where project = $1 and taken_at > $2"
_INSERT: Final = """
    insert into report_snapshot (id, project, experiment, run, epoch, state, conclusion,
                                 data_until, taken_at, actor, taken_by, note)
    values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) returning number
"""
_INSERT_FILE: Final = """
    insert into report_snapshot_file (snapshot, format, digest, size, packed)
    values ($1, $2, $3, $4, $5)
"""
_COLUMNS: Final = """
    s.number, s.id, s.project, x.key as experiment, s.run, s.epoch, s.state, s.conclusion,
    s.data_until, s.taken_at, s.actor, s.taken_by, s.note,
    (select json_object_agg(f.format, json_build_object(
                'sha256', encode(f.digest, 'hex'), 'bytes', f.size) order by f.format)
     from report_snapshot_file f where f.snapshot = s.id) as files
"""
_FIND: Final = f"""
    select {_COLUMNS} from report_snapshot s join experiment x on x.id = s.experiment
    where s.project = $1 and s.id = $2
"""  # noqa: S608 - a constant
_LIST: Final = f"""
    select {_COLUMNS} from report_snapshot s join experiment x on x.id = s.experiment
    where s.experiment = $1 and ($3::bigint is null or s.number < $3)
    order by s.number desc limit $2
"""  # noqa: S608 - a constant
_FILE: Final = """
    select f.packed, f.digest
    from report_snapshot_file f join report_snapshot s on s.id = f.snapshot
    where s.project = $1 and s.id = $2 and f.format = $3
"""
_NAME_OF_KEY: Final = "select note from api_key where id = $1 and project = $2"


class FileFacts(msgspec.Struct, frozen=True):
    """A file of a snapshot: the SHA-256 of its bytes in hexadecimal digits, and their number."""

    sha256: str
    bytes: int


class Snapshot(msgspec.Struct, frozen=True):
    """What a snapshot is of. `number` orders those of a project; `taken_by` is how people know the
    key that took it."""

    number: int
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


class Packed(msgspec.Struct, frozen=True):
    """A file as it is kept: its bytes by gzip, and what they unpack to."""

    packed: bytes
    digest: bytes
    size: int


def new_id(random_bytes: Callable[[int], bytes]) -> str:
    """An id that cannot be guessed.

    Args:
        random_bytes: a cryptographic source such as `secrets.token_bytes`.
    """
    return random_bytes(_ID_BYTES).hex()


def pack(content: bytes) -> Packed:
    """A file as it is kept. The same bytes are packed alike at any time."""
    return Packed(gzip.compress(content, mtime=0), hashlib.sha256(content).digest(), len(content))


async def insert_snapshot(
    connection: Connection, snapshot: Snapshot, experiment: int, files: Mapping[Format, Packed]
) -> Snapshot:
    """Keep a snapshot; it gets its number.

    Args:
        connection: in a transaction.
        experiment: the id of the experiment that it is of.

    Raises:
        ProblemError: `rate-limited` where the project took too many within a day.
    """
    await connection.execute(_LOCK, _LOCK_CLASS, snapshot.project)
    taken = await connection.fetchval(_TAKEN, snapshot.project, snapshot.taken_at - _DAY)
    if taken >= MOST_A_DAY:
        raise ProblemError(
            "rate-limited",
            f"A project takes at most {MOST_A_DAY:,} snapshots in 24 hours, since none is ever "
            "removed",
            headers={"Retry-After": "3600"},
        )
    number = await connection.fetchval(
        _INSERT,
        snapshot.id,
        snapshot.project,
        experiment,
        snapshot.run,
        snapshot.epoch,
        snapshot.state,
        snapshot.conclusion,
        snapshot.data_until,
        snapshot.taken_at,
        snapshot.actor,
        snapshot.taken_by,
        snapshot.note,
    )
    for kind, file in files.items():
        await connection.execute(
            _INSERT_FILE, snapshot.id, kind, file.digest, file.size, file.packed
        )
    return msgspec.structs.replace(snapshot, number=number)


async def find_snapshot(connection: Connection, project: str, number: str) -> Snapshot:
    """The snapshot of this id.

    Raises:
        ProblemError: `not-found`, also where it is of another project.
    """
    row = await connection.fetchrow(_FIND, project, number)
    if row is None:
        raise ProblemError("not-found", f"Project {project} has no snapshot {number!r}")
    return _snapshot(dict(row))


async def list_snapshots(
    connection: Connection, experiment: int, limit: int, after: int | None
) -> list[Snapshot]:
    """Up to `limit` snapshots of an experiment, the newest first, from behind a number."""
    return [_snapshot(dict(row)) for row in await connection.fetch(_LIST, experiment, limit, after)]


async def read_file(connection: Connection, project: str, snapshot: str, wanted: Format) -> bytes:
    """The bytes of a file, as they were.

    Raises:
        ProblemError: `not-found`; `internal` where they are no longer what they were.
    """
    row = await connection.fetchrow(_FILE, project, snapshot, wanted)
    if row is None:
        raise ProblemError("not-found", f"Project {project} has no such file of a snapshot")
    content = gzip.decompress(row["packed"])
    if hashlib.sha256(content).digest() != row["digest"]:
        raise ProblemError("internal", "The file is not what it was: its digest does not fit")
    return content


async def name_of_key(connection: Connection, project: str, key_id: str) -> str:
    """How people know an API key: its note, or its id where it has none."""
    return await connection.fetchval(_NAME_OF_KEY, key_id, project) or key_id


def _snapshot(fields: dict[str, object]) -> Snapshot:
    files = msgspec.json.decode(str(fields["files"]), type=dict[Format, FileFacts])
    return msgspec.convert({**fields, "files": files}, Snapshot)
