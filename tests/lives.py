"""Experiments as the store gives them to routers: for tests without one."""

from datetime import UTC, datetime
from typing import Any

from experiments.allocation import initial
from experiments.model import Experiment
from experiments.records import Epoch, ExperimentRecord, Live, Override

NOW = datetime(2026, 3, 4, tzinfo=UTC)


def live(
    definition: Experiment,
    *,
    experiment: int = 1,
    project: str = "shop",
    overrides: tuple[Override, ...] = (),
    **epoch: Any,
) -> Live:
    """An experiment, of this id, that runs in its first epoch, but for what is said of that."""
    fields = {
        "number": 1,
        "run": 1,
        "state": "running",
        "salt": definition.key,
        "allocation": initial(definition.weights, definition.traffic),
        "weights": definition.weights,
        "targeting": definition.targeting,
        "layer": None,
        "holdout": None,
        "stickiness": definition.stickiness,
        "ship": None,
        "at": NOW,
        "actor": "key:test",
        "reason": "a test",
        "decision": None,
    }
    pinned = Epoch(**{**fields, **epoch})
    record = ExperimentRecord(
        id=experiment,
        project=project,
        key=definition.key,
        state=pinned.state,
        revision=1,
        run=pinned.run,
        epoch=pinned.number,
        definition=definition,
        ship=pinned.ship,
        created_at=pinned.at,
        updated_at=pinned.at,
    )
    return Live(record, pinned, overrides)
