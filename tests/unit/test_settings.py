"""Settings that are wrong for a reason that no type shows."""

from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from turnout.settings import (
    Process,
    SettingsError,
    effective,
    load_settings,
    masked,
    read_settings,
)

SERVERS = {
    "TURNOUT_DATABASE_URL": "postgresql://me:hunter2@db/turnout",
    "TURNOUT_REDIS_URL": "redis://:hunter2@cache",
}


def test_a_router_ships_often_enough_not_to_be_taken_for_dead() -> None:
    assert load_settings({"TURNOUT_SHIP_EVERY": "10s"}, {}).ship_every == "10s"
    with pytest.raises(SettingsError, match="TURNOUT_SHIP_EVERY: must be at most 10s"):
        load_settings({"TURNOUT_SHIP_EVERY": "11s"}, {})


@pytest.mark.parametrize(("name", "longest"), [("SNAPSHOT_POLL", "10s"), ("TICK", "5s")])
def test_what_others_wait_for_happens_often_enough(name: str, longest: str) -> None:
    load_settings({f"TURNOUT_{name}": longest}, {})
    with pytest.raises(SettingsError, match=f"TURNOUT_{name}: must be at most {longest}"):
        load_settings({f"TURNOUT_{name}": "1m"}, {})


def test_it_is_named_together_with_what_else_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r"TURNOUT_TICK: .*; TURNOUT_SHIP_EVERY: "):
        load_settings({"TURNOUT_SHIP_EVERY": "1m"}, {"tick": "soon"})


def test_only_routers_can_be_several() -> None:
    several = SERVERS | {"TURNOUT_WORKERS": "8"}
    assert load_settings(several, {}, "serve").workers == 8
    for process in get_args(Process):
        load_settings(SERVERS | {"TURNOUT_WORKERS": "1"}, {}, process)
        if process != "serve":
            with pytest.raises(SettingsError, match=f"TURNOUT_WORKERS: must be 1 for {process}"):
                load_settings(several, {}, process)


@pytest.mark.parametrize("workers", ["0", "257", "two", "-1"])
def test_as_many_workers_as_make_sense(workers: str) -> None:
    with pytest.raises(SettingsError, match="TURNOUT_WORKERS: must be"):
        load_settings({"TURNOUT_WORKERS": workers}, {})


@pytest.mark.parametrize(("days", "kept"), [("0", None), ("8", 8), ("90", 90)])
def test_raw_events_are_kept_for_whole_days_or_for_ever(days: str, kept: int | None) -> None:
    keep = load_settings({"TURNOUT_RETENTION_DAYS": days}, {}).keep
    assert keep == (None if kept is None else timedelta(days=kept))


@pytest.mark.parametrize("days", ["1", "7"])
def test_raw_events_are_kept_for_as_long_as_outcomes_may_come_in(days: str) -> None:
    with pytest.raises(SettingsError, match=r"RETENTION_DAYS: must be 0 .* or at least 8"):
        load_settings({"TURNOUT_RETENTION_DAYS": days}, {})


def test_all_that_is_wrong_is_told_at_once_and_no_secret_with_it(tmp_path: Path) -> None:
    """Values, names, conflicts, servers, files and folders: one start shows all of it."""
    (tmp_path / "file").touch()
    wrong = {
        "TURNOUT_DATADIR": "x",
        "TURNOUT_DATA_DIR": str(tmp_path / "file"),
        "TURNOUT_DATABASE_URL": "mysql://me:hunter2@db/turnout",
        "TURNOUT_PORT": "http",
        "TURNOUT_TICK": "1h",
        "TURNOUT_SIGNING_KEY_FILE": str(tmp_path / "nothing"),
        "TURNOUT_WEBHOOK_PROXY": "hunter2",
        "TURNOUT_WEBHOOK_PROXY_FILE": str(tmp_path / "file"),
    }
    with pytest.raises(SettingsError) as refused:
        load_settings(wrong, {}, "serve")
    line = str(refused.value)
    assert line.startswith("wrong settings: ")
    missing = ["TURNOUT_REDIS_URL"]
    assert [name for name in [*wrong, *missing] if f"{name}: " not in line] == []
    assert "TURNOUT_DATADIR: is no setting; did you mean TURNOUT_DATA_DIR?" in line
    assert "hunter2" not in line
    assert "\n" not in line


def test_a_variable_that_kubernetes_made_is_told_apart_from_a_slip() -> None:
    with pytest.raises(SettingsError, match="enableServiceLinks: false"):
        load_settings({"TURNOUT_WEB_PORT": "tcp://10.0.0.7:80"}, {})


def test_a_secret_may_come_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("postgresql://me:hunter2@db/turnout\n")
    environment = {"TURNOUT_DATABASE_URL_FILE": str(file)}
    loaded = read_settings(environment, {})
    assert loaded.settings.database_url == "postgresql://me:hunter2@db/turnout"
    assert loaded.origins == {"database_url": "TURNOUT_DATABASE_URL_FILE"}
    flags: dict[str, str | None] = {"database_url": "postgresql://other/turnout"}
    assert load_settings(environment, flags).database_url == flags["database_url"]


@pytest.mark.parametrize("held", [None, b"", b"\xff\xfe"])
def test_a_file_without_a_secret_is_refused_without_being_shown(
    tmp_path: Path, held: bytes | None
) -> None:
    file = tmp_path / "url"
    if held is not None:
        file.write_bytes(held)
    with pytest.raises(SettingsError, match=r"^wrong settings: TURNOUT_REDIS_URL_FILE: [^;]*$"):
        load_settings(SERVERS_BUT_REDIS | {"TURNOUT_REDIS_URL_FILE": str(file)}, {}, "serve")


SERVERS_BUT_REDIS = {k: v for k, v in SERVERS.items() if k != "TURNOUT_REDIS_URL"}


def test_what_is_in_force_is_shown_with_its_origin_and_without_its_secrets() -> None:
    key = {"TURNOUT_SIGNING_KEY": "hunter2" * 8}
    shown = list(effective(read_settings(SERVERS | key, {"port": "81"})))
    assert ("TURNOUT_PORT", "81", "--port") in shown
    assert ("TURNOUT_HOST", "127.0.0.1", "default") in shown
    assert ("TURNOUT_DATABASE_URL", "postgresql://***@db/turnout", "TURNOUT_DATABASE_URL") in shown
    assert ("TURNOUT_SIGNING_KEY", "***", "TURNOUT_SIGNING_KEY") in shown
    assert "hunter2" not in str(shown)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("postgresql://u@/d?host=/s&password=p", "postgresql://***@/d?host=/s&password=***"),
        ("a password in the wrong place", "***"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_who_and_by_which_password(value: str, shown: str) -> None:
    assert masked("database_url", value) == shown
