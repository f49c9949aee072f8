"""The watched sample ratio: an e-process that any batching, ramp or reallocation leaves valid."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from analysis.inference.ratio_watch import LOG_THRESHOLD, PRIOR_UNITS, RatioWatch, watch
from tests.unit.samples import at_most

EVEN = {"a": 0.5, "b": 0.5}
Batch = tuple[Mapping[str, int], Mapping[str, float]]


def watched(batches: Iterable[Batch]) -> RatioWatch:
    """The watch after these batches."""
    state = RatioWatch()
    for units, propensities in batches:
        state = watch(state, units, propensities)
    return state


def plain(units: Mapping[str, int], weights: Mapping[str, float]) -> float:
    """The e-process of Lindon and Malek in one step, from log-gammas."""
    before = {key: PRIOR_UNITS * w for key, w in weights.items()}
    after = {key: before[key] + units[key] for key in weights}

    def log_b(a: Iterable[float]) -> float:
        values = list(a)
        return float(sum(special.gammaln(values)) - special.gammaln(sum(values)))

    fitted = sum(units[key] * math.log(w) for key, w in weights.items())
    return log_b(after.values()) - log_b(before.values()) - fitted


def shares(weights: Sequence[int]) -> dict[str, float]:
    """Propensities of a, b and so on in these proportions."""
    return {chr(ord("a") + i): w / sum(weights) for i, w in enumerate(weights)}


counts = st.lists(st.integers(0, 300), min_size=3, max_size=3)


@given(
    st.lists(counts, min_size=1, max_size=12), st.lists(st.integers(1, 50), min_size=3, max_size=3)
)
def test_is_the_plain_e_process_however_a_stream_is_cut(
    batches: list[list[int]], weights: list[int]
) -> None:
    propensities = shares(weights)
    units = [dict(zip("abc", batch, strict=True)) for batch in batches]
    total = {key: sum(batch[key] for batch in units) for key in "abc"}
    expected = pytest.approx(plain(total, propensities), rel=1e-9, abs=1e-9)
    assert watched((batch, propensities) for batch in units).log_e == expected
    assert watched([(total, propensities)]).log_e == expected


@given(
    st.lists(
        st.tuples(counts, st.lists(st.integers(0, 50), min_size=3, max_size=3).filter(any)),
        max_size=6,
    ),
    st.lists(st.integers(1, 50), min_size=3, max_size=3),
    st.integers(1, 6),
)
@settings(max_examples=60)
def test_expects_to_gain_nothing_after_any_past(
    past: list[tuple[list[int], list[int]]], weights: list[int], size: int
) -> None:
    """Over all batches that may come the e-process has the value it had: it is a fair bet."""
    state = watched(
        (
            {k: n for k, n in zip("abc", batch, strict=True) if shares(old)[k] > 0},
            shares(old),
        )
        for batch, old in past
    )
    propensities = shares(weights)
    expectation = 0.0
    for batch in itertools.product(range(size + 1), repeat=3):
        if sum(batch) != size:
            continue
        chance = stats.multinomial.pmf(batch, size, list(propensities.values()))
        after = watch(state, dict(zip("abc", batch, strict=True)), propensities)
        expectation += chance * math.exp(after.log_e - state.log_e)
    assert expectation == pytest.approx(1.0, rel=1e-7)


def test_a_billion_units_lose_no_digits() -> None:
    once = watched([({"a": 500_030_000, "b": 499_970_000}, EVEN)])
    thousand = watched([({"a": 500_030, "b": 499_970}, EVEN)] * 1_000)
    assert once.log_e == pytest.approx(thousand.log_e, abs=1e-6)
    assert once.log_e == pytest.approx(plain(once.units, EVEN), abs=1e-4)
    # Laplace's approximation: n times the divergence less the price of having to learn the tilt.
    gain = (1e9 + 100) * special.rel_entr([0.50003, 0.49997], [0.5, 0.5]).sum()
    assert once.log_e == pytest.approx(gain - 0.5 * math.log(1e9 / 100), abs=0.1)


def test_what_was_learnt_carries_over_to_other_weights() -> None:
    """A tenth of b is lost; the bet on a new epoch begins where that of the old one ended."""
    tenth, ramped = shares([90, 10]), shares([50, 50])
    learnt = watched([({"a": 9_000, "b": 900}, tenth)])
    gained = watch(learnt, {"a": 1_000, "b": 900}, ramped).log_e - learnt.log_e
    afresh = watched([({"a": 1_000, "b": 900}, ramped)]).log_e
    assert gained > afresh + 0.5


def test_epochs_with_one_variant_neither_tell_nor_dull_anything() -> None:
    alone = ({"a": 10**6}, {"a": 1.0, "b": 0.0})
    after = ({"a": 4_000, "b": 3_600}, EVEN)
    assert watched([alone]).log_e == 0.0
    assert watched([alone, after]).log_e == pytest.approx(watched([after]).log_e)
    assert watched([alone, after]).alarm


def test_a_variant_that_comes_later_is_expected_from_then_on() -> None:
    state = watched(
        [({"a": 5_000, "b": 5_000}, EVEN), ({"a": 330, "b": 333, "c": 337}, shares([1, 1, 1]))]
    )
    assert state.expected == pytest.approx({"a": 5_333.3, "b": 5_333.3, "c": 333.3}, abs=0.1)
    assert not state.alarm
    assert state.log_peak == 0.0


def test_a_unit_without_propensity_is_an_alarm_at_once() -> None:
    for propensities in ({"a": 1.0, "b": 0.0}, {"a": 1.0}):
        state = watched([({"a": 10, "b": 1}, propensities)])
        assert state.alarm
        assert state.impossible == {"b": 1}
        assert (state.units.get("b", 0), state.log_e) == (0, 0.0)


def test_an_alarm_stays_when_the_evidence_fades() -> None:
    state = watched([({"a": 700, "b": 500}, EVEN), ({"a": 5_000, "b": 5_200}, EVEN)])
    assert state.log_e < LOG_THRESHOLD <= state.log_peak
    assert state.alarm
    assert state.p_value == pytest.approx(math.exp(-state.log_peak))


def test_the_p_value_is_never_0() -> None:
    state = watched([({"a": 10**6, "b": 0}, EVEN)])
    assert state.log_peak > 10_000
    assert 0.0 < state.p_value < 1e-300
    assert RatioWatch().p_value == 1.0


def test_is_kept_as_json_to_the_last_digit() -> None:
    state = watched([({"a": 7, "b": 1, "c": 2}, {"a": 0.7, "b": 0.3})])
    assert msgspec.json.decode(msgspec.json.encode(state), type=RatioWatch) == state


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="sum to 1"):
        watch(RatioWatch(), {"a": 1}, {"a": 0.5})
    with pytest.raises(ValueError, match="count"):
        watch(RatioWatch(), {"a": -1}, EVEN)


def test_one_unit_in_a_hundred_lost_from_an_arm_is_found_within_two_million() -> None:
    rng = np.random.default_rng(5)
    runs, found = 100, 0
    for _ in range(runs):
        state = RatioWatch()
        for a, b in rng.binomial(10_000, [0.5, 0.495], (200, 2)).tolist():
            state = watch(state, {"a": a, "b": b}, EVEN)
        found += state.alarm
    assert found >= 0.95 * runs
    tenth = watched([({"a": 5_000, "b": 4_500}, EVEN)])
    assert tenth.alarm


def test_false_alarms_when_traffic_follows_the_units_themselves() -> None:
    """The worst that reallocation could do: each epoch takes traffic from whom got too much."""
    rng = np.random.default_rng(9)
    runs, doubts, naive = 1_000, 0, 0
    limit = stats.chi2.isf(0.001, 1)
    for _ in range(runs):
        state, p, loud = RatioWatch(), 0.5, False
        for _ in range(40):
            b = int(rng.binomial(100, p))
            state = watch(state, {"a": 100 - b, "b": b}, {"a": 1 - p, "b": p})
            beyond = state.units["b"] - state.expected["b"]
            p = min(0.95, max(0.05, round(p - 0.005 * beyond, 2)))
            total = sum(state.units.values())
            loud |= (state.units["b"] - total * p) ** 2 > limit * total * p * (1 - p)
        doubts += state.log_peak >= math.log(20.0)
        naive += loud
    assert doubts / runs <= at_most(0.05, runs)
    assert naive / runs > 0.9  # chi-square at .001 against the latest weights
