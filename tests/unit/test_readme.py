"""The README tells the truth about settings, the planner, rules and what was simulated."""

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


def test_every_link_within_the_readme_leads_somewhere() -> None:
    heads = re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) - anchors == set()
    files = re.findall(r"\]\(((?!#|https?:)[^)#]+)[^)]*\)", README)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_every_alert_is_told_of_with_its_severity() -> None:
    deploy = ROOT / "deploy"
    groups = yaml.safe_load((deploy / "prometheus/turnout.rules.yml").read_text(encoding="utf-8"))
    rules = [rule for group in groups["groups"] for rule in group["rules"]]
    assert f"Prometheus has {len(rules)} alert rules" in " ".join(README.split())
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
