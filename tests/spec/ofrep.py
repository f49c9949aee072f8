"""Judges answers by the published description of OFREP, with its two known flaws mended.

It refuses its own examples: in a successful evaluation exactly one kind of value must fit, but the
code's default fits whatever comes, and an integer is a number as well; and an item of a bulk answer
may not be a flag that was not found, though its example has one.
"""

from pathlib import Path
from typing import Any, Final

import yaml
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # it has no types

_DOCUMENT: Final[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parent / "ofrep-openapi-0.3.0.yaml").read_text(encoding="utf-8")
)


def mended() -> dict[str, Any]:
    """The schemas by their names."""
    schemas: dict[str, Any] = _DOCUMENT["components"]["schemas"]
    kinds = schemas["evaluationSuccess"]["allOf"][1]
    if "oneOf" in kinds:
        kinds["anyOf"] = kinds.pop("oneOf")
    items = schemas["bulkEvaluationSuccess"]["properties"]["flags"]["items"]["oneOf"]
    not_found = {"$ref": "#/components/schemas/flagNotFound"}
    if not_found not in items:
        items.append(not_found)
    return schemas


def examples() -> list[tuple[str, Any]]:
    """The description's own examples: which schema, and what."""
    return [
        (_name(content["schema"]), content["example"])
        for path in _DOCUMENT["paths"].values()
        for answer in path["post"]["responses"].values()
        for content in answer.get("content", {}).values()
    ]


def complaints(name: str, value: Any) -> list[str]:
    """What is wrong with a value that should be of this schema."""
    validator = Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": mended()}}
    )
    return [error.message for error in validator.iter_errors(value)]


def _name(schema: dict[str, str]) -> str:
    return schema["$ref"].rpartition("/")[2]
