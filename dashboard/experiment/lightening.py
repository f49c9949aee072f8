"""Breakdowns of many metrics by many segments take longer than all the rest of a page: then it is
made without them, and they are read when they are asked for. Pure."""

from typing import Final

from msgspec import structs

from analysis.inference.segments import Segment, SegmentFacts
from analysis.reports.model import Facts, MetricFacts

MOST_AT_ONCE: Final = 1_000
"""Comparisons of segments that a page makes unasked: a fifth of a second."""


def segments_of(facts: Facts) -> int:
    """How many comparisons of segments the report of these facts makes."""
    explored = [m.key for m in facts.definition.metrics if m.role != "guardrail"]
    segments = sum(len(facts.metrics[key].segments) for key in explored if key in facts.metrics)
    return segments * (len(facts.definition.variants) - 1)


def without_segments(facts: Facts) -> Facts:
    """Facts of which a report is the same but for its breakdowns, which are empty."""
    return structs.replace(
        facts, metrics={key: _emptied(known) for key, known in facts.metrics.items()}
    )


def _emptied(known: MetricFacts) -> MetricFacts:
    """One segment without units of each attribute: so the report knows of the attributes still."""
    of_attributes: dict[str, Segment] = {}
    for segment in known.segments:
        of_attributes.setdefault(segment.attribute, segment)
    return structs.replace(
        known, segments={segment: SegmentFacts() for segment in of_attributes.values()}
    )
