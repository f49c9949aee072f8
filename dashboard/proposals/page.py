"""The page of what waits for a second pair of eyes, and the forms that answer it: the same use
cases as the API's."""

from typing import Annotated, Any, Final, cast, get_args

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter

from analysis.control.acts import ACTS
from dashboard.experiment.action_forms import problem_words
from dashboard.experiment.people import read_notes
from dashboard.plane import Pages, PagesPlane
from dashboard.proposals.view import LABELS, Verb, Waiting, waiting_view
from dashboard.security import Form, as_api, once_of
from experiments import store
from experiments.doors import principal_of, read_as
from experiments.keys import Principal
from experiments.once import MAX_KEY
from experiments.problems import FieldProblem, ProblemError
from experiments.proposals import gate
from experiments.proposals import store as proposals
from experiments.proposals.acts import Subject, subject_of
from experiments.proposals.api import ProposalId
from experiments.proposals.model import Proposal, Settlement

_MOST: Final = 200
_KEY_BYTES: Final = 16
_VERBS: Final[tuple[str, ...]] = get_args(Verb)
_SETTLE: Final = {"approve": gate.approve, "reject": gate.reject, "withdraw": gate.withdraw}
_EFFECTS: Final = {
    "approve": "It is carried out at once, as it was proposed, with all checks again. The history "
    "names both of you.",
    "reject": "It is not done, and whoever has proposed it reads why.",
    "withdraw": "It is not done.",
}
_PathVerb = Annotated[str, PathParameter(description="what is said to it")]


class SettleForm(msgspec.Struct, frozen=True):
    """The form that answers a proposal, with the fields that all forms of actions have."""

    title: str
    submit: str
    style: str
    action: str
    back: str
    effects: tuple[str, ...]
    reason: str
    once: str
    problem: str = ""
    wrong: tuple[FieldProblem, ...] = ()
    opened: str = ""
    advice: str = ""
    choice: None = None
    weights: tuple[()] = ()
    traffic: None = None


@get("/proposals", include_in_schema=False, opt={"permission": "read"})
async def show_proposals(request: Request[Any, Any, Any], pages: Pages) -> Response[bytes]:
    """All that waits in the project for a second pair of eyes."""
    caller = principal_of(request)
    async with store.borrow(pages.control.pool) as connection:
        now = pages.control.clock()
        found = await proposals.list_proposals(
            connection, caller.project, now, _MOST, state="pending"
        )
        waiting = await views(connection, caller, found)
    return pages.renderer.page(
        request, "proposals/list.html", waiting=waiting, done=request.query_params.get("done", "")
    )


async def read_waiting(
    connection: store.Connection, pages: PagesPlane, caller: Principal, experiment: str
) -> tuple[Waiting, ...]:
    """What waits of an experiment, as a visitor sees it."""
    found = await proposals.list_proposals(
        connection,
        caller.project,
        pages.control.clock(),
        _MOST,
        experiment=experiment,
        state="pending",
    )
    return await views(connection, caller, found)


async def views(
    connection: store.Connection, caller: Principal, found: list[Proposal]
) -> tuple[Waiting, ...]:
    """Proposals that wait, as a visitor sees them."""
    notes = await read_notes(connection, caller.project, {one.proposer for one in found})
    shown = []
    for one in found:
        record = None
        if one.experiment is not None:
            record = await store.get_experiment(connection, caller.project, one.experiment)
        subject = Subject(one.experiment, 0, 0, 0) if record is None else subject_of(record)
        stale = await gate.moved_since(connection, subject, one)
        shown.append(waiting_view(one, record, caller, notes, stale))
    return tuple(shown)


@get("/proposals/{proposal:str}/{verb:str}", include_in_schema=False, opt={"permission": "write"})
async def show_settle(
    request: Request[Any, Any, Any], pages: Pages, proposal: ProposalId, verb: _PathVerb
) -> Response[bytes]:
    """The form that answers a proposal: a page of its own, which scripts open in a dialog."""
    return await _form_page(request, pages, int(proposal), _known(verb), "", "", None)


@post(
    "/proposals/{proposal:str}/{verb:str}",
    status_code=200,
    include_in_schema=False,
    opt={"permission": "write"},
)
async def settle(
    request: Request[Any, Any, Any],
    pages: Pages,
    form: Form,
    proposal: ProposalId,
    verb: _PathVerb,
) -> Response[bytes]:
    """Answer a proposal."""
    known, number = _known(verb), int(proposal)
    reason = form.fields.get("reason", "").replace("\r\n", "\n").strip()
    once = form.fields.get("once", "")[:MAX_KEY]
    try:
        body = read_as(Settlement, {"reason": reason})
        answer = await _SETTLE[known](
            pages.control, as_api(request, once_of(form)), ACTS, number, body.reason
        )
    except ProblemError as problem:
        if problem.type in {"not-found", "internal", "unavailable"}:
            raise
        return await _form_page(request, pages, number, known, reason, once, problem)
    settled = msgspec.json.decode(answer.content, type=Proposal)
    address = f"{_back(settled.experiment)}?done={settled.state}"
    if request.headers.get("hx-request") == "true":  # a script follows no other way to a new page
        return Response(b"", status_code=200, headers={"HX-Redirect": address})
    return Response(b"", status_code=303, headers={"Location": address})


def _known(verb: str) -> Verb:
    if verb not in _VERBS:
        raise ProblemError("not-found", f"There is no action {verb[:40]!r}")
    return cast(Verb, verb)


def _back(experiment: str | None) -> str:
    """The page on which a proposal is shown."""
    is_page = experiment is not None and not experiment.startswith("$")
    return f"/experiments/{experiment}" if is_page else "/proposals"


async def _form_page(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    number: int,
    verb: Verb,
    reason: str,
    once: str,
    problem: ProblemError | None,
) -> Response[bytes]:
    caller = principal_of(request)
    async with store.borrow(pages.control.pool) as connection:
        found = await gate.find(connection, caller.project, number, pages.control.clock())
        [shown] = await views(connection, caller, [found])
    is_possible = found.state == "pending" and any(one.verb == verb for one in shown.answers)
    if not is_possible and problem is None:
        detail = f"Proposal {number} is {found.state}"
        if found.state == "pending":
            detail = shown.stale or shown.why_not or f"You cannot {verb} this proposal"
        problem = ProblemError("conflict", detail)
    form = SettleForm(
        title=f"{LABELS[verb]}: {shown.title}",
        submit=LABELS[verb],
        style="primary" if verb == "approve" else "danger",
        action=f"/proposals/{number}/{verb}",
        back=_back(found.experiment),
        effects=(*shown.words, _EFFECTS[verb]),
        reason=reason,
        once=once or pages.control.random_bytes(_KEY_BYTES).hex(),
        problem="" if problem is None else problem_words(problem),
        wrong=() if problem is None else problem.errors,
    )
    is_part = request.headers.get("hx-request") == "true"
    return pages.renderer.page(
        request,
        "experiment/act_part.html" if is_part else "proposals/act.html",
        200 if problem is None else problem.status,
        form=form,
        items=(),
        is_possible=is_possible,
        was_changed=False,
    )


ROUTES: Final[list[HTTPRouteHandler]] = [show_proposals, show_settle, settle]
