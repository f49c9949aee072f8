"""What an epoch pins of what it shares with others: its part of a layer, and the holdout."""

from typing import Final

import msgspec

from experiments.allocation import Allocation, runs_of
from experiments.model import HOLDOUT, Experiment
from experiments.records import HoldoutPin, LayerPin
from experiments.store import Connection

HELD: Final = "held"
"""The variant of `$holdout` whose units take part in nothing."""
OPEN: Final = "open"
"""The variant of `$holdout` whose units take part in all else; they are compared with the held."""

_SALT_OF_LAYER: Final = "select salt from layer where project = $1 and key = $2"
_HOLDOUT: Final = """
    select x.id, x.run, x.epoch, e.salt, e.allocation
    from experiment x join epoch e on e.experiment = x.id and e.number = x.epoch
    where x.project = $1 and x.key = $2 and x.state = 'running'
      and x.definition -> 'unit' ->> 'type' = $3
"""


async def layer_pin(
    connection: Connection, project: str, definition: Experiment
) -> LayerPin | None:
    """The part of a layer that a definition names; the layer is there."""
    if definition.layer is None:
        return None
    salt = await connection.fetchval(_SALT_OF_LAYER, project, definition.layer.key)
    return LayerPin(definition.layer.key, salt, definition.layer.slots)


async def holdout_pin(
    connection: Connection, project: str, definition: Experiment
) -> HoldoutPin | None:
    """The holdout that is in force for the units of a definition: one of another type holds none of
    them. The caller has entered the project, so it stays in force until the transaction ends."""
    if definition.key == HOLDOUT:
        return None
    row = await connection.fetchrow(_HOLDOUT, project, HOLDOUT, definition.unit.type)
    if row is None:
        return None
    allocation = msgspec.json.decode(row["allocation"], type=Allocation)
    return HoldoutPin(row["id"], row["run"], row["epoch"], row["salt"], runs_of(allocation, HELD))
