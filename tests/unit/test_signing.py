"""Secrets of webhooks, signatures as receivers check them, and what is said of a decision."""

import ast
import base64
import hashlib
import hmac
import random
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

import experiments
from analysis.control import overruling
from analysis.control.ruling import Act
from experiments.model import State
from experiments.records import DecisionKind
from experiments.states import Verb
from experiments.webhooks.herald import MOST_ATTEMPTS, pause_after
from experiments.webhooks.messages import body_of
from experiments.webhooks.model import (
    EVENT_TYPES,
    HOLD,
    Side,
    Story,
    event_type,
    message_id,
)
from experiments.webhooks.signing import OVERLAP, SealError, SigningKey, shown, signed_headers

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
KEY = SigningKey("a key of the tests, which is no secret at all")
OTHER = SigningKey("another key of the tests, which is none either")
RANDOM = random.Random(1)  # noqa: S311 - a test


def accepts(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """Whether a receiver takes a message, written from the words of Standard Webhooks 1.0.0."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    return any(
        version == "v1" and hmac.compare_digest(signature, expected)
        for version, _, signature in (
            part.partition(",") for part in headers["webhook-signature"].split(" ")
        )
    )


def test_a_signature_is_that_of_the_reference_libraries() -> None:
    """The vector of the libraries of Standard Webhooks."""
    headers = signed_headers(
        [base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")],
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        datetime.fromtimestamp(1614265330, UTC),
        b'{"test": 2432232314}',
    )
    assert headers == {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }


def test_a_receiver_takes_what_its_secret_signed_and_nothing_else() -> None:
    secret = KEY.secret("w", 1)
    headers = signed_headers([secret], "msg_w_1", NOW, b"{}")
    assert accepts(shown(secret), headers, b"{}")
    assert not accepts(shown(secret), headers, b"{ }")
    assert not accepts(shown(secret), headers | {"webhook-id": "msg_w_2"}, b"{}")
    assert not accepts(shown(KEY.secret("w", 2)), headers, b"{}")
    assert not accepts(shown(KEY.secret("v", 1)), headers, b"{}")
    assert not accepts(shown(OTHER.secret("w", 1)), headers, b"{}")


def test_after_a_rotation_both_secrets_sign_for_a_day() -> None:
    old, new = shown(KEY.secret("w", 1)), shown(KEY.secret("w", 2))
    for passed, both in ((timedelta(), True), (OVERLAP - timedelta(seconds=1), True)):
        secrets = KEY.secrets("w", 2, NOW - passed, NOW)
        headers = signed_headers(secrets, "msg_w_1", NOW, b"{}")
        assert (accepts(old, headers, b"{}"), accepts(new, headers, b"{}")) == (both, True)
    headers = signed_headers(KEY.secrets("w", 2, NOW - OVERLAP, NOW), "msg_w_1", NOW, b"{}")
    assert (accepts(old, headers, b"{}"), accepts(new, headers, b"{}")) == (False, True)
    assert KEY.secrets("w", 1, None, NOW) == [KEY.secret("w", 1)]


def test_a_secret_is_as_long_as_the_standard_asks_for() -> None:
    text = shown(KEY.secret("w", 1))
    assert text.startswith("whsec_")
    assert 24 <= len(base64.b64decode(text.removeprefix("whsec_"), validate=True)) <= 64


def test_an_address_opens_with_its_key_and_for_its_webhook_only() -> None:
    url = "https://hooks.example.com/services/T0/B0/secret"
    sealed = KEY.seal(url, "w", RANDOM.randbytes)
    assert b"secret" not in sealed
    assert KEY.unseal(sealed, "w") == url
    assert KEY.seal(url, "w", RANDOM.randbytes) != sealed
    for key, webhook, text in (
        (OTHER, "w", sealed),
        (KEY, "v", sealed),
        (KEY, "w", sealed[:-1] + bytes([sealed[-1] ^ 1])),
    ):
        with pytest.raises(SealError):
            key.unseal(text, webhook)


def test_the_id_of_a_key_tells_keys_apart_and_gives_none_away() -> None:
    assert KEY.id != OTHER.id
    assert KEY.id == SigningKey("a key of the tests, which is no secret at all").id
    assert KEY.id not in KEY.secret("w", 1).hex()


def test_the_id_of_a_message_can_be_signed() -> None:
    """A full stop in it would let a part of the id be taken for the time."""
    assert "." not in message_id("0123456789abcdef", 812)


def test_every_act_of_the_controller_can_be_asked_for() -> None:
    acts = {f"experiment.{act.__struct_config__.tag}" for act in get_args(Act)}
    assert len(acts) == 8
    assert {*acts, HOLD} <= set(EVENT_TYPES)


def test_all_that_a_hand_does_can_be_asked_for() -> None:
    """By the words with which the ledger is written, wherever that is done."""
    kinds = set(get_args(Verb))
    rooms = (Path(file).parent for file in (experiments.__file__, overruling.__file__))
    for file in (file for room in rooms for file in room.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("by_hand", "open_epoch")
            ):
                kinds |= {
                    given.value
                    for given in node.args
                    if isinstance(given, ast.Constant) and isinstance(given.value, str)
                }
    kinds -= set(get_args(State))  # which `open_epoch` is given, too
    assert {"jump", "allocate", "holdout", "overrule"} <= kinds
    assert {f"experiment.{kind}" for kind in kinds} <= set(EVENT_TYPES)


def test_attempts_go_on_for_about_a_day() -> None:
    for jitter, least, most in ((0.0, 20, 21), (0.5, 25, 26), (0.999, 30, 31)):
        pauses = [pause_after(n, partial(float, jitter)) for n in range(1, MOST_ATTEMPTS)]
        assert None not in pauses
        total = sum((p for p in pauses if p is not None), timedelta())
        assert timedelta(hours=least) < total < timedelta(hours=most)
    assert pause_after(MOST_ATTEMPTS, lambda: 0.5) is None
    assert pause_after(1, lambda: 0.0) == timedelta(seconds=4)


def story(**changes: Any) -> Story:
    """A roll-back of a variant by the guard, with these fields changed."""
    told = Story(
        decision=812,
        project="shop",
        experiment="ranker-v7",
        run=2,
        kind="rollback_variant",
        rule="guard",
        code="harm",
        reason="errors of v7 are worse than its margin allows: <0.01 & rising>",
        actor="controller",
        at=NOW,
        before=Side(3, "running", 1.0, {"v6": 0.5, "v7": 0.5}),
        after=Side(4, "running", 1.0, {"v6": 1.0}),
    )
    return msgspec.structs.replace(told, **changes)


def test_a_message_says_who_did_what_when_and_why() -> None:
    body = msgspec.json.decode(body_of(story(), "standard", "https://turnout.example.com/"))
    assert body["type"] == "experiment.rollback_variant"
    assert body["timestamp"] == "2026-03-02T12:00:00Z"
    data = body["data"]
    assert (data["project"], data["experiment"], data["run"]) == ("shop", "ranker-v7", 2)
    assert (data["rule"], data["code"], data["actor"]) == ("guard", "harm", "controller")
    assert data["before"]["weights"] == {"v6": 0.5, "v7": 0.5}
    assert data["after"] == {
        "epoch": 4,
        "state": "running",
        "traffic": 1.0,
        "weights": {"v6": 1.0},
    }
    assert data["links"]["report"] == (
        "https://turnout.example.com/v1/experiments/ranker-v7/report"
    )
    assert data["links"]["page"] == (
        "https://turnout.example.com/experiments/ranker-v7#decision-812"
    )


def test_every_kind_of_decision_has_a_type_that_can_be_asked_for() -> None:
    kinds = {event_type(kind, "manual") for kind in get_args(DecisionKind)}
    assert {*EVENT_TYPES} == kinds | {event_type("hold", "health")}


def test_a_message_is_the_same_however_often_it_is_made() -> None:
    assert body_of(story(), "standard", "") == body_of(story(), "standard", "")


def test_slack_is_told_in_one_line_with_what_moved_below_it() -> None:
    body = msgspec.json.decode(body_of(story(), "slack", "https://turnout.example.com"))
    assert body["text"] == (
        ":rotating_light: variant v7 of *ranker-v7* was rolled back by the guard: "
        "errors of v7 are worse than its margin allows: &lt;0.01 &amp; rising&gt;"
    )
    section, context = body["blocks"]
    assert section == {"type": "section", "text": {"type": "mrkdwn", "text": body["text"]}}
    [line] = context["elements"]
    assert line["text"] == (
        "project shop · run 2 · decision 812 · v6 50.0% → 100.0%, v7 50.0% → 0.0%"
        " · <https://turnout.example.com/experiments/ranker-v7#decision-812|open>"
    )


def test_a_hand_raises_no_alarm_in_slack() -> None:
    said = story(kind="pause", rule="manual", actor="key:1f", after=None, reason="lunch")
    body = msgspec.json.decode(body_of(said, "slack", ""))
    assert body["text"] == "*ranker-v7* was paused by key:1f: lunch"


def test_the_end_of_a_finding_is_no_hold_in_slack() -> None:
    said = story(kind="hold", rule="health", code="clear", reason="new units come again")
    body = msgspec.json.decode(body_of(said, "slack", ""))
    assert body["text"] == (
        "*ranker-v7* was cleared of a finding by the health checks: new units come again"
    )


def test_slack_is_told_no_more_than_it_takes() -> None:
    weights = {f"variant-{number:056d}": 1 / 64 for number in range(64)}
    told = story(reason="&" * 1_000, before=Side(3, "running", 1.0, weights))
    body = msgspec.json.decode(body_of(told, "slack", "https://turnout.example.com"))
    section, context = body["blocks"]
    assert len(section["text"]["text"]) <= 3_000
    assert len(context["elements"][0]["text"]) <= 3_000
    assert context["elements"][0]["text"].endswith("|open>")
