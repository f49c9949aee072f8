"""The two hot doors, `POST /v1/assign` and the OFREP single evaluation, without their way in.

The fast lane and the framework call these same functions, so that one cannot answer what the other
would not.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from experiments.doors import (
    NOT_JSON,
    Reply,
    malformed,
    parse_json,
    problem_reply,
    read_as,
)
from experiments.keys import Principal
from experiments.model import Key
from experiments.problems import FieldProblem, ProblemError, invalid
from experiments.units import unit_problem
from router.assign import ENROLLED, Assignment, Why, attribute_problems
from router.evaluation import Evaluation
from router.plane import DataPlane
from router.snapshot import Entry, ProjectSnapshot

MAX_ASSIGN_BODY: Final = 64 * 1024


class AssignRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/assign`."""

    experiment: Key
    unit: Annotated[str, Meta(min_length=1, description="a unit's id: 1 to 256 bytes of UTF-8")]
    attributes: dict[str, Any] | None = None
    expose: bool = True


class AssignAnswer(msgspec.Struct, frozen=True):
    """Which variant a unit gets, and what is needed to account for it.

    `propensity` is the variant's probability for an enrolled unit, null for others; `slot` is null
    where it was not looked up. `recorded` says that the exposure is on disk.
    """

    experiment: str
    run: int
    variant: str
    value: msgspec.Raw
    reason: Why
    epoch: int
    propensity: float | None
    slot: int | None
    recorded: bool


class OfrepRequest(msgspec.Struct, frozen=True):
    """The body of an evaluation (OFREP 0.3). The unit is in its context."""

    context: dict[str, Any]


class OfrepSuccess(msgspec.Struct, frozen=True):
    """A successful evaluation (OFREP 0.3)."""

    key: str
    reason: str
    variant: str
    value: msgspec.Raw
    metadata: dict[str, str | float | bool]


class OfrepFailure(msgspec.Struct, frozen=True):
    """A failed evaluation (OFREP 0.3)."""

    key: str
    errorCode: str  # noqa: N815 - the protocol's name
    errorDetails: str  # noqa: N815 - the protocol's name


class OfrepError(Exception):
    """An evaluation that fails, with the protocol's status and code."""

    def __init__(self, status: int, code: str, details: str) -> None:
        super().__init__(details)
        self.status, self.code, self.details = status, code, details


class HotDoor(msgspec.Struct, frozen=True):
    """A door: from a body to an evaluation, from its answer to bytes, and from an error to a
    reply. `template` is its path, as it is called in metrics; the experiment's key is handed in
    where the path has it."""

    template: str
    evaluate: Callable[[DataPlane, Principal, str, bytes], Evaluation]
    encode: Callable[[Entry, Assignment, bool], bytes]
    refuse: Callable[[ProblemError | OfrepError, str, str], Reply]


OFREP_REASONS: Final[dict[Why, str]] = {
    "split": "SPLIT",
    "sticky": "SPLIT",
    "override": "TARGETING_MATCH",
    "not_enrolled": "SPLIT",
    "not_targeted": "UNKNOWN",
    "targeting_failed": "UNKNOWN",
    "out_of_layer": "SPLIT",
    "held_out": "SPLIT",
    "stale": "UNKNOWN",
    "paused": "DISABLED",
    "rolled_back": "DISABLED",
    "concluded": "STATIC",
}
_assign_request = msgspec.json.Decoder(AssignRequest)
_json = msgspec.json.Decoder()
_UNSLOTTED: Final = b'null,"recorded":false}'
_RECORDED: Final = b',"recorded":true}'
_UNRECORDED: Final = b',"recorded":false}'


def _evaluate_assign(plane: DataPlane, caller: Principal, _: str, body: bytes) -> Evaluation:
    return evaluate_unit(plane, caller, _read_assign_request(body))


def evaluate_unit(plane: DataPlane, caller: Principal, request: AssignRequest) -> Evaluation:
    """A unit in an experiment, as a sound request asks for it.

    Raises:
        ProblemError: `not-found` or `invalid`.
    """
    project = plane.project(caller.project)
    entry = project.entries.get(request.experiment)
    if entry is None:
        raise ProblemError("not-found", f"No experiment {request.experiment!r} was started")
    attributes, unit = request.attributes, request.unit
    problems = attribute_problems(project, entry, attributes, "attributes")
    if problems:
        raise invalid(problems)
    context = {entry.unit_attribute: unit}
    if attributes:
        context = {**attributes, **context}
    answer = plane.assign(entry, unit, context)
    return Evaluation(project, entry, unit, attributes, request.expose, answer)


def _read_assign_request(body: bytes) -> AssignRequest:
    try:
        request = _assign_request.decode(body)
    except msgspec.ValidationError:
        request = read_as(AssignRequest, parse_json(body))
    except NOT_JSON as error:
        raise malformed(error) from error
    detail = unit_problem(request.unit)
    if detail is not None:
        raise invalid([FieldProblem("unit", "value", detail)])
    return request


def _encode_assign(entry: Entry, answer: Assignment, recorded: bool) -> bytes:
    if answer.epoch != entry.epoch:
        return _assign_answer(entry, answer, answer.slot, recorded)
    known = ("assign", answer.arm.key, answer.reason, False)
    head = entry.encoded.get(known)
    if head is None:
        # All but the slot and what follows it is the same for all who get this arm.
        head = _assign_answer(entry, answer, None, False).removesuffix(_UNSLOTTED)
        entry.encoded[known] = head
    slot = b"null" if answer.slot is None else b"%d" % answer.slot
    return head + slot + (_RECORDED if recorded else _UNRECORDED)


def _assign_answer(entry: Entry, answer: Assignment, slot: int | None, recorded: bool) -> bytes:
    return msgspec.json.encode(
        AssignAnswer(
            experiment=entry.key,
            run=entry.run,
            variant=answer.arm.key,
            value=answer.arm.value,
            reason=answer.reason,
            epoch=answer.epoch,
            propensity=answer.propensity,
            slot=slot,
            recorded=recorded,
        )
    )


def _refuse_assign(error: ProblemError | OfrepError, _: str, request_id: str) -> Reply:
    if isinstance(error, OfrepError):
        raise TypeError("this door does not speak OFREP") from error
    return problem_reply(error, request_id)


def _evaluate_flag(plane: DataPlane, caller: Principal, key: str, body: bytes) -> Evaluation:
    context = read_context(body)
    project = plane.project(caller.project)
    entry = project.entries.get(key)
    if entry is None:
        raise OfrepError(404, "FLAG_NOT_FOUND", f"no experiment {key!r} was started")
    unit = unit_of(project, entry, context)
    return Evaluation(project, entry, unit, context, True, plane.assign(entry, unit, context))


def read_context(body: bytes) -> dict[str, Any]:
    """The evaluation context in a body.

    Raises:
        OfrepError: where there is none.
    """
    try:
        data = _json.decode(body)
    except NOT_JSON as error:
        raise OfrepError(400, "PARSE_ERROR", f"the body is not JSON: {error}") from error
    context = data.get("context") if isinstance(data, dict) else None
    if not isinstance(context, dict):
        raise OfrepError(400, "INVALID_CONTEXT", "`context` must be an object")
    return context


def unit_of(project: ProjectSnapshot, entry: Entry, context: dict[str, Any]) -> str:
    """The unit that a context names for an experiment, if the context is sound for it.

    Raises:
        OfrepError: TARGETING_KEY_MISSING or INVALID_CONTEXT.
    """
    attribute = entry.unit_attribute
    unit = context.get(attribute)
    if unit is None or unit == "":
        raise OfrepError(400, "TARGETING_KEY_MISSING", f"the context has no `{attribute}`")
    if not isinstance(unit, str):
        raise OfrepError(400, "INVALID_CONTEXT", f"`{attribute}` must be a string")
    detail = unit_problem(unit)
    if detail is not None:
        raise OfrepError(400, "INVALID_CONTEXT", f"`{attribute}` {detail}")
    problems = attribute_problems(project, entry, context, "context")
    if problems:
        details = "; ".join(f"`{p.path}` {p.detail}" for p in problems)
        raise OfrepError(400, "INVALID_CONTEXT", details)
    return unit


def encode_flag(entry: Entry, answer: Assignment, recorded: bool) -> bytes:
    """A successful evaluation as OFREP has it."""
    if answer.epoch != entry.epoch:
        return _flag_answer(entry, answer, recorded)
    known = ("ofrep", answer.arm.key, answer.reason, recorded)
    body = entry.encoded.get(known)
    if body is None:
        body = entry.encoded[known] = _flag_answer(entry, answer, recorded)
    return body


def _flag_answer(entry: Entry, answer: Assignment, recorded: bool) -> bytes:
    metadata: dict[str, str | float | bool] = {
        "run": entry.run,
        "epoch": answer.epoch,
        "why": answer.reason,
        "enrolled": answer.reason in ENROLLED,
        "recorded": recorded,
    }
    return msgspec.json.encode(
        OfrepSuccess(
            key=entry.key,
            reason=OFREP_REASONS[answer.reason],
            variant=answer.arm.key,
            value=answer.arm.value,
            metadata=metadata,
        )
    )


def refuse_flag(error: ProblemError | OfrepError, key: str, _: str) -> Reply:
    """A failed evaluation. 401 and 403 have no body in OFREP; others that concern no flag have only
    `errorDetails`."""
    if isinstance(error, OfrepError):
        body = msgspec.json.encode(OfrepFailure(key, error.code, error.details))
        return Reply(error.status, body)
    if error.status == 500:  # the client for JavaScript fails where there is no code
        return Reply(500, msgspec.json.encode(OfrepFailure(key, "GENERAL", error.detail)))
    if error.status in {401, 403}:
        return Reply(error.status, b"", "text/plain", error.headers)
    body = msgspec.json.encode({"errorDetails": error.detail})
    return Reply(error.status, body, headers=error.headers)


ASSIGN: Final = HotDoor("/v1/assign", _evaluate_assign, _encode_assign, _refuse_assign)
FLAG: Final = HotDoor("/ofrep/v1/evaluate/flags/{key}", _evaluate_flag, encode_flag, refuse_flag)
