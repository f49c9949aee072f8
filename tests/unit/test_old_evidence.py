"""Evidence that 0.1 kept is computed again by this release, bit by bit, and its moves are known.

`evidence_of_0_1.json` is what that release's own functions gave, in the order of keys that Postgres
gives it: no type, no generation, nothing of what has been added since.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from analysis.control.ledger import examine
from analysis.control.recorded import Standing, WholeDecision
from experiments.allocation import initial, reallocate

KEPT: Final[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "evidence_of_0_1.json").read_text(encoding="utf-8")
)
BEFORE: Final = initial({"old": 0.35, "new": 0.4, "other": 0.25}, 0.8)


def decision(name: str, evidence: Any) -> WholeDecision:
    """A row of 0.1, and the epochs around it."""
    guard = name.startswith("alarm")
    if guard:
        after = initial({"old": 1.0}, 1.0)
    else:
        weights = evidence["weights"]
        after = reallocate(BEFORE, {key: weights[key] for key in sorted(weights)}, 0.8)
    return WholeDecision(
        id=1,
        experiment="x",
        run=1,
        kind="rollback" if guard else "reallocate",
        rule="guard" if guard else "bandit",
        code="harm" if guard else "better",
        epoch_before=1,
        epoch_after=2,
        term=1,
        at=datetime(2026, 3, 2, tzinfo=UTC),
        actor="controller",
        reason="",
        evidence=evidence,
        basis=None,
        seal=None,
        before=Standing(1, "running", {}, 0.8),
        after=Standing(2, "rolled_back" if guard else "running", {}, 1.0),
        slots_before=list(BEFORE.runs),
        slots_after=list(after.runs),
        move=None,
        history=[],
    )


@pytest.mark.parametrize("name", KEPT)
def test_what_0_1_decided_is_the_same_again(name: str) -> None:
    checks = examine(decision(name, KEPT[name]))
    assert {check.of for check in checks} >= {"evidence", "allocation"}
    assert [difference for check in checks for difference in check.differences] == []


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("alarm, proportion", "log_peak"),
        ("alarm, mean", "log_peak"),
        ("reallocation, one epoch", "probability_best"),
        ("reallocation, two epochs", "probability_best"),
    ],
)
def test_a_number_of_it_that_was_changed_is_found(name: str, number: str) -> None:
    changed = json.loads(json.dumps(KEPT[name]))
    if isinstance(changed[number], dict):
        changed[number]["new"] *= 1 - 2**-52
    else:
        changed[number] *= 1 + 2**-52
    [check] = [c for c in examine(decision(name, changed)) if c.of == "evidence"]
    assert [difference.path.split(".")[1] for difference in check.differences] == [number]
