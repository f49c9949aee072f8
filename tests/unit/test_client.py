"""The commands `apply` and `report`, against doors that are a function."""

from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import yaml

from experiments.definition import apply_patch, definition_to_builtins, parse_definition
from turnout.client import ClientError, apply, read_definitions, report

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
            report(client, key, "application/json")
    assert all(path.startswith("/v1/experiments") for path in doors.paths)
    assert not any(mark in path for path in doors.paths for mark in "?# ")


def test_a_file_is_read_whole_or_refused_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "experiments.yaml"
    for text, complaint in (
        ("", "has no definition"),
        ("key: a\nname: n\nkey: b\n", "'key' stands twice"),
        ("key: [", "cannot read"),
    ):
        file.write_text(text)
        with pytest.raises(ClientError, match=complaint) as refused:
            read_definitions(str(file))
        assert "\n" not in str(refused.value)
    file.write_text("base: &b {a: 1}\nkey: {<<: *b, a: 2}\n---\nkey: c\n")
    assert read_definitions(str(file)) == [{"base": {"a": 1}, "key": {"a": 2}}, {"key": "c"}]


def test_a_document_that_is_refused_is_named(doors: OneExperiment) -> None:
    with (
        client_of(doors) as client,
        pytest.raises(ClientError, match="document 2 of 2: 404"),
    ):
        list(apply(client, [DEFINITION | {"name": "N"}, {"key": "?"}]))
    assert doors.definition.name == "N"


def test_aliases_that_multiply_are_refused_in_time(doors: OneExperiment) -> None:
    bomb: list[Any] = ["x"]
    for _ in range(30):
        bomb = [bomb, bomb, bomb]
    with client_of(doors) as client, pytest.raises(ClientError, match="more in it than any"):
        list(apply(client, [{"key": "another", "tags": bomb}]))


@pytest.mark.parametrize("text", ["~: 1", "true: 1", "name: &a [*a]"])
def test_what_json_cannot_carry_is_one_clear_line(doors: OneExperiment, text: str) -> None:
    definition = {"key": "another", **yaml.safe_load(text)}
    with client_of(doors) as client, pytest.raises(ClientError, match="JSON cannot carry"):
        list(apply(client, [definition]))
