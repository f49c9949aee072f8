"""A revoked key ends on every process of a fleet: on connections that are open and whose heads are
remembered, in event streams, and whether Redis tells of it or not."""

from functools import partial
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.e2e.commands import Up, Variables, checked, turnout, until, up, worker_of
from tests.e2e.traffic import QUICK, assign, start_experiment

TWO: Final = (*QUICK, "--workers", "2")
NOBODY: Final = "redis://127.0.0.1:1"


@pytest.fixture
def variables(database_url: str, redis_url: str) -> Variables:
    """Settings that name the servers of a test."""
    return {"TURNOUT_DATABASE_URL": database_url, "TURNOUT_REDIS_URL": redis_url}


def one_for_each_worker(service: Up, key: str) -> list[httpx.Client]:
    """Clients with open connections, each to another worker, which knows their heads by now."""
    found: dict[str, httpx.Client] = {}

    def enough() -> bool:
        client = service.client(key)
        answer = assign(client, "ann")
        if answer.status_code != 200 or worker_of(answer.headers) in found:
            client.close()
            return False
        for _ in range(4):
            assert assign(client, "ann").status_code == 200
        found[worker_of(answer.headers)] = client
        return len(found) == 2

    until(enough, "both workers serve")
    return list(found.values())


def refused(client: httpx.Client) -> bool:
    """Whether the worker behind a connection takes the key no more."""
    return assign(client, "ann").status_code == 401


@pytest.mark.parametrize("told", [True, False])
def test_a_revoked_key_ends_on_every_worker(
    tmp_path: Path, variables: Variables, told: bool
) -> None:
    with up(tmp_path / "data", *TWO, variables=variables, command="serve") as service:
        start_experiment(service, service.admin_key)
        with service.client(service.admin_key) as admin:
            made = checked(admin.post("/v1/keys", json={"role": "service", "expires_in": "1d"}))
            clients = one_for_each_worker(service, made["key"])
            with (
                service.client(made["key"]) as follower,
                follower.stream("GET", "/ofrep/v1/events") as events,
            ):
                assert events.status_code == 200
                if told:
                    assert admin.delete(f"/v1/keys/{made['id']}").status_code == 204
                else:
                    alone = {**variables, "TURNOUT_REDIS_URL": NOBODY}
                    assert turnout("keys", "revoke", made["id"], variables=alone).returncode == 0
                for client in clients:
                    until(partial(refused, client), "a worker refuses the key")
                list(events.iter_lines())  # the stream ends, or this runs into a time-out
        for client in clients:
            assert refused(client), "and goes on refusing it"
            client.close()
