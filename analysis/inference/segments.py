"""Segments: the units with one value of a recorded attribute, as they had it when enrolled."""

from typing import Literal

import msgspec

from analysis.inference.epoch_sums import Population

MOST_ATTRIBUTES = 4
"""A run is broken down by the first so many of the attributes that it records."""

MOST_VALUES = 12
"""Of an attribute the first so many values of a run have a segment of their own; the units with
any other one are together in one more."""

LONGEST_VALUE = 100
"""Characters; a longer string, or number, has no segment of its own."""


class Segment(msgspec.Struct, frozen=True):
    """Which units these are.

    Arguments:
        attribute: its name.
        value: a string as it is, a number or boolean as JSON writes it; None with `other`.
        other: these are the units with any value that has no segment of its own.
        type: what the value is, so that "1" and 1 are two.
    """

    attribute: str
    value: str | None
    other: bool = False
    type: Literal["string", "number", "boolean"] = "string"

    @classmethod
    def of_json(cls, attribute: str, text: str) -> "Segment":
        """The units with a value that is given as JSON text."""
        if text.startswith('"'):
            return cls(attribute, msgspec.json.decode(text, type=str))
        return cls(attribute, text, type="boolean" if text in {"true", "false"} else "number")


class SegmentFacts(msgspec.Struct, frozen=True):
    """What is known of a metric's units in a segment: the sums of all of them, and of those whose
    enrolment block is closed."""

    everyone: Population = Population()
    finished: Population = Population()
