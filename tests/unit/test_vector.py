"""Many units at once get what each gets alone."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.model import SLOTS
from experiments.units import MAX_UNIT_BYTES
from router.assign import assign
from router.hashing import slot
from router.snapshot import Entry
from router.vector import (
    FAILED,
    NO_SLOT,
    NOT_TARGETED,
    TARGETED,
    Column,
    assign_all,
    follows_slots,
    let_in,
)
from tests.unit.entries import arm, held, overridden, owners, shaped, span

SALTS = ["a", "ranker-v7", "ranker-v7#12", "x" * 80]
LETTERS = ["u", "é", "漢", "😀"]  # of 1 to 4 bytes
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90)
bounds = st.tuples(st.integers(0, SLOTS), st.integers(0, SLOTS)).map(
    lambda ends: (min(ends), max(ends))
)


@st.composite
def experiments(draw: st.DrawFn) -> Entry:
    """Experiments that follow slots."""
    arms = draw(st.integers(2, 64))
    runs = st.lists(st.tuples(st.none() | st.integers(0, arms - 1), st.integers(1, 400)))
    within, without = draw(st.none() | bounds), draw(st.none() | bounds)
    return shaped(
        "ranker-v7",
        salt=draw(st.sampled_from(SALTS)),
        arms=tuple(arm(f"v{n}", n, n / 64) for n in range(arms)),
        owners=owners(*draw(runs))[:SLOTS],
        default=draw(st.integers(0, arms - 1)),
        layer=None if within is None else span(*within),
        holdout=None if without is None else held(*without),
    )


def one_by_one(salt: str, units: list[str]) -> list[int]:
    """The slots as the plain form gives them."""
    return [slot(salt, unit) for unit in units]


@pytest.mark.parametrize("salt", SALTS)
@pytest.mark.parametrize("letter", LETTERS)
def test_slots_agree_for_every_length_that_a_unit_may_have(salt: str, letter: str) -> None:
    size = len(letter.encode())
    units = [
        letter * (length // size) + "-" * (length % size) for length in range(1, MAX_UNIT_BYTES + 1)
    ]
    assert [len(unit.encode()) for unit in units] == [*range(1, MAX_UNIT_BYTES + 1)]
    assert Column(units).slots(salt).tolist() == one_by_one(salt, units)


@given(units=st.lists(texts), salt=st.from_regex(r"[a-z0-9_.#-]{1,80}", fullmatch=True))
def test_slots_agree_for_any_units_in_any_order(units: list[str], salt: str) -> None:
    assert Column(units).slots(salt).tolist() == one_by_one(salt, units)


def test_a_column_serves_many_salts() -> None:
    units = [f"user-{n}" for n in range(1_000)]
    column = Column(iter(units))
    for _ in range(2):
        for salt in SALTS:
            assert column.slots(salt).tolist() == one_by_one(salt, units)


def by_verdict(context: Mapping[str, Any]) -> bool:
    """A rule that says what it is told, and fails where it is told nothing."""
    return bool(context["verdict"])


CONTEXTS: dict[int, dict[str, Any]] = {
    TARGETED: {"verdict": True},
    NOT_TARGETED: {"verdict": False},
    FAILED: {},
}
units_with_verdicts = st.lists(st.tuples(texts, st.sampled_from([*CONTEXTS])), max_size=50)


@given(entry=experiments(), given_=units_with_verdicts, has_rule=st.booleans())
def test_all_get_what_each_gets_alone(
    entry: Entry, given_: list[tuple[str, int]], has_rule: bool
) -> None:
    entry = msgspec.structs.replace(entry, rule=by_verdict if has_rule else None)
    assert follows_slots(entry)
    column = Column(unit for unit, _ in given_)
    before = column.slots(entry.salt).tolist()
    targeting = np.array([verdict for _, verdict in given_], np.uint8) if has_rule else None
    found = assign_all(entry, column, targeting)
    assert [
        msgspec.structs.replace(found.answers[which], slot=None if place == NO_SLOT else place)
        for which, place in zip(found.which.tolist(), found.slots.tolist(), strict=True)
    ] == [assign(entry, unit, CONTEXTS[verdict]) for unit, verdict in given_]
    assert column.slots(entry.salt).tolist() == before


def test_units_are_let_in_unless_the_layer_or_the_holdout_keeps_them_out() -> None:
    """And all reasons are met, so that the agreement above is one about all of them."""
    entry = shaped(
        "ranker-v7",
        owners=owners((0, 4_000), (1, 4_000)),
        layer=span(2_000, 7_000),
        holdout=held(0, 1_000),
    )
    column = Column(f"u{n}" for n in range(1_000))
    targeting = np.arange(1_000, dtype=np.uint8) % 3
    found = assign_all(entry, column, targeting)
    reasons = [found.answers[which].reason for which in found.which.tolist()]
    kept_out = {"out_of_layer", "held_out"}
    let = {"split", "not_enrolled", "not_targeted", "targeting_failed"}
    assert set(reasons) == kept_out | let
    assert let_in(entry, column).tolist() == [reason in let for reason in reasons]


def test_a_part_of_a_layer_begins_with_its_first_slot_and_stops_before_its_end() -> None:
    place = slot("$layer.ranking", "u1")
    for first, end, reason in (
        (place, place + 1, "split"),
        (place - 1, place, "out_of_layer"),
        (place + 1, SLOTS, "out_of_layer"),
    ):
        entry = shaped("ranker-v7", layer=span(first, end))
        found = assign_all(entry, Column(["u1"]))
        assert found.answers[found.which[0]].reason == reason


@pytest.mark.parametrize(
    "change",
    [
        {"state": "paused"},
        {"sticky": True},
        {"stale_after": timedelta(minutes=10)},
        {"overrides": overridden({"u1": 1})},
    ],
    ids=str,
)
def test_what_slots_do_not_tell_is_not_left_to_them(change: dict[str, object]) -> None:
    assert not follows_slots(shaped("ranker-v7", **change))


def test_half_a_surrogate_pair_is_no_unit() -> None:
    with pytest.raises(UnicodeEncodeError):
        Column(["whole", "half \ud83d"])
