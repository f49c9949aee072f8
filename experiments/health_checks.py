"""What is wrong with the health checks of a guard."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from experiments.decoding import Decoded
from experiments.model import Experiment, parse_duration
from experiments.problems import FieldProblem

SHORTEST_SILENCE: Final = timedelta(seconds=1)
LONGEST_SILENCE: Final = timedelta(days=30)


def health_problems(draft: Decoded[Experiment]) -> Iterator[FieldProblem]:
    """Wrong fields of `guard.health` that have the right form."""
    path = "guard.health.no_data.after"
    if not draft.sound(path):
        return
    silence = parse_duration(draft.value.guard.health.no_data.after)
    if not SHORTEST_SILENCE <= silence <= LONGEST_SILENCE:
        yield FieldProblem(path, "value", "must be at least 1s and at most 30d")
