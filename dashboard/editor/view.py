"""What the page of the editor shows, made of what was written and of what was found out about it.
Pure."""

from collections.abc import Mapping
from typing import Any

import msgspec

from analysis.planning.answer import Plan
from dashboard.editor.checklist import Item, blockers, checklist
from dashboard.editor.documents import differing, sparse
from dashboard.editor.drafting import Drafted
from dashboard.editor.form import FormView, Told, anchor, show
from dashboard.editor.planner import PlanView
from dashboard.editor.rehearsal import Rehearsal, holder
from experiments.problems import FieldProblem
from experiments.ramp import RampState
from experiments.records import ExperimentRecord
from experiments.states import HOLDS_SLOTS, allowed


class Mark(msgspec.Struct, frozen=True):
    """A line of the checklist, and the id of the place that it links to; empty where to none."""

    item: Item
    target: str


class EditorView(msgspec.Struct, frozen=True):
    """All that the page shows.

    Arguments:
        key: of the experiment that is edited; empty for a new one.
        base, digest: what the page sends back, so that it is seen what was changed.
        yaml_wrong: why the YAML cannot be read; `yaml_line` where.
        refused: what stopped a save, besides wrong fields.
    """

    key: str
    title: str
    state: str
    revision: int
    base: str
    digest: str
    yaml: str
    yaml_lines: tuple[int, ...]
    yaml_wrong: str
    yaml_line: int | None
    both: bool
    form: FormView
    told: tuple[Told, ...]
    checklist: tuple[Mark, ...]
    blocked: int
    plan: PlanView
    follows: tuple[str, ...]
    is_changed: bool
    is_tried: bool
    may_start: bool
    asks_reason: bool
    reason: str
    reason_wrong: str
    refused: str


class Work(msgspec.Struct, frozen=True):
    """What a request is about: the experiment, if it is there already, and what was sent."""

    record: ExperimentRecord | None
    ramp: RampState | None
    revision: int
    draft: Drafted
    sent: Mapping[str, str]
    is_tried: bool
    reason_wrong: str = ""
    refused: str = ""


def editor_view(work: Work, rehearsal: Rehearsal, plan: Plan | None, shown: PlanView) -> EditorView:
    """The page of what was written and of what was found out about it. Pure."""
    draft, record = work.draft, work.record
    is_readable = draft.is_readable
    problems = (*draft.problems, *rehearsal.problems) if is_readable else draft.problems
    form = show(
        draft.document,
        problems,
        unreadable=draft.unreadable,
        typed=draft.typed,
        held=holder(record, draft.document, work.ramp),
        line_of=draft.reading.line_of,
        is_new=record is None and not work.is_tried,
    )
    state = "draft" if record is None else record.state
    items = checklist(
        rehearsal.definition if is_readable else None,
        problems=[*problems, *_as_problems(draft)],
        state="draft" if state in HOLDS_SLOTS else state,
        refusal=rehearsal.refusal,
        plan=plan,
    )
    wrong = "Both the form and the YAML were changed: say which counts" if draft.both else ""
    return EditorView(
        key="" if record is None else record.key,
        title="New experiment" if record is None else f"Edit {_title(record)}",
        state=state,
        revision=work.revision,
        base=draft.base,
        digest=draft.digest,
        yaml=draft.yaml,
        yaml_lines=_marked(form, draft),
        yaml_wrong=wrong or draft.reading.wrong,
        yaml_line=draft.reading.line,
        both=draft.both,
        form=form,
        told=form.told,
        checklist=tuple(Mark(item, _target(item, form)) for item in items),
        blocked=len(blockers(items)),
        plan=shown,
        follows=rehearsal.follows,
        is_changed=record is None or bool(_changed(record, draft.document)),
        is_tried=work.is_tried,
        may_start=record is None or "start" in allowed(record.state),
        asks_reason=state != "draft",
        reason=work.sent.get("reason", ""),
        reason_wrong=work.reason_wrong,
        refused=work.refused,
    )


def _marked(form: FormView, draft: Drafted) -> tuple[int, ...]:
    """The lines of the YAML in which something is wrong."""
    found = {draft.reading.line, *(told.line for told in form.told if not told.is_left)}
    return tuple(sorted(line for line in found if line is not None))


def _target(item: Item, form: FormView) -> str:
    if item.code == "problems":
        return form.told[0].target if form.told else "yaml"
    if item.where == "plan":
        return "pane-plan"
    return anchor(item.where) if item.where else ""


def _as_problems(draft: Drafted) -> list[FieldProblem]:
    found = [FieldProblem(path, "value", text.why) for path, text in draft.unreadable.items()]
    if draft.reading.wrong or draft.both:
        found.append(FieldProblem("yaml", "value", draft.reading.wrong))
    return found


def _title(record: ExperimentRecord) -> str:
    return record.definition.name or record.key


def _changed(record: ExperimentRecord, document: dict[str, Any]) -> list[str]:
    return differing(sparse(record.definition), document)
