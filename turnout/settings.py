"""Settings: `TURNOUT_*` variables, and flags of the same names. One table serves both.

Whatever is wrong with them is told at once, before anything is started: who sets ten variables in a
manifest should not need ten starts to see what was wrong with them.
"""

import os
import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

import msgspec
from msgspec import Meta

from experiments.decoding import decode
from experiments.model import Duration, Key, parse_duration
from experiments.problems import FieldProblem
from experiments.webhooks.signing import SHORTEST_KEY
from router.journal import Durability

PREFIX: Final = "TURNOUT_"
CLIENT_VARIABLES: Final = frozenset({"TURNOUT_URL", "TURNOUT_API_KEY"})
"""Variables that belong to the commands that talk to a running Turnout, not to the service."""

LONGEST: Final = {
    "ship_every": "10s",
    "snapshot_poll": "10s",
    "sticky_timeout": "10s",
    "tick": "5s",
}
"""A router that has said nothing for 30 s is taken for dead, and decisions do not wait for it."""

NO_FLAGS: Final = frozenset({"signing_key"})
"""Settings that are variables only: whoever lists processes sees their flags."""

IN_FILES: Final = ("database_url", "redis_url", "webhook_proxy")
"""Settings that may hold a password: `TURNOUT_<NAME>_FILE` names a file that holds one instead,
such as a mounted secret. (The signing key has a setting for that, which is a flag, too.)"""

SCHEMES: Final[Mapping[str, tuple[str, ...]]] = {
    "database_url": ("postgresql", "postgres"),
    "redis_url": ("redis", "rediss", "unix"),
}

LONGEST_KEY: Final = 1024
"""Characters of a signing key, at most."""
LONGEST_SECRET: Final = 65_536

LEAST_RETENTION: Final = 8
"""Days: outcomes may come in 7 days late, and a day is dropped as a whole."""

Port = Annotated[int, Meta(ge=0, le=65_535, description="a port, 0 to 65535 (0: any free one)")]
SigningKeyText = Annotated[
    str, Meta(pattern=r"^(.{32,1024})?$(?!\n)", description="32 characters or more, or nothing")
]
HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^\s/?#][^\s?#]*)?$(?!\n)",
        description="an address such as https://turnout.example.com, or nothing",
    ),
]
LogLevel = Literal["debug", "info", "warning", "error"]
_FRACTION: Final = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
Process: TypeAlias = Literal["up", "serve", "worker"]
"""What a process runs: everything, the router behind its doors, or the controller."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an operator can set. Each field is `TURNOUT_<NAME>`, and `--<name>` unless it is one of
    `NO_FLAGS`."""

    host: str = "127.0.0.1"
    port: Port = 8080
    workers: Annotated[int, Meta(ge=1, le=256)] = 1
    data_dir: str = "turnout-data"
    database_url: str = ""
    redis_url: str = ""
    project: Key = "default"
    durability: Durability = "synced"
    journal_limit_mib: Annotated[int, Meta(ge=1, le=1_048_576)] = 1024
    ship_every: Duration = "500ms"
    snapshot_poll: Duration = "2s"
    tick: Duration = "250ms"
    sticky_timeout: Duration = "5ms"
    rate_limit: Annotated[int, Meta(ge=0, le=10_000_000)] = 0
    lateness: Duration = "5s"
    retention_days: Annotated[int, Meta(ge=0, le=36_500)] = 0
    signing_key: SigningKeyText = ""
    signing_key_file: str = ""
    webhook_proxy: HttpUrl = ""
    public_url: HttpUrl = ""
    log_level: LogLevel = "info"
    log_units: bool = False
    otlp_endpoint: HttpUrl = ""
    trace_sample: Annotated[float, Meta(ge=0, le=1)] = 0.01

    @property
    def keep(self) -> timedelta | None:
        """For how long raw events are kept; None for ever."""
        return timedelta(days=self.retention_days) if self.retention_days else None

    @property
    def data_path(self) -> Path:
        """The data folder."""
        return Path(self.data_dir)

    def length(
        self, name: Literal["ship_every", "snapshot_poll", "sticky_timeout", "tick", "lateness"]
    ) -> timedelta:
        """A setting that is a duration."""
        return parse_duration(getattr(self, name))


HELP: Final[dict[str, str]] = {
    "host": "address to serve on",
    "port": "port to serve on",
    "workers": "processes that serve on the port together, with `serve` alone",
    "data_dir": "folder of the journals, the snapshot, and the embedded Postgres and Redis",
    "database_url": "Postgres to use (15 or later); without it one is started in the data folder",
    "redis_url": "Redis to use (7 or later); without it one is started in the data folder",
    "project": "the project that the first start makes, with an admin key",
    "durability": "when a record counts as kept: `synced` to disk, or `written` to the system",
    "journal_limit_mib": "most that the journals of a process, or of all its workers together, may"
    " hold before Postgres has it, in MiB",
    "ship_every": "how often the journal is shipped to Postgres, at most 10s",
    "snapshot_poll": "how often a router looks for changes that it was not told of, at most 10s",
    "tick": "how often the controller folds and decides, at most 5s",
    "sticky_timeout": "how long a sticky answer waits for Redis before the slot decides",
    "rate_limit": "requests a second that a key may send to all processes together, where the key"
    " has no limit of its own; 0 for no limit",
    "lateness": "how late an outcome may come and still count for decisions, and half its metric's"
    " window at most",
    "retention_days": "for how many whole days raw events are kept, 8 or more; 0 for ever",
    "signing_key": "what the secrets of webhooks follow from, 32 characters or more; no flag, which"
    " `ps` would show",
    "signing_key_file": "a file that holds the signing key instead; without either `up` makes one"
    " in its data folder",
    "webhook_proxy": "HTTP proxy that webhooks are sent through",
    "public_url": "where people reach this Turnout, for links in messages",
    "log_level": "debug, info, warning or error",
    "log_units": "whether messages of errors are logged as they are, though they may hold units:"
    " `true` or `false`",
    "otlp_endpoint": "OpenTelemetry collector that takes traces by OTLP over HTTP, such as"
    " http://collector:4318; without it nothing is traced",
    "trace_sample": "share of what no caller has decided on that is traced, 0 to 1",
}


class SettingsError(Exception):
    """Wrong settings: one line that names each of them."""


class Loaded(msgspec.Struct, frozen=True):
    """Settings as they were found: what is wrong has its default here, and stands in `problems`.

    `origins` says for each that is not a default where it is from: a flag, a variable, or a file.
    """

    settings: Settings
    origins: Mapping[str, str]
    problems: tuple[FieldProblem, ...]


def load_settings(
    environment: Mapping[str, str],
    flags: Mapping[str, str | None],
    process: Process | None = None,
) -> Settings:
    """The settings from flags (which win), variables, and files that variables name.

    Args:
        process: what is to be run with them; None for a command, which needs less.

    Raises:
        SettingsError: naming all that is wrong, and never a value that may be secret.
    """
    loaded = read_settings(environment, flags, process)
    if loaded.problems:
        raise SettingsError(told(loaded.problems))
    return loaded.settings


def told(problems: tuple[FieldProblem, ...]) -> str:
    """All that is wrong, in one line."""
    wrong = "; ".join(f"{variable(problem.path)}: {problem.detail}" for problem in problems)
    return f"wrong settings: {wrong}"


def read_settings(
    environment: Mapping[str, str],
    flags: Mapping[str, str | None],
    process: Process | None = None,
) -> Loaded:
    """As `load_settings`, but it goes on with what is right."""
    given = {
        name.removeprefix(PREFIX).lower(): text
        for name, text in environment.items()
        if name.startswith(PREFIX) and name not in CLIENT_VARIABLES and text != ""
    }
    origins = {name: variable(name) for name in given}
    problems: list[FieldProblem] = []
    for name in IN_FILES:
        problems += _take_from_file(name, given, origins)
    for name in sorted(given.keys() - Settings.__struct_fields__):
        problems.append(_unknown(name, given.pop(name)))
    for name, text in flags.items():
        if text is not None:
            given[name], origins[name] = text, f"--{name.replace('_', '-')}"
    decoded = decode(Settings, {name: _value(name, text) for name, text in given.items()})
    problems += decoded.problems
    settings = decoded.value
    problems += [
        FieldProblem(name, "value", f"must be at most {longest}")
        for name, longest in LONGEST.items()
        if decoded.sound(name) and parse_duration(getattr(settings, name)) > parse_duration(longest)
    ]
    if decoded.sound("retention_days") and 0 < settings.retention_days < LEAST_RETENTION:
        detail = f"must be 0 (for ever) or at least {LEAST_RETENTION}"
        problems.append(FieldProblem("retention_days", "value", detail))
    if given.get("signing_key") and given.get("signing_key_file"):
        detail = f"give the key or the file, and not {PREFIX}SIGNING_KEY as well"
        problems.append(FieldProblem("signing_key_file", "conflict", detail))
    problems += _wrong_addresses(settings)
    if process is not None:
        problems += _unfit(settings, process, {problem.path for problem in problems})
    kept = {name: origin for name, origin in origins.items() if name in Settings.__struct_fields__}
    return Loaded(settings, kept, tuple(problems))


def variable(name: str) -> str:
    """The variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def effective(loaded: Loaded) -> Iterator[tuple[str, str, str]]:
    """Each setting: its variable, its value as anybody may see it, and where that is from."""
    wrong = {problem.path for problem in loaded.problems}
    for name in Settings.__struct_fields__:
        value = getattr(loaded.settings, name)
        text = str(value).lower() if isinstance(value, bool) else str(value)
        shown = "(wrong)" if name in wrong else masked(name, text)
        yield variable(name), shown, loaded.origins.get(name, "default")


def masked(name: str, text: str) -> str:
    """A value without what is secret in it: a signing key, or the user and password of a URL."""
    if name == "signing_key":
        return "***" if text else ""
    if "://" not in text:
        # A URL that is none may be a password, as far as anybody can tell.
        return "***" if text and name in {*IN_FILES, "otlp_endpoint", "public_url"} else text
    parts = urlsplit(text)
    host = parts.netloc.rpartition("@")
    place = f"***@{host[2]}" if host[1] else host[2]
    words = [
        (key, value if key in {"host", "port", "sslmode", "dbname"} else "***")
        for key, value in parse_qsl(parts.query)
    ]
    return parts._replace(netloc=place, query=urlencode(words, safe="/*"), fragment="").geturl()


def _take_from_file(
    name: str, given: dict[str, str], origins: dict[str, str]
) -> Iterator[FieldProblem]:
    """Read a setting from the file that its variable `_FILE` names, if there is one."""
    path = given.pop(f"{name}_file", None)
    if path is None:
        return
    where = f"{name}_file"
    if name in given:
        detail = f"give the value or the file, and not {variable(name)} as well"
        yield FieldProblem(where, "conflict", detail)
        return
    try:
        text = _held(Path(path))
    except (OSError, UnicodeDecodeError) as error:
        yield FieldProblem(where, "value", f"cannot read {path}: {_why(error)}")
        return
    if not text:
        yield FieldProblem(where, "value", f"there is nothing in {path}")
        return
    given[name], origins[name] = text, variable(where)


def _unknown(name: str, text: str) -> FieldProblem:
    """A variable that is no setting."""
    if text.startswith(("tcp://", "udp://")) or name.endswith(("_service_host", "_service_port")):
        detail = (
            "is no setting: Kubernetes sets it for a service of this name; say"
            " `enableServiceLinks: false` in the pod"
        )
        return FieldProblem(name, "unknown", detail)
    near = get_close_matches(name, [*Settings.__struct_fields__, *map("{}_file".format, IN_FILES)])
    hint = f"; did you mean {variable(near[0])}?" if near else ""
    return FieldProblem(name, "unknown", f"is no setting{hint}")


def _wrong_addresses(settings: Settings) -> Iterator[FieldProblem]:
    for name, schemes in SCHEMES.items():
        scheme, mark, _ = getattr(settings, name).partition("://")
        if scheme and (not mark or scheme not in schemes):
            ways = " or ".join(f"{each}://" for each in schemes)
            yield FieldProblem(name, "value", f"must be an address that begins with {ways}")


def _unfit(settings: Settings, process: Process, wrong: set[str]) -> Iterator[FieldProblem]:
    """What a process cannot run with: servers, files and folders that it needs."""
    # Parts of one Turnout meet in servers that none of them owns.
    for name in SCHEMES:
        if process != "up" and not getattr(settings, name) and not wrong & {name, f"{name}_file"}:
            yield FieldProblem(
                name, "missing", f"{process} needs it; `turnout up` brings its own servers"
            )
    if process != "serve" and settings.workers != 1 and "workers" not in wrong:
        detail = f"must be 1 for {process}: only `turnout serve` can run several processes"
        yield FieldProblem("workers", "value", detail)
    if settings.signing_key_file and "signing_key_file" not in wrong:
        yield from _unusable_key(Path(settings.signing_key_file))
    if process != "worker":
        yield from _unwritable(settings.data_path)


def _unusable_key(path: Path) -> Iterator[FieldProblem]:
    try:
        length = len(_held(path))
    except (OSError, UnicodeDecodeError) as error:
        yield FieldProblem("signing_key_file", "value", f"cannot read {path}: {_why(error)}")
        return
    if not SHORTEST_KEY <= length <= LONGEST_KEY:
        detail = f"{path} holds no signing key: it needs {SHORTEST_KEY} to {LONGEST_KEY} characters"
        yield FieldProblem("signing_key_file", "value", detail)


def _unwritable(folder: Path) -> Iterator[FieldProblem]:
    """Nothing is made here: a start that fails leaves nothing behind."""
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    except OSError as error:
        yield FieldProblem("data_dir", "value", f"cannot use {folder}: {_why(error)}")
        return
    if not there.is_dir():
        yield FieldProblem("data_dir", "value", f"{there} is not a folder")
    elif not os.access(there, os.W_OK | os.X_OK):
        yield FieldProblem("data_dir", "value", f"{there} is not writable for this user")


def _held(path: Path) -> str:
    """The text in a file that an operator names."""
    with path.open(encoding="ascii") as file:
        return file.read(LONGEST_SECRET).strip()


def _why(error: OSError | UnicodeDecodeError) -> str:
    # What cannot be decoded is a part of a secret: it is not for a log.
    return (error.strerror or "failed") if isinstance(error, OSError) else "it is not ASCII"


def _value(name: str, text: str) -> str | int | float | bool:
    if name == "log_units" and text in {"true", "false"}:
        return text == "true"
    if name == "trace_sample" and _FRACTION.fullmatch(text):
        return float(text)
    is_number = (
        name in {"port", "workers", "journal_limit_mib", "rate_limit", "retention_days"}
        and text.isascii()
        and text.isdigit()
    )
    return int(text) if is_number else text
