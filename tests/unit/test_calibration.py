"""Every error rate that is claimed, with 1,000 experiments; `make calibrate` takes 10,000."""

from pathlib import Path

import pytest

from bench.calibration.scenario import CHUNK, Bound, Claim, Scenario, findings, rates
from bench.calibration.scenarios import SCENARIOS
from bench.calibration.table import END, START, block, put_into, table
from bench.calibration.twins import DisagreementError, must_agree

EXPERIMENTS = 1_000


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.key)
def test_a_claim_holds_where_a_naive_method_fails(scenario: Scenario) -> None:
    of_chunks = [rates(scenario, chunk) for chunk in range(EXPERIMENTS // CHUNK)]
    for finding in findings(scenario, of_chunks):
        said = (
            f"{finding.claim.method}: {finding.rate}, {finding.claim.naive}: {finding.naive_rate}"
        )
        assert finding.holds, said
        assert finding.naive_fails, said


def test_scenarios_have_keys_and_seeds_of_their_own() -> None:
    for names in ([s.key for s in SCENARIOS], [s.seed for s in SCENARIOS]):
        assert len(set(names)) == len(names)


def test_a_bound_allows_three_monte_carlo_errors_and_no_more() -> None:
    bound = Bound(low=0.1, high=0.5)
    assert bound.allows(0.5 + 3 * 0.005, 10_000)
    assert not bound.allows(0.5 + 3.1 * 0.005, 10_000)
    assert bound.allows(0.1 - 3 * 0.003, 10_000)
    assert not bound.allows(0.1 - 3.1 * 0.003, 10_000)
    assert not Bound(high=0.0).allows(0.0001, 10_000)


def test_a_chunk_is_the_same_in_any_run_and_unlike_others() -> None:
    scenario = drawn(0.5)
    assert rates(scenario, 3) == rates(scenario, 3)
    assert rates(scenario, 3) != rates(scenario, 4)


def test_a_twin_that_differs_is_refused() -> None:
    must_agree("number", 1.0, 1.0 + 1e-12)
    must_agree("number", None, None)
    for library in (1.0 + 1e-6, None):
        with pytest.raises(DisagreementError, match="number: the twin has 1"):
            must_agree("number", 1.0, library)


def test_the_table_says_what_missed_its_bound(tmp_path: Path) -> None:
    scenario = drawn(0.2)
    (found,) = findings(scenario, [rates(scenario, 0)])
    assert not found.holds
    assert not found.naive_fails
    rows = table([found]).splitlines()
    assert rows[2].startswith("| coins | heads | coin | 30 to 40 % | 2")
    assert "**outside**" in rows[2]
    assert "**inside**" in rows[2]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{START}old{END}\nafter\n", encoding="utf-8")
    assert put_into(page, block([found]))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "500 experiments each, seeds 1 to 1" in text
    assert "old" not in text
    page.write_text("no place", encoding="utf-8")
    assert not put_into(page, "text")
    assert page.read_text(encoding="utf-8") == "no place"


def drawn(rate: float) -> Scenario:
    """Coins that are claimed to fall on heads in 30 to 40 %."""
    claim = Claim("heads", "coin", "heads", Bound(0.3, 0.4), "other coin", "other")
    return Scenario(
        "coins",
        "coins",
        1,
        lambda rng, n: {"heads": rng.random(n) < rate, "other": rng.random(n) < 0.35},
        (claim,),
    )
