"""`turnout up` and the commands beside it: whole processes, started, stopped, refused.

That nothing is lost when they are killed is for `test_crash.py` to show.
"""

import os
import re
import signal
import socket
from pathlib import Path

import asyncpg
import pytest

from tests.e2e.commands import PATIENCE, Up, checked, done, launched, refusal, servers_of, until, up
from tests.e2e.traffic import (
    QUICK,
    assign,
    expose_units,
    finished_units,
    report_of,
    start_experiment,
    units_of,
)
from tests.running import readings_of


def test_a_restart_keeps_experiments_keys_and_reports(data_dir: Path) -> None:
    with up(data_dir, *QUICK) as service:
        admin_key = service.admin_key
        assert re.fullmatch(r"to_[0-9a-f]{12}_[0-9a-f]{64}", admin_key)
        assert service.printed == [
            f"Admin key of project default (shown this once): {admin_key}",
            f"Turnout serves on {service.url}",
        ]
        start_experiment(service, admin_key)
        variants = expose_units(service, admin_key, range(60))
        until(lambda: finished_units(service, admin_key) == 60, "all units are finished")
        before = report_of(service, admin_key)
        assert service.stop() == 0
        assert servers_of(data_dir) == {}
        assert service.strays == []
    # The database is started for the moment where none runs.
    made = done("keys", "create", "--role", "service", "--data-dir", data_dir)
    assert made.split("_")[1] in done("keys", "list", "--data-dir", data_dir)
    assert servers_of(data_dir) == {}
    with up(data_dir, *QUICK) as service:
        assert service.printed == [f"Turnout serves on {service.url}"]
        with service.client(made.strip()) as client:
            again = {unit: checked(assign(client, unit))["variant"] for unit in variants}
        assert again == variants
        after = report_of(service, admin_key)
        assert after["units"] == before["units"]
        assert readings_of(after) == readings_of(before)
        assert service.stop(signal.SIGINT) == 0


def test_a_start_can_be_stopped(data_dir: Path) -> None:
    with launched(data_dir) as service:
        until(lambda: bool(servers_of(data_dir)), "its servers start")
        assert service.stop() == 0
        assert servers_of(data_dir) == {}
        assert service.strays == []


def test_a_port_in_use_is_refused(data_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal("up", "--port", str(port), "--data-dir", data_dir)
    assert line.startswith(f"cannot listen on 127.0.0.1:{port}: ")
    assert "in use" in line
    assert not data_dir.exists()


def test_a_data_folder_in_use_is_refused(serving: Up) -> None:
    line = refusal("up", "--port", "0", "--data-dir", serving.data_dir)
    assert line == f"{serving.data_dir}: already running (pid {serving.process.pid})"


def test_a_data_folder_of_another_postgres_is_refused(data_dir: Path) -> None:
    (data_dir / "postgres").mkdir(parents=True)
    (data_dir / "postgres" / "PG_VERSION").write_text("15\n")
    line = refusal("up", "--port", "0", "--data-dir", data_dir)
    assert "was written by Postgres 15" in line
    assert "pg_dump" in line


def test_a_database_that_does_not_answer_is_refused(data_dir: Path, redis_url: str) -> None:
    variables = {
        "TURNOUT_DATABASE_URL": "postgresql://turnout@127.0.0.1:1/turnout",
        "TURNOUT_REDIS_URL": redis_url,
    }
    line = refusal("up", "--port", "0", "--data-dir", data_dir, variables=variables)
    assert line.startswith("cannot reach Postgres: ")
    assert refusal("migrate", "--data-dir", data_dir, variables=variables) == line


async def test_a_database_in_which_nothing_may_be_made_is_refused(
    data_dir: Path, database_url: str, redis_url: str
) -> None:
    connection = await asyncpg.connect(database_url)
    try:
        name = await connection.fetchval("select current_database()")
        await connection.execute(f'alter database "{name}" set default_transaction_read_only to on')
    finally:
        await connection.close()
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    line = refusal("up", "--port", "0", "--data-dir", data_dir, variables=variables)
    assert "read-only transaction" in line


def test_all_wrong_settings_are_named_at_once(data_dir: Path) -> None:
    variables = {"TURNOUT_LOG_LEVEL": "loud", "TURNOUT_TICK": "soon", "TURNOUT_COLOUR": "red"}
    line = refusal("up", "--port", "http", "--data-dir", data_dir, variables=variables)
    assert line.startswith("wrong settings: ")
    wrong = ("TURNOUT_PORT", *variables)
    assert [name for name in wrong if f"{name}: " not in line] == []
    assert not data_dir.exists()


def test_a_url_that_is_none_of_a_redis_is_refused(data_dir: Path, database_url: str) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": "localhost"}
    line = refusal("up", "--port", "0", "--data-dir", data_dir, variables=variables)
    assert line.startswith("wrong settings: TURNOUT_REDIS_URL: must be an address")


def test_the_admin_key_is_shown_though_an_earlier_start_failed(
    data_dir: Path, database_url: str, redis_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    data_dir.mkdir()
    (data_dir / "journals").touch()
    line = refusal("up", "--port", "0", "--data-dir", data_dir, variables=variables)
    assert line.startswith("cannot open the journal: ")
    (data_dir / "journals").unlink()
    with up(data_dir, variables=variables) as service:
        assert service.admin_key


@pytest.mark.parametrize(
    ("program", "name"), [("postgres", "Postgres"), ("valkey-server", "Valkey")]
)
def test_it_ends_with_one_line_when_a_server_of_its_own_dies(
    data_dir: Path, program: str, name: str
) -> None:
    with up(data_dir, *QUICK) as service:
        admin_key = service.admin_key
        start_experiment(service, admin_key)
        victims = [pid for pid, found in servers_of(data_dir).items() if found == program]
        expose_units(service, admin_key, range(20))
        os.kill(min(victims), signal.SIGKILL)
        assert service.process.wait(PATIENCE) == 2
        last = service.logged.splitlines()[-1]
        assert last.startswith(f"turnout: {name} was killed by signal 9: ")
        assert service.strays == []
    # A supervisor starts it again, and nothing is lost.
    with up(data_dir, *QUICK) as service:
        until(lambda: units_of(service, admin_key) == 20, "the report counts all")
