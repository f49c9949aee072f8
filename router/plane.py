"""What the doors of the data plane work with."""

from collections.abc import Mapping
from typing import Any

import msgspec

from experiments.doors import Clock
from router.assign import Assignment, assign, control_while_stale
from router.evaluation import Evaluation
from router.metrics import RouterMetrics
from router.recording import Recorder
from router.refresher import Refresher
from router.snapshot import Entry, ProjectSnapshot
from router.sticky import Sticky, sticks
from router.streams import Streams


class DataPlane(msgspec.Struct, frozen=True):
    """What the data plane works with, handed in."""

    refresher: Refresher
    recorder: Recorder
    metrics: RouterMetrics
    clock: Clock
    sticky: Sticky
    streams: Streams

    def project(self, key: str) -> ProjectSnapshot:
        """The project of a caller: it has one, since its key was found in the same snapshot."""
        return self.refresher.current.projects[key]

    def assign(self, entry: Entry, unit: str, context: Mapping[str, Any]) -> Assignment:
        """The arm of a unit, or the control where this router has had no news for too long."""
        if entry.stale_after is not None and self.is_stale(entry):
            return control_while_stale(entry)
        return assign(entry, unit, context)

    def is_stale(self, entry: Entry) -> bool:
        """Whether this router has had no news for longer than an experiment allows."""
        refreshed_at, after = self.refresher.refreshed_at, entry.stale_after
        if after is None or entry.state != "running":
            return False
        return refreshed_at is None or self.clock() - refreshed_at > after


def count(plane: DataPlane, entry: Entry, answer: Assignment) -> None:
    """Count an answer."""
    plane.metrics.assignments.one((entry.project, entry.key, answer.arm.key, answer.reason))


async def complete(plane: DataPlane, asked: Evaluation) -> tuple[Assignment, bool]:
    """The final answer, and whether its exposure was recorded: is on disk."""
    if sticks(asked.entry, asked.answer):
        settled = await plane.sticky.settle(
            asked.project, asked.entry, asked.unit, asked.answer, keep=asked.expose
        )
        asked = msgspec.structs.replace(asked, answer=settled)
    recorded = asked.exposes and await plane.recorder.expose(asked)
    count(plane, asked.entry, asked.answer)
    return asked.answer, recorded and asked.answer.enrolled
