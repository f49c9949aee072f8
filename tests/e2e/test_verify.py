"""The command `verify`, beside a Turnout that runs."""

from tests.e2e.commands import Up, refusal, turnout, until
from tests.e2e.traffic import expose_units, start_experiment, units_of


def test_a_running_turnout_is_verified(serving: Up) -> None:
    start_experiment(serving, serving.admin_key, "verified")
    expose_units(serving, serving.admin_key, range(12), "verified")
    until(lambda: units_of(serving, serving.admin_key, "verified") == 12, "they are counted")
    result = turnout("verify", "--experiment", "verified", "--data-dir", serving.data_dir)
    assert result.returncode == 0
    assert result.stdout.startswith("verified 1 runs, 12 units, ")
    assert result.stdout.endswith(" cells: all equal\n")
    assert "metric 1 of " in result.stderr


def test_what_is_not_there_cannot_be_verified(serving: Up) -> None:
    line = refusal("verify", "--project", "nobody", "--data-dir", serving.data_dir)
    assert line == "no experiment in project nobody has been started"
