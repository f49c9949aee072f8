"""Every door asks for a key of the project, with a role that may pass. The doors are those of the
app, so that a new one is tested without being named here."""

import re
from datetime import timedelta
from typing import Any, Final, NamedTuple

import httpx
import pytest

from experiments.keys import ROLES, Role
from tests.running import Turnout, eventually, problem
from turnout.app import DOORS

MAY: Final[dict[Role, set[str]]] = {
    "client": {"evaluate"},
    "service": {"evaluate", "record"},
    "analyst": {"read"},
    "editor": {"read", "write"},
    "admin": {"evaluate", "record", "read", "write", "administer"},
}


class Door(NamedTuple):
    """A door as a caller sees it."""

    method: str
    path: str
    permission: str

    def of(self, key: str) -> "Door":
        """The door of one experiment or key."""
        return self._replace(path=re.sub(r"\{[^}]*\}", key, self.path))


EVERY: Final = sorted(
    Door(method, path, str(handler.opt.get("permission")))
    for handler in DOORS
    for path in handler.paths
    for method in handler.http_methods
)
BODIES: Final[dict[str, dict[str, Any]]] = {
    "conclude": {"reason": "a test", "ship": "old"},
    "allocation": {"reason": "a test", "traffic": 0.5},
    "overrides": {"reason": "a test", "variant": "old", "unit": "u"},
    "holdout": {"reason": "a test", "share": 0},
    "approve": {"reason": "a test", "step": 1},
    "jump": {"reason": "a test", "step": 1},
    "snapshots": {"note": "a test"},
}


def fitting(door: Door) -> str:
    """The permission for what a door does."""
    if door.path.startswith(("/v1/audit", "/v1/keys", "/v1/units", "/v1/webhooks")) or (
        door.method,
        door.path,
    ) == (
        "PATCH",
        "/v1/project",
    ):
        return "administer"
    if door.path.startswith(("/v1/assign", "/v1/flagd", "/v1/route", "/ofrep/")):
        return "evaluate"
    if door.path.startswith(("/v1/outcomes", "/v1/exposures")):
        return "record"
    asks = door.method == "GET" or door.path.startswith(("/v1/plan", "/v1/gates"))
    asks |= door.path.endswith("/snapshots")  # who may read may keep what they read
    return "read" if asks else "write"


async def knock(client: httpx.AsyncClient, door: Door, **headers: str) -> httpx.Response:
    """Call a door with a body that it could take."""
    last = door.path.rpartition("/")[2]
    body: dict[str, Any] = BODIES.get(last, {"reason": "a test"})
    if door.path.startswith("/ofrep"):
        body = {"context": {"targetingKey": "u"}}
    elif door.method == "PATCH":
        body = {"name": "another"}
    elif door.path == "/v1/assign":
        body = {"experiment": "nothing", "unit": "u"}
    content = None if door.method in {"GET", "DELETE"} else body
    return await client.request(
        door.method,
        door.path,
        json=content,
        headers={"If-Match": '"1"', "X-Turnout-Unit": "u", **headers},
    )


async def opened(turnout: Turnout, key: str | None) -> list[Door]:
    """The doors that do not answer this key with 401."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answers = {door: await knock(turnout.client(None), door.of("x"), **headers) for door in EVERY}
    return [door for door, answer in answers.items() if answer.status_code != 401]


async def known(turnout: Turnout, key: str) -> None:
    """Wait until the service takes an admin's key."""

    async def works() -> bool | None:
        answer = await turnout.client(None).get("/v1/keys", headers={"X-API-Key": key})
        return True if answer.status_code == 200 else None

    await eventually(works, "use for a new key")


def test_a_door_takes_the_permission_that_fits_what_it_does() -> None:
    assert [door for door in EVERY if door.permission != fitting(door)] == []


@pytest.mark.parametrize("role", ROLES)
async def test_a_key_opens_the_doors_of_its_role_and_no_other(turnout: Turnout, role: Role) -> None:
    for door in EVERY:
        answer = await knock(turnout.client(role), door.of("nothing"))
        if door.permission in MAY[role]:
            assert answer.status_code not in {401, 403}, (door, answer.text)
            assert answer.status_code < 500, (door, answer.text)
        else:
            assert answer.status_code == 403, (door, answer.text)


async def test_no_door_opens_without_a_key(turnout: Turnout) -> None:
    assert await opened(turnout, None) == []


@pytest.mark.parametrize("text", ["nonsense", "to_", "to__", "to_0123456789ab_", "ä", "to_a_b_c"])
async def test_no_door_opens_to_what_is_no_key(turnout: Turnout, text: str) -> None:
    headers = {b"X-API-Key": text.encode("latin-1")}
    answer = await turnout.client(None).get("/v1/experiments", headers=headers)
    problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_no_door_opens_to_a_wrong_secret(turnout: Turnout) -> None:
    right = turnout.keys["admin"]
    flipped = "0" if right[-1] != "0" else "1"
    assert await opened(turnout, right[:-1] + flipped) == []


async def test_no_door_opens_to_the_secret_of_another_key(turnout: Turnout) -> None:
    key_id = turnout.keys["admin"].split("_")[1]
    secret = turnout.keys["editor"].split("_")[2]
    assert await opened(turnout, f"to_{key_id}_{secret}") == []


async def test_no_door_opens_to_a_revoked_key(turnout: Turnout) -> None:
    admin = turnout.client("admin")
    key = (await admin.post("/v1/keys", json={"role": "admin"})).json()["key"]
    await known(turnout, key)
    assert await opened(turnout, key) == EVERY
    assert (await admin.delete(f"/v1/keys/{key.split('_')[1]}")).status_code == 204

    async def is_revoked() -> bool | None:
        answer = await turnout.client(None).get("/v1/keys", headers={"X-API-Key": key})
        return True if answer.status_code == 401 else None

    await eventually(is_revoked, "end of a revoked key")
    assert await opened(turnout, key) == []


async def test_no_door_opens_to_an_expired_key(turnout: Turnout) -> None:
    expired = await turnout.host.make_key(turnout.project, "admin", -timedelta(seconds=1))
    later = await turnout.host.make_key(turnout.project, "admin", timedelta(hours=1))
    await known(turnout, later)  # and so the one before it is known, too
    assert await opened(turnout, later) == EVERY
    assert await opened(turnout, expired) == []


async def test_both_headers_carry_a_key(turnout: Turnout) -> None:
    key = turnout.keys["analyst"]
    for headers in ({"Authorization": f"bearer  {key}"}, {"X-API-Key": key}):
        answer = await turnout.client(None).get("/v1/experiments", headers=headers)
        assert answer.status_code == 200


async def test_a_strangers_key_finds_no_experiment_of_another_project(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.start()
    before = (await turnout.client("analyst").get(f"/v1/experiments/{key}")).json()
    of_experiments = [door for door in EVERY if "{key:str}" in door.path]
    assert len(of_experiments) > 10
    for door in of_experiments:
        answer = await knock(stranger.client("admin"), door.of(key))
        assert answer.status_code == 404, (door, answer.text)
    assert (await turnout.client("analyst").get(f"/v1/experiments/{key}")).json() == before


async def test_nothing_else_crosses_the_border_of_a_project(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.start()
    admin = stranger.client("admin")
    assert (await admin.get("/v1/experiments")).json()["items"] == []
    theirs = {item["id"] for item in (await admin.get("/v1/keys")).json()["items"]}
    ours = turnout.keys["client"].split("_")[1]
    assert ours not in theirs
    problem(await admin.delete(f"/v1/keys/{ours}"), 404, "not-found")
    problem(await admin.post("/v1/assign", json={"experiment": key, "unit": "u"}), 404, "not-found")


async def test_two_projects_may_use_the_same_key_and_the_same_ids(
    turnout: Turnout, stranger: Turnout
) -> None:
    key = await turnout.start()
    assert await stranger.start(key=key) == key
    for project in (turnout, stranger):
        answer = await project.client("service").post(
            "/v1/outcomes", json={"id": "order-1", "event": "click", "unit": "u"}
        )
        assert answer.json() == {"accepted": 1, "duplicates": 0, "errors": []}
        assert len(await project.shipped("outcome", 1)) == 1


async def test_whoever_asks_for_the_methods_of_a_door_is_told(turnout: Turnout) -> None:
    answer = await turnout.client(None).options("/v1/assign")
    assert answer.status_code == 204
    assert "POST" in answer.headers["allow"]
