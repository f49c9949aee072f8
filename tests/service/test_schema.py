"""What the OpenAPI document says is what the doors do: whatever is sent to them, they answer with a
status, a type of content and a body that it names, and never with a defect.

`TURNOUT_ATTACK_EXAMPLES=12 pytest tests/service/test_schema.py` asks more, for two minutes.
"""

import asyncio
import os
from contextlib import suppress
from typing import Any, Final

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from experiments.keys import ROLES, Role
from tests.running import Turnout

EXAMPLES: Final = int(os.environ.get("TURNOUT_ATTACK_EXAMPLES", "2"))
"""Requests of an admin to a door, of each kind: sound ones, and ones that the document forbids. Of
the other roles it is half as many."""
CHECKS: Final[list[CheckFunction]] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
LEFT_OUT: Final = {
    "/ofrep/v1/events": "it does not end",
    "/v1/keys/{key_id}": "it could revoke the key with which the others are asked",
    "/v1/webhooks/{webhook}/test": "it sends to elsewhere",
}


def attack(
    url: str, document: dict[str, Any], key: str, experiment: str, examples: int
) -> list[str]:
    """What the doors answered that the document does not say."""
    found: list[str] = []
    with requests.Session() as session:
        session.headers["X-API-Key"] = key
        for result in schemathesis.openapi.from_dict(document).get_all_operations():
            assert isinstance(result, Ok), "a door that the document describes wrongly"
            operation = result.ok()
            if operation.path in LEFT_OUT:
                continue
            there = {"key": experiment} if operation.path.count("{") == 1 else None
            for mode in GenerationMode:
                known = (
                    there if mode is GenerationMode.POSITIVE and "{key}" in operation.path else None
                )

                @seed(7)
                @settings(
                    max_examples=examples,
                    database=None,
                    deadline=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )
                @given(case=operation.as_strategy(mode, path_parameters=known))
                def ask(case: Case[Any]) -> None:
                    case.headers["If-Match"] = '"1"'
                    answer = case.call(base_url=url, session=session)
                    try:
                        case.validate_response(answer, checks=CHECKS)
                    except FailureGroup as group:
                        found.extend(
                            f"{case.method} {case.path} {answer.status_code}: {failure}"[:900]
                            for failure in group.exceptions
                        )

                with suppress(Unsatisfiable):  # where nothing is forbidden
                    ask()
    return found


@pytest.mark.parametrize("role", ROLES)
async def test_every_door_answers_as_the_document_says(turnout: Turnout, role: Role) -> None:
    experiment = await turnout.start()
    document = (await turnout.client(None).get("/schema/openapi.json")).json()
    examples = EXAMPLES if role == "admin" else max(1, EXAMPLES // 2)
    found = await asyncio.to_thread(
        attack, turnout.url, document, turnout.keys[role], experiment, examples
    )
    assert not found, "\n".join(found)
