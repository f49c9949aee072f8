"""A project's experiments as a flag set of flagd, for those who evaluate where they run.

Each unit gets the variant that `router.assign` gives it: salts and slots are the same (DESIGN 5),
the targeting is the experiment's own, and conditions come in the same order. flagd reads `null` as
"the default variant, for no targeting matched", so its reason tells who is enrolled:
TARGETING_MATCH, or an override, against DEFAULT; an experiment that does not run is STATIC.

What flagd cannot express is left out by name. Where a context lacks the unit, ours is an error and
flagd's the default variant.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import msgspec

from experiments.model import SLOTS
from router.snapshot import NO_NEWS, NOBODY, Arm, Entry, Held, Overrides, ProjectSnapshot, Span

SCHEMA: Final = "https://flagd.dev/schema/v0/flags.json"
CACHE_BYTES: Final = 64 * 1024 * 1024
"""How much is remembered of flag sets, over all projects."""

_FLAGS_A_TURN: Final = 8
_ENTRY_BYTES: Final = 12 * 1024
_SAFE_INTEGER: Final = 2**53 - 1
_STRETCH: Final = re.compile(rb"(.)\1*", re.DOTALL)

Rule: TypeAlias = dict[str, Any]
"""An expression in JsonLogic, with flagd's operators."""


class LeftOut(msgspec.Struct, frozen=True):
    """What a flag set lacks, and why: a whole experiment, or `overrides` of it."""

    experiment: str
    what: str
    reason: str


class FlagSet(msgspec.Struct, frozen=True):
    """A flag set as it is sent; `tag` is a hash of it."""

    tag: str
    body: bytes


class _Flag(msgspec.Struct, frozen=True):
    """An experiment, encoded; `text` is empty where it is left out."""

    entry: Entry
    text: bytes
    left_out: tuple[LeftOut, ...]


class _Known(msgspec.Struct, frozen=True):
    """What is remembered of a project at one version, and with so much of it unread."""

    version: tuple[int, frozenset[str]]
    flags: Mapping[str, _Flag]
    flag_set: FlagSet

    @property
    def size(self) -> int:
        """How much memory it takes, about: the flags, alone and put together, and the entries that
        they were made of, for the snapshot may have others by now."""
        return 2 * len(self.flag_set.body) + _ENTRY_BYTES * len(self.flags)


class FlagSets:
    """The flag sets of projects, each made once a version, of which only what changed is made anew.

    The longest unused are forgotten once all together are too large.
    """

    def __init__(self, limit: int = CACHE_BYTES) -> None:
        """`limit` is how many bytes are remembered, but for the latest answer, which always is."""
        self._limit = limit
        self._known: OrderedDict[tuple[str, bool], _Known] = OrderedDict()
        self._size = 0

    @property
    def remembered(self) -> int:
        """How many bytes are remembered, about."""
        return self._size

    async def of(self, project: ProjectSnapshot, *, shows_units: bool) -> FlagSet:
        """The flag set of a project. The event loop gets its turns.

        Args:
            shows_units: whether it may tell for whom there are overrides: units, and values of
                attributes, such as e-mail addresses.
        """
        key = (project.project, shows_units)
        known = self._known.get(key)
        version = (project.version, project.unread)
        if known is None or known.version != version:
            flags = await _flags(project, shows_units, {} if known is None else known.flags)
            known = _Known(version, flags, _put_together(project.project, flags))
            self._remember(key, known)
        self._known.move_to_end(key)
        return known.flag_set

    def _remember(self, key: tuple[str, bool], known: _Known) -> None:
        self._forget(key)
        self._known[key] = known
        self._size += known.size
        while self._size > self._limit and len(self._known) > 1:
            self._forget(next(iter(self._known)))

    def _forget(self, key: tuple[str, bool]) -> None:
        known = self._known.pop(key, None)
        self._size -= 0 if known is None else known.size


async def _flags(
    project: ProjectSnapshot, shows_units: bool, before: Mapping[str, _Flag]
) -> dict[str, _Flag]:
    flags: dict[str, _Flag] = {}
    made = 0
    for key, entry in project.entries.items():
        old = before.get(key)
        if old is not None and old.entry is entry:
            flags[key] = old
            continue
        flag, left_out = flag_of(entry, shows_units=shows_units)
        text = b"" if flag is None else msgspec.json.encode(flag)
        flags[key] = _Flag(entry, text, left_out)
        made += 1
        if made % _FLAGS_A_TURN == 0:
            await asyncio.sleep(0)
    return flags


def _put_together(project: str, flags: Mapping[str, _Flag]) -> FlagSet:
    """The flag set of these flags. Its version is a hash: what did not change stays the same,
    whatever else did in the project."""
    texts = [b'"%b":%b' % (key.encode(), flag.text) for key, flag in flags.items() if flag.text]
    rest = b'"$schema":%b,"left_out":%b,"flags":{%b}}' % (
        msgspec.json.encode(SCHEMA),
        msgspec.json.encode([item for flag in flags.values() for item in flag.left_out]),
        b",".join(texts),
    )
    tag = hashlib.blake2b(rest, digest_size=16).hexdigest()
    metadata = msgspec.json.encode({"flagSetId": project, "version": tag})
    return FlagSet(tag, b'{"metadata":%b,%b' % (metadata, rest))


def flag_of(
    entry: Entry, *, shows_units: bool = True
) -> tuple[dict[str, Any] | None, tuple[LeftOut, ...]]:
    """An experiment as a flag, or None; and what of it is left out."""
    reason = _not_expressible(entry)
    if reason is not None:
        return None, (LeftOut(entry.key, "experiment", reason),)
    flag = {
        "state": "ENABLED",
        "variants": {arm.key: arm.value for arm in entry.arms},
        "defaultVariant": entry.arms[entry.default].key,
        "metadata": {
            "experiment": entry.key,
            "run": entry.run,
            "epoch": entry.epoch,
            "state": entry.state,
        },
    }
    if entry.state != "running":
        return flag, ()
    overrides, lacks = _overrides(entry, shows_units)
    flag["targeting"] = _targeting(entry, overrides)
    return flag, tuple(LeftOut(entry.key, "overrides", lack) for lack in lacks)


def _not_expressible(entry: Entry) -> str | None:
    if any(not _is_value(msgspec.json.decode(arm.value)) for arm in entry.arms):
        return "flagd has no variants that are lists or integers beyond 2^53 - 1"
    if entry.state != "running":
        return None
    if entry.sticky:
        return "it is sticky: a unit's first variant is not known where it is evaluated"
    if entry.stale_after is not None:
        return (
            "it cannot be read as it stands: routers answer its control meanwhile"
            if entry.stale_after == NO_NEWS
            else "`when_stale`: flagd does not know how old its flags are"
        )
    if "." in entry.unit_attribute:
        return f"flagd reads the unit attribute `{entry.unit_attribute}` as a path"
    return None


def _is_value(value: Any) -> bool:
    """Whether flagd's schema has such variants."""
    if isinstance(value, int):
        return -_SAFE_INTEGER <= value <= _SAFE_INTEGER
    return not isinstance(value, list)


def _targeting(entry: Entry, overrides: Iterable[tuple[Rule, str]]) -> Rule:
    unit = {"var": entry.unit_attribute}
    conditions = [
        {"!!": [unit]},
        *_open(entry.holdout, unit),
        *_inside(entry.layer, unit),
        *([] if entry.targeting is None else [entry.targeting]),
        *_enrolled(entry, unit),
    ]
    rule: Rule = {"if": [{"and": conditions}, _split(entry, unit), None]}
    for condition, variant in reversed([*overrides]):
        rule = {"if": [condition, variant, rule]}
    return rule


def _open(holdout: Held | None, unit: Rule) -> Iterator[Rule]:
    if holdout is not None:
        yield _is_in(holdout.salt, unit, holdout.held, bytes([0]))


def _inside(layer: Span | None, unit: Rule) -> Iterator[Rule]:
    if layer is not None:
        sizes = (layer.first, layer.end - layer.first, SLOTS - layer.end)
        slots = b"".join(bytes([part]) * size for part, size in zip((0, 1, 0), sizes, strict=True))
        yield _is_in(layer.salt, unit, slots, bytes([1]))


def _enrolled(entry: Entry, unit: Rule) -> Iterator[Rule]:
    # Not by a variant `null` within `fractional`, which not every evaluator of flagd takes.
    if NOBODY in entry.owners:
        owned = entry.owners.translate(bytes(slot == NOBODY for slot in range(256)))
        yield _is_in(entry.salt, unit, owned, bytes([0]))


def _is_in(salt: str, unit: Rule, slots: bytes, mark: bytes) -> Rule:
    """Whether the slot of the unit has this mark."""
    parts = [["in" if part == mark else "out", size] for part, size in _stretches(slots)]
    return {"===": [_fractional(salt, unit, parts), "in"]}


def _split(entry: Entry, unit: Rule) -> Rule:
    default = entry.arms[entry.default]  # of nobody's slots, which the conditions keep out
    parts = [
        [(default if owner[0] == NOBODY else entry.arms[owner[0]]).key, size]
        for owner, size in _stretches(entry.owners)
    ]
    return _fractional(entry.salt, unit, parts)


def _fractional(salt: str, unit: Rule, parts: list[list[Any]]) -> Rule:
    """The part in which the unit is. The sizes of all are 10,000 together, so that flagd's buckets,
    `(hash * total) >> 32`, are our slots."""
    return {"fractional": [{"cat": [salt, ":", unit]}, *parts]}


def _stretches(slots: bytes) -> Iterator[tuple[bytes, int]]:
    """What neighbouring slots have in common, and how many they are."""
    for stretch in _STRETCH.finditer(slots):
        yield stretch[1], len(stretch[0])


def _overrides(entry: Entry, shows_units: bool) -> tuple[list[tuple[Rule, str]], list[str]]:
    """Who always gets which variant, in the order in which that is looked up; and why others are
    left out."""
    overrides = entry.overrides
    if overrides is None:
        return [], []
    rules: list[tuple[Rule, str]] = []
    lacks: list[str] = []
    if overrides.units:
        if overrides.unit_key is not None:
            lacks.append("overrides of units: the project keeps hashes of its units")
        elif not shows_units:
            lacks.append("overrides of units: only a key that may record gets to know units")
        else:
            rules += _of_units(overrides, entry.arms, {"var": entry.unit_attribute})
    if overrides.attributes and not shows_units:
        lacks.append("overrides by attributes: only a key that may record gets to know values")
        return rules, lacks
    for name, arms in overrides.attributes.items():
        if "." in name:
            lacks.append(f"overrides by `{name}`: flagd reads that as a path")
            continue
        rules += [
            ({"===": [{"var": name}, msgspec.Raw(value)]}, entry.arms[arm].key)
            for value, arm in arms.items()
        ]
    return rules, lacks


def _of_units(overrides: Overrides, arms: tuple[Arm, ...], unit: Rule) -> list[tuple[Rule, str]]:
    by_arm: dict[int, list[str]] = {}
    for name, arm in overrides.units.items():
        by_arm.setdefault(arm, []).append(name)
    return [({"in": [unit, names]}, arms[arm].key) for arm, names in by_arm.items()]
