"""Our own evaluation of the experiment of the scene, to be timed like the others (`bench.peers`).

python -m bench.router.evaluator
"""

from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from bench.peers.timing import Evaluate, serve
from bench.router.scene import DEFINITION
from experiments.allocation import initial
from experiments.definition import parse_definition
from experiments.records import Epoch, ExperimentRecord, Live
from router.assign import assign
from router.snapshot import Entry, compile_entry


def live(data: dict[str, Any]) -> Live:
    """An experiment as it is when its first run has begun."""
    definition = parse_definition(data)
    now = datetime.now(UTC)
    record = ExperimentRecord(
        id=1,
        project="default",
        key=definition.key,
        state="running",
        revision=1,
        run=1,
        epoch=1,
        definition=definition,
        ship=None,
        created_at=now,
        updated_at=now,
    )
    epoch = Epoch(
        number=1,
        run=1,
        state="running",
        salt=definition.salt_of(1),
        allocation=initial(definition.weights, definition.traffic),
        weights=definition.weights,
        targeting=definition.targeting,
        layer=None,
        holdout=None,
        stickiness="slot",
        ship=None,
        at=now,
        actor="bench",
        reason="to be measured",
        decision=None,
    )
    return Live(record, epoch)


def ours(compiled: Entry) -> Evaluate:
    """`router.assign.assign` on one experiment."""

    def evaluate(unit: str, attributes: dict[str, Any]) -> str:
        attributes["targetingKey"] = unit
        return assign(compiled, unit, attributes).arm.key

    return evaluate


if __name__ == "__main__":
    serve(ours(compile_entry(live(DEFINITION))), version("turnout"))
