"""Where the signing key of an installation comes from, and what happens where there is none."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from experiments.problems import ProblemError
from experiments.webhooks.api import WebhookPlane, signing_key_of
from experiments.webhooks.courier import Courier
from experiments.webhooks.signing import SigningKey
from turnout import cli
from turnout.backends import CannotRunError
from turnout.settings import Settings, SettingsError, load_settings
from turnout.signing_key import FILE, signing_key


def settings(folder: Path, key: str = "") -> Settings:
    """Settings with a data folder, and a key."""
    return Settings(data_dir=str(folder), signing_key=key)


def test_up_makes_a_key_that_only_its_owner_can_read_and_finds_it_again(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    made = signing_key(settings(folder), "up")
    assert made is not None
    assert (folder / FILE).stat().st_mode & 0o777 == 0o600
    assert len((folder / FILE).read_text().strip()) == 64
    found = signing_key(settings(folder), "up")
    assert found is not None
    assert found.id == made.id


def test_who_start_at_once_have_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda _: signing_key(settings(tmp_path), "up"), range(32)))
    assert len({key.id for key in made if key is not None}) == 1


def test_what_an_operator_has_set_comes_first(tmp_path: Path) -> None:
    text = random.Random(1).randbytes(20).hex()  # noqa: S311 - a test
    for process in ("up", "serve", "worker"):
        key = signing_key(settings(tmp_path, text), process)
        assert key is not None
        assert key.id == getattr(signing_key(settings(tmp_path, text), "up"), "id", "")
    assert not (tmp_path / FILE).exists()


def test_parts_have_no_key_but_that_of_their_operator(tmp_path: Path) -> None:
    assert signing_key(settings(tmp_path), "serve") is None
    assert signing_key(settings(tmp_path), "worker") is None
    with pytest.raises(ProblemError, match="TURNOUT_SIGNING_KEY"):
        signing_key_of(WebhookPlane(None, Courier()))


def test_a_file_that_holds_no_key_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("short\n")
    with pytest.raises(CannotRunError, match="holds no signing key"):
        signing_key(settings(tmp_path), "up")
    assert (tmp_path / FILE).read_text() == "short\n"


def test_parts_may_share_a_file_that_holds_it(tmp_path: Path) -> None:
    file = tmp_path / "mounted"
    file.write_text(f"{'x' * 32}\n")
    named = Settings(data_dir=str(tmp_path / "data"), signing_key_file=str(file))
    for process in ("up", "serve", "worker"):
        key = signing_key(named, process)
        assert key is not None
        assert key.id == SigningKey("x" * 32).id
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("held", [None, b"", b"too short a key\n", b"\xff" * 64, b"x" * 1025])
def test_a_named_file_that_holds_none_is_refused_without_being_shown(
    tmp_path: Path, held: bytes | None
) -> None:
    file = tmp_path / "mounted"
    if held is not None:
        file.write_bytes(held)
    named = Settings(data_dir=str(tmp_path), signing_key_file=str(file))
    with pytest.raises(CannotRunError, match=str(file)) as refused:
        signing_key(named, "serve")
    assert not any(part in str(refused.value) for part in ("too short", "xff", "0xff", "xxx"))
    assert file.exists() == (held is not None)


def test_the_key_or_a_file_of_it_and_not_both() -> None:
    with pytest.raises(SettingsError, match="TURNOUT_SIGNING_KEY_FILE: give the key or the file"):
        load_settings({"TURNOUT_SIGNING_KEY": "x" * 32}, {"signing_key_file": "/run/key"})


@pytest.mark.parametrize("flag", ["--signing-key=SECRET", "--signing-k=SECRET"])
def test_who_lists_processes_sees_no_key(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["migrate", flag])
    assert ended.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


def test_a_key_that_can_be_guessed_is_refused_without_being_shown() -> None:
    with pytest.raises(SettingsError, match="TURNOUT_SIGNING_KEY: must be 32 char") as refused:
        load_settings({"TURNOUT_SIGNING_KEY": "too short a key"}, {})
    assert "too short a key" not in str(refused.value)
    assert load_settings({"TURNOUT_SIGNING_KEY": "x" * 32}, {}).signing_key == "x" * 32


@pytest.mark.parametrize("url", ["turnout.example.com", "ftp://x", "https://", "https://x y"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError, match="TURNOUT_PUBLIC_URL: must be an address"):
        load_settings({"TURNOUT_PUBLIC_URL": url}, {})
