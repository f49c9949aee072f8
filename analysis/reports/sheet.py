"""The report as a document: in each of the formats that it is handed out in, all of one reading."""

from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final, Literal, TypeAlias

import msgspec

from analysis.reports.facts import read_facts
from analysis.reports.markdown import render
from analysis.reports.model import Facts
from analysis.reports.report import Report, make_report
from analysis.reports.table import to_csv
from experiments import lifecycle
from experiments.records import ExperimentRecord
from experiments.store import Connection

Format: TypeAlias = Literal["json", "html", "markdown", "csv"]
"""What a report is handed out as. The codes are stable."""
MEDIA_TYPES: Final[dict[Format, str]] = {
    "json": "application/json",
    "html": "text/html",
    "markdown": "text/markdown",
    "csv": "text/csv",
}
SUFFIXES: Final[dict[Format, str]] = {
    "json": "json",
    "html": "html",
    "markdown": "md",
    "csv": "csv",
}


class Reader(msgspec.Struct, frozen=True):
    """Who had a document made: as the ledger names them, and as people do."""

    actor: str
    name: str


class Sheet(msgspec.Struct, frozen=True):
    """A report, and what a document says besides.

    Arguments:
        record: the experiment as it stood when the report was read.
        course: how the readings went over time; of a room above, so that this one hands it on.
        read_at: when the report was read.
        reader: by whom.
        snapshot: the id of the snapshot that the document is of; None of one that was only read.
        note: of whoever took the snapshot.
    """

    report: Report
    record: ExperimentRecord
    course: Any
    read_at: datetime
    reader: Reader
    snapshot: str | None = None
    note: str = ""


class Press(msgspec.Struct, frozen=True):
    """What makes HTML of a report, handed in, since pages are of a room above.

    Arguments:
        course: reads what goes into `Sheet.course`.
        html: a sheet as one file that stands alone.
    """

    course: Callable[[Connection, ExperimentRecord], Awaitable[Any]]
    html: Callable[[Sheet], str]


class Material(msgspec.Struct, frozen=True):
    """What a sheet is made from, read in one transaction."""

    record: ExperimentRecord
    facts: Facts
    course: Any
    read_at: datetime


async def read_material(
    connection: Connection,
    project: str,
    key: str,
    now: datetime,
    lateness: timedelta,
    press: Press | None,
) -> Material:
    """What is known of an experiment's current run.

    Args:
        connection: in a transaction that sees one state of the data.
        press: None where no HTML is wanted, which alone shows the course.

    Raises:
        ProblemError: `not-found`.
    """
    record = await lifecycle.find(connection, project, key)
    facts = await read_facts(connection, record, now, lateness)
    course = None if press is None else await press.course(connection, record)
    return Material(record, facts, course, now)


def make_sheet(
    material: Material, reader: Reader, snapshot: str | None = None, note: str = ""
) -> Sheet:
    """The sheet. With many segments it takes the better part of a second."""
    return Sheet(
        report=make_report(material.facts),
        record=material.record,
        course=material.course,
        read_at=material.read_at,
        reader=reader,
        snapshot=snapshot,
        note=note,
    )


def write_as(wanted: Format, sheet: Sheet, press: Press | None) -> bytes:
    """The document in a format, as it is sent.

    Raises:
        ValueError: of HTML, where nothing was handed in that makes it.
    """
    match wanted:
        case "json":
            return msgspec.json.encode(sheet.report)
        case "markdown":
            return render(sheet.report).encode()
        case "csv":
            return to_csv(sheet.report).encode()
        case "html":
            if press is None:
                raise ValueError("nothing here makes HTML")
            return press.html(sheet).encode()


def file_name(sheet: Sheet, wanted: Format) -> str:
    """What a file of it is called: which experiment and run, and as of when."""
    return name_file(
        sheet.report.experiment, sheet.report.run, sheet.read_at, wanted, sheet.snapshot is not None
    )


def name_file(
    experiment: str, run: int, at: datetime, wanted: Format, is_snapshot: bool = False
) -> str:
    """A name that is sound on any system: keys have none of the characters that some refuse."""
    kind = "snapshot" if is_snapshot else "report"
    key = experiment.lstrip("$")
    return f"{kind}-{key}-run{run}-{at:%Y%m%dT%H%MZ}.{SUFFIXES[wanted]}"
