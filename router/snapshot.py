"""The snapshot: all that a router needs to assign, compiled and immutable."""

from collections.abc import Callable, Iterable, Mapping

import msgspec

from experiments.allocation import owner_table, propensities
from experiments.keys import ApiKey
from experiments.model import State
from experiments.records import Live, Publication
from experiments.units import UnitKey
from router.hashing import slotter

NOBODY = 255
"""The owner of a slot that is not enrolled."""


class Arm(msgspec.Struct, frozen=True):
    """A variant as it is answered: its value is encoded once."""

    key: str
    value: msgspec.Raw
    propensity: float


class Entry(msgspec.Struct, frozen=True):
    """An experiment as a router answers from it.

    `slot_of` gives the slot of a unit; `owners[slot]` is the index of the arm that owns the slot,
    or `NOBODY`; `default` is the index of the arm that answers whoever is not enrolled. `unit_key`
    is what units are hashed with before they are recorded, None where they are recorded as they
    are; `erasures` is how many the project had.
    """

    project: str
    experiment: int
    key: str
    state: State
    run: int
    epoch: int
    slot_of: Callable[[str], int]
    unit_type: str
    unit_attribute: str
    recorded_attributes: tuple[str, ...]
    arms: tuple[Arm, ...]
    owners: bytes
    default: int
    unit_key: UnitKey | None
    erasures: int


class ProjectSnapshot(msgspec.Struct, frozen=True):
    """A project at one version."""

    version: int
    default_unit_type: str
    entries: Mapping[str, Entry]
    keys: tuple[ApiKey, ...]
    recorded_attributes: frozenset[str]
    unit_key: UnitKey | None


class Snapshot:
    """All projects, and all their keys by id. Never changed: a new one is made of an old one."""

    __slots__ = ("keys", "projects")

    def __init__(self, projects: Mapping[str, ProjectSnapshot]) -> None:
        self.projects = projects
        self.keys = {key.id: key for project in projects.values() for key in project.keys}

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        return self.keys.get(key_id)

    def versions(self) -> dict[str, int]:
        """The version of each project."""
        return {name: project.version for name, project in self.projects.items()}

    def with_projects(self, changed: Mapping[str, ProjectSnapshot]) -> "Snapshot":
        """A snapshot in which these projects stand as given."""
        return Snapshot({**self.projects, **changed})


EMPTY = Snapshot({})


def compile_project(publication: Publication) -> ProjectSnapshot:
    """A project as a router answers from it."""
    entries = {
        live.record.key: _compile_entry(live, publication) for live in publication.experiments
    }
    return ProjectSnapshot(
        version=publication.version,
        default_unit_type=publication.default_unit_type,
        entries=entries,
        keys=publication.keys,
        recorded_attributes=_union(entry.recorded_attributes for entry in entries.values()),
        unit_key=publication.unit_key,
    )


def _union(names: Iterable[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(name for group in names for name in group)


def _compile_entry(live: Live, publication: Publication) -> Entry:
    record, epoch = live.record, live.epoch
    definition = record.definition
    keys = [variant.key for variant in definition.variants]
    shares = propensities(epoch.allocation)
    default = epoch.ship if epoch.ship is not None else definition.control.key
    return Entry(
        project=record.project,
        experiment=record.id,
        key=record.key,
        state=epoch.state,
        run=epoch.run,
        epoch=epoch.number,
        slot_of=slotter(epoch.salt),
        unit_type=definition.unit.type,
        unit_attribute=definition.unit.attribute,
        recorded_attributes=definition.record,
        arms=tuple(
            Arm(v.key, msgspec.Raw(msgspec.json.encode(v.value)), shares.get(v.key, 0.0))
            for v in definition.variants
        ),
        owners=owner_table(epoch.allocation, keys, NOBODY),
        default=keys.index(default),
        unit_key=publication.unit_key,
        erasures=publication.erasures,
    )
