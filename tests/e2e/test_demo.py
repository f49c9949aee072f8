"""The demo is the main job on real input, and ends well."""

import re
import subprocess
import sys
from pathlib import Path

from turnout.demo.logs import black_politicians, open_bandit


def test_the_logs_are_those_of_the_published_data() -> None:
    men = open_bandit("men")
    assert {arm: (len(rows), sum(rows)) for arm, rows in men.arms.items()} == {
        "bts": (10_000, 69),
        "random": (10_000, 46),
    }
    audit = black_politicians()
    assert {arm: (len(rows), sum(rows)) for arm, rows in audit.arms.items()} == {
        "0": (2_814, 1_562),
        "1": (2_779, 803),
    }


def test_the_demo_reallocates_rolls_back_and_counts_all_that_it_acknowledged(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "turnout", "demo", "--data-dir", tmp_path / "data"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = done.stdout
    reallocations = re.findall(r"epoch +\d+ .*thompson on click", said)
    assert reallocations
    assert "log of bts is at its end" in said or "log of random is at its end" in said
    assert "rollback: guardrail responded of outside" in said
    exposed = re.search(r"black-politicians: ([\d,]+) exposures acknowledged, ([\d,]+) units", said)
    assert exposed is not None
    acknowledged, counted = (int(text.replace(",", "")) for text in exposed.groups())
    assert acknowledged == counted
    assert acknowledged < 0.8 * black_politicians().rows, "rolled back long before the data ends"
    assert "# open-bandit-men, run 1" in said
    assert "# black-politicians, run 1" in said
    assert "Rolled back to inside" in said
    assert "/schema" in said.rstrip().splitlines()[-1]
