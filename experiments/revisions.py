"""The revision of what is changed, as HTTP tells it: `ETag` and `If-Match`."""

from typing import Any

from litestar import Request

from experiments.problems import ProblemError


def etag(revision: int) -> dict[str, str]:
    """The header that names a revision."""
    return {"ETag": f'"{revision}"'}


def expect_revision(request: Request[Any, Any, Any], revision: int) -> None:
    """Let a change pass that was made to the latest revision, or does not say to which.

    `If-Match` as RFC 9110 has it: `*`, or a list of entity tags, of which weak ones match nothing.
    """
    header = request.headers.get("if-match", "*")
    named = {tag.strip() for tag in header.split(",")}
    if not named & {"*", *etag(revision).values()}:
        raise ProblemError(
            "revision-mismatch",
            f"The latest revision is {revision}, `If-Match` names {header[:80]}",
        )
