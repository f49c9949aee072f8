"""The README's example of reports without a service runs as it is written."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_readme import between

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def blocks() -> dict[str, list[str]]:
    """The example's blocks, by language."""
    found: dict[str, list[str]] = {"sh": [], "python": []}
    for language, text in re.findall(
        r"^```(sh|python)\n(.*?)^```$", between("library"), re.MULTILINE | re.DOTALL
    ):
        found[language].append(text)
    return found


def test_the_command_prints_what_an_honest_analysis_says(blocks: dict[str, list[str]]) -> None:
    [command] = blocks["sh"]
    folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "Keep the control. 1 is worse on responded (difference −26.6 pp" in done.stdout
    assert "fits (p = 0.6398)" in done.stdout


def test_columns_and_moments_give_reports(blocks: dict[str, list[str]]) -> None:
    of_columns, of_moments = (printed(block) for block in blocks["python"])
    assert of_columns.startswith("Ship new.")
    assert of_columns.splitlines()[-1].startswith("0.0730")
    assert "+0.25 [" in of_moments


def printed(block: str) -> str:
    """What an example prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {})  # noqa: S102 - it is our own README
    return out.getvalue()
