"""The snapshot: all that a router needs to assign, compiled and immutable."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeAlias

import msgspec

from experiments.allocation import owner_table, propensities
from experiments.keys import ApiKey
from experiments.model import SLOTS, State, parse_duration
from experiments.records import Epoch, HoldoutPin, LayerPin, Live, Override, Publication, Unread
from experiments.targeting import Rule, compile_rule
from experiments.units import UnitKey
from router.hashing import slotter
from router.records import ExposureForm

NOBODY: Final = 255
"""The owner of a slot that is not enrolled."""
NO_NEWS: Final = timedelta.min
"""The age from which on a snapshot is too old for an experiment of which nobody has news: any."""

_ENTRIES_A_TURN: Final = 8
logger = logging.getLogger(__name__)

Slotter: TypeAlias = Callable[[str], int]


class Arm(msgspec.Struct, frozen=True):
    """A variant as it is answered: its value is encoded once."""

    key: str
    value: msgspec.Raw
    propensity: float


class Span(msgspec.Struct, frozen=True):
    """The part of a layer that an experiment has: the slots `[first, end)`."""

    salt: str
    slot_of: Slotter
    first: int
    end: int


class Held(msgspec.Struct, frozen=True):
    """The project's holdout as an experiment's epoch pins it: `held[slot]` is 1 for who is held."""

    salt: str
    slot_of: Slotter
    held: bytes


class Overrides(msgspec.Struct, frozen=True):
    """Who gets a variant whatever their slot, as indices of arms.

    `units` are as the project stores them: hashed with `unit_key`, if that is not None.
    `attributes` has for each name the overrides by the value, written as JSON, for to Python 1,
    1.0 and True are the same.
    """

    units: Mapping[str, int]
    attributes: Mapping[str, Mapping[bytes, int]]
    unit_key: UnitKey | None


class Entry(msgspec.Struct, frozen=True):
    """An experiment as a router answers from it.

    `slot_of` gives the slot of a unit; `owners[slot]` is the index of the arm that owns the slot,
    or `NOBODY`; `default` is the index of the arm that answers whoever is not enrolled. `rule` is
    its targeting, compiled from the expression `targeting`; `stale_after` is the age of the
    snapshot beyond which the control answers all, or `NO_NEWS`; each is None where the experiment
    has none. `rolled_back` are the variants that no unit keeps, be it sticky.
    """

    project: str
    experiment: int
    key: str
    state: State
    run: int
    epoch: int
    since: datetime
    salt: str
    slot_of: Slotter
    unit_type: str
    unit_attribute: str
    recorded_attributes: tuple[str, ...]
    arms: tuple[Arm, ...]
    owners: bytes
    default: int
    control: int
    targeting: Any
    rule: Rule | None
    layer: Span | None
    holdout: Held | None
    overrides: Overrides | None
    sticky: bool
    stale_after: timedelta | None
    rolled_back: frozenset[str] = frozenset()
    encoded: dict[tuple[str, str, str, bool], bytes] = msgspec.field(default_factory=dict)
    forms: dict[str, ExposureForm] = msgspec.field(default_factory=dict)


class ProjectSnapshot(msgspec.Struct, frozen=True):
    """A project at one version.

    `holdout` is the built-in experiment `$holdout` while one is in force. `unit_key` is what units
    are hashed with before they are recorded, None where they are recorded as they are; `erasures`
    is how many the project had. `sticky_id` is what its units' first variants are kept under.
    `unread` are the keys of experiments that could not be read or compiled as they stand now: of
    each there is no entry, or one `without_news`. `origins` are those from which browsers may call.
    """

    project: str
    version: int
    default_unit_type: str
    entries: Mapping[str, Entry]
    keys: tuple[ApiKey, ...]
    recorded_attributes: frozenset[str]
    unit_key: UnitKey | None
    erasures: int
    sticky_id: str
    holdout: Entry | None
    unread: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()

    def stored(self, unit_type: str, unit: str) -> str:
        """A unit as this project stores it."""
        return unit if self.unit_key is None else self.unit_key.hashed(unit_type, unit)


class Snapshot:
    """All projects, and all their keys by id. Never changed: a new one is made of an old one."""

    __slots__ = ("keys", "origins", "projects")

    def __init__(self, projects: Mapping[str, ProjectSnapshot]) -> None:
        self.projects = projects
        self.keys = {key.id: key for project in projects.values() for key in project.keys}
        self.origins = frozenset[str]().union(*(each.origins for each in projects.values()))

    def find_key(self, key_id: str) -> ApiKey | None:
        """The live key of this id, or None."""
        return self.keys.get(key_id)

    def versions(self) -> dict[str, int]:
        """The version of each project."""
        return {name: project.version for name, project in self.projects.items()}

    def with_projects(self, changed: Mapping[str, ProjectSnapshot]) -> "Snapshot":
        """A snapshot in which these projects stand as given."""
        return Snapshot({**self.projects, **changed})


EMPTY: Final = Snapshot({})


async def compile_project(
    publication: Publication, before: ProjectSnapshot | None = None
) -> ProjectSnapshot:
    """A project as a router answers from it.

    Of what is not new in the publication the entries of `before` are taken over; of what is new and
    cannot be read they are without news. The event loop gets its turns in between: requests are
    answered from `before` meanwhile.
    """
    fresh: dict[str, Entry] = {}
    unread = [*publication.unread]
    for number, live in enumerate(publication.experiments, 1):
        compiled = _compiled(live, publication.unit_key)
        if isinstance(compiled, Entry):
            fresh[live.record.key] = compiled
        else:
            unread.append(compiled)
        if number % _ENTRIES_A_TURN == 0:
            await asyncio.sleep(0)
    holdout = None if publication.holdout is None else _compiled(publication.holdout)
    if isinstance(holdout, Unread):
        unread.append(holdout)
    known = {} if before is None else before.entries
    fresh |= {each.key: without_news(known[each.key]) for each in unread if each.key in known}
    _complain(publication.project, unread, frozenset() if before is None else before.unread)
    kept = {} if publication.since is None else known
    entries = {
        key: entry
        for key, entry in {**kept, **fresh}.items()
        if key in fresh or key not in publication.gone
    }
    return ProjectSnapshot(
        project=publication.project,
        version=publication.version,
        default_unit_type=publication.default_unit_type,
        entries=entries,
        keys=publication.keys,
        recorded_attributes=_union(entry.recorded_attributes for entry in entries.values()),
        unit_key=publication.unit_key,
        erasures=publication.erasures,
        sticky_id=publication.sticky_id,
        holdout=holdout if isinstance(holdout, Entry) else None,
        unread=frozenset(each.key for each in unread),
        origins=frozenset(publication.origins),
    )


def _compiled(live: Live, unit_key: UnitKey | None = None) -> Entry | Unread:
    try:
        return compile_entry(live, unit_key)
    except Exception as error:  # a defect; it must not keep the rest from those who wait for it
        return Unread(live.record.key, repr(error))


def _complain(project: str, unread: Iterable[Unread], before: frozenset[str]) -> None:
    for each in unread:
        if each.key not in before:  # once: it is tried again and again
            logger.error(
                "experiment not read",
                extra={"project": project, "experiment": each.key, "error": each.why},
            )


def without_news(entry: Entry) -> Entry:
    """An experiment as it was, now that nobody can tell how it stands: if it was running, everybody
    gets the control and nobody is exposed, for it may have been rolled back since."""
    return msgspec.structs.replace(entry, stale_after=NO_NEWS, encoded={}, forms={})


def compile_entry(live: Live, unit_key: UnitKey | None = None) -> Entry:
    """An experiment as a router answers from it. `unit_key` is what units are hashed with."""
    record, epoch = live.record, live.epoch
    definition = record.definition
    keys = [variant.key for variant in definition.variants]
    control = keys.index(definition.control.key)
    stale = definition.when_stale
    return Entry(
        project=record.project,
        experiment=record.id,
        key=record.key,
        state=epoch.state,
        run=epoch.run,
        epoch=epoch.number,
        since=epoch.at,
        salt=epoch.salt,
        slot_of=slotter(epoch.salt),
        unit_type=definition.unit.type,
        unit_attribute=definition.unit.attribute,
        recorded_attributes=definition.record,
        arms=_arms(live),
        owners=owner_table(epoch.allocation, keys, NOBODY),
        default=control if epoch.ship is None else keys.index(epoch.ship),
        control=control,
        targeting=epoch.targeting,
        rule=_rule(epoch),
        layer=_span(epoch.layer),
        holdout=_held(epoch.holdout),
        overrides=_overrides(live.overrides, keys, unit_key),
        sticky=epoch.stickiness == "sticky",
        rolled_back=frozenset(epoch.rolled_back),
        stale_after=None if stale is None else parse_duration(stale.after),
    )


def _arms(live: Live) -> tuple[Arm, ...]:
    shares = propensities(live.epoch.allocation)
    return tuple(
        Arm(
            variant.key,
            msgspec.Raw(msgspec.json.encode(variant.value)),
            shares.get(variant.key, 0.0),
        )
        for variant in live.record.definition.variants
    )


def _rule(epoch: Epoch) -> Rule | None:
    return None if epoch.targeting is None else compile_rule(epoch.targeting)


def _span(pin: LayerPin | None) -> Span | None:
    return None if pin is None else Span(pin.salt, slotter(pin.salt), *pin.slots)


def _held(pin: HoldoutPin | None) -> Held | None:
    if pin is None:
        return None
    table = bytearray(SLOTS)
    for first, end in pin.held:
        table[first:end] = b"\1" * (end - first)
    return Held(pin.salt, slotter(pin.salt), bytes(table))


def _overrides(
    overrides: Iterable[Override], arms: list[str], unit_key: UnitKey | None
) -> Overrides | None:
    units: dict[str, int] = {}
    attributes: dict[str, dict[bytes, int]] = {}
    for override in overrides:
        arm = arms.index(override.variant)
        if override.unit is not None:
            units[override.unit] = arm
        elif override.attribute is not None:
            attributes.setdefault(override.attribute, {})[override_value(override.value)] = arm
    return Overrides(units, attributes, unit_key) if units or attributes else None


def override_value(value: Any) -> bytes:
    """A value of an attribute as overrides are looked up by it."""
    return msgspec.json.encode(value)


def _union(names: Iterable[tuple[str, ...]]) -> frozenset[str]:
    return frozenset(name for group in names for name in group)
