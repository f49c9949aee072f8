"""What a page says where something went wrong: what happened, and what to do."""

from typing import Final

import msgspec

from experiments.problems import FieldProblem, ProblemError


class ProblemView(msgspec.Struct, frozen=True):
    """A problem as people read it. `again` is the address to try again, where that may help."""

    title: str
    detail: str
    advice: str
    status: int
    request_id: str
    errors: tuple[FieldProblem, ...]
    again: str | None


_TITLES: Final = {
    "not-found": "There is nothing at this address",
    "forbidden": "You may not do that",
    "unavailable": "The database does not answer",
    "internal": "Something broke",
    "malformed": "This cannot be read",
    "method-not-allowed": "This address takes no such request",
}
_DETAILS: Final = {
    "internal": "It is a defect of Turnout, and not of what you did.",
}
_ADVICE: Final = {
    "not-found": "Check the address, or look in the list of experiments. Another project's pages"
    " are seen with a key of that project only.",
    "forbidden": "Sign in with a key of another role, or ask whoever administers your project.",
    "unavailable": "Services still get their variants, and what they report is kept on disk until"
    " the database is back. If you were changing something, look whether it was done before you do"
    " it again.",
    "internal": "It was logged. If it happens again, tell whoever runs this Turnout the request id,"
    " which finds it in the log.",
    "conflict": "Go back, load the page again, and look at what has changed.",
    "revision-mismatch": "Go back, load the page again, and look at what has changed.",
    "rate-limited": "Wait a moment, and try again.",
}
_PASSING: Final = frozenset({"unavailable", "internal", "rate-limited"})


def view_of(error: ProblemError, request_id: str, address: str) -> ProblemView:
    """A problem for people.

    Args:
        address: what was asked for; empty where asking again would do something twice.
    """
    return ProblemView(
        title=_TITLES.get(error.type, error.title),
        detail=_DETAILS.get(error.type, error.detail),
        advice=_ADVICE.get(error.type, ""),
        status=error.status,
        request_id=request_id,
        errors=error.errors,
        again=address if address and error.type in _PASSING else None,
    )
