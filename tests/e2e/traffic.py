"""What clients do with a running Turnout: define, assign, report outcomes, read the report."""

from typing import Any

import httpx

from tests.e2e.commands import Up, checked

QUICK = ("--ship-every", "50ms", "--tick", "100ms", "--lateness", "100ms", "--snapshot-poll", "1s")
DEFINITION = {
    "key": "ranker",
    "variants": [
        {"key": "v6", "control": True, "weight": 0.5, "value": {"model": "ranker/6"}},
        {"key": "v7", "weight": 0.5, "value": {"model": "ranker/7"}},
    ],
    "metrics": [
        {"key": "click", "role": "primary", "kind": "proportion", "event": "click", "window": "1s"}
    ],
}


def start_experiment(service: Up, admin_key: str, key: str = "ranker") -> None:
    """Define and start an experiment, and wait until units are assigned, whoever is asked."""
    with service.client(admin_key) as client:
        checked(client.post("/v1/experiments", json={**DEFINITION, "key": key}))
        checked(client.post(f"/v1/experiments/{key}/start", json={"reason": "to test"}))
    until_assigned(service, admin_key, key)


def until_assigned(service: Up, admin_key: str, key: str = "ranker") -> None:
    """Wait until all workers of a router assign an experiment's units."""
    service.until_all_know(
        admin_key,
        lambda client: assign(client, "nobody", key, expose=False),
        lambda answer: answer.is_success,
        f"the experiment {key}",
    )


def assign(
    client: httpx.Client, unit: str, key: str = "ranker", *, expose: bool = True
) -> httpx.Response:
    """Ask for a unit's variant."""
    return client.post("/v1/assign", json={"experiment": key, "unit": unit, "expose": expose})


def report_of(service: Up, key: str, experiment: str = "ranker") -> Any:
    """The significance report."""
    with service.client(key) as client:
        return checked(client.get(f"/v1/experiments/{experiment}/report"))


def units_of(service: Up, key: str, experiment: str = "ranker") -> int:
    """How many units the report counts."""
    return sum(report_of(service, key, experiment)["units"].values())


def expose_units(service: Up, key: str, units: range, experiment: str = "ranker") -> dict[str, str]:
    """Expose units, and have every third one click; the variants."""
    variants = {}
    with service.client(key) as client:
        for number in units:
            answer = checked(assign(client, f"unit-{number}", experiment))
            assert answer["recorded"]
            variants[f"unit-{number}"] = answer["variant"]
            if number % 3 == 0:
                outcome = {"id": f"o-{number}", "event": "click", "unit": f"unit-{number}"}
                receipt = checked(client.post("/v1/outcomes", json=outcome))
                assert receipt["accepted"] + receipt["duplicates"] == 1
    return variants


def finished_units(service: Up, key: str) -> int:
    """How many units have passed their window."""
    arms = report_of(service, key)["metrics"][0]["arms"].values()
    return sum(arm["finished"] for arm in arms)
