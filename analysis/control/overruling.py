"""A hand that overrules the guard: an alarm that only alerted leaves the traffic as it is, and
stops gates and ramps until somebody has looked.

A use case as those of `lifecycle`: it runs within its caller's transaction, on a record that the
caller has locked, and is a decision in the ledger.
"""

from analysis.control import guard
from experiments import lifecycle, store
from experiments.lifecycle import Change
from experiments.problems import ProblemError
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS
from experiments.store import Connection


async def overrule(
    connection: Connection, record: ExperimentRecord, change: Change
) -> ExperimentRecord:
    """Overrule all alarms that only alerted. The guard's next generation begins at once: with alpha
    of its own, and evidence of units that enrol from now on.

    Raises:
        ProblemError: `conflict` where none stands, or the guard did more than alert.
    """
    if record.state not in HOLDS_SLOTS:
        detail = f"An experiment that is {record.state} has no alarm to overrule"
        raise ProblemError("conflict", detail)
    # Alarms of before a generation whose rows are still to come have been overruled already.
    await guard.keep_up(connection, record, change.at)
    rows = await guard.read_ledger(connection, record.id, record.run)
    acted = [row for row in rows if row.acted is not None]
    if not acted or any(row.acted != "alert" for row in acted):
        raise ProblemError("conflict", _instead(record, paused=bool(acted)))
    alarms = [{"guardrail": row.metric, "variant": row.variant} for row in acted]
    change = await lifecycle.by_hand(connection, record, "overrule", {"alarms": alarms}, change)
    await store.open_generation(connection, record)
    await guard.keep_up(connection, record, change.at)
    return record


def _instead(record: ExperimentRecord, *, paused: bool) -> str:
    """Why there is nothing to overrule, and which door undoes what the guard did."""
    door = f"`POST /v1/experiments/{record.key}/resume`"
    if paused:
        return f"The guard has paused this experiment: {door} overrules its alarm"
    said = "No alarm that only alerted stands: there is nothing to overrule"
    if record.rolled_back:
        gone = ", ".join(record.rolled_back)
        return f"{said}. Rolled back: {gone}; {door} with `variant` overrules that"
    return said
