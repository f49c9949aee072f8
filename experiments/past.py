"""Experiments as they stood: in any epoch that there was, not only in the current one."""

from collections.abc import Collection
from typing import TypeAlias

import msgspec

from experiments import store
from experiments.model import HOLDOUT
from experiments.records import ExperimentRecord, HoldoutPin, Live

Moment: TypeAlias = tuple[str, int]
"""The key of an experiment, and the number of one of its epochs."""


class Past(msgspec.Struct, frozen=True):
    """An experiment in one of its epochs, and the project's holdout as that epoch pins it.

    What an epoch does not pin (variants and their values, the unit) does not change once an
    experiment was started. Overrides are of no epoch: there are none.
    """

    live: Live
    holdout: Live | None


async def load_past(
    connection: store.Connection, project: str, moments: Collection[Moment]
) -> dict[Moment, Past]:
    """Those of these epochs that there were."""
    records = {
        key: await store.get_experiment(connection, project, key)
        for key in dict.fromkeys(key for key, _ in moments)
    }
    found: dict[Moment, Past] = {}
    for key, number in moments:
        record = records[key]
        if record is not None and 1 <= number <= record.epoch:
            found[key, number] = await epoch_of(connection, record, number)
    return found


async def epoch_of(connection: store.Connection, record: ExperimentRecord, number: int) -> Past:
    """An experiment in an epoch that there was."""
    epoch = await store.get_epoch(connection, record.id, number)
    pin = epoch.holdout
    holdout = None if pin is None else await _holdout(connection, record.project, pin)
    return Past(Live(record, epoch), holdout)


async def _holdout(connection: store.Connection, project: str, pin: HoldoutPin) -> Live | None:
    record = await store.get_experiment(connection, project, HOLDOUT)
    if record is None:
        return None
    return Live(record, await store.get_epoch(connection, pin.experiment, pin.epoch))
