"""The command line. Exit status: 0 done, 1 the answer is no, 2 it could not run (one line why)."""

import argparse
import asyncio
import os
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import uvloop

from experiments.decoding import decode
from experiments.keys import ROLES, KeyRequest
from experiments.problems import ProblemError, invalid
from experiments.projects import ProjectChange
from experiments.units import STORAGES
from turnout import __version__, admin, auditing, client, plan_flags, sim_flags, weights_flags
from turnout.backends import CannotRunError
from turnout.listing import key_line, project_line
from turnout.logs import configure_logging, redacted
from turnout.migrate import MigrationError
from turnout.replaying import lines
from turnout.settings import (
    HELP,
    NO_FLAGS,
    Process,
    Settings,
    SettingsError,
    effective,
    load_settings,
    read_settings,
    told,
)
from turnout.ship import ship
from turnout.signals import stop_at_signal
from turnout.terminal import plain, plain_line

T = TypeVar("T")
PROCESSES: Final[dict[Process, str]] = {
    "up": "run everything in one process",
    "serve": "run the doors and their journal, beside others and a worker",
    "worker": "run the controller: it folds, decides, and ships what dead processes left",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        result: int = options.command(options)
    except KeyboardInterrupt:
        return 130
    except (SettingsError, CannotRunError, MigrationError, client.ClientError) as error:
        print(f"turnout: {plain(redacted(str(error), units=True))}", file=sys.stderr)
        return 2
    return result


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="turnout", description="Route, record, report, reallocate, roll back."
    )
    parser.add_argument("--version", action="version", version=f"turnout {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_service_commands(commands)
    _add_client_commands(commands)
    return parser


def _add_service_commands(commands: Any) -> None:
    for process, text in PROCESSES.items():
        _command(commands, process, _run_process, text, settings=True).set_defaults(process=process)
    shown = _command(
        commands,
        "settings",
        _show_settings,
        "check the settings, and show them without their secrets",
        settings=True,
    )
    shown.add_argument(
        "process", nargs="?", choices=PROCESSES, default="up", help="what is to run with them"
    )
    bring = _command(commands, "migrate", _migrate, "bring the database up to date", settings=True)
    bring.add_argument(
        "--status",
        action="store_true",
        help="only say what is applied and what is pending; status 1 if anything is",
    )
    save = _command(commands, "backup", _back_up, "back the database up", settings=True)
    save.add_argument("file", metavar="FILE", help="a file that is not there yet")
    back = _command(
        commands, "restore", _restore, "restore a backup into an empty database", settings=True
    )
    back.add_argument("file", metavar="FILE", help="what `turnout backup` or pg_dump -Fc wrote")
    carry = _command(commands, "ship", _ship, "ship the journal of a dead machine", settings=True)
    carry.add_argument("folder", metavar="DIR", help="the journal's folder")
    compare = _command(
        commands, "verify", _verify, "count everything again from raw events", settings=True
    )
    compare.add_argument("--experiment", metavar="KEY", help="verify this one only")
    audits = commands.add_parser(
        "audit", help="export and verify what was done", allow_abbrev=False
    ).add_subparsers(required=True, metavar="ACTION")
    auditing.add_arguments(audits, _command, {"export": _export_audit, "verify": _verify_audit})
    project = _command(commands, "project", _project, "show or set up a project", settings=True)
    project.add_argument(
        "--units", choices=STORAGES, help="how its units are stored; fixed from its first event on"
    )
    project.add_argument(
        "--origins",
        type=_list,
        metavar="LIST",
        help="where browsers may call from with a client key: https://shop.example.com,... or *;"
        " an empty text for nowhere",
    )
    project.add_argument(
        "--approvals",
        type=_list,
        metavar="LIST",
        help="what a second editor has to approve: some of start,change,allocation; an empty text"
        " for nothing",
    )
    _command(commands, "projects", _list_projects, "list all projects", settings=True)
    keys = commands.add_parser("keys", help="make, list and revoke API keys").add_subparsers(
        required=True, metavar="ACTION"
    )
    create = _command(keys, "create", _create_key, "print a new key", settings=True)
    create.add_argument("--role", required=True, choices=ROLES)
    create.add_argument("--note", default="", help="what the key is for")
    create.add_argument("--expires-in", help="when it stops working: 30d, say")
    create.add_argument(
        "--scope",
        type=_list,
        metavar="LIST",
        help="what it may do of what its role may: some of evaluate,record,read,write,administer",
    )
    create.add_argument(
        "--limit",
        type=int,
        metavar="NUMBER",
        help="requests a second, to all processes together (default: the setting rate-limit)",
    )
    _command(keys, "list", _list_keys, "list the live keys", settings=True)
    revoke = _command(keys, "revoke", _revoke_key, "revoke a key", settings=True)
    revoke.add_argument("id", help="the key's id: the middle part of to_<id>_<secret>")


def _add_client_commands(commands: Any) -> None:
    apply = _command(commands, "apply", _apply, "create or change experiments from a file")
    apply.add_argument("-f", "--file", required=True, help="YAML or JSON; - for standard input")
    report = _command(commands, "report", _report, "print a significance report")
    report.add_argument("key", nargs="?", help="the experiment, as a running Turnout knows it")
    form = report.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON instead of Markdown")
    form.add_argument("--csv", action="store_true", help="as CSV: a row for each reading")
    _add_table_options(report)
    told = _command(commands, "replay", _replay, "tell what a unit got, and why")
    told.add_argument("experiment", help="its key")
    told.add_argument("--unit", required=True, help="the unit, as it is sent to be assigned")
    when = told.add_mutually_exclusive_group()
    when.add_argument("--at", metavar="TIME", help="then: RFC 3339 with an offset (default: now)")
    when.add_argument("--epoch", type=int, help="in this epoch")
    when.add_argument("--exposure", metavar="ID", help="by this exposure")
    told.add_argument("--attributes", metavar="JSON", help="an object: what targeting read then")
    told.add_argument("--json", action="store_true", help="as JSON instead of words")
    again = _command(
        commands, "replay-decision", _replay_decision, "compute a decision again, and compare"
    )
    again.add_argument("id", type=int, help="the decision's id, as the ledger has it")
    again.add_argument("--json", action="store_true", help="as JSON instead of words")
    planner = _command(commands, "plan", _plan, "plan an experiment: units, days, power, cost")
    plan_flags.add_arguments(planner)
    player = _command(commands, "simulate", _simulate, "play an experiment against stated truths")
    sim_flags.add_arguments(player)
    exports = commands.add_parser(
        "export", help="write what others read", allow_abbrev=False
    ).add_subparsers(required=True, metavar="WHAT")
    split = _command(exports, "weights", _export_weights, "write weights for a mesh")
    weights_flags.add_arguments(split)
    for parser in (apply, report, told, again, planner, split):
        parser.add_argument("--url", help="where Turnout serves (TURNOUT_URL)")
    show = _command(commands, "demo", _demo, "replay two real experiments, end to end")
    show.add_argument("--data-dir", help="an empty folder to use instead of a temporary one")


def _add_table_options(report: argparse.ArgumentParser) -> None:
    """Options of a report that is made of a table, without a running Turnout."""
    group = report.add_argument_group(
        "of a table that came from elsewhere",
        "A CSV file with a header and a row for each unit. No running Turnout is needed.",
    )
    group.add_argument("--from", dest="source", metavar="FILE", help="CSV, or packed by gzip, or -")
    names = {
        "--variant": "the column with the variant of each unit",
        "--control": "the variant that the others are compared with",
        "--weights": "the share of the traffic that each variant was to get, as old=0.5,new=0.5; "
        "without it the sample ratio is not checked",
        "--unit": "the column with the unit; then none may come twice",
        "--time": "the column with the time of enrolment",
        "--epoch": "the column with the allocation that a unit met",
        "--propensity": "the column with the probability with which it met its own variant",
    }
    for name, text in names.items():
        group.add_argument(name, metavar=name.removeprefix("--").upper(), help=text)
    group.add_argument(
        "--metric",
        action="append",
        metavar="METRIC",
        help="[KEY=]KIND:COLUMN with options after commas; again for more. proportion:bought, "
        "mean:spent,covariate=spent_before,cap=p99, ratio:clicks/views, "
        "quantile:latency,at=0.95,goal=decrease,role=secondary",
    )
    group.add_argument(
        "--definition",
        metavar="DEFINITION",
        help="an experiment's YAML or JSON instead of metrics, weights and plan: its events are "
        "the columns, and a covariate is that column with _before after its name",
    )
    group.add_argument(
        "--by", action="append", metavar="COLUMN", help="break down by it; again for more"
    )
    group.add_argument(
        "--leave-out-missing",
        action="store_true",
        help="leave a unit out of a metric where its cell is empty; otherwise that is an error",
    )
    group.add_argument(
        "--reading",
        choices=["continuous", "fixed", "planned", "bayesian"],
        help="what the conclusion stands on (default: continuous)",
    )
    group.add_argument(
        "--correction", choices=["holm", "none"], help="over primary metrics (default: holm)"
    )
    group.add_argument("--alpha", type=float, help="1 - confidence level (default: 0.05)")
    group.add_argument("--units", type=int, help="how many were planned (default: all there are)")
    group.add_argument("--looks", help="planned looks, as shares of the units: 0.5,1")
    group.add_argument("--effect", help="the smallest one worth having: 0.01, or 5%% for a lift")


def _command(
    commands: Any, name: str, function: Any, text: str, *, settings: bool = False
) -> argparse.ArgumentParser:
    # Whole names only: `--signing-key SECRET` must not pass for the name of a file.
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text.capitalize() + ".", allow_abbrev=False
    )
    parser.set_defaults(command=function)
    if settings:
        group = parser.add_argument_group("settings", "each is also a variable TURNOUT_<NAME>")
        for setting in msgspec.structs.fields(Settings):
            if setting.name in NO_FLAGS:
                continue
            group.add_argument(
                f"--{setting.name.replace('_', '-')}",
                metavar="VALUE",
                help=f"{HELP[setting.name]} (default: {setting.default or 'none'})",
            )
    return parser


def _settings(options: argparse.Namespace, process: Process | None = None) -> Settings:
    return load_settings(os.environ, _flags(options), process)


def _flags(options: argparse.Namespace) -> dict[str, str | None]:
    names = (name for name in Settings.__struct_fields__ if name not in NO_FLAGS)
    return {name: getattr(options, name) for name in names}


def _list(text: str) -> list[str]:
    return [word for word in (part.strip() for part in text.split(",")) if word]


def _say(line: str) -> None:
    print(plain(line), flush=True)


def _note(line: str) -> None:
    """What happens meanwhile, apart from what was asked for."""
    print(f"turnout: {line}", file=sys.stderr, flush=True)


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


def _run_process(options: argparse.Namespace) -> int:
    settings = _settings(options, options.process)
    _begin_logging(settings, options.process)
    if settings.workers > 1:
        from turnout.fleet import run_fleet  # noqa: PLC0415 - as below

        run_fleet(settings, _say)
    else:
        _run(_until_signal(settings, options.process))
    return 0


def _begin_logging(settings: Settings, role: str) -> None:
    configure_logging(settings.log_level, role, units=settings.log_units)


async def _until_signal(settings: Settings, process: Process) -> None:
    stop = stop_at_signal()
    # Here, for with it comes scipy, which takes longer to load than the other commands to run.
    from turnout.service import run  # noqa: PLC0415

    await run(settings, _say, stop, process)


def _show_settings(options: argparse.Namespace) -> int:
    loaded = read_settings(os.environ, _flags(options), options.process)
    for name, value, origin in effective(loaded):
        _say(f"{name}={value}  # {origin}")
    if loaded.problems:
        raise SettingsError(told(loaded.problems))
    return 0


def _migrate(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.status:
        stands = _run(admin.migration_status(settings))
        for name in stands.applied:
            _say(f"applied  {name}")
        for name in stands.pending:
            _say(f"pending  {name}")
        return 1 if stands.pending else 0
    for name in _run(admin.migrate_database(settings, _note)):
        _say(name)
    return 0


def _back_up(options: argparse.Namespace) -> int:
    from turnout.backup import back_up  # noqa: PLC0415 - as above

    size = _run(back_up(_settings(options), Path(options.file)))
    _say(f"{options.file}: {size / 2**20:.1f} MiB")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from turnout.backup import restore  # noqa: PLC0415 - as above

    restored = _run(restore(_settings(options), Path(options.file), _note))
    for line in restored.lines():
        _say(line)
    return 0


def _ship(options: argparse.Namespace) -> int:
    settings = _settings(options)
    _begin_logging(settings, "ship")
    shipment = _run(ship(settings, Path(options.folder)))
    for line in shipment.lines():
        _say(line)
    return 0 if shipment.whole else 1


def _project(options: argparse.Namespace) -> int:
    named = {name: getattr(options, name) for name in ("units", "origins", "approvals")}
    change = decode(ProjectChange, {k: value for k, value in named.items() if value is not None})
    try:
        if change.problems:
            raise invalid(change.problems)
        project = _run(admin.project(_settings(options), change.value))
    except ProblemError as error:
        wrong = "; ".join(f"{each.path}: {each.detail}" for each in error.errors)
        print(f"turnout: {plain_line(wrong or error.detail)}", file=sys.stderr)
        return 1
    _say(project_line(project))
    return 0


def _list_projects(options: argparse.Namespace) -> int:
    for project, live_keys in _run(admin.list_projects(_settings(options))):
        _say(project_line(project, live_keys))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from turnout.verifying import verify_database  # noqa: PLC0415 - as above

    # The project of the settings is the one that a start makes; without the flag all are compared.
    verdict = _run(
        verify_database(
            _settings(options),
            options.project,
            options.experiment,
            lambda line: print(f"turnout: {line}", file=sys.stderr, flush=True),
        )
    )
    for line in verdict.lines():
        _say(line)
    return 1 if verdict.found else 0


def _export_audit(options: argparse.Namespace) -> int:
    # Without the flag it is all of them, as for `verify`.
    _run(
        auditing.export_audit(
            _settings(options), options.project, options.after, sys.stdout.buffer, _note
        )
    )
    return 0


def _verify_audit(options: argparse.Namespace) -> int:
    report = auditing.Report(_say, _note)
    project, expect = options.project, options.expect
    if options.file is not None:
        auditing.verify_file(options.file, project, expect, report.lines)
    else:
        _run(auditing.verify_database(_settings(options), project, expect, report.lines))
    return 1 if report.findings else 0


def _create_key(options: argparse.Namespace) -> int:
    settings = _settings(options)
    wanted = decode(
        KeyRequest,
        {
            "role": options.role,
            "note": options.note,
            "scope": options.scope,
            "rate_limit": options.limit,
        },
    )
    if wanted.problems:
        raise CannotRunError("; ".join(f"{each.path}: {each.detail}" for each in wanted.problems))
    key = msgspec.structs.replace(wanted.value, expires_in=options.expires_in)
    _say(_run(admin.create_key(settings, key)))
    return 0


def _list_keys(options: argparse.Namespace) -> int:
    for key in _run(admin.list_keys(_settings(options))):
        _say(plain_line(key_line(key)))
    return 0


def _revoke_key(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if _run(admin.revoke_key(settings, options.id)):
        return 0
    message = f"turnout: project {settings.project} has no live key {options.id}"
    print(plain_line(message), file=sys.stderr)
    return 1


def _apply(options: argparse.Namespace) -> int:
    with client.connect(options.url, os.environ) as turnout:
        for line in client.apply(turnout, client.read_definitions(options.file)):
            _say(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    if (options.key is None) is (options.source is None):
        raise client.ClientError("report takes the key of an experiment, or --from FILE")
    accept = "application/json" if options.json else "text/csv" if options.csv else "text/markdown"
    if options.source is not None:
        from turnout.from_file import report_from_file, written  # noqa: PLC0415 - as above

        sys.stdout.write(written(report_from_file(options), accept))
        return 0
    with client.connect(options.url, os.environ) as turnout:
        sys.stdout.write(plain(client.report(turnout, options.key, accept)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from turnout.planning import plan  # noqa: PLC0415 - as above

    sys.stdout.write(plan(options, os.environ))
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from turnout.simulating import run  # noqa: PLC0415 - as above

    sys.stdout.write(run(options))
    return 0


def _replay(options: argparse.Namespace) -> int:
    names = ("experiment", "unit", "at", "epoch", "exposure", "attributes")
    query = {name: value for name in names if (value := getattr(options, name)) is not None}
    with client.connect(options.url, os.environ) as turnout:
        told = client.replay(turnout, query)
    for line in [msgspec.json.encode(told).decode()] if options.json else lines(told):
        _say(line)
    return 0


def _replay_decision(options: argparse.Namespace) -> int:
    from turnout import recomputing  # noqa: PLC0415 - as above

    with client.connect(options.url, os.environ) as turnout:
        answer = client.decision(turnout, options.id)
    found = recomputing.recompute(answer)
    for line in [recomputing.to_json(found)] if options.json else recomputing.lines(found):
        _say(line)
    return 0 if found.same else 1


def _export_weights(options: argparse.Namespace) -> int:
    query = weights_flags.query_of(options)
    with client.connect(options.url, os.environ) as turnout:
        sys.stdout.write(client.weights(turnout, options.key, query))
    return 0


def _demo(options: argparse.Namespace) -> int:
    from turnout import demo  # noqa: PLC0415 - as above

    return demo.main(options.data_dir, _say)
