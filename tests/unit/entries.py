"""Experiments as routers have them: compiled from what a store holds, or put together by hand."""

import json
from typing import Any

import msgspec

from experiments.allocation import Allocation, initial
from experiments.model import SLOTS, Experiment, Variant
from experiments.records import HoldoutPin, Override
from experiments.units import UnitKey
from router.hashing import slotter
from router.snapshot import (
    NOBODY,
    Arm,
    Entry,
    Held,
    Overrides,
    ProjectSnapshot,
    Span,
    compile_entry,
)
from tests.lives import NOW, live

SPLIT = initial({"a": 0.5, "b": 0.3, "c": 0.2}, 1.0)
HOLDOUT = HoldoutPin(99, 1, 1, "$holdout", ((0, 300), (5_000, 5_500), (9_999, SLOTS)))


def entry(
    key: str = "x",
    allocation: Allocation = SPLIT,
    *,
    overrides: tuple[Override, ...] = (),
    unit_key: UnitKey | None = None,
    value: Any = None,
    definition: dict[str, Any] | None = None,
    **epoch: Any,
) -> Entry:
    """An experiment with the variants a, the control, b and c, compiled as a router has it."""
    variants = tuple(
        Variant(key=name, control=name == "a", weight=1 / 3, value=value or {"model": name})
        for name in "abc"
    )
    defined = Experiment(key=key, variants=variants, **(definition or {}))
    found = live(defined, overrides=overrides, allocation=allocation, **epoch)
    return compile_entry(found, unit_key=unit_key)


def shaped(key: str, **fields: Any) -> Entry:
    """A running experiment of two variants, a and b, that share all slots, but for these fields."""
    salt = fields.get("salt", key)
    halves = {
        "slot_of": slotter(salt),
        "arms": (arm("a", {"model": "old"}, 0.5), arm("b", {"model": "new"}, 0.5)),
        "owners": owners((0, SLOTS // 2), (1, SLOTS // 2)),
    }
    return msgspec.structs.replace(entry(key), **halves | fields)


def arm(key: str, value: Any, propensity: float) -> Arm:
    """A variant."""
    return Arm(key, msgspec.Raw(json.dumps(value).encode()), propensity)


def owners(*runs: tuple[int | None, int]) -> bytes:
    """Who owns the slots, from how many each has in turn; what is left over is nobody's."""
    table = b"".join(bytes([NOBODY if arm is None else arm]) * count for arm, count in runs)
    return table.ljust(SLOTS, bytes([NOBODY]))


def span(first: int, end: int, salt: str = "$layer.ranking") -> Span:
    """A part of a layer."""
    return Span(salt, slotter(salt), first, end)


def held(first: int, end: int, salt: str = "$holdout") -> Held:
    """A holdout of the slots `[first, end)`."""
    table = bytes(1 if first <= slot < end else 0 for slot in range(SLOTS))
    return Held(salt, slotter(salt), table)


def overridden(units: dict[str, int]) -> Overrides:
    """These units' variants, whatever their slots."""
    return Overrides(units, {}, None)


def override(number: int, variant: str, **who: Any) -> Override:
    """An override of a unit, or of the value of an attribute."""
    who = {"unit": None, "attribute": None, "value": None} | who
    return Override(number, variant, created_at=NOW, actor="test", reason="test", **who)


def project(*entries: Entry, version: int = 1, **changes: Any) -> ProjectSnapshot:
    """A project with these experiments."""
    made = ProjectSnapshot(
        project="shop",
        version=version,
        default_unit_type="user",
        entries={each.key: each for each in entries},
        keys=(),
        recorded_attributes=frozenset(),
        unit_key=None,
        erasures=0,
        sticky_id="a1b2",
        holdout=None,
    )
    return msgspec.structs.replace(made, **changes)
