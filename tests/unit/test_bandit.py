"""A reallocation and its evidence: whole, recomputable, and no larger for a long history."""

import msgspec
import numpy as np
import pytest

from analysis.inference.bandit import Inputs, Reallocation, propose
from analysis.inference.epoch_sums import EpochSums, Population, of_epoch
from tests.unit.samples import proportion

VARIANTS = ["dddd", "ccc", "bb", "a"]
"""Not in the order of their keys."""


def history(epochs: int) -> EpochSums:
    """The sums of all variants over epochs of some 300 units."""
    rng = np.random.default_rng(41)
    total = Population()
    for _ in range(epochs):
        cells = {}
        for rate, variant in enumerate(VARIANTS, start=1):
            n = int(rng.integers(50, 100))
            cells[variant] = proportion(n, int(rng.binomial(n, rate / 10)))
        total += of_epoch(cells, VARIANTS, "a", "proportion")
    return total.together


def inputs(finished: EpochSums) -> Inputs:
    """A policy in small steps, from even weights."""
    return Inputs(
        metric="click",
        version="1",
        kind="proportion",
        goal="increase",
        floor=0.05,
        warmup=50,
        max_step=0.1,
        finished=finished,
        weights=dict.fromkeys(VARIANTS, 0.25),
    )


def backwards(data: object) -> object:
    """JSON with the keys of all its objects in another order, as Postgres may give it."""
    if isinstance(data, dict):
        return {key: backwards(value) for key, value in reversed(data.items())}
    return data


@pytest.mark.parametrize("epochs", [1, 7])
def test_the_evidence_gives_the_same_weights_bit_by_bit(epochs: int) -> None:
    decided = propose(inputs(history(epochs)))
    assert decided is not None
    assert decided.weights["a"] == 0.35
    stored = msgspec.json.encode(backwards(msgspec.json.decode(msgspec.json.encode(decided))))
    kept = msgspec.json.decode(stored, type=Reallocation)
    again = propose(kept.inputs)
    assert again is not None
    assert again == decided
    assert list(again.weights.items()) == list(decided.weights.items())


def test_the_evidence_does_not_grow_with_the_number_of_epochs() -> None:
    few, many = (len(msgspec.json.encode(inputs(history(epochs)))) for epochs in (5, 1_000))
    assert many < 1.3 * few


def test_variants_that_the_policy_does_not_know_are_refused() -> None:
    strange = msgspec.structs.replace(inputs(history(3)), weights={"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="same variants"):
        propose(strange)


def test_without_units_there_is_no_move() -> None:
    assert propose(inputs(EpochSums())) is None
