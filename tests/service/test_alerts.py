"""Every metric and label that an alert or the board is made of is one that a Turnout tells."""

import json
import re
from pathlib import Path
from typing import Final

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.running import Turnout, eventually
from tests.unit.test_alert_rules import RECORDED, RULES
from tests.unit.test_board import BOARD, queries
from turnout.sums import GAUGES

OF_PROMETHEUS: Final = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
OF_A_FLEET: Final[dict[str, set[str]]] = {
    "turnout_workers": set(),
    "turnout_worker_restarts_total": set(),
    "turnout_worker_silences_total": set(),
}
"""What only `serve --workers` tells: tests/e2e/test_workers.py reads it."""
SILENT: Final = {
    "turnout_decisions_total": {"project", "experiment", "kind", "rule", "code"},
    "turnout_controller_failures_total": {"of"},
    "turnout_chronicle_failures_total": {"of"},
    "turnout_exposures_unrecorded_total": {"project", "experiment"},
    "turnout_exposures_mismatched_total": {"project", "experiment"},
    "turnout_exposures_reported_total": {"project", "result"},
    "turnout_sticky_fallbacks_total": {"project", "experiment"},
    "turnout_webhook_deliveries_total": {"project", "outcome"},
    "turnout_assignments_total": {"project", "experiment", "variant", "reason"},
    "turnout_outcomes_total": {"project", "result"},
    "turnout_sample_ratio_mismatch": {"project", "experiment"},
    "turnout_sample_ratio_log10_e": {"project", "experiment"},
    "turnout_last_decision_timestamp_seconds": set(),
}
"""Those that have no series before something happens, with their labels."""
TARGET: Final = {"job", "instance"}

PAGE: Final = Path(__file__).parents[2] / "docs" / "metrics.md"

_METRIC: Final = re.compile(r"\b((?:turnout|process)_\w+|up|ALERTS)\b(?!\s*:)(\{[^}]*\})?")
_RECORDED: Final = re.compile(r"turnout:[\w:]+")


def parts_of(query: str) -> tuple[set[str], set[tuple[str, str]], set[str]]:
    """The metrics of a query, the labels it selects by, as (metric, label), and those it groups by.
    Recorded metrics are not among them."""
    query = _RECORDED.sub("", query)
    found = _METRIC.findall(query)
    selected = {
        (name, label)
        for name, selector in found
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)
    }
    grouped = {
        label.strip()
        for labels in re.findall(r"by \(([^)]*)\)", query)
        for label in labels.split(",")
    }
    return {name for name, _ in found}, selected, grouped


async def told_by(turnout: Turnout) -> dict[str, set[str]]:
    """The metrics of a Turnout in which the leader has looked, with the labels of their series."""

    async def complete() -> dict[str, set[str]] | None:
        text = (await turnout.client(None).get("/metrics")).text
        labels: dict[str, set[str]] = {}
        for family in text_string_to_metric_families(text):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels.setdefault(name, set())
            for sample in family.samples:
                labels.setdefault(sample.name, set()).update(sample.labels)
        seen = {"turnout_event_loop_lag_seconds_bucket", "turnout_dependency_up"} <= set(labels)
        return labels if seen and labels["turnout_experiments"] else None

    return await eventually(complete, "leader that has looked")


async def test_every_metric_and_label_of_an_alert_and_of_the_board_is_told(
    turnout: Turnout,
) -> None:
    known = await told_by(turnout)
    for name, labels in SILENT.items():
        assert known[name] <= labels, name
    known |= SILENT | OF_A_FLEET | OF_PROMETHEUS
    recorded = {rule["record"] for rule in RECORDED}
    asked = [rule["expr"] for rule in (*RULES, *RECORDED)] + list(queries())
    asked += [
        variable["definition"].replace("label_values", "")
        for variable in BOARD["templating"]["list"]
        if "definition" in variable
    ]
    assert len(asked) > 100
    named: set[str] = set()
    for query in asked:
        names, selected, grouped = parts_of(query)
        named |= names
        assert names <= set(known), query
        assert set(_RECORDED.findall(query)) <= recorded, query
        for name, label in selected:
            assert label in known[name] | TARGET, (name, label, query)
        if names:
            assert grouped <= set.union(*(known[name] for name in names)) | TARGET, query
    assert len(named) > 50


def test_what_an_alert_shows_it_has_grouped_by() -> None:
    for rule in RULES:
        grouped = parts_of(rule["expr"])[2]
        if grouped:
            shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
            assert shown <= grouped, rule["alert"]


async def test_the_page_of_metrics_tells_them_all_as_they_are(turnout: Turnout) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]+) \| (\w+) \|$", PAGE.read_text(), re.MULTILINE
    )
    known = await told_by(turnout)
    text = (await turnout.client(None).get("/metrics")).text
    families = {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(text)
    }
    assert {row[0] for row in rows} == set(families) | set(OF_A_FLEET)
    assert len(rows) == len({row[0] for row in rows})
    for name, kind, named, documentation, rule in rows:
        assert rule == GAUGES[name] if kind == "gauge" else rule == "sum", name
        if name in OF_A_FLEET:
            continue
        labels = {label for label in named.split(", ") if label}
        samples = {sample.name for sample in families[name].samples}
        seen = set().union(*(known[sample] for sample in samples)) - {"le"}
        assert seen <= labels == (seen or SILENT.get(name, labels)), name
        assert (kind, documentation) == (families[name].type, families[name].documentation)


async def test_every_gauge_says_how_those_of_several_workers_come_together(
    turnout: Turnout,
) -> None:
    text = (await turnout.client(None).get("/metrics")).text
    gauges = {f.name for f in text_string_to_metric_families(text) if f.type == "gauge"}
    assert gauges | {"turnout_workers"} == set(GAUGES)


async def test_who_takes_gzip_gets_it(turnout: Turnout) -> None:
    client = turnout.client(None)
    plain = await client.get("/metrics", headers={"Accept-Encoding": "identity"})
    small = await client.get("/metrics", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in plain.headers
    assert small.headers["content-encoding"] == "gzip"
    for answer in (plain, small):
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert answer.headers["vary"] == "Accept-Encoding"
    assert int(small.headers["content-length"]) * 3 < int(plain.headers["content-length"])


async def test_whatever_is_asked_the_series_stay_few(turnout: Turnout) -> None:
    """Unknown experiments, paths, methods, events and keys: none makes a label of its own."""

    async def series() -> set[str]:
        text = (await turnout.client(None).get("/metrics")).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    service = turnout.client("service")
    stranger = turnout.client(None)

    async def ask(client: httpx.AsyncClient, method: str, path: str, body: object = None) -> None:
        content = None if body is None else json.dumps(body)
        await client.request(method, path, content=content)

    async def all_kinds(name: str) -> None:
        await ask(service, "POST", "/v1/assign", {"experiment": name, "unit": name})
        await ask(service, "POST", f"/ofrep/v1/evaluate/flags/{name}", {"context": {}})
        await ask(service, "POST", "/v1/outcomes", {"event": name, "unit": name})
        await ask(service, "GET", f"/{name}/{name}")
        await ask(service, "GET", f"/v1/experiments/{name}")
        await ask(stranger, "PURGE", f"/v1/{name}")
        await ask(stranger, name.replace("-", "").upper(), "/v1/assign")

    await all_kinds("first-a")
    before = await series()
    for number in range(100):
        await all_kinds(f"name-{chr(97 + number % 26)}-{number}")
    after = {
        line for line in await series() - before if "turnout_requests" in line or "name-" in line
    }
    assert not [line for line in after if "name-" in line]
    assert len(after) < 20
