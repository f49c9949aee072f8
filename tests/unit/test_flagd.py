"""Experiments as flagd's flags: a local evaluator gives each unit the variant that we give it."""

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from openfeature.contrib.tools.flagd.core import FlagdCore
from openfeature.evaluation_context import EvaluationContext

from experiments.allocation import Allocation, initial, reallocate
from experiments.model import SLOTS, State, Unit, WhenStale
from experiments.records import HoldoutPin, LayerPin
from experiments.units import UnitKey
from router.assign import assign
from router.flagd import FlagSets, flag_of
from router.snapshot import Entry, without_news
from tests.unit.entries import HOLDOUT, entry, override, project

SHARDS = Allocation(tuple((("a", "b", None, "c")[n % 4], 20) for n in range(500)))
KEY = UnitKey(bytes(32))
TARGETING = {
    "or": [
        {"and": [{"in": [{"var": "country"}, ["AT", "DE"]]}, {">=": [{"var": "age"}, 18]}]},
        {"starts_with": [{"var": "targetingKey"}, "vip"]},
        {"sem_ver": [{"var": "version"}, ">=", "2.1.0"]},
    ]
}


def fragmented() -> Allocation:
    """An allocation as a bandit leaves it whose traffic grew as well."""
    generator = random.Random(5)  # noqa: S311  test data, no secrets
    allocation = initial({"a": 0.4, "b": 0.3, "c": 0.3}, 0.2)
    history: list[Allocation] = []
    for traffic in (0.2, 0.4, 0.6, 0.8):
        for _ in range(15):
            shares = [generator.uniform(0.1, 1) for _ in range(3)]
            weights = {name: share / sum(shares) for name, share in zip("abc", shares, strict=True)}
            history.append(allocation)
            allocation = reallocate(allocation, weights, traffic, history)
    return allocation


async def read(*entries: Entry, shows_units: bool = True) -> dict[str, Any]:
    """The flag set of a project with these experiments."""
    found = await FlagSets().of(project(*entries), shows_units=shows_units)
    flags: dict[str, Any] = msgspec.json.decode(found.body)
    return flags


async def evaluator(*entries: Entry) -> FlagdCore:
    """flagd's evaluator with the flags of these experiments."""
    core = FlagdCore()
    core.set_flags((await FlagSets().of(project(*entries), shows_units=True)).body.decode())
    return core


def local(core: FlagdCore, key: str, unit: str | None, **context: Any) -> tuple[str | None, str]:
    """Which variant a local evaluator gives, and its reason."""
    found = core.resolve_object_value(key, {}, EvaluationContext(unit, context))
    return found.variant, str(found.reason)


def ours(entry: Entry, unit: str, **context: Any) -> str:
    """Which variant we give."""
    return assign(entry, unit, {**context, entry.unit_attribute: unit}).arm.key


def experiments_of_every_kind() -> list[Entry]:
    """Experiments that use, each and together, all that flagd can express."""
    low, high = LayerPin("l", "layer-l", (0, 4_000)), LayerPin("l", "layer-l", (4_000, 9_000))
    partial = initial({"a": 0.5, "b": 0.5, "c": 0.0}, 0.37)
    pieces = fragmented()
    assert len(pieces.runs) > 20
    return [
        entry("plain"),
        entry("later-run", salt="later-run#7"),
        entry("shards", SHARDS, salt="other#2"),
        entry("partial", partial),
        entry("pieces", pieces, salt="pieces#3"),
        entry("held", partial, holdout=HOLDOUT),
        entry("low", layer=low, holdout=HOLDOUT),
        entry("high", pieces, layer=high, targeting=TARGETING),
        entry("all", pieces, layer=low, holdout=HOLDOUT, targeting=TARGETING, salt="all#2"),
        entry("session", pieces, definition={"unit": Unit(type="session", attribute="session")}),
    ]


async def test_a_local_evaluator_agrees_on_100_000_units_in_experiments_of_every_kind() -> None:
    entries = experiments_of_every_kind()
    core = await evaluator(*entries)
    generator = random.Random(20260304)  # noqa: S311  test data, no secrets
    seen: Counter[tuple[str, str]] = Counter()
    wrong: list[tuple[str, str]] = []
    for number in range(10_000):
        unit = f"{generator.choice(['u', 'vip-', 'ユニット', '👩‍🔬 '])}{number}"
        context = {
            "country": generator.choice(["AT", "DE", "FR", None]),
            "age": generator.randint(10, 40),
            "version": generator.choice(["1.9", "2.1.0", "v2.4.1"]),
            "session": f"s{number}",
        }
        for each in entries:
            key = unit if each.unit_attribute == "targetingKey" else context["session"]
            answer = assign(each, str(key), {**context, "targetingKey": unit})
            variant, reason = local(core, each.key, unit, **context)
            seen[answer.reason, reason] += 1
            if variant != answer.arm.key:
                wrong.append((each.key, unit))
    assert wrong == []
    assert sum(seen.values()) == 100_000
    # Its reason tells who is enrolled.
    assert set(seen) == {
        ("split", "TARGETING_MATCH"),
        ("not_enrolled", "DEFAULT"),
        ("not_targeted", "DEFAULT"),
        ("out_of_layer", "DEFAULT"),
        ("held_out", "DEFAULT"),
    }
    assert min(seen.values()) > 1_000


@pytest.mark.parametrize(
    ("state", "ship", "variant"),
    [("paused", None, "a"), ("concluded", "c", "c"), ("rolled_back", None, "a")],
)
async def test_an_experiment_that_does_not_run_answers_one_variant(
    state: State, ship: str | None, variant: str
) -> None:
    stopped = entry(state=state, ship=ship, overrides=(override(1, "b", unit="u1"),))
    core = await evaluator(stopped)
    assert {local(core, "x", f"u{n}") for n in range(50)} == {(variant, "STATIC")}
    assert ours(stopped, "u1") == variant


async def test_overrides_are_answered_in_our_order() -> None:
    overridden = entry(
        holdout=HoldoutPin(9, 1, 1, "h", ((0, SLOTS),)),
        overrides=(
            override(1, "c", attribute="beta", value=True),
            override(2, "b", attribute="team", value="ours"),
            override(3, "b", unit="u1"),
            override(4, "c", unit="u2"),
            override(5, "c", unit='odd "unit" \\ é'),
            override(6, "b", attribute="level", value=2),
        ),
    )
    core = await evaluator(overridden)
    contexts: list[dict[str, Any]] = [
        {},
        {"beta": True},
        {"beta": False, "team": "ours"},
        {"beta": True, "team": "ours"},
        {"team": "theirs"},
        {"level": 2},
        {"level": "2"},
    ]
    answers = {
        (unit, number): ours(overridden, unit, **context)
        for unit in ("u1", "u2", "u3", 'odd "unit" \\ é')
        for number, context in enumerate(contexts)
    }
    assert answers == {
        (unit, number): local(core, "x", unit, **contexts[number])[0] for unit, number in answers
    }
    assert set(answers.values()) == {"a", "b", "c"}


async def test_a_flag_says_which_epoch_it_is_of() -> None:
    flags = await read(entry(number=12, run=3, salt="x#3"))
    assert flags["flags"]["x"]["metadata"] == {
        "experiment": "x",
        "run": 3,
        "epoch": 12,
        "state": "running",
    }
    assert flags["metadata"]["flagSetId"] == "shop"
    assert flags["left_out"] == []


async def test_without_a_unit_the_default_variant_is_answered() -> None:
    core = await evaluator(entry(), entry("s", definition={"unit": Unit("session", "sid")}))
    assert local(core, "x", None) == ("a", "DEFAULT")
    assert local(core, "x", "") == ("a", "DEFAULT")
    assert local(core, "s", "u1") == ("a", "DEFAULT")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"stickiness": "sticky"}, "sticky"),
        ({"definition": {"when_stale": WhenStale(after="5m", do="control")}}, "when_stale"),
        ({"definition": {"unit": Unit(type="user", attribute="user.id")}}, "user.id"),
        ({"value": ["a", "list"]}, "lists"),
        ({"value": 2**53}, "integers"),
    ],
)
async def test_what_flagd_cannot_express_is_left_out_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    flags = await read(entry("odd", **changes), entry("even"))
    assert set(flags["flags"]) == {"even"}
    (left_out,) = flags["left_out"]
    assert (left_out["experiment"], left_out["what"]) == ("odd", "experiment")
    assert reason in left_out["reason"]


async def test_an_experiment_without_news_is_left_out_from_then_on() -> None:
    sets, known = FlagSets(), entry()
    assert b'"x"' in (await sets.of(project(known), shows_units=True)).body
    # At the same version: it was tried again, and is not to be read any more, or can be now.
    without = project(without_news(known), unread=frozenset({"x"}))
    flags = msgspec.json.decode((await sets.of(without, shows_units=True)).body)
    assert flags["flags"] == {}
    assert [left["experiment"] for left in flags["left_out"]] == ["x"]
    assert "cannot be read" in flags["left_out"][0]["reason"]


async def test_a_sticky_experiment_that_has_ended_is_a_flag() -> None:
    flags = await read(entry(stickiness="sticky", state="concluded", ship="b"))
    assert flags["flags"]["x"]["defaultVariant"] == "b"


@pytest.mark.parametrize(
    ("who", "unit_key", "shows_units", "reason"),
    [
        ({"unit": "u1"}, KEY, True, "hashes"),
        ({"unit": "u1"}, None, False, "may record"),
        ({"attribute": "email", "value": "u1@example.org"}, None, False, "may record"),
        ({"attribute": "user.team", "value": "qa"}, None, True, "user.team"),
    ],
)
async def test_overrides_that_cannot_be_told_are_left_out_by_name(
    who: dict[str, Any], unit_key: UnitKey | None, shows_units: bool, reason: str
) -> None:
    overridden = entry(overrides=(override(1, "b", **who),), unit_key=unit_key)
    flags = await read(overridden, shows_units=shows_units)
    (left_out,) = flags["left_out"]
    assert (left_out["experiment"], left_out["what"]) == ("x", "overrides")
    assert reason in left_out["reason"]
    assert "u1" not in msgspec.json.encode(flags).decode()


async def test_a_flag_set_keeps_its_tag_until_a_flag_changes() -> None:
    sets = FlagSets()
    first, second = entry("one"), entry("two")
    before = await sets.of(project(first, second), shows_units=True)
    assert await sets.of(project(first, second, version=2), shows_units=True) == before
    paused = entry("two", state="paused", number=2)
    after = await sets.of(project(first, paused, version=3), shows_units=True)
    assert after.tag != before.tag
    fresh = await FlagSets().of(project(first, paused, version=9), shows_units=True)
    assert fresh == after
    gone = await sets.of(project(first, version=4), shows_units=True)
    assert set(msgspec.json.decode(gone.body)["flags"]) == {"one"}


async def test_what_is_remembered_of_flag_sets_is_bounded() -> None:
    sets = FlagSets(limit=600_000)
    entries = [entry(f"x{n}") for n in range(20)]
    for number in range(10):
        one = project(*entries, project=f"p{number}")
        body = (await sets.of(one, shows_units=True)).body
        assert msgspec.json.decode(body)["metadata"]["flagSetId"] == f"p{number}"
        assert 200_000 < sets.remembered <= 600_000


def test_a_flag_of_hundreds_of_pieces_is_small() -> None:
    flag, _ = flag_of(entry("shards", SHARDS))
    assert len(msgspec.json.encode(flag)) < 12_000
