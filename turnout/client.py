"""Commands that talk to a running Turnout through its doors."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import msgspec
import yaml

from experiments.definition import patch_between
from experiments.json_data import is_too_much

DEFAULT_URL: Final = "http://127.0.0.1:8080"


class ClientError(Exception):
    """The command could not be carried out; one line says why."""


@contextlib.contextmanager
def connect(url: str | None, environment: Mapping[str, str]) -> Iterator[httpx.Client]:
    """A client of a Turnout, with the key of `TURNOUT_API_KEY`.

    Raises:
        ClientError: without a key, or where the server does not answer.
    """
    key = environment.get("TURNOUT_API_KEY", "")
    if not key.isascii() or not key.isprintable() or not key:
        raise ClientError("set TURNOUT_API_KEY to a key of the project")
    base_url = url or environment.get("TURNOUT_URL") or DEFAULT_URL
    try:
        with httpx.Client(
            base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=30
        ) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ClientError(f"{base_url} does not answer: {error}") from error


def read_definitions(file: str) -> list[Any]:
    """The definitions in a YAML or JSON file, one a document.

    Raises:
        ClientError: if it cannot be read.
    """
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        documents = yaml.load_all(text, Loader=_Loader)
        found = [document for document in documents if document is not None]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ClientError(f"cannot read {file}: {' '.join(str(error).split())}") from error
    if not found:
        raise ClientError(f"{file} has no definition")
    return found


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which one would be ignored."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen: set[str] = set()
        for name, _ in node.value:
            if isinstance(name, yaml.ScalarNode) and name.value != "<<":
                if name.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {name.value!r} stands twice", name.start_mark
                    )
                seen.add(name.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def apply(client: httpx.Client, definitions: list[Any]) -> Iterator[str]:
    """Create experiments that do not exist, and bring others to their definitions; a line each.

    Raises:
        ClientError: at the first one that is refused, with every wrong field; those before it are
            done.
    """
    for number, definition in enumerate(definitions, start=1):
        try:
            yield _apply(client, definition)
        except ClientError as error:
            if len(definitions) == 1:
                raise
            raise ClientError(f"document {number} of {len(definitions)}: {error}") from error


def _apply(client: httpx.Client, definition: Any) -> str:
    if is_too_much(definition):
        raise ClientError("the definition has more in it than any can need")
    key = definition.get("key", "") if isinstance(definition, dict) else ""
    current = client.get(_path(key)) if isinstance(key, str) and key else None
    if current is None or current.status_code == 404:
        created = _checked(client.post("/v1/experiments", **_json(definition)))
        return f"{created['key']}: created, revision 1"
    before = _checked(current)
    patch = patch_between(before["definition"], definition)
    headers = {"If-Match": current.headers["etag"]}
    changed = _checked(client.patch(_path(key), **_json(patch, headers)))
    if "proposer" in changed:  # nothing is changed yet; the same again finds the same proposal
        return f"{key}: waits for approval: proposal {changed['id']}"
    same = changed["revision"] == before["revision"]
    return f"{key}: {'unchanged' if same else 'changed'}, revision {changed['revision']}"


def _path(key: str) -> str:
    return f"/v1/experiments/{quote(key, safe='')}"


def _json(value: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A request's body. msgspec writes what YAML has and JSON has not, such as dates, as text.

    Raises:
        ClientError: if it cannot write it: an empty name, or an alias within its own anchor.
    """
    try:
        content = msgspec.json.encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ClientError(f"a definition that JSON cannot carry: {error}") from error
    return {
        "content": content,
        "headers": {"Content-Type": "application/json", **(headers or {})},
    }


def report(client: httpx.Client, key: str, accept: str) -> str:
    """The significance report of an experiment.

    Args:
        accept: the media type to have it in.

    Raises:
        ClientError: if there is no such experiment, or the key may not read it.
    """
    answer = client.get(f"{_path(key)}/report", headers={"Accept": accept})
    _check(answer)
    return answer.text


def replay(client: httpx.Client, query: Mapping[str, str | int]) -> dict[str, Any]:
    """What a unit got, and why.

    Args:
        query: the parameters of `GET /v1/replay`.

    Raises:
        ClientError: if there is nothing of the kind, or the key may not read it.
    """
    return _checked(client.get("/v1/replay", params=query))


def decision(client: httpx.Client, number: int) -> dict[str, Any]:
    """A decision with all that it takes to compute it again.

    Raises:
        ClientError: if the project has none of this number, or the key may not read it.
    """
    return _checked(client.get(f"/v1/decisions/{number}"))


def weights(client: httpx.Client, key: str, query: Mapping[str, str]) -> str:
    """The weights of an experiment as others write them.

    Args:
        query: the parameters of `GET /v1/experiments/{key}/weights`.

    Raises:
        ClientError: if it has none, or the key may not read it.
    """
    answer = client.get(f"{_path(key)}/weights", params=query)
    _check(answer)
    return answer.text


def plan(client: httpx.Client, request: Mapping[str, Any]) -> dict[str, Any]:
    """What `POST /v1/plan` answers.

    Raises:
        ClientError: if it refuses, with every wrong field.
    """
    return _checked(client.post("/v1/plan", **_json(request)))


def _checked(answer: httpx.Response) -> dict[str, Any]:
    _check(answer)
    try:
        body: dict[str, Any] = answer.json()
    except ValueError as error:
        raise ClientError(f"{answer.url} is not a Turnout") from error
    return body


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        problem = answer.json()
        fields = "".join(f"\n  {e['path']}: {e['detail']}" for e in problem.get("errors", ()))
        detail = f"{problem['detail']}{fields}"
    except (ValueError, KeyError, TypeError):
        detail = answer.text[:200]
    raise ClientError(f"{answer.status_code}: {detail}")
