"""Every step on the way to a variant, and which override decides."""

from typing import Any

import pytest

from experiments.allocation import initial
from experiments.model import SLOTS
from experiments.records import HoldoutPin, LayerPin, Override
from router.assign import assign
from router.hashing import slot
from router.replay import explain, override_of
from tests.unit.entries import HOLDOUT, entry, override

HALF = initial({"a": 0.5, "b": 0.5, "c": 0.0}, 0.5)
LOW = LayerPin("l", "layer-l", (0, 5_000))
GROWN_UP = {">=": [{"var": "age"}, 18]}
UNITS = [f"u{number}" for number in range(300)]


def test_each_step_is_explained_whichever_decides() -> None:
    through = entry(allocation=HALF, holdout=HOLDOUT, layer=LOW, targeting=GROWN_UP)
    seen = set()
    for number, unit in enumerate(UNITS):
        age = 10 + number % 20
        context = {"age": age, "targetingKey": unit}
        steps = explain(through, unit, context)
        assert steps.answer == assign(through, unit, context)
        assert steps.holdout is not None
        assert steps.holdout.slot == slot(HOLDOUT.salt, unit)
        assert steps.slot_of_layer == slot(LOW.salt, unit)
        assert steps.targeting == ("met" if age >= 18 else "not_met")
        assert steps.slot == slot("x", unit)
        assert steps.owner == (["a", "b"][steps.slot // 2_500] if steps.slot < 5_000 else None)
        seen.add(steps.answer.reason)
    assert seen == {"held_out", "out_of_layer", "not_targeted", "not_enrolled", "split"}


def test_what_an_experiment_has_not_is_none() -> None:
    steps = explain(entry(), "u1", {"targetingKey": "u1"})
    assert (steps.holdout, steps.slot_of_layer, steps.targeting) == (None, None, None)


def test_a_targeting_that_fails_is_told() -> None:
    failing = entry(targeting={">": [{"/": [1, {"var": "n"}]}, 0]})
    steps = explain(failing, "u1", {"targetingKey": "u1", "n": 0})
    assert (steps.targeting, steps.answer.reason) == ("failed", "targeting_failed")


@pytest.mark.parametrize("unit", ["u1", "u2", "u3"])
@pytest.mark.parametrize(
    "context",
    [
        {},
        {"beta": True},
        {"beta": 1},
        {"beta": "true"},
        {"level": 2},
        {"level": 2.0},
        {"level": "2"},
        {"level": 2, "beta": False},
        {"level": [2]},
    ],
)
def test_the_override_that_is_told_is_the_one_that_decides(
    unit: str, context: dict[str, Any]
) -> None:
    overrides: tuple[Override, ...] = (
        override(1, "b", attribute="level", value=2),
        override(2, "c", attribute="beta", value=True),
        override(3, "a", attribute="beta", value=False),
        override(4, "b", attribute="beta", value="true"),
        override(5, "c", unit="u1"),
        override(6, "b", unit="u2"),
    )
    held = HoldoutPin(9, 1, 1, "h", ((0, SLOTS),))
    answer = assign(entry(holdout=held, overrides=overrides), unit, context)
    found = override_of(overrides, unit, context)
    assert (found is not None) == (answer.reason == "override")
    assert found is None or found.variant == answer.arm.key
