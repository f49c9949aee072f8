"""The states of an experiment and the moves between them (DESIGN 2)."""

from typing import Final, Literal, TypeAlias

from experiments.model import State
from experiments.problems import ProblemError

Verb: TypeAlias = Literal["start", "pause", "resume", "conclude", "rollback", "archive"]

MOVES: Final[dict[Verb, tuple[tuple[State, ...], State]]] = {
    "start": (("draft", "concluded", "rolled_back"), "running"),
    "pause": (("running",), "paused"),
    "resume": (("paused",), "running"),
    "conclude": (("running", "paused"), "concluded"),
    "rollback": (("running", "paused"), "rolled_back"),
    "archive": (("draft", "concluded", "rolled_back"), "archived"),
}
"""Verb -> the states that it may leave, and the state that it leads to.

A run that was concluded or rolled back is over: `start` begins the next one. What is archived stays
archived.
"""


HOLDS_SLOTS: Final[frozenset[State]] = frozenset({"running", "paused"})
"""The states in which an experiment has its slots, those of a layer among them: a pause ends, and
then they are needed again."""


def allowed(state: State) -> list[Verb]:
    """What one can do with an experiment in this state."""
    return [verb for verb, (sources, _) in MOVES.items() if state in sources]


def move(state: State, verb: Verb) -> State:
    """The state that `verb` leads to.

    Raises:
        ProblemError: `conflict` where `verb` is not allowed in this state.
    """
    sources, target = MOVES[verb]
    if state not in sources:
        others = ", ".join(f"`{verb}`" for verb in allowed(state)) or "nothing"
        raise ProblemError(
            "conflict",
            f"`{verb}` needs an experiment that is {' or '.join(sources)}; this one is {state}, "
            f"which allows {others}",
        )
    return target
