"""The history of an experiment's settings: each revision as what it changed."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import msgspec
import yaml

from dashboard.editor.documents import sparse
from dashboard.editor.yaml_text import write
from dashboard.experiment import settings_diff
from dashboard.experiment.people import Who, read_notes, who
from experiments import store
from experiments.records import ExperimentRecord, Revision
from experiments.store import Connection

PAGE: Final = 10
_LONGEST: Final = 400


class SettingsFacts(msgspec.Struct, frozen=True):
    """Revisions, the newest first, one more than are shown where there are more; and the notes of
    keys."""

    revisions: tuple[Revision, ...]
    notes: Mapping[str, str]


class ChangeRow(msgspec.Struct, frozen=True):
    """A field that changed. `before` and `after` as people write them; empty where there was, or
    is, nothing."""

    path: str
    kind: settings_diff.Kind
    before: str
    after: str


class RevisionRow(msgspec.Struct, frozen=True):
    """A revision. `changes` is empty of the first one, and of one that changed nothing."""

    number: int
    at: datetime
    who: Who
    reason: str
    changes: tuple[ChangeRow, ...]


class Settings(msgspec.Struct, frozen=True):
    """A page of revisions, and the settings of the newest as YAML. `older` leads on, empty at the
    end."""

    rows: tuple[RevisionRow, ...]
    yaml: str
    older: str


async def read(
    connection: Connection, record: ExperimentRecord, before: int | None = None
) -> SettingsFacts:
    """A page of revisions, from behind the number `before`."""
    revisions = await store.list_revisions(connection, record.id, PAGE + 1, before)
    actors = {revision.actor for revision in revisions}
    return SettingsFacts(tuple(revisions), await read_notes(connection, record.project, actors))


def make(record: ExperimentRecord, facts: SettingsFacts) -> Settings:
    """A page of revisions. Pure."""
    plain = [_plain(revision.definition) for revision in facts.revisions]
    rows = tuple(
        RevisionRow(
            number=revision.number,
            at=revision.at,
            who=who(revision.actor, "", facts.notes),
            reason=revision.reason,
            changes=_changes(plain, index),
        )
        for index, revision in enumerate(facts.revisions[:PAGE])
    )
    more = len(facts.revisions) > PAGE
    last = rows[-1].number if rows else 0
    return Settings(
        rows=rows,
        yaml=write(sparse(record.definition)),
        older=f"/experiments/{record.key}/revisions?before={last}" if more else "",
    )


def _plain(definition: msgspec.Struct) -> Any:
    """A definition in JSON's types: what were tuples are lists."""
    return msgspec.json.decode(msgspec.json.encode(definition))


def _changes(plain: Sequence[Any], index: int) -> tuple[ChangeRow, ...]:
    """What changed to a revision from the one before, which stands behind it."""
    if index + 1 == len(plain):
        return ()
    return tuple(change_row(each) for each in settings_diff.diff(plain[index + 1], plain[index]))


def change_row(change: settings_diff.Change) -> ChangeRow:
    """A field that changed, for people: what was null before is new to them."""
    kind = change.kind
    if kind == "changed" and change.before is None:
        kind = "added"
    elif kind == "changed" and change.after is None:
        kind = "removed"
    return ChangeRow(change.path, kind, _written(change.before, kind), _written(change.after, kind))


def _written(value: Any, kind: settings_diff.Kind) -> str:
    """A value on one line, as YAML has it; nothing of null."""
    if kind == "order":
        return ", ".join(value)
    if value is None:
        return ""
    if isinstance(value, str) and value.strip():
        text = value
    else:
        dumped: str = yaml.safe_dump(
            _stated(value),
            default_flow_style=True,
            sort_keys=False,
            allow_unicode=True,
            width=math.inf,
        )
        text = dumped.removesuffix("\n...\n").strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def _stated(value: Any) -> Any:
    """A value without the fields that say nothing."""
    if isinstance(value, list):
        return [_stated(item) for item in value]
    if isinstance(value, dict):
        left = {name: _stated(item) for name, item in value.items()}
        return {name: item for name, item in left.items() if item is not None and item != []}
    return value
