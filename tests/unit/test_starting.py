"""What a process loads before it can begin."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLOW = {"pandas", "statsmodels"} | {
    f"scipy.{part}" for part in ("integrate", "interpolate", "linalg", "optimize", "stats")
}
"""Each takes a third of a second or more at every start of every process."""


def loaded(tree: ast.AST) -> Iterator[str]:
    """Modules that are loaded with a module: those named outside of its functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield node.module or ""
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from loaded(node)


@pytest.mark.parametrize("room", ["experiments", "router", "analysis", "dashboard", "turnout"])
def test_nothing_slow_is_loaded_before_it_is_needed(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not any(name.split(".")[0] in text for name in SLOW):
            continue
        found = SLOW & set(loaded(ast.parse(text)))
        assert not found, f"{file} loads {found} at the start: do so in the function that needs it"
