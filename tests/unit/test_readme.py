"""The README tells the truth about settings, the planner, rules and what was simulated."""

from pathlib import Path

import msgspec
import pytest

from analysis.reports import conclusion
from bench.calibration.scenarios import SCENARIOS
from turnout.cli import main
from turnout.settings import HELP, PREFIX, Settings

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def between(name: str) -> str:
    """What stands between two markers of the README."""
    return README.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->")[0]


def settings_table() -> str:
    """The table of settings as the README should have it."""
    rows = [
        f"| `{PREFIX}{field.name.upper()}` | {field.default or '–'} | {HELP[field.name]} |"
        for field in msgspec.structs.fields(Settings)
    ]
    return "\n".join(["| variable | default | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def test_every_setting_is_explained() -> None:
    assert HELP.keys() == set(Settings.__struct_fields__)


def test_the_readme_has_the_table_of_settings() -> None:
    assert between("settings") == settings_table()


def test_the_readme_shows_the_demo() -> None:
    transcript = between("demo")
    assert "rollback: guardrail responded of outside" in transcript
    assert "exposures acknowledged" in transcript
    assert "**Keep running" in transcript
    assert "**Rolled back to inside: guardrail responded of outside" in transcript


def test_the_readme_has_the_rules_of_the_conclusion() -> None:
    assert conclusion.__doc__ is not None
    assert between("rules") in conclusion.__doc__


def test_the_readme_shows_what_the_planner_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command, *shown = between("plan").splitlines()[1:-1]
    assert main(command.removeprefix("$ turnout ").split()) == 0
    assert capsys.readouterr().out.splitlines() == shown


def test_the_readme_has_every_error_rate_that_is_claimed() -> None:
    rows = between("calibration")
    assert [s.title for s in SCENARIOS if f"| {s.title} |" not in rows] == []
    assert "**outside**" not in rows
    assert "**inside**" not in rows
