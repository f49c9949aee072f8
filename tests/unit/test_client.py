"""The commands `apply` and `report`, against doors that are a function."""

from typing import Any

import httpx
import msgspec
import pytest
import yaml

from experiments.definition import apply_patch, definition_to_builtins, parse_definition
from turnout.client import ClientError, apply, report

DEFINITION = {
    "key": "ranker",
    "variants": [
        {"key": "old", "control": True, "weight": 0.5, "value": 1},
        {"key": "new", "weight": 0.5, "value": 2},
    ],
    "metrics": [
        {"key": "click", "role": "primary", "kind": "proportion", "event": "click", "window": "1s"}
    ],
    "policy": {"kind": "thompson", "metric": "click", "floor": 0.1},
    "guard": {"alpha": 0.02},
    "unit": {"type": "session", "attribute": "sid"},
}


class OneExperiment:
    """The doors of a project with one experiment, and the paths that they were asked for."""

    def __init__(self) -> None:
        self.definition = parse_definition(DEFINITION)
        self.revision = 1
        self.paths: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        path = request.url.raw_path.decode()
        self.paths.append(path)
        if path != f"/v1/experiments/{self.definition.key}":
            return httpx.Response(404, json={"detail": "no such thing"})
        if request.method == "PATCH":
            self.definition = apply_patch(self.definition, msgspec.json.decode(request.content))
            self.revision += 1
        body = {
            "key": self.definition.key,
            "definition": definition_to_builtins(self.definition),
            "revision": self.revision,
        }
        return httpx.Response(200, json=body, headers={"ETag": f'"{self.revision}"'})


def client_of(doors: OneExperiment) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(doors.answer), base_url="http://turnout")


@pytest.fixture
def doors() -> OneExperiment:
    return OneExperiment()


@pytest.mark.parametrize(
    "change",
    [
        {"policy": {"kind": "fixed"}},
        {"policy": {"kind": "thompson", "metric": "click"}},
        {"guard": {"action": "rollback"}},
        {"unit": {"type": "session"}},
        {"guard": {}, "unit": {}},
    ],
    ids=repr,
)
def test_an_applied_definition_is_what_its_file_says_at_every_depth(
    doors: OneExperiment, change: dict[str, Any]
) -> None:
    file = {**definition_to_builtins(doors.definition), **change}
    with client_of(doors) as client:
        assert list(apply(client, [file])) == [f"{file['key']}: changed, revision 2"]
    assert doors.definition == parse_definition(file)


@pytest.mark.parametrize("key", ["?", "#", "../keys", "a b", "a?limit=1"])
def test_a_key_of_a_wrong_form_never_becomes_another_path(doors: OneExperiment, key: str) -> None:
    with client_of(doors) as client:
        with pytest.raises(ClientError, match="404"):
            list(apply(client, [{"key": key}]))
        with pytest.raises(ClientError, match="404"):
            report(client, key, as_json=True)
    assert all(path.startswith("/v1/experiments") for path in doors.paths)
    assert not any(mark in path for path in doors.paths for mark in "?# ")


@pytest.mark.parametrize("text", ["~: 1", "true: 1", "name: &a [*a]"])
def test_what_json_cannot_carry_is_one_clear_line(doors: OneExperiment, text: str) -> None:
    definition = {"key": "another", **yaml.safe_load(text)}
    with client_of(doors) as client, pytest.raises(ClientError, match="JSON cannot carry"):
        list(apply(client, [definition]))
