"""The documents tell the truth about settings, the planner, rules and what was simulated."""

import re
from pathlib import Path

import msgspec
import pytest
import yaml

from analysis.control.decide import RULES
from analysis.reports import conclusion
from analysis.simulation.world import read_scene
from bench.calibration.scenarios import SCENARIOS
from turnout.cli import main
from turnout.settings import HELP, PREFIX, Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OPERATING = (ROOT / "docs/operating.md").read_text(encoding="utf-8")


def between(name: str, document: str = README) -> str:
    """What stands between two markers of the README, or of another document."""
    return document.split(f"<!-- {name} -->\n")[1].split(f"<!-- /{name} -->", maxsplit=1)[0]


def settings_table() -> str:
    """The table of settings as docs/operating.md should have it."""
    rows = [
        f"| `{PREFIX}{field.name.upper()}` | {field.default or '–'} | {HELP[field.name]} |"
        for field in msgspec.structs.fields(Settings)
    ]
    return "\n".join(["| variable | default | what it is |", "| --- | --- | --- |", *rows]) + "\n"


def test_every_setting_is_explained() -> None:
    assert HELP.keys() == set(Settings.__struct_fields__)


def test_operators_have_the_table_of_settings() -> None:
    assert between("settings", OPERATING) == settings_table()


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


def test_the_readme_shows_what_the_simulator_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    command, *shown = between("simulate").splitlines()[1:-1]
    assert main(command.removeprefix("$ turnout ").split()) == 0
    assert capsys.readouterr().out.splitlines() == shown


def test_the_readme_shows_the_truth_of_the_example() -> None:
    document = yaml.safe_load((ROOT / "examples/ranker.yaml").read_text(encoding="utf-8"))
    [shown] = re.findall(r"^```yaml\n(truth:\n.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(shown)["truth"] == document["truth"]
    assert read_scene(document).played


def test_the_readme_has_the_rules_in_the_order_in_which_they_are_asked() -> None:
    chapter = README.split("\n## The controller\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| \[(\w+)\]", chapter, re.MULTILINE)
    asked = [rule.__module__.rsplit(".", 1)[1].removesuffix("_rule") for rule in RULES]
    assert rows == [*asked, "stop"]


def test_every_alert_is_told_of_with_its_severity() -> None:
    deploy = ROOT / "deploy"
    rules, promises = (
        [
            rule
            for group in yaml.safe_load((deploy / "prometheus" / name).read_text("utf-8"))["groups"]
            for rule in group["rules"]
            if "alert" in rule
        ]
        for name in ("turnout.rules.yml", "turnout.slo.yml")
    )
    told = " ".join(OPERATING.split())
    assert f"`turnout.rules.yml` has {len(rules)} alerts" in told
    rules += promises
    assert f"Prometheus has {len(rules)} alert rules" in told
    critical, others = set(), set()
    for line in (deploy / "README.md").read_text(encoding="utf-8").splitlines():
        if "`Turnout" in line and line.startswith("| "):
            _, _, first, second, _ = line.split("|")
            critical |= set(re.findall(r"`(Turnout\w+)`", first))
            others |= set(re.findall(r"`(Turnout\w+)`", second))
    wakes = {rule["alert"] for rule in rules if rule["labels"]["severity"] == "critical"}
    assert critical == wakes
    assert others == {rule["alert"] for rule in rules} - wakes


def test_the_readme_has_every_error_rate_that_is_claimed() -> None:
    rows = between("calibration")
    assert [s.title for s in SCENARIOS if f"| {s.title} |" not in rows] == []
    assert "**outside**" not in rows
    assert "**inside**" not in rows
