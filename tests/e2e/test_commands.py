"""The commands beside `up`: keys, definitions, reports, migrations."""

import json
from pathlib import Path

import pytest

from tests.e2e.commands import Up, done, refusal, turnout, until
from tests.e2e.traffic import DEFINITION, assign, expose_units, start_experiment, units_of
from turnout.admin import commander
from turnout.migrate import migrations


def test_a_key_is_made_used_listed_and_revoked_while_it_runs(serving: Up) -> None:
    start_experiment(serving, serving.admin_key, "for-keys")
    here = ("--data-dir", serving.data_dir)
    key = done("keys", "create", "--role", "service", "--note", "for a test", *here).strip()
    identity = key.split("_")[1]
    line = f"{identity}  service   expires never  used never  by {commander()}  for a test\n"
    assert line in done("keys", "list", *here)
    with serving.client(key) as client:
        until(lambda: assign(client, "one", "for-keys").is_success, "the key works")
        assert done("keys", "revoke", identity, *here) == ""
        until(lambda: assign(client, "one", "for-keys").status_code == 401, "it works no more")
    assert identity not in done("keys", "list", *here)


def test_what_is_no_live_key_cannot_be_revoked(serving: Up) -> None:
    result = turnout("keys", "revoke", "0123456789ab", "--data-dir", serving.data_dir)
    assert result.returncode == 1
    assert result.stderr == "turnout: project default has no live key 0123456789ab\n"


@pytest.mark.parametrize("length", ["soon", "999999999d"])
def test_a_key_expires_after_a_length_of_time(serving: Up, length: str) -> None:
    here = ("--data-dir", serving.data_dir)
    line = refusal("keys", "create", "--role", "client", "--expires-in", length, *here)
    assert line.startswith("--expires-in ")
    assert length in line


def test_definitions_are_applied_from_a_file_and_reported_on(serving: Up, tmp_path: Path) -> None:
    client = {"TURNOUT_URL": serving.url, "TURNOUT_API_KEY": serving.admin_key}
    # A date without quotes is a date to YAML, and not JSON.
    first = json.dumps({**DEFINITION, "key": "applied"})[:-1] + ", hypothesis: 2031-05-06}"
    second = json.dumps({**DEFINITION, "key": "applied-too"})
    file = tmp_path / "experiments.yaml"
    file.write_text(f"{first}\n---\n{second}\n")

    lines = done("apply", "-f", file, variables=client).splitlines()
    assert lines == ["applied: created, revision 1", "applied-too: created, revision 1"]
    file.write_text(f"{first.replace('2031', '2032')}\n---\n{second}\n")
    lines = done("apply", "-f", "-", variables=client, stdin=file.read_text()).splitlines()
    assert lines == ["applied: changed, revision 2", "applied-too: unchanged, revision 1"]
    with serving.client(serving.admin_key) as http:
        definition = http.get("/v1/experiments/applied").json()["definition"]
        assert definition["hypothesis"] == "2032-05-06"
        assert http.post("/v1/experiments/applied/start", json={"reason": "x"}).is_success
        until(lambda: assign(http, "nobody", "applied", expose=False).is_success, "it is assigned")

    expose_units(serving, serving.admin_key, range(12), "applied")
    until(lambda: units_of(serving, serving.admin_key, "applied") == 12, "they are counted")
    assert "12 units" in done("report", "applied", variables=client)
    report = json.loads(done("report", "applied", "--json", variables=client))
    assert sum(report["units"].values()) == 12


def test_what_a_unit_got_is_told_in_words_or_as_json(serving: Up) -> None:
    key = serving.admin_key
    client = {"TURNOUT_URL": serving.url, "TURNOUT_API_KEY": key}
    start_experiment(serving, key, "replayed")
    variant = expose_units(serving, key, range(1), "replayed")["unit-0"]
    asked = ("replay", "replayed", "--unit", "unit-0")
    until(
        lambda: json.loads(done(*asked, "--json", variables=client))["source"] == "exposure",
        "the exposure is in Postgres",
    )
    first, *steps = done(*asked, variables=client).splitlines()
    assert first == f"unit-0 in replayed: {variant} (split)"
    assert "  source     the recorded exposure" in steps
    assert steps[-1].startswith(f"  exposure   {variant} at ")
    assert steps[-1].endswith(": agrees")

    told = json.loads(done(*asked, "--epoch", "1", "--json", variables=client))
    exposure = told["exposure"]["id"]
    assert (told["variant"], told["epoch"], told["agrees"]) == (variant, 1, True)
    assert exposure in done(*asked, "--exposure", exposure, variables=client)
    assert exposure in done(*asked, "--at", told["at"], variables=client)
    stranger = done("replay", "replayed", "--unit", "stranger", variables=client)
    assert "  source     computed" in stranger.splitlines()


def test_a_replay_that_cannot_be_is_told_in_one_line(serving: Up) -> None:
    client = {"TURNOUT_URL": serving.url, "TURNOUT_API_KEY": serving.admin_key}
    start_experiment(serving, serving.admin_key, "unreplayed")
    asked = ("replay", "unreplayed", "--unit", "unit-0")
    assert "no epoch 9" in refusal(*asked, "--epoch", "9", variables=client)
    assert (
        "no experiment"
        in refusal("replay", "unheard-of", "--unit", "unit-0", variables=client).lower()
    )
    wrong = turnout(*asked, "--at", "yesterday", variables=client)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "at: " in wrong.stderr
    both = turnout(*asked, "--at", "2031-05-06T00:00:00Z", "--epoch", "1", variables=client)
    assert (both.returncode, both.stdout) == (2, "")


def test_a_wrong_definition_is_refused_with_every_wrong_field(serving: Up, tmp_path: Path) -> None:
    client = {"TURNOUT_URL": serving.url, "TURNOUT_API_KEY": serving.admin_key}
    file = tmp_path / "wrong.json"
    file.write_text(json.dumps({**DEFINITION, "key": "wrong", "traffic": 2, "colour": "red"}))
    result = turnout("apply", "-f", file, variables=client)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("turnout: 422: ")
    named = {line.strip().partition(":")[0] for line in result.stderr.splitlines()[1:]}
    assert named == {"traffic", "colour"}


def test_what_cannot_be_asked_is_told_in_one_line(serving: Up, tmp_path: Path) -> None:
    client = {"TURNOUT_URL": serving.url, "TURNOUT_API_KEY": serving.admin_key}
    assert "TURNOUT_API_KEY" in refusal("report", "any")
    assert "no experiment" in refusal("report", "unheard-of", variables=client).lower()
    assert "does not answer" in refusal(
        "report", "any", "--url", "http://127.0.0.1:1", variables=client
    )
    assert "cannot read" in refusal("apply", "-f", tmp_path / "missing", variables=client)


def test_migrate_names_what_the_database_has_and_can_be_repeated(
    tmp_path: Path, database_url: str
) -> None:
    variables = {"TURNOUT_DATABASE_URL": database_url}
    names = "".join(f"{migration.name}\n" for migration in migrations())
    for _ in range(2):
        ended = turnout("migrate", "--data-dir", tmp_path / "unused", variables=variables)
        assert (ended.returncode, ended.stdout) == (0, names)
    assert not (tmp_path / "unused").exists()


def test_a_project_is_set_up_to_hash_its_units_before_it_has_any(serving: Up) -> None:
    here = ("--data-dir", serving.data_dir, "--project", "private")
    assert "no project 'private'" in refusal("project", *here)
    hashed = "project private: units hashed, default type user\n"
    assert done("project", *here, "--units", "hashed") == hashed
    assert done("project", *here) == hashed
    key = done("keys", "create", "--role", "admin", *here).strip()
    with serving.client(key) as client:
        until(lambda: client.get("/v1/project").is_success, "the key works")
        assert client.get("/v1/project").json()["units"] == "hashed"
    start_experiment(serving, key, "private")
    refused = turnout("project", *here, "--units", "plain")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "`units` is fixed" in refused.stderr
    assert done("project", *here) == hashed
