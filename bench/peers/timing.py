"""A process that times one evaluator whenever it is asked, so that several can take turns.

It writes one line of JSON when it is ready, and then, for every line with a number of evaluations,
one with the nanoseconds of each. All evaluators are timed by this same loop.
"""

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

Evaluate: TypeAlias = Callable[[str, dict[str, Any]], str]
"""From a unit and its attributes to the key of the variant."""

TARGETED = {"country": "DE"}
NOT_TARGETED = {"country": "FR"}
_UNITS = [f"user-{number:09}" for number in range(20_000)]


def serve(evaluate: Evaluate, version: str) -> None:
    """Answer until standard input ends."""
    answers = [evaluate(unit, dict(TARGETED)) for unit in _UNITS]
    others = {evaluate(unit, dict(NOT_TARGETED)) for unit in _UNITS[:1000]}
    ready = {
        "version": version,
        "treated": answers.count("v7") / len(answers),
        "not_targeted": sorted(others),
    }
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        print(json.dumps({"nanoseconds": measure(evaluate, int(line))}), flush=True)


def measure(evaluate: Evaluate, evaluations: int) -> float:
    """Nanoseconds of one evaluation; each makes its attributes anew, as a request does."""
    units = [_UNITS[number % len(_UNITS)] for number in range(evaluations)]
    gc.collect()
    begun = time.perf_counter_ns()
    for unit in units:
        evaluate(unit, {"country": "DE"})
    return (time.perf_counter_ns() - begun) / evaluations
