"""Units that come through the doors of a Turnout, as a service sends them."""

import random
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

from tests.running import Turnout

_numbers: Final = count(1)
_source: Final = random.Random(7)  # noqa: S311 - a simulation

CLICK: Final[dict[str, Any]] = {
    "key": "click",
    "role": "primary",
    "kind": "proportion",
    "event": "click",
    "window": "1s",
}
ERRORS: Final[dict[str, Any]] = {
    "key": "errors",
    "role": "guardrail",
    "kind": "proportion",
    "event": "error",
    "window": "1s",
    "goal": "decrease",
    "margin": {"absolute": 0.01},
}


async def come(
    turnout: Turnout, key: str, units: int, rates: Mapping[str, Mapping[str, float]]
) -> None:
    """So many new units meet an experiment, and have events.

    Args:
        rates: by variant and event.
    """
    service = turnout.client("service")
    named = [f"unit-{next(_numbers)}" for _ in range(units)]
    answer = await service.post(
        "/v1/assign/batch", json={"experiments": [key], "units": [{"unit": unit} for unit in named]}
    )
    assert answer.status_code == 200, answer.text
    [met] = answer.json()["experiments"]
    outcomes = [
        {"event": event, "unit": unit}
        for unit, variant in zip(named, met["variant"], strict=True)
        if variant is not None
        for event, rate in rates[variant].items()
        if _source.random() < rate
    ]
    if outcomes:
        answer = await service.post("/v1/outcomes", json=outcomes)
        assert answer.status_code in {200, 202}, answer.text
