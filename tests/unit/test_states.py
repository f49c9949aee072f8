"""The state machine, state by state."""

from typing import get_args

import pytest

from experiments.model import State
from experiments.problems import ProblemError
from experiments.states import Verb, allowed, move

ALLOWED: dict[tuple[State, Verb], State] = {
    ("draft", "start"): "running",
    ("draft", "archive"): "archived",
    ("running", "pause"): "paused",
    ("running", "conclude"): "concluded",
    ("running", "rollback"): "rolled_back",
    ("paused", "resume"): "running",
    ("paused", "conclude"): "concluded",
    ("paused", "rollback"): "rolled_back",
    ("concluded", "start"): "running",
    ("concluded", "archive"): "archived",
    ("rolled_back", "start"): "running",
    ("rolled_back", "archive"): "archived",
}


@pytest.mark.parametrize("state", get_args(State))
@pytest.mark.parametrize("verb", get_args(Verb))
def test_each_verb_in_each_state(state: State, verb: Verb) -> None:
    target = ALLOWED.get((state, verb))
    assert (verb in allowed(state)) == (target is not None)
    if target is not None:
        assert move(state, verb) == target
        return
    with pytest.raises(ProblemError) as caught:
        move(state, verb)
    assert caught.value.type == "conflict"
    assert state in caught.value.detail
    assert all(f"`{other}`" in caught.value.detail for other in allowed(state))


def test_what_is_archived_says_that_nothing_is_allowed() -> None:
    with pytest.raises(ProblemError, match="archived, which allows nothing"):
        move("archived", "start")
