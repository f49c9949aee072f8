"""A real Prometheus, with the rules and the configuration from `deploy/`, watches a real Turnout:
two routers on one port and a worker, of which some are killed."""

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml

from tests.e2e.commands import PATIENCE, PLAIN, Up, checked, until, up
from tests.e2e.test_workers import total, workers_of
from tests.e2e.traffic import QUICK, assign, expose_units, start_experiment
from tests.tools import tool
from tests.unit.test_board import queries

DEPLOYED: Final = Path(__file__).parents[2] / "deploy" / "prometheus"
QUICKLY: Final = "250ms"


class Prometheus:
    """One that runs, asked by its HTTP API."""

    def __init__(self, url: str) -> None:
        """It answers at this address."""
        self._client = httpx.Client(base_url=f"{url}/api/v1", timeout=30, verify=PLAIN)

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return self._client.get("/status/runtimeinfo").is_success
        except httpx.TransportError:
            return False

    def get(self, path: str, **parameters: str) -> Any:
        """What it says at a path."""
        return checked(self._client.get(path, params=parameters))["data"]

    def value(self, query: str) -> float | None:
        """The one value of a query; None where it has none."""
        found = self.get("/query", query=query)["result"]
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that fire, with their instances."""
        return {
            (alert["labels"]["alertname"], alert["labels"].get("instance", ""))
            for alert in self.get("/alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def close(self) -> None:
        """Let go of its connections."""
        self._client.close()


def address(service: Up) -> str:
    """Where a process listens, as Prometheus names it."""
    return service.url.removeprefix("http://")


@contextmanager
def prometheus(folder: Path, targets: list[str]) -> Iterator[Prometheus]:
    """A Prometheus as deployed, but for its targets, Alertmanager, and how often it looks: alerts
    wait for a second where they would for a minute."""
    program = tool("prometheus")
    config = yaml.safe_load((DEPLOYED / "prometheus.yml").read_text())
    del config["alerting"]
    config["global"] = {"scrape_interval": QUICKLY, "evaluation_interval": QUICKLY}
    config["scrape_configs"][0]["static_configs"] = [{"targets": targets}]
    for name in config["rule_files"]:
        rules = (DEPLOYED / name).read_text()
        (folder / name).write_text(re.sub(r"\bfor: 1m$", "for: 1s", rules, flags=re.MULTILINE))
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    running = Prometheus(f"http://127.0.0.1:{port}")
    try:

        def answers() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            return running.ready()

        until(answers, "Prometheus answers")
        yield running
    finally:
        running.close()
        process.terminate()
        process.wait(PATIENCE)


def test_a_prometheus_sees_what_was_sent_and_who_died(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    tool("prometheus")
    variables = {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}
    routers = ("--workers", "2", *QUICK)
    with (
        up(tmp_path / "data", *routers, variables=variables, command="serve") as service,
        up(tmp_path / "other", *QUICK, variables=variables, command="worker") as worker,
        prometheus(tmp_path, [address(service), address(worker)]) as seen,
    ):
        start_experiment(service, service.admin_key)
        asked_before = total(service, "turnout_assignments_total")
        # Routers were asked for it until both knew of it.
        missed = total(service, "turnout_requests_total", door="/v1/assign", status="404")

        def until_value(query: str, value: float) -> None:
            until(lambda: seen.value(query) == value, f"{query} is {value}")

        # Every target is up, and every rule is read and evaluated.
        until_value('sum(up{job="turnout"})', 2)
        assert all(not target["lastError"] for target in seen.get("/targets")["activeTargets"])

        def rules() -> list[Any]:
            return [rule for group in seen.get("/rules")["groups"] for rule in group["rules"]]

        until(lambda: all(rule["health"] == "ok" for rule in rules()), "all rules are evaluated")
        assert len(rules()) == 57

        # What it answers is what was sent, through two routers, each on connections of its own.
        for first in range(0, 60, 6):
            expose_units(service, service.admin_key, range(first, first + 6))
        with service.client(service.admin_key) as client:
            assert assign(client, "somebody", "unheard-of").status_code == 404
        until_value("sum(turnout_assignments_total)", asked_before + 60)
        until_value('turnout_requests_total{door="/v1/outcomes",status="200"}', 20)
        until_value('turnout_request_seconds_count{door="/v1/outcomes"}', 20)
        until_value('sum(turnout_outcomes_total{result="accepted"})', 20)
        until_value('turnout_requests_total{door="/v1/assign",status="404"}', missed + 1)
        until_value('turnout_experiments{state="running"}', 1)
        until_value("sum(turnout_leader)", 1)
        until_value("sum(turnout_folded_records_total)", 80)
        until_value("max(scrape_samples_scraped) < bool 1000", 1)

        # The board's queries are answered; of most there is something to show by now.
        answers = [seen.get("/query", query=query)["result"] for query in queries()]
        assert sum(bool(answer) for answer in answers) > len(answers) / 2

        # A router dies: no counter falls, so that no rate shows what never was.
        os.kill(min(workers_of(service.process.pid)), signal.SIGKILL)
        until_value("turnout_worker_restarts_total", 1)
        until_value("turnout_workers", 2)
        for first in range(60, 90, 6):
            expose_units(service, service.admin_key, range(first, first + 6))
        until_value("sum(turnout_assignments_total)", asked_before + 90)
        until_value('turnout_requests_total{door="/v1/outcomes",status="200"}', 30)
        for name in ("turnout_assignments_total", "turnout_request_seconds_count"):
            assert seen.value(f"sum(resets({name}[10m]))") == 0
        assert not {name for name, _ in seen.firing()} & {"TurnoutDown", "TurnoutNobodyLeads"}

        # The only worker dies: somebody is woken.
        worker.kill()
        expected = {("TurnoutDown", address(worker)), ("TurnoutNobodyLeads", "")}
        until(lambda: expected <= seen.firing(), "alerts fire")
        assert service.stop() == 0
