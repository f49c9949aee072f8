"""Promise 3 of the design, as properties of `reallocate` over whole runs."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from experiments.allocation import (
    Allocation,
    counts,
    initial,
    is_too_small,
    is_worthwhile,
    moved,
    owner_table,
    owners,
    propensities,
    reallocate,
    runs_of,
    slot_counts,
    slots_of,
    traffic_of,
)
from experiments.model import SLOTS
from experiments.problems import ProblemError
from experiments.targeting import compile_rule
from router.hashing import slotter


def weights_of(size: int) -> st.SearchStrategy[dict[str, float]]:
    numbers = st.lists(st.integers(0, 1_000), min_size=size, max_size=size).filter(any)
    return numbers.map(lambda ns: {f"v{i}": n / sum(ns) for i, n in enumerate(ns)})


weights = st.integers(2, 6).flatmap(weights_of)
traffics = st.one_of(st.integers(10, SLOTS).map(lambda n: n / SLOTS), st.sampled_from([0.5, 1.0]))
steps = st.integers(2, 4).flatmap(
    lambda size: st.lists(st.tuples(weights_of(size), traffics), min_size=2, max_size=6)
)
quick = settings(
    deadline=None,
    max_examples=40,
    # Some runs have no step that grows: those are passed over.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
Step = tuple[dict[str, float], float]


def play(run: Sequence[Step]) -> list[Allocation]:
    """The allocations of a run; a step that asks for more than there is changes nothing."""
    history = [initial(*run[0])]
    for weight, traffic in run[1:]:
        try:
            history.append(reallocate(history[-1], weight, traffic, history[:-1]))
        except ProblemError:
            continue
    return history


def enrolled(allocation: Allocation) -> set[int]:
    return {slot for slot, owner in enumerate(owners(allocation)) if owner is not None}


def ever_enrolled(history: Sequence[Allocation]) -> set[int]:
    return set().union(*map(enrolled, history))


def positive(split: dict[str, int]) -> dict[str, int]:
    return {key: count for key, count in split.items() if count}


# Counts


@quick
@given(weights, st.integers(6, SLOTS))
def test_slot_counts_are_exact_and_close_and_leave_nobody_out(
    weight: dict[str, float], total: int
) -> None:
    split = slot_counts(weight, total)
    assert sum(split.values()) == total
    assert all((split[key] > 0) == (weight[key] > 0) for key in weight)
    rare = sum(0 < share * total < 1 for share in weight.values())
    assert all(abs(split[key] - weight[key] * total) < 1 + rare for key in weight)


@pytest.mark.parametrize(
    ("weight", "total", "split"),
    [
        ({"a": 0.5, "b": 0.5}, 3, {"a": 2, "b": 1}),  # a tie, by order
        ({"a": 0.15, "b": 0.35, "c": 0.5}, 10, {"a": 2, "b": 3, "c": 5}),  # a tie in decimals
        ({"a": 0.9998, "b": 0.0001, "c": 0.0001}, 100, {"a": 98, "b": 1, "c": 1}),
        ({"a": 0.0, "b": 1.0}, 10, {"a": 0, "b": 10}),
        ({"a": 0.29, "b": 0.71}, 10_000, {"a": 2_900, "b": 7_100}),
    ],
)
def test_slot_counts_by_example(
    weight: dict[str, float], total: int, split: dict[str, int]
) -> None:
    assert slot_counts(weight, total) == split


def test_traffic_too_little_for_the_variants_is_refused() -> None:
    with pytest.raises(ProblemError) as caught:
        initial({"a": 0.5, "b": 0.5}, 0.0001)
    (problem,) = caught.value.errors
    assert (problem.path, problem.type) == ("traffic", "value")
    assert "at least 0.0002" in problem.detail


def test_no_positive_weight_is_a_defect_of_the_caller() -> None:
    with pytest.raises(ValueError, match="positive"):
        slot_counts({"a": 0.0}, 10)


@pytest.mark.parametrize(("traffic", "slots"), [(1.0, 10_000), (0.29, 2_900), (0.00005, 1)])
def test_traffic_in_whole_slots(traffic: float, slots: int) -> None:
    assert slots_of(traffic) == slots


# Allocations


@quick
@given(weights, traffics)
def test_initial_has_each_variant_in_one_piece(weight: dict[str, float], traffic: float) -> None:
    allocation = initial(weight, traffic)
    assert counts(allocation) == positive(slot_counts(weight, slots_of(traffic)))
    assert len(allocation.runs) == len(counts(allocation)) + (traffic < 1)
    assert traffic_of(allocation) == pytest.approx(traffic)
    assert sum(propensities(allocation).values()) == pytest.approx(1)


def test_an_allocation_round_trips_as_json() -> None:
    allocation = initial({"v6": 0.5, "v7": 0.5}, 0.5)
    text = msgspec.json.encode(allocation)
    assert text == b'{"runs":[["v6",2500],["v7",2500],[null,5000]]}'
    assert msgspec.json.decode(text, type=Allocation) == allocation


def test_owner_table_is_what_a_router_looks_up() -> None:
    allocation = initial({"v6": 0.25, "v7": 0.75}, 0.5)
    table = owner_table(allocation, ["v7", "v6"], 255)
    assert len(table) == SLOTS
    assert (table[0], table[1_249], table[1_250], table[4_999], table[5_000]) == (1, 1, 0, 0, 255)


@quick
@given(steps)
def test_the_runs_of_an_owner_are_its_slots(run: list[Step]) -> None:
    for allocation in play(run):
        table = owners(allocation)
        for owner in {None, *counts(allocation)}:
            slots = [
                slot for first, end in runs_of(allocation, owner) for slot in range(first, end)
            ]
            assert slots == [slot for slot in range(SLOTS) if table[slot] == owner]


@pytest.mark.parametrize(
    "runs",
    [
        (("a", 9_999),),
        (("a", 10_001),),
        (("a", 10_000), (None, 0)),
        (("a", 10_001), (None, -1)),
        (("a", 5_000), ("a", 5_000)),
    ],
)
def test_there_is_one_way_to_write_an_allocation(runs: Any) -> None:
    with pytest.raises(ValueError, match="allocation"):
        Allocation(runs)


# Reallocation


@quick
@given(steps)
def test_counts_are_exact_whatever_came_before(run: list[Step]) -> None:
    history = [initial(*run[0])]
    for weight, traffic in run[1:]:
        try:
            after = reallocate(history[-1], weight, traffic, history[:-1])
        except ProblemError:
            continue
        assert counts(after) == positive(slot_counts(weight, slots_of(traffic)))
        history.append(after)


@quick
@given(steps)
def test_a_constant_traffic_moves_the_least(run: list[Step]) -> None:
    constant = [(weight, run[0][1]) for weight, _ in run]
    history = play(constant)
    for before, after in pairwise(history):
        old, new = Counter(counts(before)), Counter(counts(after))
        assert 2 * moved(before, after) == sum(abs(old[key] - new[key]) for key in old | new)
        assert enrolled(before) == enrolled(after)


@quick
@given(steps)
def test_growing_splits_the_new_slots_and_moves_the_old_ones_minimally(run: list[Step]) -> None:
    growing = sorted(run, key=lambda step: step[1])
    history = play(growing)
    for before, after in pairwise(history):
        old, new = owners(before), owners(after)
        added = enrolled(after) - enrolled(before)
        split = Counter(new[slot] for slot in added)
        share = propensities(after)
        assert all(abs(split[key] - share[key] * len(added)) < 1 for key in share)

        remaining = Counter(owner for slot in enrolled(before) if (owner := new[slot]))
        had = Counter(counts(before))
        least = sum(abs(had[key] - remaining[key]) for key in had | remaining) // 2
        assert enrolled(before) <= enrolled(after)
        assert len([slot for slot in enrolled(before) if old[slot] != new[slot]]) == least


@quick
@given(steps)
def test_shrinking_only_takes_what_is_above_the_new_counts(run: list[Step]) -> None:
    shrinking = sorted(run, key=lambda step: -step[1])
    history = play(shrinking)
    for before, after in pairwise(history):
        old, new = Counter(counts(before)), Counter(counts(after))
        assert moved(before, after) == sum((old - new).values())
        assert enrolled(after) <= enrolled(before)


@quick
@given(steps)
def test_released_slots_come_back_only_with_the_allocation_that_had_them(run: list[Step]) -> None:
    history = play(run)
    for index in range(1, len(history)):
        before, after = history[index - 1], history[index]
        released = ever_enrolled(history[:index]) - enrolled(before)
        if enrolled(after) & released:
            assert after in history[: index - 1]


@quick
@given(steps)
def test_every_cohort_is_split_in_the_stated_proportions(run: list[Step]) -> None:
    """New enrolments come chiefly from the slots that were enrolled last: each cohort by itself,
    not only their sum, must have the propensities that an epoch states."""
    growing = sorted(run, key=lambda step: step[1])
    assume(all(min(weight.values()) > 0 for weight, _ in growing))
    history = play(growing)
    known: set[int] = set()
    cohorts = []
    for allocation in history:
        cohorts.append(enrolled(allocation) - known)
        known |= cohorts[-1]
        table, share = owners(allocation), propensities(allocation)
        for cohort in cohorts:
            split = Counter(table[slot] for slot in cohort)
            # A few slots of rounding, however long the run: not the drift of thousands of slots
            # that taking slots without regard to cohorts would leave.
            slack = 2 * len(share)
            assert all(abs(split[key] - share[key] * len(cohort)) <= slack for key in share)


def test_a_cohort_is_not_emptied_before_the_others() -> None:
    half = initial({"a": 0.5, "b": 0.5}, 0.5)
    full = reallocate(half, {"a": 0.5, "b": 0.5}, 1.0, [])
    after = owners(reallocate(full, {"a": 0.25, "b": 0.75}, 1.0, [half]))
    assert Counter(after[:5_000]) == {"a": 1_250, "b": 3_750}
    assert Counter(after[5_000:]) == {"a": 1_250, "b": 3_750}


def test_an_earlier_allocation_is_restored_exactly() -> None:
    even = {"a": 0.5, "b": 0.5}
    first = initial(even, 0.8)
    second = reallocate(first, even, 0.2, [first])
    assert reallocate(second, even, 0.8, [first, second]) == first


def test_what_is_enrolled_now_is_never_released_to_restore() -> None:
    even = {"a": 0.5, "b": 0.5}
    first = initial(even, 0.5)
    second = reallocate(first, even, 0.25, [first])
    third = reallocate(second, even, 0.4, [first, second])
    fourth = reallocate(third, even, 0.5, [first, second, third])
    assert fourth != first
    assert enrolled(third) <= enrolled(fourth)


def test_growing_into_released_slots_names_the_most_that_is_possible() -> None:
    even = {"a": 0.5, "b": 0.5}
    first = initial(even, 1.0)
    second = reallocate(first, even, 0.75, [first])
    with pytest.raises(ProblemError) as caught:
        reallocate(second, {"a": 0.4, "b": 0.6}, 0.8, [first, second])
    (problem,) = caught.value.errors
    assert (problem.path, problem.type) == ("traffic", "value")
    assert "at most 0.75" in problem.detail
    assert "2500 slots were released" in problem.detail


@quick
@given(steps)
def test_the_answer_depends_on_the_arguments_alone(run: list[Step]) -> None:
    assert play(run) == play(run)


@quick
@given(st.integers(2, 4).flatmap(lambda size: st.tuples(weights_of(size), weights_of(size))))
def test_history_may_contain_the_current_allocation_or_not(
    pair: tuple[dict[str, float], dict[str, float]],
) -> None:
    current = initial(pair[0], 0.5)
    assert reallocate(current, pair[1], 0.7, []) == reallocate(current, pair[1], 0.7, [current])


def test_allocations_stay_short() -> None:
    """A bandit may move weights every minute for weeks: allocations must not crumble."""
    generator = random.Random(7)  # noqa: S311 - a simulation, no secret
    drift = dict.fromkeys(["v0", "v1", "v2"], 1.0)
    history = [initial(drift, 1.0)]
    for _ in range(300):
        drift = {key: max(0.05, w * generator.lognormvariate(0, 0.3)) for key, w in drift.items()}
        history.append(reallocate(history[-1], drift, 1.0, history))
    assert max(len(allocation.runs) for allocation in history) < 40


def test_a_move_of_less_than_one_percent_of_the_traffic_is_not_worthwhile() -> None:
    current = initial({"a": 0.5, "b": 0.5}, 0.5)
    assert not is_worthwhile(current, current)
    assert not is_worthwhile(current, reallocate(current, {"a": 0.5098, "b": 0.4902}, 0.5))
    assert is_worthwhile(current, reallocate(current, {"a": 0.51, "b": 0.49}, 0.5))
    assert is_worthwhile(current, reallocate(current, {"a": 0.5, "b": 0.5}, 0.51))


@quick
@given(steps, st.lists(st.integers(1, 300), min_size=6, max_size=6))
def test_counts_alone_tell_which_move_at_constant_traffic_is_too_small(
    run: list[Step], nudges: list[int]
) -> None:
    history = play(run)
    current = history[-1]
    held = counts(current)
    near = {key: count + nudge for (key, count), nudge in zip(held.items(), nudges, strict=False)}
    whole, traffic = sum(near.values()), traffic_of(current)
    near_weights = {key: count / whole for key, count in near.items()}
    for weight in (near_weights, run[0][0]):
        new = reallocate(current, weight, traffic, history[:-1])
        assert is_too_small(current, weight, traffic) is not is_worthwhile(current, new)


def test_counts_alone_do_not_tell_what_another_traffic_moves() -> None:
    current = initial({"a": 0.5, "b": 0.5}, 0.5)
    assert not is_too_small(current, {"a": 0.5, "b": 0.5}, 0.5001)
    assert is_too_small(current, {"a": 0.5, "b": 0.5}, 0.5)


# Who is enrolled, when units return


RAMP: Sequence[Step] = (
    ({"a": 0.5, "b": 0.5}, 0.2),
    ({"a": 0.5, "b": 0.5}, 0.5),
    ({"a": 0.2, "b": 0.8}, 0.5),
    ({"a": 0.2, "b": 0.8}, 1.0),
    ({"a": 0.6, "b": 0.4}, 1.0),
)
LAYER = (2_000, 9_000)
RULE = compile_rule({"in": [{"var": "country"}, ["DE", "AT"]]})


def newly_enrolled(history: Sequence[Allocation], visits: int, seed: int) -> list[Counter[str]]:
    """For each epoch, how many units had their first exposure in it, by variant.

    Units come and come again, some often and some once in a while, so that most of those who come
    late in an epoch were there before. Only part of them is in the layer, and only part of these is
    targeted.
    """
    generator = random.Random(seed)  # noqa: S311 - a simulation, no secret
    of_layer, of_experiment = slotter("#layer.ranking"), slotter("ranker")
    countries = {f"u{number}": ["DE", "AT", "FR"][number % 3] for number in range(60_000)}
    met: set[str] = set()
    counted: list[Counter[str]] = []
    for allocation in history:
        table = owners(allocation)
        first: Counter[str] = Counter()
        for _ in range(visits):
            unit = f"u{int(60_000 * generator.random() ** 2)}"
            if unit in met or not LAYER[0] <= of_layer(unit) < LAYER[1]:
                continue
            owner = table[of_experiment(unit)] if RULE({"country": countries[unit]}) else None
            if owner is not None:
                met.add(unit)
                first[owner] += 1
        counted.append(first)
    return counted


def surprise(found: Counter[str], share: float) -> float:
    """By how many standard errors the share of `b` among those counted is off its propensity."""
    units = found.total()
    return abs(found["b"] - share * units) / math.sqrt(units * share * (1 - share))


@pytest.mark.parametrize("seed", range(3))
def test_who_is_newly_enrolled_has_the_stated_propensity_though_units_return(seed: int) -> None:
    history = play(RAMP)
    counted = newly_enrolled(history, visits=30_000, seed=seed)
    assert min(found.total() for found in counted) > 1_000
    for found, allocation in zip(counted, history, strict=True):
        assert surprise(found, propensities(allocation)["b"]) < 4


def test_to_split_all_slots_anew_would_not_enrol_by_the_stated_propensities() -> None:
    """The naive way: whoever comes new after a change mostly has a slot that was added, and these
    are not split in the weights, though the sum is."""
    history = [initial(*step) for step in RAMP]
    counted = newly_enrolled(history, visits=30_000, seed=0)
    off = [
        surprise(found, propensities(allocation)["b"])
        for found, allocation in zip(counted, history, strict=True)
    ]
    assert off[0] < 4
    assert min(off[1], off[3]) > 10
