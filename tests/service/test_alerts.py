"""Every metric that an alert is made of is one that a running Turnout tells, with its labels."""

import re
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

from tests.running import Turnout
from tests.unit.test_alert_rules import RULES

_WORD: Final = re.compile(r"\b(turnout_\w+|up)\b(\{[^}]*\})?")
OF_PROMETHEUS: Final = {"up"}
LABELS: Final = {
    "turnout_decisions_total": {"project", "experiment", "kind", "rule", "code"},
    "turnout_controller_failures_total": {"of"},
    "turnout_exposures_unrecorded_total": {"project", "experiment"},
    "turnout_exposures_mismatched_total": {"project", "experiment"},
    "turnout_requests_total": {"method", "door", "status"},
    "turnout_webhook_deliveries_total": {"project", "outcome"},
    "up": {"job"},
}
"""Of those that are told apart by more than their instance."""


async def test_every_metric_of_an_alert_is_told(turnout: Turnout) -> None:
    text = (await turnout.client(None).get("/metrics")).text
    told = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in text_string_to_metric_families(text)
    }
    named = {name for rule in RULES for name, _ in _WORD.findall(rule["expr"])}
    assert len(named) > 15
    assert named <= told | OF_PROMETHEUS


def test_every_label_of_an_alert_is_one_of_its_metric() -> None:
    for rule in RULES:
        names = {name for name, _ in _WORD.findall(rule["expr"])}
        selected = {
            (name, label)
            for name, selector in _WORD.findall(rule["expr"])
            for label in re.findall(r"(\w+)\s*=~?", selector)
        }
        assert all(label in LABELS[name] for name, label in selected)
        by = {
            label.strip()
            for labels in re.findall(r"by \(([^)]*)\)", rule["expr"])
            for label in labels.split(",")
        }
        shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        for name in names:
            assert by <= LABELS.get(name, set()) | {"instance"}
        if by:
            assert shown <= by
