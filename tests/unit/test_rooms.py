"""The rooms of the house: imports run one way (design, section 4)."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAY_IMPORT = {
    "experiments": {"experiments"},
    "router": {"router", "experiments"},
    "analysis": {"analysis", "experiments"},
    "dashboard": {"dashboard", "analysis", "experiments"},
    "turnout": {"turnout", "dashboard", "analysis", "router", "experiments", "migrations"},
    "migrations": {"migrations"},
    "bench": {"bench", "turnout", "analysis", "router", "experiments", "migrations"},
}
ROOMS_OF_ANALYSIS = {
    "inference": {"inference"},
    "folding": {"folding", "inference"},
    "upkeep": {"upkeep", "folding", "inference"},
    "control": {"control", "upkeep", "folding", "inference"},
    "planning": {"planning", "folding", "inference"},
    "reports": {"reports", "control", "folding", "inference"},
    "chronicle": {"chronicle", "reports", "control", "folding", "inference"},
    "simulation": {"simulation", "control", "folding", "inference"},
    "library": {"library", "reports", "control", "folding", "inference"},
}
"""Within `analysis`: which of its rooms imports which."""
IMPURE = {"asyncio", "asyncpg", "random", "time", "os", "socket", "redis"}


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, by their full names."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            assert node.module is not None
            yield node.module


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    for file in sorted((ROOT / room).rglob("*.py")):
        rooms = {name.split(".", maxsplit=1)[0] for name in imported(file)} & MAY_IMPORT.keys()
        assert rooms <= MAY_IMPORT[room], f"{file} imports {rooms - MAY_IMPORT[room]}"


def test_the_model_imports_nothing_of_ours() -> None:
    names = {name.split(".", maxsplit=1)[0] for name in imported(ROOT / "experiments/model.py")}
    assert not names & MAY_IMPORT.keys()


def test_only_the_process_reads_the_environment() -> None:
    for room in ("experiments", "router", "analysis"):
        for file in sorted((ROOT / room).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            assert "environ" not in text, f"{file} reads the environment"
            assert "getenv" not in text, f"{file} reads the environment"


@pytest.mark.parametrize("room", sorted(ROOMS_OF_ANALYSIS))
def test_a_room_of_analysis_imports_only_those_below_it(room: str) -> None:
    for file in sorted((ROOT / "analysis" / room).rglob("*.py")):
        rooms = {name.split(".")[1] for name in imported(file) if name.startswith("analysis.")}
        assert rooms <= ROOMS_OF_ANALYSIS[room], f"{file} imports {rooms - ROOMS_OF_ANALYSIS[room]}"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "analysis" / "inference").rglob("*.py")), ids=lambda file: file.stem
)
def test_statistics_have_no_input_output_no_clock_and_no_global_random_state(file: Path) -> None:
    names = {name.split(".", maxsplit=1)[0] for name in imported(file)}
    assert not names & IMPURE
    text = file.read_text(encoding="utf-8")
    assert "np.random" not in text
    assert "datetime.now" not in text


def test_every_python_package_of_the_project_is_a_room() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {*MAY_IMPORT, "tests"}
