"""The command `turnout simulate`."""

from pathlib import Path

import msgspec
import pytest

from turnout.cli import main

EXAMPLE = """
key: x
variants:
  - {key: old, control: true, weight: 0.5, value: 1}
  - {key: new, weight: 0.5, value: 2}
metrics:
  - {key: errors, role: guardrail, kind: proportion, event: e, window: 10s, goal: decrease}
truth:
  traffic: 2/s
  length: 2h
  metrics:
    errors: {old: 0.01, new: {value: 0.01, then: 0.5, at: 1h}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An experiment with what is true of it."""
    path = tmp_path / "x.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    return path


def test_it_prints_what_came_of_all_runs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "-f", str(file), "--runs", "3", "--jobs", "1"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("# x, played 3 times (seed 1)\n")
    assert "rolled back by the guard" in told.out
    assert told.err == ""


def test_as_json_it_is_for_machines(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["simulate", "-f", str(file), "--runs", "2", "--jobs", "1", "--json"]
    assert main(given) == 0
    found = msgspec.json.decode(capsys.readouterr().out)
    assert found["runs"] == 2
    assert found["endings"]["rollback"]["count"] == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--runs", "0"], "--runs: must be from 1"),
        (["--jobs", "0"], "--jobs: must be from 1"),
        (["--seed", "-1"], "--seed: must be 0 or above"),
    ],
)
def test_a_wrong_option_is_named(
    file: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", "-f", str(file), *options]) == 2
    assert says in capsys.readouterr().err


def test_every_wrong_field_of_a_file_is_named(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = EXAMPLE.replace("2/s", "two").replace("weight: 0.5, value: 2", "weight: 2, value: 2")
    file.write_text(wrong, encoding="utf-8")
    assert main(["simulate", "-f", str(file)]) == 2
    told = capsys.readouterr().err
    assert "truth.traffic" in told
    assert "variants[1].weight" in told


def test_one_experiment_is_played_at_a_time(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(f"{EXAMPLE}---{EXAMPLE}", encoding="utf-8")
    assert main(["simulate", "-f", str(file)]) == 2
    assert "one is played at a time" in capsys.readouterr().err
