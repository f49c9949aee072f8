"""The gate at the doors: whose key it is, what it may, and what is noted of it."""

import random
from datetime import UTC, datetime, timedelta

import pytest

from experiments.doors import Gate
from experiments.key_uses import Happened, Noted
from experiments.keys import (
    EVERY_PERMISSION,
    PERMISSIONS,
    ROLES,
    ApiKey,
    Permission,
    Role,
    digest_of,
    new_key,
    secret_of,
    wrong_scope,
)
from experiments.problems import ProblemError

NOW = datetime(2026, 1, 1, tzinfo=UTC)
BYTES = random.Random(1).randbytes  # noqa: S311 - the same in every run


class Ring:
    """The keys that a router knows."""

    def __init__(self, *keys: ApiKey) -> None:
        self.keys = {key.id: key for key in keys}

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        return self.keys.get(key_id)


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def refusal(gate: Gate, text: str | None, permission: Permission) -> str:
    """The kind of problem with which a caller is refused."""
    with pytest.raises(ProblemError) as refused:
        gate.admit(text, permission)
    return refused.value.type


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("permission", EVERY_PERMISSION)
def test_a_key_may_what_its_role_may_and_its_scope_leaves(
    role: Role, permission: Permission
) -> None:
    whole, key = new_key("shop", role, "", NOW, BYTES)
    narrow, scoped = new_key("shop", role, "", NOW, BYTES, scope=[permission])
    gate = Gate(Ring(key, scoped), Clock())
    for asked in EVERY_PERMISSION:
        if asked in PERMISSIONS[role]:
            assert gate.admit(whole, asked).may(asked)
        else:
            assert refusal(gate, whole, asked) == "forbidden"
        if asked == permission and asked in PERMISSIONS[role]:
            assert gate.admit(narrow, asked).may(asked)
        else:
            assert refusal(gate, narrow, asked) == "forbidden", "a scope adds nothing to a role"


def test_a_scope_is_a_part_of_what_the_role_may() -> None:
    assert wrong_scope("service", None) is None
    assert wrong_scope("service", ["record"]) is None
    for scope in ([], ["read"], ["record", "read"]):
        wrong = wrong_scope("service", scope)  # type: ignore[arg-type]  # as text comes in
        assert wrong is not None
        assert wrong.startswith("a key of role service may evaluate and record")


def test_a_key_that_is_gone_or_was_made_anew_is_asked_for_its_secret_again() -> None:
    text, key = new_key("shop", "service", "", NOW, BYTES)
    ring = Ring(key)
    gate = Gate(ring, Clock())
    assert gate.admit(text, "record").key_id == key.id
    del ring.keys[key.id]
    assert refusal(gate, text, "record") == "unauthenticated"
    _, another = new_key("shop", "service", "", NOW, BYTES)
    ring.keys[key.id] = another
    assert refusal(gate, text, "record") == "unauthenticated"


def test_a_key_ends_at_its_moment_though_it_is_remembered() -> None:
    clock = Clock()
    ends = NOW + timedelta(hours=1)
    text, key = new_key("shop", "service", "", NOW, BYTES, ends)
    gate = Gate(Ring(key), clock)
    gate.admit(text, "record")
    clock.now = ends - timedelta(microseconds=1)
    gate.admit(text, "record")
    clock.now = ends
    assert refusal(gate, text, "record") == "unauthenticated"
    noted, _, _ = gate.uses.take()
    assert noted == {Happened(key.id, "used_after_expiry"): Noted(1, ends, ends)}


def test_what_is_worth_knowing_is_noted_and_no_secret_with_it() -> None:
    clock = Clock()
    text, key = new_key("shop", "client", "", NOW, BYTES)
    unknown, stranger = new_key("shop", "client", "", NOW, BYTES)
    gate = Gate(Ring(key), clock)
    gate.admit(text, "evaluate")
    for wrong in (None, "", "nonsense", unknown, f"to_{key.id}_guess"):
        assert refusal(gate, wrong, "evaluate") == "unauthenticated"
    for _ in range(3):
        clock.now += timedelta(seconds=1)
        assert refusal(gate, text, "write") == "forbidden"
    assert gate.used() == [key.id]
    assert gate.used() == []
    uses = gate.uses
    assert {name: count for name, count in uses.refusals.items() if count} == {
        "no_key": 3,
        "unknown_key": 1,
        "wrong_secret": 1,
        "permission": 3,
    }
    noted, strangers, _ = uses.take()
    assert noted == {
        Happened(key.id, "wrong_secret"): Noted(1, NOW, NOW),
        Happened(key.id, "refused", "write"): Noted(3, NOW + timedelta(seconds=1), clock.now),
    }
    assert [(each.key_id, each.digest) for each in strangers] == [
        (stranger.id, digest_of(secret_of(unknown)))
    ]
    assert secret_of(unknown) not in repr(strangers)


def test_a_flood_of_wrong_keys_costs_no_more_than_a_table() -> None:
    _, key = new_key("shop", "client", "", NOW, BYTES)
    gate = Gate(Ring(key), Clock())
    for number in range(3_000):
        refusal(gate, f"to_{number:012x}_guess", "evaluate")
    noted, strangers, _ = gate.uses.take()
    assert (len(noted), len(strangers)) == (0, 1_024)
    assert gate.uses.overlooked == 3_000 - 1_024
