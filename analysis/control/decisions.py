"""Decisions out of the store, as they are shown: with the split before and after each."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from analysis.control.recorded import DecisionView, Slots, Standing, WholeDecision
from experiments import store
from experiments.allocation import Allocation, propensities, traffic_of
from experiments.records import Decision, ExperimentRecord
from experiments.store import Connection

_EPOCHS: Final = """
    select number, state, allocation from epoch where experiment = $1 and number = any($2)
"""


class Around(msgspec.Struct, frozen=True):
    """The epochs that decisions lead from and to, as they are stored: to decode them takes a while
    where there are hundreds."""

    rows: Sequence[Any]

    def standings(self) -> dict[int, Standing]:
        """How each of them splits the traffic, by number."""
        found = {}
        for row in self.rows:
            allocation = _allocation(row)
            found[row["number"]] = Standing(
                row["number"], row["state"], propensities(allocation), traffic_of(allocation)
            )
        return found

    def slots(self) -> dict[int, Slots]:
        """Who owns which slot in each of them, by number."""
        return {row["number"]: list(_allocation(row).runs) for row in self.rows}


async def read_around(
    connection: Connection, record: ExperimentRecord, decisions: Sequence[Decision]
) -> Around:
    """The epochs around decisions of one experiment."""
    numbers = {number for d in decisions for number in (d.epoch_before, d.epoch_after)}
    return Around(await connection.fetch(_EPOCHS, record.id, sorted(numbers)))


def view(
    record: ExperimentRecord, decision: Decision, standings: Mapping[int, Standing]
) -> DecisionView:
    """A decision as it is shown in a list."""
    return DecisionView(
        experiment=record.key,
        before=standings.get(decision.epoch_before),
        after=standings.get(decision.epoch_after),
        **{name: getattr(decision, name) for name in Decision.__struct_fields__},
    )


async def read_whole(connection: Connection, project: str, number: int) -> WholeDecision | None:
    """A decision with all that it takes to compute it again; None where the project has none of
    this number."""
    found = await store.get_decision(connection, project, number)
    if found is None:
        return None
    record, decision = found.experiment, found.decision
    around = await read_around(connection, record, [decision])
    history = await store.run_allocations(
        connection, record.id, decision.run, decision.epoch_before
    )
    shown, slots = view(record, decision, around.standings()), around.slots()
    return WholeDecision(
        **{name: getattr(shown, name) for name in DecisionView.__struct_fields__},
        slots_before=slots.get(decision.epoch_before),
        slots_after=slots.get(decision.epoch_after),
        move=found.move,
        history=[list(earlier.runs) for earlier in history],
        seal_of_epoch=found.seal_of_epoch,
    )


def _allocation(row: Any) -> Allocation:
    return msgspec.json.decode(row["allocation"], type=Allocation)
