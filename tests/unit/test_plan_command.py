"""The command `plan`: it needs no server for stated figures, and asks one for an experiment's."""

import argparse
import sys
from typing import Any

import httpx
import msgspec
import pytest

from analysis.planning.answer import Plan
from analysis.planning.plan import make_plan
from analysis.planning.request import PlanRequest
from experiments.decoding import decode
from turnout import plan_flags
from turnout.cli import main
from turnout.client import ClientError
from turnout.planning import ask, simulation_of

RATE = ["plan", "--baseline", "0.1"]


def options(*flags: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    plan_flags.add_arguments(parser)
    return parser.parse_args(list(flags))


def test_a_plan_of_stated_figures_needs_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*RATE, "--effect", "10%", "--units-per-day", "2000", "--reading", "fixed"]) == 0
    text = capsys.readouterr().out
    assert "29,498 units (14,749 + 14,749), 14.7 days, power 0.800" in text
    for name in ("fixed", "planned", "continuous"):
        assert f"\n{name}" in text
    assert "plan for whole weeks, 21 days" in text


def test_json_is_the_answer_of_the_door(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--kind", "mean", "--baseline", "5", "--sd", "2", "--units", "1000", "--variants", "3"]
    assert main(["plan", *flags, "--json"]) == 0
    plan = msgspec.json.decode(capsys.readouterr().out, type=Plan)
    assert (plan.asked, plan.units, plan.comparisons) == ("effect", 1_000, 2)


def test_a_bandit_is_simulated_here(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--units", "4000", "--effect", "0.04", "--bandit", "--runs", "4", "--steps", "5"]
    assert main([*RATE, *flags, "--seed", "2", "--floor", "0.1"]) == 0
    out, err = capsys.readouterr()
    assert "A bandit over 4,000 units, in truth 0.1, 0.14: 4 runs of 5 steps" in out
    assert "saved" in out
    assert err == ""  # nobody watches


def test_a_bar_shows_where_somebody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    flags = ["--units", "400", "--effect", "0.1", "--bandit", "--runs", "2", "--steps", "2"]
    assert main([*RATE, *flags]) == 0
    assert "] 1 of 2 runs\r[" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--baseline", "2", "--effect", "1%"], "metric.baseline: must be a number, above 0"),
        (["--baseline", "0.1"], "effect: give the `effect` to find"),
        (["--baseline", "0.1", "--effect", "much"], "--effect is 10% or 0.01, say, not 'much'"),
        (["--baseline", "0.1", "--units", "50", "--bandit", "--runs", "1"], "runs: must be"),
        (["--effect", "1%"], "metric.baseline: must be a number"),
        (["--baseline", "0.1", "--effect", "1%", "--means", "1,2"], "--means is of a bandit: add"),
        (["--baseline", "0.1", "--effect", "1%", "--max-step", "1"], "--max-step is of a bandit"),
        (["--kind", "ratio", "--numerator", "1,1,1"], "--numerator is two numbers, MEAN,SD, not 3"),
        (["--baseline", "0.1", "--experiment", "x"], "set TURNOUT_API_KEY"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_door(
    flags: list[str],
    complaint: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TURNOUT_API_KEY", raising=False)
    assert main(["plan", *flags]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert complaint in err


def test_every_flag_has_its_field() -> None:
    found = plan_flags.request_of(
        options(
            *("--kind", "ratio", "--numerator", "2,3", "--denominator", "10,4"),
            *("--correlation", "0.5", "--cuped", "0.6", "--goal", "decrease", "--window", "7d"),
            *("--effect", "5%", "--units", "1000", "--units-per-day", "100", "--weights", "2,1"),
            *("--alpha", "0.1", "--power", "0.9", "--correction", "none"),
            *("--primary-metrics", "2", "--reading", "planned", "--looks", "0.5,1"),
            *("--every", "1d", "--floor", "0.1", "--warmup", "50", "--max-step", "0.5"),
            "--bandit",
            *("--experiment", "x", "--metric", "m"),
        )
    )
    decoded = decode(PlanRequest, found)
    assert not decoded.problems
    assert set(found) == set(PlanRequest.__struct_fields__) - {"simulation"}
    simulation = simulation_of(options("--bandit", "--means", "0.1,0.2", "--steps", "3"))
    assert simulation is not None
    assert (simulation.means, simulation.steps, simulation.runs) == ((0.1, 0.2), 3, 1_000)
    assert simulation_of(options()) is None


def test_an_experiments_figures_come_from_the_server() -> None:
    sent: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(msgspec.json.decode(request.content))
        if sent[-1]["experiment"] == "none":
            body = {"detail": "Project shop has no experiment 'none'"}
            return httpx.Response(404, json=body)
        made = make_plan(
            decode(
                PlanRequest, {**sent[-1], "metric": {"kind": "proportion", "baseline": 0.2}}
            ).value
        )
        return httpx.Response(200, content=msgspec.json.encode(made))

    with httpx.Client(transport=httpx.MockTransport(answer), base_url="http://turnout") as client:
        request = decode(PlanRequest, {"experiment": "x", "units": 5_000}).value
        plan = ask(client, request)
        assert sent == [{"experiment": "x", "units": 5_000}]
        assert plan.metric.baseline == 0.2
        with pytest.raises(ClientError, match="404"):
            ask(client, msgspec.structs.replace(request, experiment="none"))
