"""The lower half of an experiment's page: where its traffic went, and by whose decision.

`read_history` reads within the caller's transaction, by look-ups that stay small however many
epochs and decisions there are; `make_history` is pure, and may take a while: run it beside the
event loop.
"""

from datetime import datetime

import msgspec

from analysis.control import ramp_api
from analysis.control.posterior import Posterior, read_posterior
from analysis.control.ramp_api import RampView
from analysis.control.standing import StandingAlarms, read_standing_alarms
from dashboard.experiment import (
    history_allocation,
    history_posterior,
    history_ramp,
    history_settings,
    timeline,
)
from dashboard.experiment.history_allocation import Allocation, AllocationFacts
from dashboard.experiment.history_posterior import PosteriorView
from dashboard.experiment.history_ramp import RampProgress
from dashboard.experiment.history_settings import Settings, SettingsFacts
from dashboard.experiment.timeline import Timeline, TimelineFacts
from experiments.model import RampPolicy, ThompsonPolicy
from experiments.records import ExperimentRecord
from experiments.store import Connection


class HistoryFacts(msgspec.Struct, frozen=True):
    """All that the lower half of a page is made from."""

    record: ExperimentRecord
    now: datetime
    allocation: AllocationFacts | None
    posterior: Posterior | None
    ramp: RampView | None
    timeline: TimelineFacts
    settings: SettingsFacts
    alarms: StandingAlarms


class History(msgspec.Struct, frozen=True):
    """The lower half of an experiment's page. A part that is None has nothing to say: before the
    first run, or of another policy."""

    allocation: Allocation | None
    posterior: PosteriorView | None
    ramp: RampProgress | None
    timeline: Timeline
    settings: Settings


async def read_history(
    connection: Connection, record: ExperimentRecord, now: datetime, decisions: str = ""
) -> HistoryFacts:
    """What is known of an experiment's past.

    Args:
        decisions: which of them are shown, as the page's parameter `decisions` says: see
            `timeline.FILTERS`; all but those that only hold where it is empty or unknown.
    """
    policy = record.definition.policy
    return HistoryFacts(
        record=record,
        now=now,
        allocation=await history_allocation.read(connection, record),
        posterior=(
            await read_posterior(connection, record) if isinstance(policy, ThompsonPolicy) else None
        ),
        ramp=(
            await ramp_api.view(connection, record, now) if isinstance(policy, RampPolicy) else None
        ),
        timeline=await timeline.read(connection, record, decisions),
        settings=await history_settings.read(connection, record),
        alarms=await read_standing_alarms(connection, record),
    )


def make_history(facts: HistoryFacts) -> History:
    """The lower half of a page. Pure; draws charts, so run it beside the event loop."""
    record = facts.record
    listed = {decision.id for decision in facts.timeline.decisions}
    return History(
        allocation=(
            None
            if facts.allocation is None
            else history_allocation.make(record, facts.allocation, facts.now, listed)
        ),
        posterior=None
        if facts.posterior is None
        else history_posterior.make(record, facts.posterior),
        ramp=None if facts.ramp is None else history_ramp.make(facts.ramp, facts.now),
        timeline=timeline.make(record, facts.timeline),
        settings=history_settings.make(record, facts.settings),
    )
