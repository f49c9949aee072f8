"""Many units at once: from the body of `POST /v1/assign/batch` to its answer.

A unit that is wrong costs itself alone; all else that is wrong with a request refuses it. Where an
experiment's answer follows from slots, those of all units are looked up in columns; the others, and
small batches, are answered unit by unit by `assign`, which is the truth that both agree with.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Annotated, Any, Final, NamedTuple, TypeAlias, TypeVar

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from experiments import paths
from experiments.decoding import decode
from experiments.doors import NOT_JSON, malformed, parse_json, read_as
from experiments.json_data import clean, kind_of
from experiments.model import Key
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.targeting import Rule
from experiments.units import MAX_UNIT_BYTES, UnitId, unit_problem
from router.assign import Assignment, Why, kept_names
from router.items import MAX_ITEM_BYTES, TOO_LARGE, ItemError, in_turns, split_list
from router.snapshot import Entry, ProjectSnapshot
from router.vector import (
    FAILED,
    NO_SLOT,
    NOT_TARGETED,
    TARGETED,
    Assignments,
    Column,
    assign_all,
    follows_slots,
    let_in,
)

MAX_PAIRS: Final = 10_000
"""How many pairs of a unit and an experiment one request may ask for."""
LARGE_BODY: Final = 1024 * 1024
"""Beyond so many bytes, which 10,000 units with few attributes do not have, a request is read piece
by piece: all in one turn could take half a second."""
ITEMS_A_TURN: Final = 250
"""How many units are read or checked one by one before others get their turn."""
PAIRS_A_TURN: Final = 100
"""How many pairs are answered one by one, mostly in a tenth of a millisecond, before others get
theirs."""
FEW: Final = 40
"""With fewer units than this, it is quicker to answer each alone than to set up columns."""

T = TypeVar("T")
Attributes: TypeAlias = dict[str, Any] | None
Context: TypeAlias = Mapping[str, Any]
Assign: TypeAlias = Callable[[Entry, str, Context], Assignment]
"""The arm of a unit in an experiment, in a context."""
Stick: TypeAlias = Callable[
    [Entry, Sequence[str], Sequence[Assignment]], Awaitable[Sequence[Assignment]]
]
"""What units get in a sticky experiment, from the units and what they get by their slots."""


class BatchUnit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A unit with its attributes."""

    unit: UnitId
    attributes: dict[str, Any] | None = None


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a request asks for, but for its units."""

    units: list[Any]
    experiments: (
        Annotated[
            list[Key],
            Meta(min_length=1, description="a list of experiments' keys; all running, if absent"),
        ]
        | None
    ) = None
    expose: bool = True


class BatchRequest(_Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of `POST /v1/assign/batch`: at most 10,000 pairs of a unit and an experiment.

    A unit is its id, or an object of its id and its attributes. Without `experiments` all that are
    running are meant, in the order of their keys.
    """

    units: list[UnitId | BatchUnit]


class BatchExperiment(msgspec.Struct, frozen=True):
    """Which variants the units get in an experiment, in columns.

    `values` has the value of each variant, once. All others have an entry for each unit of the
    request, in its order, null where the unit is in `errors`. They say what `POST /v1/assign` says:
    `propensity` is the variant's probability for an enrolled unit, null for others; `slot` is null
    where it was not looked up.
    """

    experiment: str
    run: int
    values: dict[str, msgspec.Raw]
    variant: list[str | None]
    reason: list[Why | None]
    epoch: list[int | None]
    propensity: list[float | None]
    slot: list[int | None]


class BatchAnswer(msgspec.Struct, frozen=True):
    """What the units get, experiment by experiment, in the order of the request.

    `recorded` says that the exposures of all who are enrolled are on disk. `errors` are the units
    that were refused, each by its index in `units`, with the path of what is wrong within it.
    """

    experiments: list[BatchExperiment]
    recorded: bool
    errors: list[ItemError]


class _EncodedAnswer(msgspec.Struct, frozen=True):
    """A `BatchAnswer` whose experiments are encoded already."""

    experiments: list[msgspec.Raw]
    recorded: bool
    errors: list[ItemError]


class AssignBatch(msgspec.Struct, frozen=True):
    """A request as read: the experiments, and the units that are right.

    `places` are these units' indices among all `size` of the request, None where all are right;
    `attributes` is None where none has any.
    """

    entries: list[Entry]
    size: int
    places: list[int] | None
    units: list[str]
    encoded: Column
    attributes: list[Attributes] | None
    errors: list[ItemError]
    expose: bool


class Met(NamedTuple):
    """A unit that is part of an experiment, or was looked up in the holdout: what
    `router.assign.exposures` makes records of. The slot of `answer` may be missing."""

    entry: Entry
    answer: Assignment
    unit: str
    attributes: Attributes


class _Part(NamedTuple):
    """What the units get in an experiment: unit `i` gets `answers[which[i]]`."""

    entry: Entry
    answers: Sequence[Assignment]
    which: Sequence[int] | NDArray[np.uint8]


class Plan(msgspec.Struct, frozen=True):
    """What becomes of a batch: whom to record, and what to answer."""

    batch: AssignBatch
    parts: list[_Part]
    experiments: list[msgspec.Raw]

    def met(self) -> Iterator[Met]:
        """Whom to record, made one after the other, for there may be thousands."""
        units = self.batch.units
        attributes = self.batch.attributes or [None] * len(units)
        for entry, answers, which in self.parts:
            is_met = [answer.enrolled or answer.held is not None for answer in answers]
            if any(is_met):
                for unit, known, index in zip(units, attributes, which, strict=True):
                    if is_met[index]:
                        yield Met(entry, answers[index], unit, known)

    def counts(self) -> Iterator[tuple[Entry, Assignment, int]]:
        """How many units got which answer, slots apart."""
        for entry, answers, which in self.parts:
            for answer, count in zip(
                answers, np.bincount(which, minlength=len(answers)), strict=True
            ):
                if count:
                    yield entry, answer, int(count)

    def answer(self, recorded: bool) -> bytes:
        """A `BatchAnswer` in JSON."""
        return msgspec.json.encode(_EncodedAnswer(self.experiments, recorded, self.batch.errors))


# Reading


class _SplitRequest(_Asked, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request whose units are not read yet."""

    units: list[msgspec.Raw]


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request of which nothing is read yet."""

    units: msgspec.Raw
    experiments: msgspec.Raw = msgspec.Raw(b"null")
    expose: msgspec.Raw = msgspec.Raw(b"true")


_request = msgspec.json.Decoder(BatchRequest)
_split_request = msgspec.json.Decoder(_SplitRequest)
_envelope = msgspec.json.Decoder(_Envelope)
_unit: msgspec.json.Decoder[str | BatchUnit] = msgspec.json.Decoder(UnitId | BatchUnit)


async def read_assign_batch(body: bytes, project: ProjectSnapshot) -> AssignBatch:
    """A request, with the experiments that it names. The event loop gets its turns.

    Raises:
        ProblemError: `malformed` where the body is no JSON, `invalid` with every wrong field but
            those of units, `too-large` with more than `MAX_PAIRS`.
    """
    refused: dict[int, list[FieldProblem]] = {}
    try:
        asked = _read_request(body)
        entries = _entries(project, asked.experiments)
        _check_size(len(asked.units), len(entries))
        items: Sequence[str | BatchUnit] = asked.units
        if not isinstance(asked, BatchRequest):
            items = await _read_units(asked.units, refused)
    except NOT_JSON as error:
        raise malformed(error) from error
    units, attributes = _unzip(items)
    encoded = Column(units)
    await _check_units(items, encoded, refused)
    names = sorted({name for entry in entries for name in kept_names(project, entry)})
    await _check_attributes(attributes, names, refused)
    places = None
    if refused:
        places = [index for index in range(len(items)) if index not in refused]
        units, attributes = _unzip([items[place] for place in places])
        encoded = Column(units)
    return AssignBatch(
        entries=entries,
        size=len(items),
        places=places,
        units=units,
        encoded=encoded,
        attributes=attributes,
        errors=[
            ItemError(index, problem.type, problem.path, problem.detail)
            for index, problems in sorted(refused.items())
            for problem in problems
        ],
        expose=asked.expose,
    )


def _read_request(body: bytes) -> _Asked:
    """What a request asks for: a `BatchRequest`, or, where units may be wrong or are large, one
    whose units are still to be read.

    Raises:
        ProblemError: `invalid`, where more is wrong than units.
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: if the body is no JSON.
    """
    if len(body) > LARGE_BODY:
        return _read_large_request(body)
    with suppress(msgspec.ValidationError):
        return _request.decode(body)
    with suppress(msgspec.ValidationError):
        return _split_request.decode(body)
    data = parse_json(body)
    if isinstance(data, dict) and isinstance(data.get("units"), list):
        data["units"] = []  # each of them is another matter
    return read_as(_Asked, data)


def _read_large_request(body: bytes) -> _SplitRequest:
    """As `_read_request`, but of what is wrong with the fields of the whole it names the first."""
    try:
        envelope = _envelope.decode(body)
    except msgspec.ValidationError as error:
        raise invalid([FieldProblem(paths.ROOT, "value", str(error))]) from error
    if bytes(memoryview(envelope.units)[:1]) != b"[":
        raise invalid([FieldProblem("units", "type", "must be a list of units")])
    if len(envelope.experiments) > LARGE_BODY:
        raise ProblemError("too-large", f"`experiments` may have at most {LARGE_BODY} bytes")
    rest = {
        "units": [],
        "experiments": msgspec.json.decode(envelope.experiments),
        "expose": msgspec.json.decode(envelope.expose),
    }
    asked = read_as(_Asked, rest)
    return _SplitRequest(
        units=split_list(envelope.units), experiments=asked.experiments, expose=asked.expose
    )


def _entries(project: ProjectSnapshot, keys: Sequence[str] | None) -> list[Entry]:
    """The experiments of these keys; without keys, all that are running.

    Raises:
        ProblemError: `invalid`, with every key that is unknown or comes twice.
    """
    known = project.entries
    if keys is None:
        return [known[key] for key in sorted(known) if known[key].state == "running"]
    problems: list[FieldProblem] = []
    first: dict[str, int] = {}
    for index, key in enumerate(keys):
        place = paths.item("experiments", index)
        if first.setdefault(key, index) != index:
            detail = f"names the same experiment as {paths.item('experiments', first[key])}"
            problems.append(FieldProblem(place, "duplicate", detail))
        elif key not in known:
            detail = f"no experiment {key!r} was started"
            problems.append(FieldProblem(place, "reference", detail))
    if problems:
        raise invalid(problems)
    return [known[key] for key in keys]


def _check_size(units: int, experiments: int) -> None:
    if units * max(experiments, 1) > MAX_PAIRS:
        raise ProblemError(
            "too-large",
            f"A batch may have at most {MAX_PAIRS} pairs of a unit and an experiment; "
            f"this one has {units} units and {experiments} experiments",
        )


async def _read_units(
    texts: Sequence[msgspec.Raw], refused: dict[int, list[FieldProblem]]
) -> list[str | BatchUnit]:
    """Units read one by one. Those that are wrong are named in `refused`, and stood in for.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError, RecursionError: if a text is no JSON.
    """
    read: list[str | BatchUnit] = []
    async for index, text in in_turns(texts):
        if len(text) > MAX_ITEM_BYTES:
            refused[index] = [FieldProblem(paths.ROOT, "too-large", TOO_LARGE)]
            read.append("")
            continue
        try:
            read.append(_unit.decode(text))
        except msgspec.ValidationError:
            refused[index] = _unit_problems(msgspec.json.decode(text))
            read.append("")
    return read


def _unit_problems(item: Any) -> list[FieldProblem]:
    """What is wrong with a unit that cannot be read."""
    if isinstance(item, dict):
        return [*decode(BatchUnit, item).problems]
    if item == "":
        return [FieldProblem(paths.ROOT, "value", unit_problem(item) or "")]
    detail = f"must be a unit's id, or an object with its `unit`; this is {kind_of(item)}"
    return [FieldProblem(paths.ROOT, "type", detail)]


def _unzip(items: Sequence[str | BatchUnit]) -> tuple[list[str], list[Attributes] | None]:
    """The ids of units, and their attributes if any has some."""
    ids = [item for item in items if isinstance(item, str)]
    if len(ids) == len(items):
        return ids, None
    units = [item if isinstance(item, str) else item.unit for item in items]
    attributes = [None if isinstance(item, str) else item.attributes for item in items]
    return units, attributes if any(attributes) else None


async def _check_units(
    items: Sequence[str | BatchUnit], encoded: Column, refused: dict[int, list[FieldProblem]]
) -> None:
    """Name in `refused` the units whose ids are too long, or hold what cannot be stored."""
    # Nearly always all are right, and this tells at once.
    if max(encoded.lengths, default=0) <= MAX_UNIT_BYTES and b"\0" not in b"".join(encoded.units):
        return
    for index, item in enumerate(items):
        if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        unit, path = (item, paths.ROOT) if isinstance(item, str) else (item.unit, "unit")
        detail = unit_problem(unit)
        if detail is not None and index not in refused:
            refused[index] = [FieldProblem(path, "value", detail)]


async def _check_attributes(
    attributes: Sequence[Attributes] | None,
    names: Sequence[str],
    refused: dict[int, list[FieldProblem]],
) -> None:
    """Name in `refused` the units with attributes of these `names`, which are kept, that nobody can
    store."""
    if not names or attributes is None:
        return
    for index, known in enumerate(attributes):
        if index % ITEMS_A_TURN == ITEMS_A_TURN - 1:
            await asyncio.sleep(0)
        if known:
            wanted = {name: known[name] for name in names if name in known}
            problems = clean({"attributes": wanted}).problems
            if problems:
                refused[index] = refused.get(index, []) + problems


# Deciding


async def decide(batch: AssignBatch, assign: Assign, stick: Stick) -> Plan:
    """What becomes of a batch. The event loop gets its turns.

    Args:
        assign: `router.assign.assign`, or what heeds `when_stale`, too.
        stick: what looks up the first variants of the units of a sticky experiment.
    """
    parts: list[_Part] = []
    experiments: list[msgspec.Raw] = []
    contexts = cache(partial(_contexts, batch))
    one_by_one = 0
    for entry in batch.entries:
        if len(batch.units) >= FEW and follows_slots(entry):
            targeting = None
            if entry.rule is not None:
                asked = let_in(entry, batch.encoded)
                targeting = await _targeting(entry.rule, asked, contexts(entry.unit_attribute))
            found = assign_all(entry, batch.encoded, targeting)
            parts.append(_Part(entry, found.answers, found.which))
            experiments.append(_encoded(_of_columns(batch, entry, found)))
            await asyncio.sleep(0)
            continue
        answers: list[Assignment] = []
        for unit, context in zip(batch.units, contexts(entry.unit_attribute), strict=True):
            one_by_one += 1
            if one_by_one % PAIRS_A_TURN == 0:
                await asyncio.sleep(0)
            answers.append(assign(entry, unit, context))
        if entry.sticky:
            answers = [*await stick(entry, batch.units, answers)]
        parts.append(_Part(entry, answers, range(len(answers))))
        experiments.append(_encoded(_of_each(batch, entry, answers)))
    return Plan(batch, parts, experiments)


def _contexts(batch: AssignBatch, unit_attribute: str) -> list[Context]:
    """What targeting and overrides read of the units."""
    if batch.attributes is None:
        return [{unit_attribute: unit} for unit in batch.units]
    return [
        {**(known or {}), unit_attribute: unit}
        for unit, known in zip(batch.units, batch.attributes, strict=True)
    ]


async def _targeting(
    rule: Rule, asked: NDArray[np.bool_], contexts: Sequence[Context]
) -> NDArray[np.uint8]:
    """What the targeting of an experiment says of the units for whom it is asked."""
    found = bytearray(len(contexts))
    for count, index in enumerate(np.flatnonzero(asked).tolist(), 1):
        if count % PAIRS_A_TURN == 0:
            await asyncio.sleep(0)
        try:
            found[index] = TARGETED if rule(contexts[index]) else NOT_TARGETED
        except Exception:  # as `assign` has it: whatever it is, the request goes on
            found[index] = FAILED
    return np.frombuffer(found, np.uint8)


# Answering


def _encoded(experiment: BatchExperiment) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(experiment))


def _of_each(batch: AssignBatch, entry: Entry, answers: Sequence[Assignment]) -> BatchExperiment:
    """The columns of answers that were found one by one."""
    return BatchExperiment(
        experiment=entry.key,
        run=entry.run,
        values=_values(entry),
        variant=_spread(batch, [answer.arm.key for answer in answers]),
        reason=_spread(batch, [answer.reason for answer in answers]),
        epoch=_spread(batch, [answer.epoch for answer in answers]),
        propensity=_spread(batch, [answer.propensity for answer in answers]),
        slot=_spread(batch, [answer.slot for answer in answers]),
    )


def _of_columns(batch: AssignBatch, entry: Entry, found: Assignments) -> BatchExperiment:
    """The columns of answers that were found in columns."""

    def column(of_each: list[T]) -> list[T]:
        taken: list[T] = np.array(of_each, np.object_)[found.which].tolist()
        return _spread(batch, taken)

    slots: list[int | None] = found.slots.tolist()
    if (found.slots == NO_SLOT).any():
        slots = [None if slot == NO_SLOT else slot for slot in slots]
    return BatchExperiment(
        experiment=entry.key,
        run=entry.run,
        values=_values(entry),
        variant=column([answer.arm.key for answer in found.answers]),
        reason=column([answer.reason for answer in found.answers]),
        epoch=_spread(batch, [entry.epoch] * len(slots)),
        propensity=column([answer.propensity for answer in found.answers]),
        slot=_spread(batch, slots),
    )


def _spread(batch: AssignBatch, values: list[T]) -> list[T]:
    """A column for all units of the request from one for those that are right."""
    if batch.places is None:
        return values
    column: list[Any] = [None] * batch.size
    for place, value in zip(batch.places, values, strict=True):
        column[place] = value
    return column


def _values(entry: Entry) -> dict[str, msgspec.Raw]:
    return {arm.key: arm.value for arm in entry.arms}
