"""What pages say where something went wrong."""

import pytest

from dashboard.problem_page import view_of
from dashboard.security import own_address, sign_in_address
from dashboard.sessions import is_csrf, new_csrf
from experiments.problems import CATALOGUE, FieldProblem, ProblemError


@pytest.mark.parametrize("kind", sorted(CATALOGUE))
def test_every_problem_has_a_title_for_people_and_its_request_id(kind: str) -> None:
    view = view_of(ProblemError(kind, "Why"), "r1", "/experiments?q=a")
    assert view.title
    assert view.detail
    assert (view.status, view.request_id) == (CATALOGUE[kind][0], "r1")
    assert "door" not in view.title


def test_to_try_again_is_offered_where_it_may_help_and_does_nothing_twice() -> None:
    gone = ProblemError("unavailable", "Postgres does not answer")
    assert view_of(gone, "", "/experiments").again == "/experiments"
    assert view_of(gone, "", "").again is None
    assert view_of(ProblemError("forbidden", "no"), "", "/experiments").again is None


def test_wrong_fields_are_named() -> None:
    wrong = FieldProblem("variants[0].weight", "value", "must be 0 or more")
    assert view_of(ProblemError("invalid", "1 field is wrong", [wrong]), "", "").errors == (wrong,)


def test_where_one_goes_after_signing_in_is_kept() -> None:
    address = "/experiments?q=a b&state=running"
    assert own_address(address) == address
    assert sign_in_address(address) == "/sign-in?to=%2Fexperiments%3Fq%3Da%20b%26state%3Drunning"
    assert sign_in_address("/") == "/sign-in"


def test_the_token_of_a_form_is_of_one_session() -> None:
    salt = bytes(range(16))
    mine = new_csrf("a" * 64, salt)
    assert is_csrf(mine, "a" * 64)
    assert not is_csrf(mine, "b" * 64)
    assert not is_csrf(mine, "")
    assert new_csrf("a" * 64, bytes(16)) != mine
    for wrong in ("", mine[:-1], mine + "0", mine.upper(), " " + mine, mine[:32], "zz" * 48):
        assert not is_csrf(wrong, "a" * 64)
