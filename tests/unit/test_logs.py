"""Lines of the log: what they hold, what they never hold, and how many there may be."""

import json
import logging
import os
import sys
from typing import Any

import asyncpg
import pytest

from experiments.spans import TraceContext, current_trace
from turnout.logs import MOST_A_MINUTE, Flood, JsonFormatter, redacted, request_id, said
from turnout.terminal import plain, plain_line


def record(message: str, level: int = logging.WARNING, **fields: Any) -> logging.LogRecord:
    """A record, as a logger would make it."""
    made = logging.LogRecord("turnout.part", level, __file__, 1, message, (), None)
    made.__dict__.update(fields)
    return made


def line_of(made: logging.LogRecord, *, units: bool = False) -> dict[str, Any]:
    """The record as it is written, read again."""
    text = JsonFormatter("serve", units=units).format(made)
    assert "\n" not in text
    line: dict[str, Any] = json.loads(text)
    return line


def test_a_line_says_who_wrote_it_for_which_request_and_in_which_trace() -> None:
    identity = request_id.set("r1")
    trace = current_trace.set(TraceContext("ab" * 16, "cd" * 8, sampled=False))
    try:
        line = line_of(record("shipping failed", attempt=3))
    finally:
        current_trace.reset(trace)
        request_id.reset(identity)
    assert line.pop("time").endswith("Z")
    assert line.pop("pid") > 0
    assert line == {
        "level": "warning",
        "logger": "turnout.part",
        "message": "shipping failed",
        "process": "serve",
        "request_id": "r1",
        "trace_id": "ab" * 16,
        "span_id": "cd" * 8,
        "attempt": 3,
    }


@pytest.mark.parametrize(
    "text",
    [
        "to_3f2a9c_SECRETSECRETSECRETSECRET-_x was sent",
        "Authorization: Bearer SECRET",
        "cannot connect to postgresql://turnout:SECRET@db:5432/turnout",
        "cannot connect to redis://:p@ss/SECRET@cache:6379/0",
        "postgresql://db/turnout?user=u&password=SECRET",
        "host=db password=SECRET dbname=x",
        "POST https://hooks.slack.com/services/T0/B0/SECRET failed",
        "GET /v1/replay?experiment=x&unit=SECRET was slow",
        "whsec_SECRETSECRET==",
    ],
)
@pytest.mark.parametrize("units", [False, True])
def test_no_line_holds_a_secret_whatever_the_settings_say(text: str, units: bool) -> None:
    error = RuntimeError(text)
    made = record(text, where=text, error=error)
    made.exc_info = (RuntimeError, error, None)
    assert "SECRET" not in JsonFormatter(units=units).format(made)


def test_an_error_of_postgres_is_told_without_the_values_that_it_quotes() -> None:
    error = asyncpg.UniqueViolationError("duplicate key value violates unique constraint")
    error.detail, error.constraint_name = "Key (unit)=(alice) already exists.", "enrolment_pkey"
    assert said(error) == "UniqueViolationError (23505, enrolment_pkey)"
    assert "alice" in said(error, units=True)
    wrong = asyncpg.DataError("invalid input for query argument $1: 'alice' (an int is needed)")
    assert "alice" not in said(wrong)
    assert "alice" not in redacted(repr(wrong))
    assert "alice" not in redacted("DETAIL:  Key (unit)=(alice) already exists.")
    gone = asyncpg.AdminShutdownError("terminating connection due to administrator command")
    assert said(gone).endswith("terminating connection due to administrator command")


def _defect() -> None:
    try:
        int("alice")
    except ValueError as error:
        raise KeyError("bob") from error


def test_a_traceback_tells_the_place_and_the_kinds_but_no_data_unless_asked() -> None:
    with pytest.raises(KeyError) as caught:
        _defect()
    error = caught.value
    made = record("defect")
    made.exc_info = (type(error), error, error.__traceback__)
    told = line_of(made)["exception"]
    assert "in _defect" in told
    assert told.index("ValueError") < told.index("KeyError")
    assert "'alice'" not in told
    assert "'bob'" not in told
    asked = line_of(made, units=True)["exception"]
    assert "'alice'" in asked
    assert "'bob'" in asked


def test_what_asyncio_says_of_a_task_that_failed_shows_none_of_its_data() -> None:
    text = "Task exception was never retrieved\nfuture: <Task exception=KeyError('alice')>"
    made = record(text)
    made.name = "asyncio"
    assert line_of(made)["message"] == "Task exception was never retrieved"


def test_no_text_forges_a_line_or_moves_a_cursor() -> None:
    text = 'x\n{"level":"info"}\r\x1b[2J\x9b2J\u2028\u202e\x7f'
    written = JsonFormatter().format(record(text, key=text))
    assert not [c for c in written if c != " " and not c.isprintable()]
    assert json.loads(written)["key"] == text
    assert plain("a\tb\n\x1b]0;title\x07") == "a\tb\n\\x1b]0;title\\x07"
    assert plain_line("a\nturnout: all is well") == "a\\nturnout: all is well"


def test_a_flood_of_equal_lines_is_cut_and_counted() -> None:
    now = 0.0
    flood = Flood(lambda: now)
    passed = [flood.filter(record("tick failed", error=str(n))) for n in range(MOST_A_MINUTE + 40)]
    assert passed == [True] * MOST_A_MINUTE + [False] * 40
    assert flood.filter(record("another"))
    assert all(flood.filter(record("tick failed", logging.DEBUG)) for _ in range(100))
    now = 60.0
    first = record("tick failed")
    assert flood.filter(first)
    assert line_of(first)["suppressed"] == 40
    assert "suppressed" not in line_of(record("tick failed"))


def test_a_flood_of_one_defect_hides_no_other() -> None:
    def defect(error: Exception) -> logging.LogRecord:
        made = record("defect")
        made.exc_info = (type(error), error, error.__traceback__)
        return made

    flood = Flood(lambda: 0.0)
    passed = [flood.filter(defect(KeyError(n))) for n in range(MOST_A_MINUTE + 1)]
    assert passed[-2:] == [True, False]
    assert flood.filter(defect(ValueError("rare")))
    with pytest.raises(KeyError) as elsewhere:
        os.environ["NO_SUCH_VARIABLE"]
    assert flood.filter(defect(elsewhere.value))


def test_a_long_text_is_cut() -> None:
    assert len(JsonFormatter().format(record("x" * 100_000))) < 10_000
    assert sys.getsizeof(redacted("/?" * 2_000 + "to_" * 1_000)) < 100_000
