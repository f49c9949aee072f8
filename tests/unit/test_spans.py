"""The W3C trace context, and who is traced."""

import pytest

from experiments.spans import TraceContext, read_context
from turnout.otlp import MOST_ASKED_FOR, QUEUE, Policy, SpanCounts
from turnout.tracing import summary_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


def test_a_context_is_taken_up_and_passed_on() -> None:
    found = read_context(GIVEN, "a=1, b@x=2 ,")
    assert found == TraceContext(TRACE, SPAN, sampled=True, state="a=1,b@x=2", remote=True)
    assert found is not None
    assert found.headers() == {"traceparent": GIVEN, "tracestate": "a=1,b@x=2"}
    declined = read_context(f"00-{TRACE}-{SPAN}-00")
    assert declined is not None
    assert not declined.sampled
    assert declined.headers() == {"traceparent": f"00-{TRACE}-{SPAN}-00"}


def test_a_later_version_may_say_more() -> None:
    assert read_context(f"cc-{TRACE}-{SPAN}-01-what-the-future-brings") is not None


@pytest.mark.parametrize(
    "text",
    [
        "",
        GIVEN[:-1],
        f"{GIVEN}-more",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        GIVEN.upper(),
        f"{GIVEN}\n",
        f"00-{TRACE}-{SPAN}-0g",
        f"00-{TRACE}-{SPAN}-\uff10\uff11",
    ],
)
def test_one_that_is_malformed_is_ignored(text: str) -> None:
    assert read_context(text, "a=1") is None


@pytest.mark.parametrize(
    "state", ["a", "a=1,a=2", "=1", "A=1", "a=1\x1b", "a=" + "x" * 600, "a=1,b", "a=\r\nx: y"]
)
def test_a_malformed_state_is_left_out(state: str) -> None:
    found = read_context(GIVEN, state)
    assert found is not None
    assert found.state == ""


def test_a_caller_is_followed_both_ways_but_cannot_ask_for_more_than_its_share() -> None:
    now, drawn = 0.0, 0.99
    policy = Policy(0.5, lambda: drawn, lambda: now)
    asked, declined = read_context(GIVEN), read_context(f"00-{TRACE}-{SPAN}-00")
    assert [policy.wants(asked) for _ in range(MOST_ASKED_FOR + 3)].count(True) == MOST_ASKED_FOR
    assert not policy.wants(declined)
    drawn = 0.49  # by chance, as everybody
    assert policy.wants(asked)
    assert policy.wants(None)
    assert not policy.wants(declined)
    drawn, now = 0.99, 0.05
    assert [policy.wants(asked) for _ in range(9)].count(True) == 5
    ours = TraceContext(TRACE, SPAN, sampled=True)
    assert all(policy.wants(ours) for _ in range(1_000))


def test_at_a_share_of_none_nothing_is_traced_and_at_one_everything() -> None:
    assert not Policy(0.0, lambda: 0.0, lambda: 0.0).wants(None)
    assert Policy(1.0, lambda: 0.999_999, lambda: 0.0).wants(None)


def test_the_queue_is_bounded_and_what_finds_it_full_is_counted() -> None:
    counts = SpanCounts()
    assert all(counts.queue() for _ in range(QUEUE))
    assert not counts.queue()
    counts.leave(500, taken=True)
    counts.leave(12, taken=False)
    assert (counts.sent, counts.dropped) == (500, 13)
    assert counts.queue()
    counts.lose_rest()
    assert (counts.sent, counts.dropped) == (500, 13 + QUEUE - 511)


def test_a_statement_is_named_by_what_it_does_and_the_first_table() -> None:
    assert summary_of("select * from fold_position") == "SELECT fold_position"
    assert summary_of("\n  insert into journal (id) values ($1)") == "INSERT journal"
    assert summary_of("update journal set x = now()") == "UPDATE journal"
    assert summary_of("delete from outcome_id where x") == "DELETE outcome_id"
    assert summary_of("-- why\nselect clock_timestamp()") == "SELECT"
    assert summary_of("") == "SQL"
