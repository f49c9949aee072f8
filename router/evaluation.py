"""One unit in one experiment: what was asked, and the answer as far as it needs no waiting."""

from collections.abc import Mapping
from typing import Any

import msgspec

from router.assign import ENROLLED, Assignment
from router.snapshot import Entry, ProjectSnapshot


class Evaluation(msgspec.Struct, frozen=True, gc=False):
    """`attributes` are those that the experiment may keep; `expose` says that an exposure is to be
    recorded."""

    project: ProjectSnapshot
    entry: Entry
    unit: str
    attributes: Mapping[str, Any] | None
    expose: bool
    answer: Assignment

    @property
    def exposes(self) -> bool:
        """Whether there is an exposure to record: the unit is enrolled, or was looked for in the
        holdout."""
        answer = self.answer
        return self.expose and (answer.reason in ENROLLED or answer.held is not None)
