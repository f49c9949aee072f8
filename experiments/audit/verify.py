"""Verifying the audit: of a database, with the decisions that it tells of, or of an export alone.

Bounded memory: entries and decisions are read in pages, by their keys, and nothing is locked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import asyncpg
import msgspec

from experiments.audit.chain import Finding, Link, Mark, Walk, genesis
from experiments.audit.trail import LINK_COLUMNS
from experiments.records import Basis, Sealed
from experiments.seals import seal
from experiments.store import Connection

_PAGE: Final = 1_000
# A chain of a project that is gone is found too, without going through all entries.
_PROJECTS: Final = """
    with recursive chained as (
        (select project from audit order by project limit 1)
        union all
        select (select a.project from audit a where a.project > c.project
                order by a.project limit 1)
        from chained c where c.project is not null
    )
    select key as project, true as exists from project where $1::text is null or key = $1
    union
    select project, exists (select from project where key = project)
    from (select project from chained union select project from audit_head) found
    where project is not null and ($1::text is null or project = $1)
    order by project
"""
# Both in one statement, so of one moment.
_HEAD: Final = """
    select h.number, encode(h.hash, 'hex') as hash,
           (select max(number) from audit where project = $1) as last
    from (select) one left join audit_head h on h.project = $1
"""
_ENTRIES: Final = f"""
    select {LINK_COLUMNS}, a.decision,
           d.id as d_id, d.run as d_run, d.kind as d_kind, d.rule as d_rule, d.code as d_code,
           d.epoch_before as d_epoch_before, d.epoch_after as d_epoch_after, d.term as d_term,
           d.at as d_at, d.actor as d_actor, d.reason as d_reason, d.evidence as d_evidence,
           d.basis as d_basis, d.seal as d_seal, x.project as x_project, x.key as x_key
    from audit a left join decision d on d.id = a.decision
    left join experiment x on x.id = d.experiment
    where a.project = $1 and a.number > $2 and a.number <= $3 order by a.number limit $4
"""  # noqa: S608 - constants
_DECISIONS: Final = """
    select d.id, x.project, x.key, exists (select from audit a where a.decision = d.id) as noted
    from decision d join experiment x on x.id = d.experiment
    where d.id > $1 and d.id <= $2 order by d.id limit $3
"""
_LAST_DECISION: Final = "select coalesce(max(id), 0) from decision"


class AuditVerifyError(Exception):
    """The audit cannot be verified; the message says why in one line."""


class Verified(msgspec.Struct, frozen=True):
    """What was verified of a project: how many entries, and where they end."""

    project: str
    entries: int
    head: Mark

    def __str__(self) -> str:
        return f"{self.project}: {self.entries} entries, to {self.head}"


class Lines(msgspec.Struct, frozen=True):
    """What a verification says: findings as they come, then each project."""

    found: Callable[[Finding], None]
    done: Callable[[Verified], None]
    progress: Callable[[str], None]


async def verify_chains(
    connection: Connection, project: str | None, expected: Mapping[int, str], lines: Lines
) -> None:
    """Verify the audit of a project, or of all, against its heads and the decisions.

    Args:
        expected: hashes by number, known from elsewhere.

    Raises:
        AuditVerifyError: where there is nothing to verify.
    """
    rows = await connection.fetch(_PROJECTS, project)
    if not rows:
        raise AuditVerifyError(
            "there is no project to verify" if project is None else f"no project {project}"
        )
    through: dict[str, int] = {}
    for row in rows:
        name = row["project"]
        if not row["exists"]:
            lines.found(Finding(name, 0, "has an audit, but there is no such project"))
        through[name] = await _verify_chain(connection, name, expected, lines)
    await _verify_decisions(connection, through, lines)


async def _verify_chain(
    connection: Connection, project: str, expected: Mapping[int, str], lines: Lines
) -> int:
    """Verify one chain; up to which decision the project's have no entry."""
    row = await connection.fetchrow(_HEAD, project)
    head = None if row is None or row["number"] is None else Mark(row["number"], row["hash"])
    if head is None:
        lines.found(Finding(project, 0, "the head of its chain is gone"))
    last = (0 if row is None else row["last"]) or 0
    through = max(last, 0 if head is None else head.number)
    walk = Walk(project, genesis(project), expected)
    after = unnoted = 0
    while True:
        rows = await connection.fetch(_ENTRIES, project, after, through, _PAGE)
        if not rows:
            break
        for entry in rows:
            link = Link(**{name: entry[name] for name in Link.__struct_fields__})
            for finding in walk.take(link):
                lines.found(finding)
            if link.number == 1 and link.action == "audit.begin":
                said = _detail(link).get("decisions_through")
                unnoted = said if isinstance(said, int) else 0
            for what in _against_decision(link, entry):
                lines.found(Finding(project, link.number, what))
        after = rows[-1]["number"]
        lines.progress(f"{project}: {after} of {through} entries")
    for finding in walk.finish(head):
        lines.found(finding)
    lines.done(Verified(project, walk.entries, walk.last or genesis(project)))
    return unnoted


def _detail(link: Link) -> dict[str, Any]:
    try:
        detail = msgspec.json.decode(link.detail)
    except msgspec.DecodeError:
        return {}
    return detail if isinstance(detail, dict) else {}


def _against_decision(link: Link, row: asyncpg.Record) -> Iterator[str]:
    """What differs between an entry and the decision that it tells of."""
    told, number = _detail(link), row["decision"]
    if (told.get("decision") if link.kind == "decision" else None) != number:
        yield f"stands in the place of decision {number}, of which it does not tell"
    if number is None:
        return
    if row["d_id"] is None:
        yield f"decision {number} is gone"
        return
    if row["x_project"] != link.project or f"experiments/{row['x_key']}" != link.target:
        yield f"decision {number} is of {row['x_project']} experiments/{row['x_key']} now"
    if told.get("seal") != row["d_seal"]:
        yield f"decision {number} has another seal"
    elif row["d_seal"] is not None and _seal(row) != row["d_seal"]:
        yield f"decision {number} was changed: it differs from its seal"


def _seal(row: asyncpg.Record) -> str | None:
    fields = {name: row[f"d_{name}"] for name in Sealed.__struct_fields__}
    try:
        fields["evidence"] = msgspec.json.decode(fields["evidence"])
        basis = fields["basis"]
        fields["basis"] = basis and msgspec.json.decode(basis, type=Basis)
    except msgspec.DecodeError:
        return None
    return seal(Sealed(**fields))


async def _verify_decisions(
    connection: Connection, through: Mapping[str, int], lines: Lines
) -> None:
    last = await connection.fetchval(_LAST_DECISION)
    after = 0
    while rows := await connection.fetch(_DECISIONS, after, last, _PAGE):
        for row in rows:
            project, number = row["project"], row["id"]
            if project in through and number > through[project] and not row["noted"]:
                what = f"decision {number} of {row['key']} has no entry"
                lines.found(Finding(project, 0, what))
        after = rows[-1]["id"]
        lines.progress(f"{after} of {last} decisions")


def verify_export(
    export: Iterable[bytes], project: str | None, expected: Mapping[int, str], lines: Lines
) -> None:
    """Verify an export, without a database: of a project, or of all that are in it.

    Raises:
        AuditVerifyError: where a line is no entry, or there is none of the project.
    """
    walks: dict[str, Walk] = {}
    decoder = msgspec.json.Decoder(Link)
    for place, line in enumerate(export, 1):
        if not line.strip():
            continue
        try:
            link = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise AuditVerifyError(f"line {place} is no entry of an audit: {error}") from error
        if project is not None and link.project != project:
            continue
        if link.project not in walks:
            start = genesis(link.project) if link.number == 1 else None
            walks[link.project] = Walk(link.project, start, expected)
            if link.number != 1:
                lines.progress(
                    f"{link.project}: begins at {link.number}: what was before is not verified"
                )
        for finding in walks[link.project].take(link):
            lines.found(finding)
        if place % (100 * _PAGE) == 0:
            lines.progress(f"{place} lines")
    if not walks:
        raise AuditVerifyError("there is no entry to verify")
    for name, walk in sorted(walks.items()):
        for finding in walk.finish():
            lines.found(finding)
        lines.done(Verified(name, walk.entries, walk.last or genesis(name)))
