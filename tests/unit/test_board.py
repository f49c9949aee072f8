"""The Grafana board and what provisions it: sound as far as can be told without a Grafana.

Its schema is Grafana's own affair, and no Grafana can be had here: what is checked is the form that
boards of this schema version have, and every query by Prometheus's own parser.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from typing import Any, Final

import pytest
import yaml

from tests.tools import tool

GRAFANA: Final = Path(__file__).parents[2] / "deploy" / "grafana"
BOARD: Final[Any] = json.loads((GRAFANA / "dashboards" / "turnout.json").read_text())
PANELS: Final[list[Any]] = BOARD["panels"]
SHOWN: Final = [panel for panel in PANELS if panel["type"] != "row"]
UNITS: Final = frozenset(
    {"none", "s", "bytes", "percentunit", "reqps", "cps", "dateTimeFromNow"},
)
"""Ids of units as Grafana has them. `none` is a plain number, and said on purpose."""


def queries() -> Iterator[str]:
    """Every query of the board, with values for its variables."""
    found = [target["expr"] for panel in SHOWN for target in panel["targets"]]
    found += [note["expr"] for note in BOARD["annotations"]["list"] if "expr" in note]
    for query in found:
        yield (
            query.replace("$__rate_interval", "1m")
            .replace("$__range", "6h")
            .replace("$instance", ".*")
            .replace("$project", ".*")
            .replace("$experiment", ".*")
        )


def test_every_query_is_one_that_prometheus_can_read(tmp_path: Path) -> None:
    rules = [
        {"record": f"board:query:{number}", "expr": query} for number, query in enumerate(queries())
    ]
    assert len(rules) > 60
    assert not any("$" in rule["expr"] for rule in rules)
    file = tmp_path / "board.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "board", "rules": rules}]}))
    found = run(
        [tool("promtool"), "check", "rules", file],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_panels_have_ids_of_their_own_and_none_lies_over_another() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(ids) == len(set(ids)) > 40
    for panel in PANELS:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= 24, panel["title"]
    for one, other in itertools.combinations(PANELS, 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])


@pytest.mark.parametrize("panel", SHOWN, ids=lambda panel: str(panel["title"]))
def test_a_panel_says_what_it_shows_in_which_unit_and_where_from(panel: Any) -> None:
    assert len(panel["description"]) > 10
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[0]["value"] is None
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)
    assert panel["datasource"]["uid"] == "${datasource}"
    refs = [target["refId"] for target in panel["targets"]]
    assert len(refs) == len(set(refs)) >= 1
    assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_titles_tell_panels_apart() -> None:
    titles = [panel["title"] for panel in PANELS]
    assert len(titles) == len(set(titles))


def test_the_top_row_answers_whether_it_is_healthy() -> None:
    first, *rest = PANELS
    assert first["type"] == "row"
    assert first["gridPos"]["y"] == 0
    top = [panel for panel in rest if panel["gridPos"]["y"] == 1]
    assert {panel["type"] for panel in top} == {"stat"}
    assert sum(panel["gridPos"]["w"] for panel in top) == 24
    assert all(len(panel["fieldConfig"]["defaults"]["thresholds"]["steps"]) > 1 for panel in top)


def test_every_variable_that_is_used_is_there_and_every_one_is_used() -> None:
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    assert names == {"datasource", "instance", "project", "experiment"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD)))
    assert used == names | {"__rate_interval", "__range", "__all"}


def test_the_board_is_provisioned_from_where_it_is_and_asks_for_no_secret() -> None:
    [provider] = yaml.safe_load(
        (GRAFANA / "provisioning" / "dashboards" / "turnout.yml").read_text()
    )["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/var/lib/grafana/dashboards")
    text = (GRAFANA / "provisioning" / "datasources" / "turnout.yml").read_text()
    [source] = yaml.safe_load(text)["datasources"]
    assert source["type"] == "prometheus"
    assert "secureJsonData" not in text
    config = GRAFANA.parent / "prometheus" / "prometheus.yml"
    interval = yaml.safe_load(config.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    assert BOARD["schemaVersion"] == 39
    assert BOARD["uid"] == "turnout"
