"""What is handed to Prometheus, Alertmanager, Flagger and Argo Rollouts: sound, and up to date.

With promtool at hand, its own tests of the rules are run, too.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.control.gates_api import GateView
from tests.tools import tool

DEPLOY = Path(__file__).parents[2] / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
_TESTS = ("turnout.rules.test.yml", "turnout.slo.test.yml")
FILES = ("turnout.rules.yml", "turnout.slo.yml")
_ALL: list[Any] = [
    rule
    for file in FILES
    for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
    for rule in group["rules"]
]
RULES: list[Any] = [rule for rule in _ALL if "alert" in rule]
RECORDED: list[Any] = [rule for rule in _ALL if "record" in rule]


def documents(name: str) -> list[Any]:
    """The YAML documents of an example."""
    return list(yaml.safe_load_all((DEPLOY / "gates" / name).read_text()))


def of_kind(kind: str, name: str) -> Any:
    """The one document of a kind."""
    [found] = [document for document in documents(name) if document["kind"] == kind]
    return found


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: str(rule["alert"]))
def test_an_alert_says_how_bad_it_is_what_it_is_and_what_to_do(rule: Any) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert {"summary", "description", "runbook"} == set(rule["annotations"])
    assert all(len(text) > 10 for text in rule["annotations"].values())


def test_alerts_have_names_of_their_own() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(names) == len(set(names)) >= 20
    assert all(re.fullmatch(r"Turnout[A-Z]\w+", name) for name in names)


def test_the_file_covers_what_wakes_somebody() -> None:
    severity = {rule["alert"]: rule["labels"]["severity"] for rule in RULES}
    critical = {name for name, level in severity.items() if level == "critical"}
    assert {
        "TurnoutNobodyLeads",
        "TurnoutMomentsOld",
        "TurnoutDecisionsFail",
        "TurnoutGuardAlarm",
        "TurnoutJournalNearlyFull",
        "TurnoutDiskRefuses",
        "TurnoutShippingStopped",
        "TurnoutSnapshotStale",
        "TurnoutDown",
    } <= critical
    assert severity["TurnoutRolledBack"] == "warning"  # the harm is over


def test_a_clock_is_off_before_outcomes_fall_out_of_a_window_of_seconds() -> None:
    [rule] = [rule for rule in RULES if rule["alert"] == "TurnoutClockOff"]
    assert rule["expr"].endswith("(abs(turnout_clock_offset_seconds)) > 1")
    assert rule["for"] == "1m"


def test_promtool_finds_the_rules_sound_and_their_tests_pass() -> None:
    promtool = tool("promtool")
    for command in (
        ["check", "rules", *FILES],
        ["check", "config", "--syntax-only", "prometheus.yml"],
        ["test", "rules", "turnout.rules.test.yml", "turnout.slo.test.yml"],
    ):
        result = subprocess.run(
            [promtool, *command],
            cwd=PROMETHEUS,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_alerts_of_processes_of_callers_and_of_promises_have_tests() -> None:
    tests = "".join((PROMETHEUS / file).read_text() for file in _TESTS)
    groups = [
        group
        for file in FILES
        for group in yaml.safe_load((PROMETHEUS / file).read_text())["groups"]
        if group["name"] in {"turnout-processes", "turnout-callers", "turnout-slo"}
    ]
    alerts = [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]
    assert len(alerts) == 15
    assert all(f'"{alert}"' in tests for alert in alerts)


def test_a_promise_is_watched_over_two_windows_and_each_is_recorded() -> None:
    recorded = {rule["record"] for rule in RECORDED}
    burning = [rule for rule in RULES if "ratio_rate" in rule["expr"]]
    assert len(burning) == 4
    used = {
        name for rule in burning for name in re.findall(r"turnout:\w+:ratio_rate\w+", rule["expr"])
    }
    assert used == recorded
    for rule in burning:
        windows = re.findall(r"ratio_rate(\w+) > ([\d.]+)", rule["expr"])
        factors = [factor for _, factor in windows]
        assert factors[::2] == factors[1::2]
        assert len({window for window, _ in windows}) == 4


def test_prometheus_reads_the_rules_under_the_name_that_they_ask_for() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["rule_files"] == list(FILES)
    jobs = {job["job_name"] for job in config["scrape_configs"]}
    named = set(re.findall(r'job="(\w+)"', str(RULES)))
    assert named == jobs == {"turnout"}


def test_every_alert_has_somebody_to_go_to_and_no_secret_stands_there() -> None:
    text = (PROMETHEUS / "alertmanager.yml").read_text()
    config = yaml.safe_load(text)
    receivers = {receiver["name"] for receiver in config["receivers"]}
    routes = config["route"]["routes"]
    assert {config["route"]["receiver"], *(route["receiver"] for route in routes)} == receivers
    told = " ".join(matcher for route in routes for matcher in route["matchers"])
    assert all(rule["labels"]["severity"] in told for rule in RULES)
    assert re.search(r"routing_key:|api_url:|https?://", text) is None
    alerts = {rule["alert"] for rule in RULES}
    assert set(re.findall(r"Turnout\w+", str(config["inhibit_rules"]))) <= alerts


def test_flagger_asks_at_gates_that_there_are_and_has_no_key_in_the_open() -> None:
    hooks = of_kind("Canary", "flagger.yaml")["spec"]["analysis"]["webhooks"]
    service = of_kind("Service", "flagger.yaml")
    port = service["spec"]["ports"][0]["port"]
    meta = service["metadata"]
    gate = f"http://{meta['name']}.{meta['namespace']}:{port}/v1/gates/ranker-v7"
    asked = {hook["type"]: hook["url"] for hook in hooks}
    assert asked == {
        "confirm-rollout": gate,
        "confirm-traffic-increase": gate,
        "confirm-promotion": gate,
        "rollback": f"{gate}?gate=rollback",
    }
    [container] = of_kind("Deployment", "flagger.yaml")["spec"]["template"]["spec"]["containers"]
    assert "secretKeyRef" in container["env"][0]["valueFrom"]
    template = of_kind("ConfigMap", "flagger.yaml")["data"]["default.conf.template"]
    assert f'"Bearer ${{{container["env"][0]["name"]}}}"' in template
    assert "location /v1/gates/ {" in template


def test_argo_reads_fields_that_a_gate_has_and_takes_its_key_from_a_secret() -> None:
    template = of_kind("AnalysisTemplate", "argo-rollouts.yaml")
    [metric] = template["spec"]["metrics"]
    conditions = f"{metric['successCondition']} {metric['failureCondition']}"
    named = re.findall(r"result\.(\w+)", conditions)
    assert set(named) == {"go", "roll_back"} <= set(GateView.__struct_fields__)
    web = metric["provider"]["web"]
    assert "/v1/gates/{{args.experiment}}" in web["url"]
    [key] = [header["value"] for header in web["headers"] if header["key"] == "Authorization"]
    [argument] = [arg for arg in template["spec"]["args"] if "valueFrom" in arg]
    assert key == f"Bearer {{{{args.{argument['name']}}}}}"
    assert set(argument["valueFrom"]["secretKeyRef"]) == {"name", "key"}
    [rollout] = [d for d in documents("argo-rollouts.yaml") if d["kind"] == "Rollout"]
    [used] = rollout["spec"]["strategy"]["canary"]["analysis"]["templates"]
    assert used["templateName"] == template["metadata"]["name"]
