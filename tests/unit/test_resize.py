"""Raising traffic never moves an enrolled unit: `resize`, over whole ramps."""

import random
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import moves
from experiments.allocation import (
    ROUNDING,
    Allocation,
    counts,
    initial,
    owners,
    propensities,
    reallocate,
    resize,
    slot_counts,
    withdraw,
)
from experiments.model import SLOTS
from experiments.problems import ProblemError

quick = settings(deadline=None, max_examples=25)
weights = (
    st.integers(2, 6)
    .flatmap(lambda size: st.lists(st.integers(1, 400), min_size=size, max_size=size))
    .map(lambda ns: {f"v{i}": n / sum(ns) for i, n in enumerate(ns)})
)
shares = st.lists(
    st.integers(10, SLOTS).map(lambda n: n / SLOTS), min_size=2, max_size=12, unique=True
)


def ramp(weight: dict[str, float], traffic: Sequence[float]) -> list[Allocation]:
    """The allocations of a run at unchanged weights."""
    history = [initial(weight, traffic[0])]
    for share in traffic[1:]:
        history.append(resize(history[-1], weight, share, history[:-1]))
    return history


def table(allocation: Allocation) -> list[str | None]:
    return owners(allocation)


@quick
@given(weights, shares)
def test_raising_traffic_moves_no_enrolled_slot(
    weight: dict[str, float], traffic: list[float]
) -> None:
    history = ramp(weight, sorted(traffic))
    first: dict[int, str] = {}
    for allocation in history:
        for slot, owner in enumerate(table(allocation)):
            if owner is not None:
                assert first.setdefault(slot, owner) == owner


@quick
@given(weights, shares)
def test_every_cohort_of_a_ramp_is_split_in_the_weights_to_a_slot(
    weight: dict[str, float], traffic: list[float]
) -> None:
    known: set[int] = set()
    for number, allocation in enumerate(ramp(weight, sorted(traffic))):
        owned = table(allocation)
        enrolled = {slot for slot, owner in enumerate(owned) if owner is not None}
        cohort = Counter(owned[slot] for slot in enrolled - known)
        quotas = {key: share * len(enrolled - known) for key, share in weight.items()}
        rare = sum(quota < 1 for quota in quotas.values()) if number == 0 else 0
        assert all(abs(cohort[key] - quota) < 1 + rare for key, quota in quotas.items())
        known |= enrolled


@quick
@given(weights, shares)
def test_however_many_steps_a_ramp_has_its_sum_stays_near_the_weights(
    weight: dict[str, float], traffic: list[float]
) -> None:
    for allocation in ramp(weight, sorted(traffic)):
        found = counts(allocation)
        total = sum(found.values())
        rare = sum(share * total < 1 for share in weight.values())
        assert all(abs(found[key] - weight[key] * total) <= ROUNDING + rare for key in weight)


def test_two_hundred_steps_do_not_drift() -> None:
    generator = random.Random(3)  # noqa: S311 - a simulation, no secret
    weight = {f"v{i}": share for i, share in enumerate([0.31, 0.27, 0.19, 0.12, 0.07, 0.04])}
    allocation, most = initial(weight, 0.01), Fraction(0)
    for slots in sorted(generator.sample(range(101, SLOTS), 200)):
        allocation = resize(allocation, weight, slots / SLOTS)
        most = max(
            most,
            *(
                abs(count - Fraction(str(weight[key])) * slots)
                for key, count in counts(allocation).items()
            ),
        )
    assert most <= ROUNDING


def test_the_largest_remainder_of_the_new_total_would_move_one() -> None:
    """The Alabama paradox: with one slot more, v2 would be due one slot less."""
    weight = {"v0": 6 / 14, "v1": 6 / 14, "v2": 2 / 14}
    assert slot_counts(weight, 10)["v2"] > slot_counts(weight, 11)["v2"]
    before = initial(weight, 10 / SLOTS)
    for grow, moves_one in ((reallocate, True), (resize, False)):
        after = grow(before, weight, 11 / SLOTS)
        moved = [
            slot
            for slot, owner in enumerate(table(before))
            if owner is not None and table(after)[slot] != owner
        ]
        assert bool(moved) == moves_one


@quick
@given(weights, shares, st.data())
def test_a_ramp_can_go_back_to_any_step_and_on_again_by_the_same_way(
    weight: dict[str, float], traffic: list[float], data: st.DataObject
) -> None:
    way = ramp(weight, sorted(traffic))
    step, history = len(way) - 1, [*way]
    for to in data.draw(st.lists(st.integers(0, len(way) - 1), max_size=6)):
        share = sorted(traffic)[to]
        history.append(resize(way[step], weight, share, history[:-1]))
        assert history[-1] == way[to]
        step = to


@quick
@given(weights, shares)
def test_going_back_releases_slots_and_going_on_again_restores_them(
    weight: dict[str, float], traffic: list[float]
) -> None:
    ahead = sorted(traffic)
    history = ramp(weight, ahead)
    back = resize(history[-1], weight, ahead[0], history[:-1])
    passed = {(b, a) for b, a in zip(table(history[-1]), table(back), strict=True) if b != a}
    assert {after for _, after in passed} <= {None}
    assert counts(back).keys() == weight.keys()
    again = resize(back, weight, ahead[-1], history)
    assert again == history[-1]


def test_what_was_released_is_not_enrolled_again_under_other_weights() -> None:
    even, other = {"a": 0.5, "b": 0.5}, {"a": 0.2, "b": 0.8}
    full = initial(even, 1.0)
    less = resize(full, even, 0.4, [full])
    moved = reallocate(less, other, 0.4, [full, less])
    with pytest.raises(ProblemError) as caught:
        resize(moved, other, 1.0, [full, less])
    assert [problem.path for problem in caught.value.errors] == ["traffic"]
    assert "at most 0.4" in caught.value.errors[0].detail


def test_a_variant_that_is_rolled_back_gains_nothing_and_nobody_loses_a_slot() -> None:
    weight = {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    begun = initial(weight, 0.1)
    left = withdraw(begun, "c", "a")
    grown = resize(left, {"a": 2 / 3, "b": 1 / 3, "c": 0.0}, 0.5, [begun])
    assert all(
        now == then for then, now in zip(table(left), table(grown), strict=True) if then is not None
    )
    assert counts(grown).keys() == {"a", "b"}
    assert propensities(grown)["b"] == pytest.approx(1 / 3, abs=2e-4)


def test_less_traffic_than_there_are_variants_is_refused() -> None:
    weight = {"a": 0.5, "b": 0.3, "c": 0.2}
    with pytest.raises(ProblemError):
        resize(initial(weight, 0.5), weight, 0.0002)
    assert counts(resize(initial(weight, 0.5), weight, 0.0003)) == {"a": 1, "b": 1, "c": 1}


@quick
@given(weights, shares)
def test_a_resize_is_computed_again_from_its_move(
    weight: dict[str, float], traffic: list[float]
) -> None:
    begun = initial(weight, traffic[0])
    move = moves.Resize(moves.in_order(weight), traffic[1])
    kept = moves.read_move(msgspec.json.encode(move))
    assert kept == move
    assert moves.carry_out(kept, begun, [begun]) == resize(begun, weight, traffic[1], [begun])
