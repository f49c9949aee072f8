"""The forms of actions, and what they do: the same use cases as the API's.

A form is sent once, whatever a hand does to its button: it carries an `Idempotency-Key`. And it is
about the experiment as it was when the form was opened: if somebody has changed it since, nothing
is done, and the form says so.
"""

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Final, cast

import msgspec
from litestar import Request, Response, get, post
from litestar.handlers import HTTPRouteHandler
from litestar.params import PathParameter

from analysis.control import ramp_api
from analysis.control.acts import ACTS
from analysis.control.standing import read_standing_alarms
from analysis.reports.facts import read_facts
from analysis.reports.report import make_report
from dashboard.editor.checklist import Item, checklist
from dashboard.experiment.action_forms import (
    FormFacts,
    check_percents,
    make_form,
    opened_at,
    read_percent,
    was_touched,
)
from dashboard.experiment.actions import VERBS, Verb, label_of, possible
from dashboard.experiment.history_allocation import read_epochs
from dashboard.plane import Pages, PagesPlane
from dashboard.security import Form, as_api
from experiments import lifecycle, paths, store
from experiments.doors import PathKey, principal_of
from experiments.model import HOLDOUT, RampPolicy
from experiments.once import HEADER, MAX_KEY
from experiments.problems import ProblemError
from experiments.projects import approvals_of
from experiments.proposals.acts import Subject
from experiments.proposals.gate import write_act
from experiments.records import ExperimentRecord
from experiments.revisions import etag

_PathVerb = Annotated[str, PathParameter(description="what is done")]
_KEY_BYTES: Final = 16


@get(
    "/experiments/{key:str}/actions/{verb:str}",
    include_in_schema=False,
    opt={"permission": "write"},
)
async def show_form(
    request: Request[Any, Any, Any], pages: Pages, key: PathKey, verb: _PathVerb
) -> Response[bytes]:
    """The form of an action: a page of its own, which scripts open in a dialog."""
    return await _form_page(request, pages, key, _known(verb), dict(request.query_params), None)


@post(
    "/experiments/{key:str}/actions/{verb:str}",
    status_code=200,
    include_in_schema=False,
    opt={"permission": "write"},
)
async def act(
    request: Request[Any, Any, Any], pages: Pages, form: Form, key: PathKey, verb: _PathVerb
) -> Response[bytes]:
    """Do what a form asks for."""
    known = _known(verb)
    try:
        done = await _do(request, pages, key, known, form.fields)
    except ProblemError as problem:
        if problem.type in {"not-found", "forbidden", "internal", "unavailable"}:
            raise
        return await _form_page(request, pages, key, known, form.fields, problem)
    address = f"/experiments/{key}?done={done}"
    if request.headers.get("hx-request") == "true":  # a script follows no other way to a new page
        return Response(b"", status_code=200, headers={"HX-Redirect": address})
    return Response(b"", status_code=303, headers={"Location": address})


def _known(verb: str) -> Verb:
    if verb not in VERBS:
        raise ProblemError("not-found", f"There is no action {verb[:40]!r}")
    return cast(Verb, verb)


async def _do(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    key: str,
    verb: Verb,
    fields: Mapping[str, str],
) -> str:
    """Do it, or propose it; what was done, in a word that the page knows."""
    api_verb, sent = _sent(verb, fields)
    opened = fields.get("opened", "")
    revision, _, _ = opened.partition(".")
    if not (revision.isascii() and revision.isdigit() and len(revision) < _DIGITS):
        raise ProblemError("malformed", "The form does not say to what it was opened")
    act = ACTS[api_verb]
    asked = act.read(principal_of(request).project, key, sent)
    epoch = 0

    def expect(subject: Subject) -> None:
        nonlocal epoch
        record, epoch = subject.record, subject.epoch
        # The revision was compared before; run and state are not.
        if record is not None and opened_at(record) != opened:
            raise ProblemError(
                "revision-mismatch", f"It is {record.state} now, in run {record.run}"
            )

    once = fields.get("once", "")[:MAX_KEY]
    if verb == "allocate" and not sent.keys() - {"reason"}:
        return "unmoved"
    headers = {"if-match": etag(int(revision))["ETag"]} | ({HEADER: once} if once else {})
    api = as_api(request, headers)
    answer = await write_act(pages.control, api, act, asked, expect=expect)
    if answer.status_code == 202:
        return "proposed"
    if verb != "allocate":
        return verb
    # Where it was done before, by the same form, nothing was locked.
    moved = epoch == 0 or msgspec.json.decode(answer.content, type=_AtEpoch).epoch != epoch
    return verb if moved else "unmoved"


class _AtEpoch(msgspec.Struct, frozen=True):
    """What matters here of an experiment as the API shows it."""

    epoch: int


def _reason(fields: Mapping[str, str]) -> str:
    """Why, as it was typed: browsers send line ends as CR LF."""
    return fields.get("reason", "").replace("\r\n", "\n").strip()


_DIGITS: Final = 6


def _sent(verb: Verb, fields: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """What a form asks for: the verb of the act, and the body as the API takes it."""
    sent: dict[str, Any] = {"reason": _reason(fields)}
    match verb:
        case "conclude":
            sent["ship"] = fields.get("ship", "")
        case "allocate":
            sent |= _allocation(fields)
        case "rollback_variant" | "resume_variant":
            sent["variant"] = fields.get("variant", "")
        case "approve" | "jump":
            step = fields.get("step", "")
            is_number = step.isascii() and step.isdigit() and len(step) < _DIGITS
            sent["step"] = int(step) if is_number else 0
    return verb.removesuffix("_variant"), sent


def _allocation(fields: Mapping[str, str]) -> dict[str, Any]:
    """What was not touched stays as routers use it now, wherever a bandit has moved it to."""
    names = [name for name in fields if name.startswith("weights.")]
    sent: dict[str, Any] = {}
    if was_touched(fields, names):
        sent["weights"] = {
            name.removeprefix("weights."): read_percent(name, fields[name]) for name in names
        }
    if "traffic" in fields and was_touched(fields, ["traffic"]):
        sent["traffic"] = read_percent("traffic", fields["traffic"])
    weights = {paths.field("weights", key): share for key, share in sent.get("weights", {}).items()}
    check_percents(weights, sent.get("traffic"))
    return sent


async def _form_page(
    request: Request[Any, Any, Any],
    pages: PagesPlane,
    key: str,
    verb: Verb,
    sent: Mapping[str, str],
    problem: ProblemError | None,
) -> Response[bytes]:
    """The form as the experiment stands now; a page, or what a dialog shows of it."""
    facts = await _read(pages, principal_of(request).project, key, verb)
    record = facts.record
    is_possible = verb in possible(record, facts.ramp, facts.alarms)
    if not is_possible and problem is None:
        problem = ProblemError("conflict", _cannot(verb, record))
    # A form that was refused has done nothing, so its key stands; after a change of the experiment
    # it would be another request.
    stays = problem is not None and sent.get("opened") == opened_at(record)
    once = sent.get("once", "") if stays else ""
    form = make_form(
        verb, facts, once or pages.control.random_bytes(_KEY_BYTES).hex(), sent, problem
    )
    is_part = request.headers.get("hx-request") == "true"
    items: tuple[Item, ...] = ()
    if verb == "start" and is_possible:
        items = tuple(
            item
            for item in checklist(record.definition, state=record.state)
            if item.level != "ok" and item.code != "power"  # the planner was not asked here
        )
    return pages.renderer.page(
        request,
        "experiment/act_part.html" if is_part else "experiment/act.html",
        200 if problem is None else problem.status,
        record=record,
        form=form,
        items=items,
        is_possible=is_possible,
        was_changed=problem is not None and problem.type == "revision-mismatch",
    )


def _cannot(verb: Verb, record: ExperimentRecord) -> str:
    if record.key == HOLDOUT:
        return f"{HOLDOUT} is the project's holdout: `PUT /v1/holdout` changes it"
    state = record.state.replace("_", " ")
    return (
        f"{label_of(verb, record)}: the experiment is {state}, and as it stands that cannot be done"
    )


async def _read(pages: PagesPlane, project: str, key: str, verb: Verb) -> FormFacts:
    control = pages.control
    now, report = control.clock(), None
    async with (
        store.borrow(control.pool) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        record = await lifecycle.find(connection, project, key)
        epochs = await read_epochs(connection, record, [record.epoch] if record.epoch else [])
        is_ramp = isinstance(record.definition.policy, RampPolicy)
        facts = FormFacts(
            record=record,
            epoch=epochs.get(record.epoch),
            ramp=await ramp_api.view(connection, record, now) if is_ramp else None,
            alarms=await read_standing_alarms(connection, record),
            approvals=await approvals_of(connection, project),
        )
        if verb == "conclude" and record.run:
            report = await read_facts(connection, record, now, pages.analysis.lateness)
    if report is None:
        return facts
    verdict = (await asyncio.to_thread(make_report, report)).verdict
    return msgspec.structs.replace(facts, verdict=verdict)


ROUTES: Final[list[HTTPRouteHandler]] = [show_form, act]
