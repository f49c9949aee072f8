"""A reallocation and its evidence: whole, recomputable, and no larger for a long history."""

import msgspec
import numpy as np
import pytest

from analysis.inference.bandit import Inputs, Reallocation, posteriors, propose
from analysis.inference.discounted import ScoredCell, follow, start
from analysis.inference.epoch_sums import EpochSums, Population, of_epoch
from analysis.inference.thompson import probability_best
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


def test_more_traffic_for_a_variant_in_alarm_is_named_and_rounding_to_slots_is_none() -> None:
    """Of a variant that keeps its floor, which slots cannot meet exactly, nothing is said."""
    alarmed = msgspec.structs.replace(inputs(history(3)), alarmed=("a", "bb"))
    proposal = propose(alarmed)
    assert proposal is not None
    assert proposal.weights["a"] > 0.25 > proposal.weights["bb"]
    assert proposal.given_in_alarm == ("a",)
    as_before = proposal.weights | {"a": proposal.weights["a"] - 1e-4}
    rounded = msgspec.structs.replace(alarmed, weights=as_before)
    assert msgspec.structs.replace(proposal, inputs=rounded).given_in_alarm == ()


def test_variants_that_the_policy_does_not_know_are_refused() -> None:
    strange = msgspec.structs.replace(inputs(history(3)), weights={"a": 0.5, "b": 0.5})
    with pytest.raises(ValueError, match="same variants"):
        propose(strange)


def test_without_units_there_is_no_move() -> None:
    assert propose(inputs(EpochSums())) is None


def test_evidence_of_an_older_release_gives_the_same_again() -> None:
    """It names no option, for there were none."""
    decided = propose(inputs(history(5)))
    assert decided is not None
    data = msgspec.json.decode(msgspec.json.encode(decided))
    old = {"metric", "version", "kind", "goal", "floor", "warmup", "max_step", "finished"}
    data["inputs"] = {name: data["inputs"][name] for name in {*old, "weights"}}
    del data["shares"]
    kept = msgspec.json.decode(msgspec.json.encode(data), type=Reallocation)
    again = propose(kept.inputs)
    assert again is not None
    assert again.weights == decided.weights
    assert again.probability_best == decided.probability_best


def test_a_pinned_control_keeps_its_weight_and_the_others_share_the_rest() -> None:
    known = history(7)
    pinned = msgspec.structs.replace(
        inputs(known), control="a", pin_control=0.3, max_step=1.0, floors={"bb": 0.2}
    )
    decided = propose(pinned)
    assert decided is not None
    assert decided.weights["a"] == 0.3
    assert decided.weights["bb"] >= 0.2
    among = posteriors(pinned)
    assert among is not None
    del among["a"]
    assert decided.shares == probability_best(among, "increase")
    assert decided.probability_best["a"] > 0.9  # it is the best, and the pin holds it back
    rest = 1.0 - 0.3 - 0.2 - 0.05 - 0.05
    assert decided.weights["ccc"] == pytest.approx(0.05 + rest * decided.shares["ccc"])


def test_sampling_is_of_the_chances_to_be_best() -> None:
    known = inputs(history(7))
    plain, top_two = (
        propose(msgspec.structs.replace(known, sampling=sampling, max_step=1.0))
        for sampling in ("thompson", "top_two")
    )
    assert plain is not None
    assert top_two is not None
    assert plain.shares == {}
    assert top_two.probability_best == plain.probability_best
    assert top_two.weights["a"] == pytest.approx(0.05 + 0.8 * top_two.shares["a"])
    assert top_two.weights["a"] < 0.5 < plain.weights["a"]


def after_a_rollback(*, level: float) -> tuple[Population, list[str]]:
    """Three variants for a while, then two; the rate of all is another then."""
    arms = ["a", "b", "c"]
    total = of_epoch(
        {"a": proportion(1_000, 100), "b": proportion(1_000, 120), "c": proportion(1_000, 50)},
        arms,
        "a",
        "proportion",
    )
    counts = {key: proportion(5_000, round(5_000 * level * k)) for key, k in (("a", 1), ("b", 1.2))}
    return total + of_epoch(counts, arms, "a", "proportion"), arms


def test_a_variant_that_is_rolled_back_takes_no_part() -> None:
    total, _ = after_a_rollback(level=0.3)
    without = Inputs(
        metric="click",
        version="1",
        kind="proportion",
        goal="increase",
        floor=0.05,
        warmup=2_000,  # which c never had
        max_step=1.0,
        finished=EpochSums(),
        weights={"a": 0.5, "b": 0.5, "c": 0.0},
        control="a",
        rolled_back=("c",),
        pairs={"b": total.contrasts["b"]},
    )
    decided = propose(without)
    assert decided is not None
    assert decided.weights.keys() == {"a", "b", "c"}
    assert decided.weights["c"] == 0.0
    assert decided.probability_best.keys() == {"a", "b"}
    assert decided.weights["b"] > 0.9
    again = msgspec.json.decode(
        msgspec.json.encode(backwards(msgspec.to_builtins(decided))), type=Reallocation
    )
    assert propose(again.inputs) == decided


def test_with_several_left_they_are_compared_through_the_control() -> None:
    """c was rolled back before anybody met it, so the others have been together all the time."""
    total, left = Population(), Population()
    rng = np.random.default_rng(42)
    for epoch in range(5):
        rate = 0.1 * epoch + 0.1
        cells = {key: proportion(400, int(rng.binomial(400, rate))) for key in "abd"}
        total += of_epoch(cells, ["a", "b", "c", "d"], "a", "proportion")
        left += of_epoch(cells, ["a", "b", "d"], "a", "proportion")
    common = msgspec.structs.replace(
        inputs(EpochSums()), weights={"a": 0.4, "b": 0.3, "c": 0.0, "d": 0.3}, control="a"
    )
    found = posteriors(
        msgspec.structs.replace(
            common, rolled_back=("c",), pairs={k: total.contrasts[k] for k in ("b", "d")}
        )
    )
    known = posteriors(
        msgspec.structs.replace(
            common, finished=left.together, weights={"a": 0.4, "b": 0.3, "d": 0.3}
        )
    )
    assert found is not None
    assert known is not None
    assert list(found) == list(known)
    for key, arm in known.items():
        assert found[key].mean == pytest.approx(arm.mean, rel=1e-12)
        assert found[key].sd == pytest.approx(arm.sd, rel=1e-12)


def test_discounted_evidence_gives_the_same_weights_bit_by_bit() -> None:
    rng = np.random.default_rng(43)
    state = start("a", ["bb", "ccc", "dddd"])
    shares = dict.fromkeys(VARIANTS, 0.25)
    for block in range(20):
        cells = {
            v: proportion(50, int(rng.binomial(50, k / 10))) for k, v in enumerate(VARIANTS, 1)
        }
        state = follow(state, [ScoredCell(block, block, shares, cells)], 7.0)
    fading = msgspec.structs.replace(
        inputs(EpochSums()), control="a", discounted=state, sampling="exploration"
    )
    decided = propose(fading)
    assert decided is not None
    kept = msgspec.json.decode(
        msgspec.json.encode(backwards(msgspec.to_builtins(decided))), type=Reallocation
    )
    assert propose(kept.inputs) == decided
