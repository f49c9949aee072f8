"""Which variant owns which slot, and how slots move when weights or traffic change (DESIGN 1.3, 5).

Everything here is a pure function: what a run did before is handed in as its earlier allocations.

**Cohorts.** Slots that were enrolled during the same epochs of a run form a cohort. Most units of
an old cohort have met their variant already, most units of a new one have not, so new enrolments
come chiefly from the new one. A unit that enters now therefore meets a variant with the stated
propensity only if *every* cohort is split in the stated proportions, not just their sum. That is
what DESIGN 1.3 says of the newest cohort; `reallocate` does it for all of them, by taking slots
from each cohort in proportion, as far as whole slots and the fewest moves allow.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import accumulate, chain, groupby, pairwise, repeat
from typing import Final, TypeAlias

import msgspec

from experiments.model import SLOTS
from experiments.problems import FieldProblem, invalid

Owner: TypeAlias = str | None
"""The key of a variant, or None: the slot is not enrolled."""

ROUNDING: Final = 2
"""Slots by which the count of a variant may be off its weight though that was not changed."""


class Allocation(msgspec.Struct, frozen=True):
    """Runs of slots `(variant or none, count)` that cover all slots in order.

    There is one way to write an allocation: no run is empty, and neighbours differ. So two
    allocations are equal exactly if every slot has the same owner in both.
    """

    runs: tuple[tuple[Owner, int], ...]

    def __post_init__(self) -> None:
        if sum(count for _, count in self.runs) != SLOTS:
            raise ValueError(f"an allocation covers {SLOTS} slots")
        if any(count < 1 for _, count in self.runs):
            raise ValueError("a run of an allocation has at least one slot")
        if any(left[0] == right[0] for left, right in zip(self.runs, self.runs[1:], strict=False)):
            raise ValueError("neighbouring runs of an allocation have different owners")


def slots_of(traffic: float) -> int:
    """The whole number of slots nearest to a share of traffic."""
    return int(_exact(traffic) * SLOTS + Fraction(1, 2))


def slot_counts(weights: Mapping[str, float], total: int) -> dict[str, int]:
    """`total` slots split in `weights` by largest remainder, ties by order.

    A variant with a positive weight has at least one slot; one that rounding left with none gets
    it from the variant that has the most.

    Raises:
        ProblemError: `invalid` at `traffic` where there are fewer slots than such variants.
    """
    positive = [key for key, weight in weights.items() if weight > 0]
    if not positive:
        raise ValueError("no variant has a positive weight")
    if total < len(positive):
        raise invalid([FieldProblem("traffic", "value", too_little_traffic(len(positive)))])
    shares = [_exact(weight) for weight in weights.values()]
    split = dict(zip(weights, _apportion(total, shares), strict=True))
    for key in positive:
        if split[key] == 0:
            split[max(split, key=split.__getitem__)] -= 1
            split[key] = 1
    return split


def too_little_traffic(variants: int) -> str:
    """What would be right where traffic is too small for this many variants."""
    least = variants / SLOTS
    return (
        f"must be at least {least:g} ({100 * least:g} %), so that each variant with a weight has a "
        "slot of its own"
    )


def initial(weights: Mapping[str, float], traffic: float) -> Allocation:
    """The first allocation of a run: each variant's slots in one piece, in order, then none's."""
    split = slot_counts(weights, slots_of(traffic))
    return _allocation(chain.from_iterable(repeat(key, count) for key, count in split.items()))


def owners(allocation: Allocation) -> list[Owner]:
    """The owner of each slot."""
    return [owner for owner, count in allocation.runs for _ in range(count)]


def owner_table(allocation: Allocation, variants: Sequence[str], nobody: int) -> bytes:
    """The owner of each slot as an index into `variants`, or `nobody`: a table for hot look-ups."""
    index: dict[Owner, int] = {key: i for i, key in enumerate(variants)}
    index[None] = nobody
    return b"".join(bytes([index[owner]]) * count for owner, count in allocation.runs)


def runs_of(allocation: Allocation, owner: Owner) -> tuple[tuple[int, int], ...]:
    """The slots of an owner as runs `[first, end)`."""
    ends = list(accumulate(count for _, count in allocation.runs))
    return tuple(
        (end - count, end)
        for (name, count), end in zip(allocation.runs, ends, strict=True)
        if name == owner
    )


def owners_of(allocation: Allocation, runs: Iterable[tuple[int, int]]) -> frozenset[Owner]:
    """Who owns any of the slots of runs `[first, end)`, none being an owner too."""
    table = owners(allocation)
    return frozenset(owner for first, end in runs for owner in table[first:end])


def counts(allocation: Allocation) -> dict[str, int]:
    """The number of slots of each variant that owns any."""
    found: Counter[str] = Counter()
    for owner, count in allocation.runs:
        if owner is not None:
            found[owner] += count
    return dict(found)


def traffic_of(allocation: Allocation) -> float:
    """The share of slots that are owned."""
    return sum(counts(allocation).values()) / SLOTS


def propensities(allocation: Allocation) -> dict[str, float]:
    """The probability of each variant for a unit that is enrolled: its share of the owned slots."""
    found = counts(allocation)
    owned = sum(found.values())
    return {key: count / owned for key, count in found.items()}


def moved(before: Allocation, after: Allocation) -> int:
    """The number of slots that change owner, none being an owner too."""
    return sum(old != new for old, new in zip(owners(before), owners(after), strict=True))


def is_worthwhile(current: Allocation, new: Allocation) -> bool:
    """Whether a reallocation makes an epoch: it moves at least 1 % of the traffic (DESIGN 5)."""
    return 100 * moved(current, new) >= sum(counts(current).values())


def is_too_small(current: Allocation, weights: Mapping[str, float], traffic: float) -> bool:
    """Whether `reallocate` would not be worthwhile, told by counts alone: no slot has to be moved
    to know. False where the traffic changes, too: then only the slots can tell.

    Raises:
        ProblemError: `invalid` at `traffic` where it is too little for the variants.
    """
    held, targets = counts(current), slot_counts(weights, slots_of(traffic))
    owned = sum(held.values())
    fewest = sum(max(0, target - held.get(key, 0)) for key, target in targets.items())
    return sum(targets.values()) == owned and 100 * fewest < owned


def enrols_same(before: Allocation, after: Allocation) -> bool:
    """Whether both enrol the same slots, whoever owns them."""
    return _enrolled_runs(before) == _enrolled_runs(after)


def reallocate(
    current: Allocation,
    weights: Mapping[str, float],
    traffic: float,
    history: Sequence[Allocation] = (),
) -> Allocation:
    """The allocation with these weights and this traffic that moves the fewest slots (DESIGN 1.3).

    - At constant traffic half the sum of the absolute changes moves, and no more.
    - When traffic grows, the newly enrolled slots are split in proportion to the new counts; then
      the old ones move minimally to what is left of these counts. Slots that the run released are
      not enrolled again, unless that restores an earlier allocation exactly: one with the same
      counts that owned all that is owned now (the latest such one).
    - When traffic shrinks, variants release to none what they have above their new counts.

    Which slots move is decided thus: each variant with a surplus gives from each cohort so that
    what it keeps is spread evenly over the cohorts, and of these slots those that lie nearest to
    the receiver's, so that allocations stay short.

    Args:
        history: The allocations that were in force earlier in this run, in order.

    Raises:
        ProblemError: `invalid` at `traffic` where it is too little for the variants, or more than
            the slots that were never released.
    """
    targets = slot_counts(weights, slots_of(traffic))
    slots = owners(current)
    enrolled = _enrolled(current)
    growth = sum(targets.values()) - len(enrolled)
    pasts = [_enrolled_runs(earlier) for earlier in history]
    ever = enrolled.union(*(_slots(runs) for runs in set(pasts)))
    fresh = [slot for slot in range(SLOTS) if slot not in ever]

    if growth > 0:
        restored = _restorable(enrolled, targets, history)
        if restored is not None:
            return restored
        if growth > len(fresh):
            raise invalid(
                [FieldProblem("traffic", "value", _too_much_traffic(len(ever - enrolled)))]
            )

    additions = dict(zip(targets, _apportion(max(growth, 0), [*targets.values()]), strict=True))
    kept: dict[Owner, int] = {key: targets[key] - additions[key] for key in targets}
    kept[None] = max(-growth, 0)
    _rebalance(slots, _cohorts(enrolled, pasts), kept)
    newcomers = iter(fresh)
    for key, count in additions.items():
        for _ in range(count):
            slots[next(newcomers)] = key
    return _allocation(slots)


def resize(
    current: Allocation,
    weights: Mapping[str, float],
    traffic: float,
    history: Sequence[Allocation] = (),
) -> Allocation:
    """The allocation with another traffic at unchanged weights. No slot passes from one variant to
    another: raising traffic never moves a unit that is enrolled.

    An earlier allocation of as many slots in these weights is restored exactly (the latest such
    one), if it is this one with slots added, or with slots released: so the way back is the way
    ahead, and going ahead again is possible. Otherwise, what is added is split in the weights by
    itself, within one slot of each variant's quota, so that a unit that enters now enters with the
    stated propensity; what is released, likewise, and evenly over the cohorts. Slots that the run
    released are not enrolled again unless such an allocation is restored.

    There may be none after a withdrawal, a restoration or other weights in tiny cohorts, whose
    rounding adds up: shrinking and growing back may then be off by a few slots.

    Args:
        weights: those that the current allocation was made with.
        history: The allocations that were in force earlier in this run, in order.

    Raises:
        ProblemError: `invalid` at `traffic` where it is too little for the variants, or more than
            the slots that were never released.
    """
    total = sum(slot_counts(weights, slots_of(traffic)).values())
    enrolled, held = _enrolled(current), counts(current)
    growth = total - len(enrolled)
    if growth == 0:
        return current
    restored = _resized_before(current, weights, total, history)
    if restored is not None:
        return restored
    pasts = [_enrolled_runs(earlier) for earlier in history]
    slots, changes = owners(current), _evenly(growth, held, weights)
    if growth < 0:
        kept: dict[Owner, int] = {None: -growth}
        kept.update((key, count + changes.get(key, 0)) for key, count in held.items())
        _rebalance(slots, _cohorts(enrolled, pasts), kept)
        return _allocation(slots)
    ever = enrolled.union(*(_slots(runs) for runs in set(pasts)))
    fresh = [slot for slot in range(SLOTS) if slot not in ever]
    if growth > len(fresh):
        raise invalid([FieldProblem("traffic", "value", _too_much_traffic(len(ever - enrolled)))])
    newcomers = iter(fresh)
    for key, count in changes.items():
        for _ in range(count):
            slots[next(newcomers)] = key
    return _allocation(slots)


def withdraw(current: Allocation, variant: str, heir: str) -> Allocation:
    """The allocation in which another variant has the slots of this one; all others stay."""
    return _allocation(heir if owner == variant else owner for owner in owners(current))


def restore(
    current: Allocation,
    earlier: Allocation,
    variant: str,
    weights: Mapping[str, float] | None = None,
    history: Sequence[Allocation] = (),
) -> Allocation:
    """The allocation in which a variant has the slots again that it owned before it was withdrawn.

    - Every such slot that is still enrolled comes back, whoever has it now; the others stay where
      they are. So if nothing moved in between, this is the earlier allocation.
    - Slots that were enrolled since then are split anew by as few moves as that needs, so that a
      unit that enters now enters with the stated propensity.
    - Where traffic shrank since then, the variant has the share of what is left that it had of all:
      of its own slots no more than that come back, and what is missing comes from the others. And
      if anybody would be left without a slot, since weights were moved by hand meanwhile, the
      shares decide, by `reallocate`.

    Args:
        earlier: The allocation before it was withdrawn.
        weights: What slots that were enrolled since are split in, and those that come from others;
            unless told, as the older slots are.
        history: The allocations that were in force earlier in this run, in order.
    """
    slots = owners(current)
    enrolled, known = _enrolled(current), _enrolled(earlier)
    cohorts = _cohorts(enrolled, [_enrolled_runs(past) for past in (earlier, *history)])
    old = [cohort for cohort in cohorts if cohort[0] in known]
    new = [cohort for cohort in cohorts if cohort[0] not in known]
    own = frozenset(slot for slot, owner in enumerate(owners(earlier)) if owner == variant)
    if not own:
        return current
    share = Fraction(len(own), len(known))

    stated: dict[Owner, Fraction] = {key: _exact(w) for key, w in (weights or {}).items()}
    _give_back(slots, old, own, variant, round(share * sum(map(len, old))), stated)
    held = Counter(slots[slot] for cohort in old for slot in cohort)
    others = held.total() - held.pop(variant, 0)
    shares: dict[Owner, Fraction] = {variant: share}
    for key, count in held.items():
        shares[key] = (1 - share) * count / others
    shares = stated or shares
    split = _apportion(sum(map(len, new)), [*shares.values()])
    _rebalance(slots, new, dict(zip(shares, split, strict=True)))

    restored = _allocation(slots)
    if {variant, *counts(current)} <= counts(restored).keys():
        return restored
    left = {key: float(count * (1 - share)) for key, count in counts(current).items()}
    left[variant] = float(share * len(enrolled))
    return reallocate(current, left, traffic_of(current), history)


def _give_back(
    slots: list[Owner],
    cohorts: Sequence[Sequence[int]],
    own: frozenset[int],
    variant: str,
    quota: int,
    stated: dict[Owner, Fraction],
) -> None:
    """Give a variant so many slots of these cohorts: its own ones first, evenly over the cohorts if
    not all of them, and what is missing from the others, so that these keep the shares that are
    stated or, if none are, those that they have. Changes `slots` in place."""
    theirs = [[slot for slot in cohort if slot in own] for cohort in cohorts]
    caps = [len(mine) for mine in theirs]
    parts = caps
    if sum(caps) > quota:
        parts = _apportion_within(quota, [len(cohort) for cohort in cohorts], caps)
    for mine, part in zip(theirs, parts, strict=True):
        for slot in mine[:part]:
            slots[slot] = variant
    if sum(caps) < quota:
        held = Counter(slots[slot] for cohort in cohorts for slot in cohort)
        rest: dict[Owner, Fraction] = {key: Fraction(count) for key, count in held.items()}
        if stated:
            rest = dict(stated)
        rest.pop(variant, None)
        split = _apportion(held.total() - quota, [*rest.values()])
        _rebalance(slots, cohorts, {**dict(zip(rest, split, strict=True)), variant: quota})


def _too_much_traffic(released: int) -> str:
    return (
        f"must be at most {(SLOTS - released) / SLOTS:g}: {released} slots were released in this "
        "run and are not enrolled again, unless an earlier allocation is restored exactly"
    )


def _restorable(
    enrolled: frozenset[int], targets: Mapping[str, int], history: Sequence[Allocation]
) -> Allocation | None:
    """The latest earlier allocation with these counts that goes on with all that is enrolled."""
    wanted = {key: count for key, count in targets.items() if count}
    for earlier in reversed(history):
        if counts(earlier) == wanted and enrolled <= _enrolled(earlier):
            return earlier
    return None


def _resized_before(
    current: Allocation, weights: Mapping[str, float], total: int, history: Sequence[Allocation]
) -> Allocation | None:
    """The latest earlier allocation of so many slots in these weights that is this one with slots
    added, or with slots released."""
    slots = owners(current)
    for earlier in reversed(history):
        found = counts(earlier)
        if sum(found.values()) == total and _is_split(found, weights):
            pairs = [*zip(slots, owners(earlier), strict=True)]
            grows = all(now in {None, then} for now, then in pairs)
            if grows or all(then in {None, now} for now, then in pairs):
                return earlier
    return None


def _is_split(found: Mapping[str, int], weights: Mapping[str, float]) -> bool:
    """Whether counts of slots are these weights, but for the rounding to whole slots: that of one
    cohort after another, that of a variant whose slots another one has got, and one slot for each
    variant that has less by its weight."""
    total, whole = sum(found.values()), sum(map(_exact, weights.values()))
    quotas = {key: _exact(weight) * total / whole for key, weight in weights.items()}
    gone = sum(quota == 0 for quota in quotas.values())
    slack = ROUNDING * (1 + gone) + sum(0 < quota < 1 for quota in quotas.values())
    return found.keys() == {key for key, quota in quotas.items() if quota} and all(
        abs(count - quotas[key]) <= slack for key, count in found.items()
    )


def _evenly(growth: int, held: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, int]:
    """How many slots each variant gains, or gives up, when only the traffic changes: its quota of
    the change, to whole slots.

    Who is rounded up is decided by who is furthest behind its quota of the whole, so that the
    rounding of one cohort makes up for that of those before it. Largest remainder of the new total
    would not do: at a higher total a variant may be due fewer slots (the Alabama paradox), and then
    an enrolled slot would have to move.
    """
    whole = sum(map(_exact, weights.values()))
    total = sum(held.values()) + growth
    shares = {key: _exact(weight) / whole for key, weight in weights.items() if weight > 0}
    changes = {key: math.floor(share * growth) for key, share in shares.items()}
    behind = {
        key: share * total - held.get(key, 0) - changes[key]
        for key, share in shares.items()
        if share * growth != changes[key]
    }
    ahead = sorted(behind, key=lambda key: -behind[key])
    for key in ahead[: growth - sum(changes.values())]:
        changes[key] += 1
    left = {key: held.get(key, 0) + change for key, change in changes.items()}
    for key, count in left.items():
        if count < 1:  # nobody gives up its last slot
            richest = max(left, key=left.__getitem__)
            for other, more in ((key, 1 - count), (richest, count - 1)):
                left[other] += more
                changes[other] += more
    return changes


def _rebalance(
    slots: list[Owner], cohorts: Sequence[Sequence[int]], targets: Mapping[Owner, int]
) -> None:
    """Move the fewest slots within each cohort so that over all cohorts each owner has its target;
    what none is to have is released. Changes `slots` in place."""
    holdings = [Counter(slots[slot] for slot in cohort) for cohort in cohorts]
    held = sum(holdings, Counter[Owner]())
    gifts: list[dict[Owner, int]] = [{} for _ in cohorts]
    for giver in held:
        target = targets.get(giver, 0)
        if held[giver] > target:
            caps = [holding[giver] for holding in holdings]
            keeps = _apportion_within(target, [len(cohort) for cohort in cohorts], caps)
            for gift, cap, keep in zip(gifts, caps, keeps, strict=True):
                gift[giver] = cap - keep
    needs = {taker: target - held[taker] for taker, target in targets.items()}
    needs = {taker: need for taker, need in needs.items() if need > 0}
    for cohort, gift in zip(cohorts, gifts, strict=True):
        takes = _apportion(sum(gift.values()), [*needs.values()])
        _hand_over(slots, cohort, gift, dict(zip(needs, takes, strict=True)))
        needs = {
            taker: need - take for (taker, need), take in zip(needs.items(), takes, strict=True)
        }


def _hand_over(
    slots: list[Owner],
    cohort: Sequence[int],
    gift: Mapping[Owner, int],
    takes: Mapping[Owner, int],
) -> None:
    """Pass slots of a cohort from givers to takers. Changes `slots` in place."""
    open_takes = dict(takes)
    for giver, given in gift.items():
        left = given
        for taker, wanted in open_takes.items():
            count = min(left, wanted)
            if count:
                for slot in _nearest(slots, cohort, giver, taker)[:count]:
                    slots[slot] = taker
                open_takes[taker] -= count
                left -= count


def _nearest(
    slots: Sequence[Owner], cohort: Iterable[int], giver: Owner, taker: Owner
) -> list[int]:
    """The giver's slots in a cohort, those nearest to a slot of the taker first, then the last."""
    distance = _distances(slots, taker)
    own = [slot for slot in cohort if slots[slot] == giver]
    own.sort(reverse=True)
    own.sort(key=distance.__getitem__)
    return own


def _distances(slots: Sequence[Owner], owner: Owner) -> list[int]:
    """How far each slot is from the nearest one of an owner; `SLOTS` from one that has none."""
    owned = [slot for slot, other in enumerate(slots) if other == owner]
    if not owned:
        return [SLOTS] * len(slots)
    distance = list(range(owned[0], 0, -1))
    for left, right in pairwise(owned):
        gap = range(right - left)
        distance += map(min, gap, range(right - left, 0, -1))
    return [*distance, *range(len(slots) - owned[-1])]


def _cohorts(
    enrolled: Iterable[int], pasts: Iterable[tuple[tuple[int, int], ...]]
) -> list[list[int]]:
    """The enrolled slots, grouped by the epochs in which they were enrolled before."""
    # At constant traffic thousands of allocations enrol the same slots. They tell nothing apart, as
    # does any one that enrolled all of these.
    now = frozenset(enrolled)
    distinct = [past for runs in dict.fromkeys(pasts) if not now <= (past := _slots(runs))]
    if not distinct:
        return [sorted(now)] if now else []
    groups: dict[tuple[bool, ...], list[int]] = {}
    for slot in sorted(now):
        groups.setdefault(tuple(slot in past for past in distinct), []).append(slot)
    return list(groups.values())


def _enrolled_runs(allocation: Allocation) -> tuple[tuple[int, int], ...]:
    """The enrolled slots as runs `[first, end)`, whoever owns them."""
    found: list[tuple[int, int]] = []
    first = 0
    for is_owned, runs in groupby(allocation.runs, key=lambda run: run[0] is not None):
        end = first + sum(count for _, count in runs)
        if is_owned:
            found.append((first, end))
        first = end
    return tuple(found)


def _slots(runs: Iterable[tuple[int, int]]) -> frozenset[int]:
    return frozenset(chain.from_iterable(range(first, end) for first, end in runs))


def _enrolled(allocation: Allocation) -> frozenset[int]:
    return _slots(_enrolled_runs(allocation))


def _allocation(slots: Iterable[Owner]) -> Allocation:
    """The allocation in which the slots have these owners; slots that are left over have none."""
    runs = [(owner, sum(1 for _ in group)) for owner, group in groupby(slots)]
    left = SLOTS - sum(count for _, count in runs)
    if left:
        runs.append((None, left))
    return Allocation(tuple(runs))


def _exact(number: float) -> Fraction:
    """The decimal that was written, so that 0.15 and 0.35 tie where their author sees a tie."""
    return Fraction(str(number))


def _apportion(total: int, shares: Sequence[Fraction | int]) -> list[int]:
    """`total` split in proportion to `shares` by largest remainder, ties by order."""
    whole = sum(shares)
    if whole == 0:
        return [0] * len(shares)
    quotas = [Fraction(total * share) / whole for share in shares]
    floors = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(shares)), key=lambda i: floors[i] - quotas[i])
    rounded_up = set(by_remainder[: total - sum(floors)])
    return [floor + (i in rounded_up) for i, floor in enumerate(floors)]


def _apportion_within(total: int, shares: Sequence[int], caps: Sequence[int]) -> list[int]:
    """`_apportion`, but none gets more than its cap: what exceeds it goes to the others."""
    full: set[int] = set()
    while True:
        rest = total - sum(caps[i] for i in full)
        open_shares = [0 if i in full else share for i, share in enumerate(shares)]
        parts = _apportion(rest, open_shares)
        over = {i for i, part in enumerate(parts) if part > caps[i]}
        if not over:
            return [caps[i] if i in full else part for i, part in enumerate(parts)]
        full |= over
