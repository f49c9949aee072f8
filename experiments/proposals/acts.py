"""What a hand can do, as values: each act has a verb, says what it takes, what has to be locked for
it, whether a project may demand a second pair of eyes for it, and how it is carried out. A door
carries it out as it is asked for, an approval once more from the proposal.

Never demanded: pause, rollback, conclude to the control, archive. The way to safety is open.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias

import msgspec

from experiments import lifecycle, store
from experiments.doors import read_as
from experiments.keys import Permission
from experiments.lifecycle import Change
from experiments.once import Answer
from experiments.proposals.model import Demand
from experiments.records import ExperimentRecord
from experiments.revisions import etag
from experiments.writes import ControlPlane


class Subject(msgspec.Struct, frozen=True):
    """What an act is about, as it stands once it is locked. `record` is None of the holdout before
    its first time, and of a project's settings."""

    key: str | None
    revision: int
    run: int
    epoch: int
    record: ExperimentRecord | None = None


class Asked(msgspec.Struct, frozen=True):
    """A write that somebody asks for: `sent` as it came, `body` as it was read."""

    project: str
    key: str | None
    sent: Any
    body: Any
    reason: str


class Done(msgspec.Struct, frozen=True):
    """What came of an act: its answer, and whether anything was to be done."""

    answer: Answer
    changed: bool


Lock: TypeAlias = Callable[[store.Connection, str, str | None], Awaitable[Subject]]
DemandOf: TypeAlias = Callable[[store.Connection, Subject, Asked], Awaitable[Demand | None]]
CarryOut: TypeAlias = Callable[
    [store.Connection, ControlPlane, Subject, Asked, Change], Awaitable[Done]
]
UseCase: TypeAlias = Callable[
    [store.Connection, ExperimentRecord, Any, Change], Awaitable[ExperimentRecord]
]
"""What a hand does to an experiment that is locked, with the body that was sent, by a change that
is dated."""
Show: TypeAlias = Callable[
    [store.Connection, ControlPlane, ExperimentRecord, ExperimentRecord], Awaitable[Any]
]
"""What is answered of an experiment, as it was before and as it is now."""


class Act(msgspec.Struct, frozen=True):
    """Something that a hand can do.

    Arguments:
        takes: the type of its body; None where that is a merge patch, which the use case reads.
        lock: locks what it is about, and tells how that stands.
        demand: what a project has to demand for this to wait for approval; None where it never
            does.
        permission: that its caller needs, and whoever approves it.
    """

    verb: str
    takes: Any
    lock: Lock
    demand: DemandOf
    carry_out: CarryOut
    permission: Permission = "write"

    def read(self, project: str, key: str | None, sent: Any, reason: str | None = None) -> Asked:
        """What is asked for by a body.

        Args:
            reason: where it is not in the body.

        Raises:
            ProblemError: `invalid` with every wrong field.
        """
        body = sent if self.takes is None else read_as(self.takes, sent)
        return Asked(project, key, sent, body, body.reason if reason is None else reason)


Acts: TypeAlias = Mapping[str, Act]
"""All that hands can do, by verb."""


def by_verb(*groups: Iterable[Act]) -> Acts:
    """Acts by their verbs, of which no two are the same."""
    acts = [act for group in groups for act in group]
    named = {act.verb: act for act in acts}
    if len(named) != len(acts):
        raise ValueError("two acts have one verb")
    return named


def never(_: store.Connection, __: Subject, ___: Asked) -> Awaitable[Demand | None]:
    """The demand of what is never kept waiting."""
    return _no_demand()


async def _no_demand() -> Demand | None:
    return None


def of_record(rule: Callable[[ExperimentRecord, Any], Demand | None]) -> DemandOf:
    """The demand of an act on an experiment, by how that stands and what is asked for."""

    async def demand(_: store.Connection, subject: Subject, asked: Asked) -> Demand | None:
        return None if subject.record is None else rule(subject.record, asked.body)

    return demand


async def lock_experiment(connection: store.Connection, project: str, key: str | None) -> Subject:
    """The experiment of this key, locked.

    Raises:
        ProblemError: `not-found`; `conflict` where it is the holdout.
    """
    record = await lifecycle.find_to_change(connection, project, key or "")
    return subject_of(record)


def subject_of(record: ExperimentRecord) -> Subject:
    """An experiment as what an act is about."""
    return Subject(record.key, record.revision, record.run, record.epoch, record)


def on_experiment(
    verb: str,
    takes: Any,
    use_case: UseCase,
    show: Show,
    demand: DemandOf = never,
    *,
    may_do_nothing: bool = False,
) -> Act:
    """An act on an experiment.

    Args:
        show: what is answered.
        may_do_nothing: whether a use case that gives the record back as it was has done nothing.
    """

    async def carry_out(
        connection: store.Connection,
        control: ControlPlane,
        subject: Subject,
        asked: Asked,
        change: Change,
    ) -> Done:
        before = subject.record
        if before is None:
            raise ValueError("an act on an experiment needs one")
        dated = lifecycle.dated(change, before)
        after = await use_case(connection, before, asked.body, dated)
        shown = await show(connection, control, before, after)
        answer = Answer(200, etag(after.revision), msgspec.json.encode(shown))
        return Done(answer, not (may_do_nothing and after == before))

    return Act(verb, takes, lock_experiment, demand, carry_out)
