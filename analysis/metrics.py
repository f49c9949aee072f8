"""Metrics of a run, as folding reads them, and what the guard watches of them."""

import hashlib
from datetime import datetime, timedelta

import msgspec

from analysis.kinds import Kind
from experiments.model import MeanMetric, Metric, ProportionMetric, parse_duration

MIN_BLOCK_SECONDS = 1
MAX_BLOCK_SECONDS = 300


class RunMetric(msgspec.Struct, frozen=True):
    """A metric of a run. `version` changes with anything that makes a unit's value another."""

    key: str
    version: str
    kind: Kind
    event: str
    aggregate: str
    cap: float | None
    window: timedelta
    block_seconds: int

    def last_closed(self, watermark: datetime, lateness: timedelta) -> int:
        """The last block whose units have finished: its end, the window and the lateness allowed
        lie below the watermark."""
        return self.block_before(watermark - self.window - lateness)

    def block_before(self, at: datetime) -> int:
        """The last block that was over at a time."""
        return block_of(at, self.block_seconds) - self.block_seconds


def block_of(at: datetime, block_seconds: int) -> int:
    """The enrolment block of a time: the Unix time at which the block begins."""
    return int(at.timestamp() // block_seconds) * block_seconds


def run_metric(metric: Metric) -> RunMetric:
    """A metric of a definition in the form that folding reads.

    Raises:
        TypeError: for a kind that folding does not know; a definition with one is refused before.
    """
    match metric:
        case ProportionMetric():
            kind: Kind = "proportion"
            aggregate, cap = "any", None
        case MeanMetric():
            kind = "mean"
            aggregate, cap = metric.aggregate, metric.cap
        case _:
            raise TypeError(f"folding knows no metric of kind {type(metric).__name__}")
    window = parse_duration(metric.window)
    made_of = (kind, metric.event, aggregate, cap, window.total_seconds())
    return RunMetric(
        key=metric.key,
        version=hashlib.blake2b(msgspec.json.encode(made_of), digest_size=4).hexdigest(),
        kind=kind,
        event=metric.event,
        aggregate=aggregate,
        cap=cap,
        window=window,
        block_seconds=block_seconds(window),
    )


def block_seconds(window: timedelta) -> int:
    """How long an enrolment block is: a tenth of the window, a second to five minutes.

    Short blocks let a short window close soon; long ones keep the cells of a long window few.
    """
    tenth = int(window.total_seconds() // 10)
    return max(MIN_BLOCK_SECONDS, min(MAX_BLOCK_SECONDS, tenth))
