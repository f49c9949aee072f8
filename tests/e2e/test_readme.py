"""Every command of the README's tour, and of its chapter on the controller, runs as written."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.crash.programs import free_port

ROOT = Path(__file__).parents[2]
ADDRESS = "http://127.0.0.1:8080"
README = (ROOT / "README.md").read_text(encoding="utf-8")
TOUR = README.split("\n## A tour in five minutes\n")[1].split("\n## How it works\n")[0]
CONTROLLER = README.split("\n## The controller\n")[1].split("\n## The pages\n")[0]
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", TOUR + CONTROLLER, re.MULTILINE | re.DOTALL)


@pytest.fixture
def tour(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder in which `.venv/bin/turnout up` runs with its default data folder."""
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    port = free_port()
    turnout = subprocess.Popen(
        [tmp_path / ".venv/bin/turnout", "up", "--port", str(port)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert turnout.stdout is not None
    lines = iter(turnout.stdout.readline, "")
    try:
        assert any("serves on" in line for line in lines)
        yield tmp_path, f"http://127.0.0.1:{port}"
    finally:
        turnout.terminate()
        turnout.wait(timeout=30)
        turnout.stdout.close()


def test_the_tour_and_the_controller_s_commands_run_as_written(tour: tuple[Path, str]) -> None:
    if shutil.which("curl") is None:
        pytest.skip("the tour uses curl, which is not installed here")
    folder, url = tour
    script = ["set -euo pipefail", f"export TURNOUT_URL={url}"]
    for language, block in BLOCKS:
        text = block.replace(ADDRESS, url)
        if language == "python":
            script.append(f".venv/bin/python - <<'PYTHON'\n{text}PYTHON")
        else:
            script.append(text)
        script.append("echo; echo '=== next'")
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)],
        cwd=folder,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (
        key,
        define,
        wrong,
        change,
        assign,
        ofrep,
        batch,
        outcomes,
        provider,
        local,
        report,
        kept,
        replay,
        again,
        doors,
        on_call,
        teams,
        kept_safe,
        outside,
        by_hand,
        ramp,
    ) = done.stdout.split("=== next")[:21]
    assert key.startswith("to_")
    assert "ranker-v7: created, revision 1" in define
    assert '"state":"running"' in define
    for path in ("key", "variants", "variants[1].key", "trafic"):
        assert f'"path":"{path}"' in wrong
    assert '"weights":{"v6":0.8,"v7":0.2}' in change
    assert '"recorded":true' in assign
    assert '"reason":"SPLIT"' in ofrep
    assert '"slot":[5670,' in batch
    assert '"accepted":2,"duplicates":0,"errors":[{"index":2,' in outcomes
    assert "models:/ranker/" in provider
    evaluated = re.search(r"(v[67]) here, (v[67]) there", local)
    assert evaluated is not None
    assert evaluated[1] == evaluated[2]
    assert '"accepted":1,"duplicates":0,"not_enrolled":0,"mismatched":0' in local
    assert "# ranker-v7, run 1" in report
    assert '"note":"for the review on Tuesday","files":{"json":{"sha256":' in kept
    assert (folder / "ranker-v7.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "user-42 in ranker-v7: v6 (split)" in replay
    assert "start of ranker-v7, run 1, by manual (start)" in again
    assert "The same again, bit by bit." in again
    assert '"conclusion":' in doors
    assert '"next_cursor":null' in doors
    assert '"run":1,"lines":[' in doors
    assert '"metric":"click","goal":"increase","arms":[' in doors
    assert on_call.strip().startswith("to_")
    assert "approvals start allocation" in teams
    assert re.search(r"service .* scope record  limit 50/s  import job", teams)
    assert re.search(r"^shop: 3 entries, to 3:[0-9a-f]{64}$", kept_safe, re.MULTILINE)
    assert (folder / "turnout.dump").stat().st_mode & 0o777 == 0o600
    assert '"action":"key.create"' in (folder / "shop.ndjson").read_text(encoding="utf-8")
    assert "\nturnout_leader 1.0\n" in outside
    assert re.search(r'"weights":\{"v6":1.0\}.*"rolled_back":\["v7"\]', by_hand)
    assert re.search(r'"weights":\{"v6":[^}]*"v7":.*"rolled_back":\[\]', by_hand)
    assert '"status":"holding","code":"waiting_time"' in ramp
    assert '"approval":true,"approved":true' in ramp
    shown = re.findall(r"^```json\n(.*?)\n```$", TOUR, re.MULTILINE | re.DOTALL)
    assert [answer in done.stdout for answer in shown] == [True, True, True]


def test_the_readme_names_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^make demo$", text, re.MULTILINE)
    assert re.search(r"^make test$", text, re.MULTILINE)
