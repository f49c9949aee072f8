"""What the guard and the health checks have said of a run, and nobody has answered yet."""

from typing import Final

import msgspec

from experiments.model import Action
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection

_ALARMS: Final = """
    select metric, variant, acted from guard_ledger
    where experiment = $1 and run = $2 and closed_at is null and acted is not null order by id
"""
_PAUSED: Final = "select paused_by_guard from run where experiment = $1 and number = $2"


class StandingAlarm(msgspec.Struct, frozen=True):
    """Evidence of harm on which the guard has acted; `variant` is empty where it is of the split
    of all."""

    metric: str
    variant: str
    acted: Action


class StandingAlarms(msgspec.Struct, frozen=True):
    """The alarms of the guard's generation, and whether one of them has paused the run."""

    alarms: tuple[StandingAlarm, ...] = ()
    paused_by_guard: bool = False

    @property
    def may_be_overruled(self) -> bool:
        """Whether a hand may overrule them: some stand, and none did more than alert
        (`overruling.overrule`)."""
        return bool(self.alarms) and all(alarm.acted == "alert" for alarm in self.alarms)


async def read_standing_alarms(connection: Connection, record: ExperimentRecord) -> StandingAlarms:
    """The alarms that stand in the current run; none of one that has ended."""
    if record.state not in HOLDS_SLOTS:
        return StandingAlarms()
    rows = await connection.fetch(_ALARMS, record.id, record.run)
    paused: bool | None = await connection.fetchval(_PAUSED, record.id, record.run)
    return StandingAlarms(
        tuple(StandingAlarm(row["metric"], row["variant"], row["acted"]) for row in rows),
        bool(paused),
    )
