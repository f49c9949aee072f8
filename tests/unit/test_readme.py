"""The README tells the truth about settings."""

from pathlib import Path

import msgspec

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
