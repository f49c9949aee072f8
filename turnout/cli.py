"""The command line. Exit status: 0 done, 1 the answer is no, 2 it could not run (one line why)."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import msgspec
import uvloop

from experiments.keys import ROLES
from turnout import admin, client
from turnout.backends import CannotRunError
from turnout.migrate import MigrationError
from turnout.settings import HELP, Settings, SettingsError, load_settings
from turnout.telemetry import configure_logging

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result: int = options.command(options)
    except KeyboardInterrupt:
        return 130
    except (SettingsError, CannotRunError, MigrationError, client.ClientError) as error:
        print(f"turnout: {error}", file=sys.stderr)
        return 2
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turnout", description="Route, record, report, reallocate, roll back."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_service_commands(commands)
    _add_client_commands(commands)
    return parser


def _add_service_commands(commands: Any) -> None:
    _command(commands, "up", _up, "run everything in one process", settings=True)
    _command(commands, "migrate", _migrate, "bring the database up to date", settings=True)
    keys = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = _command(keys, "create", _create_key, "print a new key", settings=True)
    create.add_argument("--role", required=True, choices=ROLES)
    create.add_argument("--note", default="", help="what the key is for")
    create.add_argument("--expires-in", help="when it stops working: 30d, say")
    _command(keys, "list", _list_keys, "list the live keys", settings=True)
    revoke = _command(keys, "revoke", _revoke_key, "revoke a key", settings=True)
    revoke.add_argument("id", help="the key's id: the middle part of to_<id>_<secret>")


def _add_client_commands(commands: Any) -> None:
    apply = _command(commands, "apply", _apply, "create or change experiments from a file")
    apply.add_argument("-f", "--file", required=True, help="YAML or JSON; - for standard input")
    report = _command(commands, "report", _report, "print a significance report")
    report.add_argument("key", help="the experiment")
    report.add_argument("--json", action="store_true", help="as JSON instead of Markdown")
    for parser in (apply, report):
        parser.add_argument("--url", help="where Turnout serves (TURNOUT_URL)")
    show = _command(commands, "demo", _demo, "replay two real experiments, end to end")
    show.add_argument("--data-dir", help="an empty folder to use instead of a temporary one")


def _command(
    commands: Any, name: str, function: Any, text: str, *, settings: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text.capitalize() + "."
    )
    parser.set_defaults(command=function)
    if settings:
        group = parser.add_argument_group("settings", "each is also a variable TURNOUT_<NAME>")
        for setting in msgspec.structs.fields(Settings):
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                metavar="VALUE",
                help=f"{HELP[setting.name]} (default: {setting.default or 'none'})",
            )
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    flags = {name: getattr(options, name) for name in Settings.__struct_fields__}
    return load_settings(os.environ, flags)


def _say(line: str) -> None:
    print(line, flush=True)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def _up(options: argparse.Namespace) -> int:
    settings = _settings(options)
    configure_logging(settings.log_level)
    _run(_until_signal(settings))
    return 0


async def _until_signal(settings: Settings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # Here, for with it comes scipy, which takes longer to load than the other commands to run.
    from turnout.service import run  # noqa: PLC0415

    await run(settings, _say, stop)


def _migrate(options: argparse.Namespace) -> int:
    for name in _run(admin.migrate_database(_settings(options))):
        _say(name)
    return 0


def _create_key(options: argparse.Namespace) -> int:
    settings = _settings(options)
    _say(_run(admin.create_key(settings, options.role, options.note, options.expires_in)))
    return 0


def _list_keys(options: argparse.Namespace) -> int:
    for key in _run(admin.list_keys(_settings(options))):
        expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"
        _say(f"{key.id}  {key.role:8}  expires {expires}  {key.note}")
    return 0


def _revoke_key(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if _run(admin.revoke_key(settings, options.id)):
        return 0
    print(f"turnout: project {settings.project} has no live key {options.id}", file=sys.stderr)
    return 1


def _apply(options: argparse.Namespace) -> int:
    with client.connect(options.url, os.environ) as turnout:
        for line in client.apply(turnout, client.read_definitions(options.file)):
            _say(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    with client.connect(options.url, os.environ) as turnout:
        sys.stdout.write(client.report(turnout, options.key, as_json=options.json))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from turnout import demo  # noqa: PLC0415 - as above

    return demo.main(options.data_dir, _say)
