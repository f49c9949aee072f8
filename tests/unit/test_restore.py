"""A variant that was rolled back and comes back: which slots are whose then, as properties."""

from collections import Counter
from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from experiments import moves
from experiments.allocation import (
    Allocation,
    counts,
    initial,
    moved,
    owners,
    owners_of,
    propensities,
    reallocate,
    restore,
    runs_of,
    withdraw,
)
from experiments.model import SLOTS
from experiments.problems import ProblemError

Step = tuple[dict[str, float], float]
VARIANTS = ("v0", "v1", "v2")
quick = settings(deadline=None, max_examples=40)


def weights(least: int) -> st.SearchStrategy[dict[str, float]]:
    """Weights of all variants."""
    numbers = st.lists(st.integers(least, 100), min_size=3, max_size=3).filter(any)
    return numbers.map(lambda ns: {f"v{i}": n / sum(ns) for i, n in enumerate(ns)})


def without_v1(split: dict[str, float]) -> dict[str, float]:
    """What of these weights is possible while v1 is rolled back."""
    return {"v0": split["v0"] + split["v1"], "v1": 0.0, "v2": split["v2"]}


traffics = st.integers(50, SLOTS).map(lambda n: n / SLOTS)
steps = st.lists(st.tuples(weights(1), traffics), min_size=1, max_size=4)
meanwhile = st.lists(st.tuples(weights(0), traffics), max_size=3)


class Life(msgspec.Struct):
    """The allocations of a run: up to the rollback of v1, and from then on."""

    before: list[Allocation]
    since: list[Allocation]

    @property
    def earlier(self) -> Allocation:
        """The allocation that v1 was taken out of."""
        return self.before[-1]

    def restored(self, split: dict[str, float] | None = None) -> Allocation:
        """The allocation in which v1 is back."""
        history = [*self.before, *self.since]
        return restore(self.since[-1], self.earlier, "v1", split, history)


def lived(run: Sequence[Step], meanwhile: Sequence[Step] = ()) -> Life:
    """A run in which traffic only grows, and v1 is rolled back; a step that is not possible is left
    out."""
    before = [initial(*run[0])]
    for split, traffic in sorted(run[1:], key=lambda step: step[1]):
        if traffic >= len(enrolled(before[-1])) / SLOTS:
            before.append(reallocate(before[-1], split, traffic, before))
    since = [withdraw(before[-1], "v1", "v0")]
    for split, traffic in meanwhile:
        try:
            since.append(reallocate(since[-1], without_v1(split), traffic, [*before, *since]))
        except ProblemError:
            continue
    return Life(before, since)


def enrolled(allocation: Allocation) -> frozenset[int]:
    """The slots that are owned."""
    return frozenset(slot for slot, owner in enumerate(owners(allocation)) if owner is not None)


def of(allocation: Allocation, variant: str) -> frozenset[int]:
    """The slots of a variant."""
    return frozenset(slot for slot, owner in enumerate(owners(allocation)) if owner == variant)


@quick
@given(steps)
def test_the_slots_of_a_rolled_back_variant_are_the_controls_and_no_other_moves(
    run: list[Step],
) -> None:
    life = lived(run)
    before, after = owners(life.earlier), owners(life.since[0])
    assert [("v0" if owner == "v1" else owner) for owner in before] == after
    assert moved(life.earlier, life.since[0]) == counts(life.earlier).get("v1", 0)


@quick
@given(steps)
def test_where_nothing_moved_meanwhile_the_earlier_map_is_back_slot_for_slot(
    run: list[Step],
) -> None:
    life = lived(run)
    assert life.restored() == life.earlier
    assert life.restored(run[-1][0]) == life.earlier


@quick
@given(steps, weights(1))
def test_at_constant_traffic_its_slots_come_back_and_the_others_stay(
    run: list[Step], split: dict[str, float]
) -> None:
    life = lived(run)
    constant = len(enrolled(life.earlier)) / SLOTS
    life.since.append(reallocate(life.since[-1], without_v1(split), constant, life.before))
    after = life.restored()
    others = enrolled(life.earlier) - of(life.earlier, "v1")
    now, then = owners(life.since[-1]), owners(after)
    assume({now[slot] for slot in others} == {"v0", "v2"})
    assert of(after, "v1") == of(life.earlier, "v1")
    assert all(then[slot] == now[slot] for slot in others)


@quick
@given(steps, traffics, weights(1))
def test_where_traffic_grew_whoever_enters_now_meets_it_with_the_stated_propensity(
    run: list[Step], traffic: float, split: dict[str, float]
) -> None:
    """Each cohort by itself is split in the stated proportions; old slots are back, and stay."""
    life = lived(run)
    least = len(enrolled(life.earlier))
    assume(round(traffic * SLOTS) > least + 20)
    life.since.append(reallocate(life.since[-1], without_v1(split), traffic, life.before))
    after, now = life.restored(), owners(life.since[-1])
    old = enrolled(life.earlier)
    new = enrolled(after) - old
    then = owners(after)
    others = old - of(life.earlier, "v1")
    assume({now[slot] for slot in others} >= {"v0", "v2"})
    assert enrolled(after) == enrolled(life.since[-1])
    assert of(life.earlier, "v1") <= of(after, "v1")
    assert all(then[slot] == now[slot] for slot in others)
    shares = Counter(then[slot] for slot in old)
    had, has = (Counter(table[slot] for slot in new) for table in (now, then))
    for key, count in shares.items():
        assert abs(has[key] - count / len(old) * len(new)) <= 1
    change = sum(abs(had[key] - has[key]) for key in had | has)
    assert 2 * sum(now[slot] != then[slot] for slot in new) == change


@quick
@given(steps, meanwhile)
def test_whatever_happened_meanwhile_nobody_is_enrolled_or_released_or_left_without_a_slot(
    run: list[Step], steps_meanwhile: list[Step]
) -> None:
    life = lived(run, steps_meanwhile)
    after = life.restored()
    assert enrolled(after) == enrolled(life.since[-1])
    assert counts(after).keys() == {*counts(life.since[-1]), "v1"}
    share = propensities(life.earlier)["v1"]
    assert propensities(after)["v1"] == pytest.approx(share, abs=2.5 / len(enrolled(after)))


def test_where_traffic_shrank_it_has_its_share_of_what_is_left() -> None:
    """Of the slots that are left, none was its own, or all were: it has half of them all the
    same."""
    halves = {"v0": 0.5, "v1": 0.5}
    first = initial(halves, 1.0)
    gone = withdraw(first, "v1", "v0")
    less = reallocate(gone, {"v0": 1.0, "v1": 0.0}, 0.4, [first])
    assert counts(restore(less, first, "v1", None, [first, gone])) == {"v0": 2_000, "v1": 2_000}
    own = Allocation((("v1", 4_000), ("v0", 6_000)))
    left = Allocation((("v0", 4_000), (None, 6_000)))
    assert counts(restore(left, own, "v1", None, [own])) == {"v0": 2_400, "v1": 1_600}


def test_weights_moved_by_hand_leave_the_control_in_the_race() -> None:
    """The slots that a hand left to the control are all those of the variant that comes back."""
    earlier = Allocation((("v1", 2_500), ("v0", 5_000), ("v2", 2_500)))
    current = Allocation((("v0", 2_000), ("v2", 8_000)))
    after = restore(current, earlier, "v1", None, [earlier])
    assert counts(after) == {"v0": 1_500, "v1": 2_500, "v2": 6_000}


def test_a_variant_that_had_nothing_gets_nothing() -> None:
    earlier = initial({"v0": 1.0, "v1": 0.0}, 0.5)
    assert restore(withdraw(earlier, "v1", "v0"), earlier, "v1", None, [earlier]) == earlier


def test_slots_that_are_new_are_split_in_the_weights_that_are_stated() -> None:
    """100 slots cannot say a third; those that came since can."""
    thirds = {"v0": 0.666667, "v1": 0.333333}
    first = initial(thirds, 0.01)
    gone = withdraw(first, "v1", "v0")
    grown = reallocate(gone, {"v0": 1.0}, 1.0, [first, gone])
    after = restore(grown, first, "v1", thirds, [first, gone])
    assert counts(after) == {"v0": 6_667, "v1": 3_333}
    assert of(first, "v1") <= of(after, "v1")


def test_who_owns_any_of_some_slots() -> None:
    first = initial({"v0": 0.5, "v1": 0.5}, 0.5)
    assert owners_of(first, runs_of(first, "v1")) == {"v1"}
    assert owners_of(first, [(2_000, 2_600), (4_999, 5_001)]) == {"v0", "v1", None}
    assert owners_of(first, []) == set()


def test_both_moves_are_carried_out_again_from_their_json() -> None:
    earlier = initial({"v0": 0.5, "v1": 0.25, "v2": 0.25}, 0.5)
    for move, current in (
        (moves.Withdraw("v1", "v0"), earlier),
        (moves.Restore("v1", earlier, None), withdraw(earlier, "v1", "v0")),
        (moves.Restore("v1", earlier, (("v0", 0.75), ("v1", 0.25))), earlier),
    ):
        read = moves.read_move(msgspec.json.encode(move))
        assert read == move
        assert moves.carry_out(move, current, [earlier]) == moves.carry_out(
            move, current, [earlier]
        )
    withdrawn = moves.carry_out(moves.Withdraw("v1", "v0"), earlier)
    assert moves.carry_out(moves.Restore("v1", earlier, None), withdrawn, [earlier]) == earlier
