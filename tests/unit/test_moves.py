"""Moves: kept as JSON, and carried out again they lead to the same slots."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.allocation import Allocation, initial
from experiments.moves import AnyMove, Begin, Divide, End, Keep, carry_out, in_order, read_move

keys = st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=6, unique=True)


@st.composite
def weights(draw: st.DrawFn) -> dict[str, float]:
    """Weights of some variants, in any order."""
    shares = {key: draw(st.integers(1, 100)) for key in draw(keys)}
    total = sum(shares.values())
    return {key: share / total for key, share in shares.items()}


@given(weights(), st.integers(10, 10_000), st.data())
def test_a_move_out_of_its_json_leads_to_the_same_slots(
    before: dict[str, float], slots: int, data: st.DataObject
) -> None:
    begun = initial(before, slots / 10_000)
    shuffled = data.draw(st.permutations([*before]))
    after = dict(zip(shuffled, before.values(), strict=True))
    for move in (
        Begin(in_order(after), slots / 10_000),
        Divide(in_order(after), slots / 10_000),
        Keep(),
        End(shuffled[0]),
    ):
        kept = read_move(msgspec.json.encode(move))
        assert kept == move
        assert carry_out(kept, begun, [begun]) == carry_out(move, begun, [begun])


@pytest.mark.parametrize("move", [Keep(), Divide((("a", 1.0),), 1.0)])
def test_what_moves_slots_needs_those_that_there_are(move: AnyMove) -> None:
    with pytest.raises(ValueError, match="needs the allocation before it"):
        carry_out(move, None)


def test_ties_are_decided_by_the_order_of_the_weights() -> None:
    """Why weights are pairs: an object in JSON would give the odd slot to anybody."""
    one, other = (carry_out(Begin(pairs, 0.0003), None) for pairs in _TIES)
    assert one == Allocation((("a", 2), ("b", 1), (None, 9_997)))
    assert other == Allocation((("b", 2), ("a", 1), (None, 9_997)))


_TIES = ((("a", 0.5), ("b", 0.5)), (("b", 0.5), ("a", 0.5)))


def test_an_epoch_of_an_older_release_has_no_move() -> None:
    assert read_move(None) is None
