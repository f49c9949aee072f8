"""`turnout audit`: the chain of what was done goes out as NDJSON, and is verified, here or
elsewhere."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from experiments.audit.chain import Finding
from experiments.audit.trail import head_of, links
from experiments.audit.verify import (
    AuditVerifyError,
    Lines,
    Verified,
    verify_chains,
    verify_export,
)
from experiments.problems import ProblemError
from experiments.store import project_versions
from turnout.admin import database
from turnout.backends import CannotRunError
from turnout.settings import Settings

_MARK: Final = re.compile(r"(?P<number>0|[1-9][0-9]{0,17}):(?P<hash>[0-9a-f]{64})")


def add_arguments(commands: Any, command: Callable[..., Any], run: Mapping[str, Any]) -> None:
    """Add `export` and `verify`; `run` has what does them."""
    export = command(commands, "export", run["export"], "write the audit as NDJSON", settings=True)
    export.add_argument(
        "--after", type=int, default=0, metavar="NUMBER", help="begin behind this entry"
    )
    verify = command(
        commands, "verify", run["verify"], "look for what was changed or is missing", settings=True
    )
    verify.add_argument(
        "--file", metavar="EXPORT", help="verify this export, without a database; - reads it"
    )
    verify.add_argument(
        "--expect",
        metavar="NUMBER:HASH",
        action="append",
        default=[],
        help="an entry as it is known from elsewhere, such as the end of an earlier export",
    )


async def export_audit(
    settings: Settings, project: str | None, after: int, out: BinaryIO, told: Callable[[str], None]
) -> None:
    """Write the audit of a project, or of all one after another, a line of JSON an entry.

    Raises:
        CannotRunError: if there is no such project, or the database cannot be reached.
    """
    async with database(settings) as (pool, _):
        async with pool.acquire() as connection:
            names = sorted(await project_versions(connection)) if project is None else [project]
        for name in names:
            try:
                async with pool.acquire() as connection:
                    head = await head_of(connection, name)
            except ProblemError as error:
                raise CannotRunError(error.detail) from error
            async for part in links(pool, name, after, head.number):
                _put(out, msgspec.json.Encoder().encode_lines(part))
            told(f"{name}: to {head}")
    _put(out, b"")


def _put(out: BinaryIO, data: bytes) -> None:
    try:
        out.write(data)
        out.flush()
    except BrokenPipeError as error:
        # Or the interpreter complains, when it ends, that it cannot write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise CannotRunError("whoever reads the export has gone: it is not whole") from error
    except OSError as error:
        raise CannotRunError(f"the export cannot be written: {error}") from error


async def verify_database(
    settings: Settings, project: str | None, expect: list[str], lines: Lines
) -> None:
    """Verify what a database holds, of a project or of all.

    Raises:
        CannotRunError: if there is nothing to verify, or the database cannot be reached.
    """
    expected = _marks(expect, project)
    async with database(settings) as (pool, _), pool.acquire() as connection:
        try:
            await verify_chains(connection, project, expected, lines)
        except AuditVerifyError as error:
            raise CannotRunError(str(error)) from error


def verify_file(name: str, project: str | None, expect: list[str], lines: Lines) -> None:
    """Verify an export.

    Raises:
        CannotRunError: if it cannot be read, or is none.
    """
    expected = _marks(expect, project)
    try:
        if name == "-":
            verify_export(sys.stdin.buffer, project, expected, lines)
        else:
            with Path(name).open("rb") as export:
                verify_export(export, project, expected, lines)
    except (OSError, AuditVerifyError) as error:
        raise CannotRunError(f"{name}: {error}") from error


def _marks(texts: list[str], project: str | None) -> dict[int, str]:
    matches = [(text, _MARK.fullmatch(text)) for text in texts]
    wrong = [text for text, match in matches if match is None]
    if wrong:
        raise CannotRunError(
            f"--expect takes NUMBER:HASH, as an audit's end is told, not {wrong[0]}"
        )
    if texts and project is None:
        raise CannotRunError("--expect is of one project: name it with --project")
    return {int(match["number"]): match["hash"] for _, match in matches if match is not None}


class Report:
    """What a verification says as it goes; `findings` counts what is wrong."""

    def __init__(self, say: Callable[[str], None], note: Callable[[str], None]) -> None:
        self._say = say
        self.lines = Lines(self._found, self._done, note)
        self.findings = 0

    def _found(self, finding: Finding) -> None:
        self.findings += 1
        self._say(str(finding))

    def _done(self, verified: Verified) -> None:
        self._say(str(verified))
