"""Settings: `TURNOUT_*` variables, and flags of the same names. One table serves both."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from experiments.decoding import decode
from experiments.model import Duration, Key, parse_duration
from experiments.problems import FieldProblem
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

LEAST_RETENTION: Final = 8
"""Days: outcomes may come in 7 days late, and a day is dropped as a whole."""

Port = Annotated[int, Meta(ge=0, le=65_535, description="a port, 0 to 65535 (0: any free one)")]
SigningKeyText = Annotated[
    str, Meta(pattern=r"^(.{32,1024})?$(?!\n)", description="32 characters or more, or nothing")
]
HttpUrl = Annotated[
    str,
    Meta(
        pattern=r"^(https?://[^\s/?#]+[^\s?#]*)?$(?!\n)",
        description="an address such as https://turnout.example.com, or nothing",
    ),
]
LogLevel = Literal["debug", "info", "warning", "error"]
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
    "rate_limit": "requests a second that a key may send to one process; 0 for no limit",
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
}


class SettingsError(Exception):
    """Wrong settings: one line that names each of them."""


def load_settings(environment: Mapping[str, str], flags: Mapping[str, str | None]) -> Settings:
    """The settings from flags (which win) and variables.

    Raises:
        SettingsError: naming every wrong or unknown one.
    """
    texts = {
        name.removeprefix(PREFIX).lower(): text
        for name, text in environment.items()
        if name.startswith(PREFIX) and name not in CLIENT_VARIABLES and text != ""
    }
    texts |= {name: text for name, text in flags.items() if text is not None}
    decoded = decode(Settings, {name: _value(name, text) for name, text in texts.items()})
    problems = list(decoded.problems)
    problems += [
        FieldProblem(name, "value", f"must be at most {longest}")
        for name, longest in LONGEST.items()
        if decoded.sound(name)
        and parse_duration(getattr(decoded.value, name)) > parse_duration(longest)
    ]
    if decoded.sound("retention_days") and 0 < decoded.value.retention_days < LEAST_RETENTION:
        detail = f"must be 0 (for ever) or at least {LEAST_RETENTION}"
        problems.append(FieldProblem("retention_days", "value", detail))
    if texts.get("signing_key") and texts.get("signing_key_file"):
        detail = f"give the key or the file, and not {PREFIX}SIGNING_KEY as well"
        problems.append(FieldProblem("signing_key_file", "conflict", detail))
    if problems:
        wrong = "; ".join(f"{PREFIX}{p.path.upper()}: {p.detail}" for p in problems)
        raise SettingsError(f"wrong settings: {wrong}")
    return decoded.value


def require_servers(settings: Settings, process: Process) -> None:
    """Parts of one Turnout meet in servers that none of them owns.

    Raises:
        SettingsError: naming those that `serve` or `worker` lacks.
    """
    needed = {"database_url": settings.database_url, "redis_url": settings.redis_url}
    missing = [f"{PREFIX}{name.upper()}" for name, url in needed.items() if not url]
    if process != "up" and missing:
        raise SettingsError(
            f"{process} needs {' and '.join(missing)}; `turnout up` brings its own servers"
        )


def require_one_process(settings: Settings, process: Process) -> None:
    """Only routers can be several on one port.

    Raises:
        SettingsError: if others should be.
    """
    if process != "serve" and settings.workers != 1:
        raise SettingsError(
            f"wrong settings: {PREFIX}WORKERS: must be 1 for {process}: only `turnout serve` can"
            " run several processes"
        )


def _value(name: str, text: str) -> str | int:
    is_number = (
        name in {"port", "workers", "journal_limit_mib", "rate_limit", "retention_days"}
        and text.isascii()
        and text.isdigit()
    )
    return int(text) if is_number else text
