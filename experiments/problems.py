"""What can go wrong at a door: problem details (RFC 9457) with stable types."""

from collections.abc import Sequence
from typing import Final

import msgspec

CATALOGUE: Final[dict[str, tuple[int, str]]] = {
    "malformed": (400, "The body cannot be read"),
    "invalid": (422, "Some fields are wrong"),
    "unauthenticated": (401, "A valid API key is needed"),
    "forbidden": (403, "This key may not do that"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This door does not take that method"),
    "conflict": (409, "The state does not allow that"),
    "exists": (409, "The key is taken"),
    "revision-mismatch": (412, "It was changed since you read it"),
    "precondition-required": (428, "If-Match is needed"),
    "timeout": (408, "The request took too long"),
    "unsupported-media-type": (415, "The body is encoded"),
    "too-large": (413, "The body is too large"),
    "head-too-large": (431, "The head of the request is too large"),
    "rate-limited": (429, "Too many requests"),
    "journal-full": (503, "The journal is full"),
    "unavailable": (503, "Something that is needed does not answer"),
    "internal": (500, "A defect of ours"),
}
"""Type of a problem -> its HTTP status and title. A type never changes its meaning."""

FIELD_TYPES: Final[dict[str, str]] = {
    "missing": "a required field is absent",
    "unknown": "no field has this name",
    "type": "the value has another type than the field",
    "value": "the value is out of range or has the wrong form",
    "duplicate": "the value must be unique and is not",
    "reference": "the value names something that does not exist",
    "conflict": "the value contradicts another field",
    "immutable": "the field cannot be changed in this state",
    "unavailable": "the value cannot be checked now: send it again",
    "unsupported": "the field is known, its feature is not built yet",
}
"""Type of a wrong field -> what it means."""


DEFECT: Final = "Something broke; the request id finds it in our log"


class FieldProblem(msgspec.Struct, frozen=True):
    """A wrong field: where it is (`metrics[0].margin.absolute`), what kind, and what is right."""

    path: str
    type: str
    detail: str


class ProblemError(Exception):
    """An answer that is an error. `type` is one of `CATALOGUE`; nothing half-done stays behind."""

    def __init__(
        self,
        type: str,  # noqa: A002 - RFC 9457's own word
        detail: str,
        errors: Sequence[FieldProblem] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.type = type
        self.status, self.title = CATALOGUE[type]
        self.detail = detail
        self.errors = tuple(errors)
        self.headers = headers or {}


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of an error, `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] = ()
    request_id: str = ""


def invalid(errors: Sequence[FieldProblem]) -> ProblemError:
    """The answer to a body with wrong fields: all of them, each by its path."""
    count = len(errors)
    fields = "1 field is wrong" if count == 1 else f"{count} fields are wrong"
    return ProblemError("invalid", f"{fields}: {', '.join(e.path for e in errors)}", errors)
