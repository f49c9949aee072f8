"""Have a release run, with its own code, and keep what it leaves behind.

    .venv/bin/python -m tests.releases.make 0.6.0 1aa31a9

runs the code of that commit in this environment, on a new data folder, and writes beside this file

- `0.6.0.sql.gz`: its database, as plain SQL that any Postgres from 15 on takes in;
- `0.6.0.json.gz`: what it said of it: its keys, its reports, its assignments;
- `0.6.0.tar.gz`: the journal and the snapshot of its data folder after a `kill -9`. The journal
  holds `AFTERWARDS` exposures that the database does not.

A fixture is made once, when a release is made, and never again: it is what that release wrote.
"""

import gzip
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import httpx

from turnout.embedded.binaries import find_postgres

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parents[1]
UNITS: Final = 800
A_FEW: Final = 25
AFTERWARDS: Final = 40
ROLES: Final = ("client", "service", "analyst", "editor", "admin")
FLAGS: Final = ("--ship-every", "100ms", "--tick", "100ms", "--lateness", "100ms")
ROOM_FOR_LATE: Final = 3.0
_ONLY_NEWER: Final = re.compile(r"^(SET transaction_timeout = .*|\\(un)?restrict .*)\n", re.M)
"""What pg_dump writes that servers before its own, or servers without psql, do not know."""

CLICK: Final = {"key": "click", "role": "primary", "kind": "proportion", "event": "click"}
REVENUE: Final = {"key": "revenue", "kind": "mean", "event": "purchase", "aggregate": "sum"}
ERRORS: Final = {"key": "errors", "role": "guardrail", "kind": "proportion", "event": "error"}
HARM: Final = {"goal": "decrease", "margin": {"absolute": 0.02}}
LATENCY: Final = {"key": "latency", "kind": "quantile", "quantile": 0.9, "event": "latency_ms"}
CLICKS_PER_VIEW: Final = {
    "key": "ctr",
    "kind": "ratio",
    "numerator": "click",
    "denominator": "view",
}


def variants(*keys: str) -> list[dict[str, Any]]:
    """Variants of equal weight, the first of which is the control."""
    return [
        {"key": key, "control": place == 0, "weight": 1 / len(keys), "value": {"model": key}}
        for place, key in enumerate(keys)
    ]


def definitions(release: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Experiments of all kinds that a release knows."""
    short = {"window": "2s"}
    metrics: list[dict[str, Any]] = [CLICK | short]
    if release >= (0, 2):
        metrics += [REVENUE | short | {"role": "secondary"}]
    if release >= (0, 4):
        metrics += [each | short | {"role": "secondary"} for each in (LATENCY, CLICKS_PER_VIEW)]
    guarded = [*metrics, ERRORS | short | HARM]
    made: dict[str, dict[str, Any]] = {
        "ranker": {"variants": variants("v6", "v7"), "metrics": metrics, "record": ["country"]},
        "pricing": {"variants": variants("today", "cards", "table"), "metrics": metrics},
        "paused": {"variants": variants("a", "b"), "metrics": metrics},
        "undone": {"variants": variants("old", "new"), "metrics": metrics},
        "again": {"variants": variants("a", "b"), "metrics": metrics},
        "draft": {"variants": variants("a", "b"), "metrics": metrics},
    }
    if release >= (0, 3):
        targeting = {"in": [{"var": "country"}, ["DE", "AT"]]}
        made["sticky"] = {**made["ranker"], "stickiness": "sticky", "targeting": targeting}
        made["layered"] = {
            "variants": variants("a", "b"),
            "metrics": metrics,
            "layer": {"key": "ranking", "slots": [0, 5000]},
        }
    if release >= (0, 5):
        made["bad"] = {"variants": variants("good", "bad"), "metrics": guarded}
        made["bandit"] = {
            "variants": variants("plain", "chain"),
            "metrics": metrics,
            "policy": {"kind": "thompson", "metric": "click", "every": "1s", "floor": 0.05}
            | {"warmup": 20, "max_step": 0.2},
        }
        steps = [{"traffic": 0.2, "hold": "1s"}, {"traffic": 1.0, "hold": "1d"}]
        made["ramp"] = {
            "variants": variants("old", "new"),
            "metrics": guarded,
            "policy": {"kind": "ramp", "steps": steps},
        }
    return made


class Old:
    """A release that runs."""

    def __init__(self, code: Path, data: Path, number: tuple[int, ...]) -> None:
        """Start it and wait until it serves."""
        self.number = number
        self.data = data
        self.code = code
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TURNOUT_")}
        self.environment = inherited | {"PYTHONPATH": str(code)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "turnout", "up", "--port", "0", "--data-dir", data, *FLAGS],
            env=self.environment,
            cwd=code,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        key = url = ""
        for line in self.process.stdout:
            key = line.split()[-1] if "Admin key" in line else key
            if "serves on" in line:
                url = line.split()[-1]
                break
        headers = {"Authorization": f"Bearer {key}"}
        self.client = httpx.Client(base_url=url, headers=headers, timeout=60)
        self.keys = {"admin": key}

    def ask(self, method: str, path: str, body: Any = None, status: int | None = None) -> Any:
        """The answer to a request that must go well."""
        answer = self.client.request(method, path, json=body)
        good = answer.is_success if status is None else answer.status_code == status
        if not good:
            raise SystemExit(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
        deadline = time.monotonic() + 60
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(f"never happened: {what}")
            time.sleep(0.1)

    def report(self, key: str) -> Any:
        """A significance report."""
        return self.ask("GET", f"/v1/experiments/{key}/report")

    def assign(self, key: str, unit: str, *, expose: bool) -> Any:
        """Assign a unit."""
        body = {"experiment": key, "unit": unit, "expose": expose, "attributes": attributes(unit)}
        return self.ask("POST", "/v1/assign", body)


def attributes(unit: str) -> dict[str, str]:
    """What is known of a unit."""
    return {"country": ("DE", "AT", "FR")[sum(unit.encode()) % 3]}


def outcomes(
    units: Iterable[str], variant: dict[str, dict[str, str]], seed: int
) -> list[dict[str, Any]]:
    """What units do."""
    rng = random.Random(seed)  # noqa: S311 - a simulation
    made: list[dict[str, Any]] = []
    for unit in units:
        got = variant[unit]
        made.append({"event": "view", "unit": unit})
        made.append({"event": "latency_ms", "unit": unit, "value": round(rng.lognormvariate(4, 1))})
        if rng.random() < (0.5 if got.get("bandit") == "chain" else 0.2):
            made.append({"event": "click", "unit": unit, "id": f"click-{unit}"})
        if rng.random() < 0.2:
            made.append({"event": "purchase", "unit": unit, "value": round(rng.uniform(1, 99), 2)})
        if rng.random() < (0.6 if got.get("bad") == "bad" else 0.02):
            made.append({"event": "error", "unit": unit})
    return made


def live(old: Old) -> dict[str, dict[str, Any]]:
    """Have the release do all it can; its experiments."""
    made = definitions(old.number)
    for role in ROLES[:-1]:
        arguments = ["keys", "create", "--role", role, "--data-dir", str(old.data)]
        old.keys[role] = subprocess.run(
            [sys.executable, "-m", "turnout", *arguments],
            env=old.environment,
            cwd=old.code,  # the code in the current folder comes first
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
    if old.number >= (0, 3):
        old.ask("PUT", "/v1/layers/ranking", {})
        old.ask("PUT", "/v1/holdout", {"share": 0.02, "reason": "to measure all"})
    if old.number >= (0, 5):
        old.ask("POST", "/v1/webhooks", {"url": "http://127.0.0.1:9/nobody"})
    for key, definition in made.items():
        old.ask("POST", "/v1/experiments", {"key": key, **definition})
        if key != "draft":
            old.ask("POST", f"/v1/experiments/{key}/start", {"reason": "first run"})
    old.until(lambda: old.client.post("/v1/assign", json=last(made)).is_success, "it assigns")
    for part in range(4):
        units = [f"u{part}-{n}" for n in range(UNITS // 4)]
        expose(old, made, units)
        time.sleep(1.2)
    hands(old, made)
    return made


def last(made: dict[str, Any]) -> dict[str, Any]:
    """A request for the experiment that was started last."""
    return {"experiment": list(made)[-1 if "ramp" in made else -2], "unit": "x", "expose": False}


def expose(old: Old, made: dict[str, dict[str, Any]], units: list[str]) -> None:
    """Units come and do things, a few at a time, so that none waits longer than a window."""
    keys = [key for key in made if key != "draft" and (key != "again" or old.number >= (0, 3))]
    for start in range(0, len(units), A_FEW):
        some = units[start : start + A_FEW]
        got: dict[str, dict[str, str]] = {unit: {} for unit in some}
        for unit in some:
            for key in keys:
                if start < 75 or key in {"ranker", "bad", "bandit"}:
                    got[unit][key] = old.assign(key, unit, expose=True).get("variant")
        old.ask("POST", "/v1/outcomes", outcomes(some, got, start))


def hands(old: Old, made: dict[str, dict[str, Any]]) -> None:
    """What hands do with experiments."""
    where = "/v1/experiments"
    body: dict[str, Any] = {"reason": "seen enough"}
    old.ask("POST", f"{where}/pricing/conclude", body | {"ship": "cards"})
    old.ask("POST", f"{where}/paused/pause", body)
    old.ask("POST", f"{where}/undone/rollback", body)
    split = {"weights": {"v6": 0.3, "v7": 0.7}, "reason": "more of it"}
    old.ask("PUT", f"{where}/ranker/allocation", split)
    old.ask("POST", f"{where}/again/conclude", body | {"ship": "a"})
    old.ask("POST", f"{where}/again/start", {"reason": "second run"})
    if "bad" in made:
        old.until(lambda: state(old, "bad") == "rolled_back", "the guard rolls back")
    time.sleep(ROOM_FOR_LATE)


def state(old: Old, key: str) -> str:
    """The state of an experiment; a rolled back variant is one of a run."""
    decisions = old.ask("GET", f"/v1/experiments/{key}/decisions")["items"]
    rolled = any(each["kind"] == "rollback" for each in decisions)
    return "rolled_back" if rolled else "running"


def settled(old: Old, made: dict[str, Any]) -> dict[str, Any]:
    """The reports, once nothing in them moves."""
    keys = [key for key in made if key != "draft"]
    before: Any = None
    while True:
        told = {key: old.report(key) for key in keys}
        plain = json.dumps(
            [told[key]["units"] for key in keys]
            + [metric["arms"] for key in keys for metric in told[key]["metrics"]]
        )
        if plain == before:
            return told
        before = plain
        time.sleep(3.0)


def dump(old: Old) -> str:
    """The database as plain SQL."""
    servers = json.loads((old.data / "run.json").read_text())
    command = ["--no-owner", "--no-privileges", "--rows-per-insert=500", servers["database_url"]]
    text = subprocess.run(
        [find_postgres() / "pg_dump", *command], check=True, capture_output=True, text=True
    ).stdout
    text = _ONLY_NEWER.sub("", text)
    return "".join(line for line in text.splitlines(True) if not line.startswith("--"))


def folder(old: Old) -> bytes:
    """The journal and the snapshot of the data folder, packed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("journal", "journals", "snapshot"):
            if (old.data / name).exists():
                archive.add(old.data / name, name)
    return packed.getvalue()


def make(release: str, commit: str) -> None:
    """Write the fixture of a release."""
    number = tuple(map(int, release.split(".")))
    root = Path(tempfile.mkdtemp(prefix="release-"))
    try:
        code = root / "code"
        code.mkdir()
        archive = subprocess.run(
            ["git", "archive", commit], cwd=ROOT, check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(code, filter="data")
        old = Old(code, root / "data", number)
        try:
            made = live(old)
            reports = settled(old, made)
            units = [f"u{part}-{n}" for part in range(4) for n in range(6)]
            kept = {
                "release": release,
                "keys": old.keys,
                "reports": reports,
                "assignments": {
                    key: {
                        unit: {
                            name: value
                            for name, value in old.assign(key, unit, expose=False).items()
                            if name in {"variant", "value", "epoch"}
                        }
                        for unit in units
                    }
                    for key in made
                    if key != "draft"
                },
                "decisions": {
                    key: old.ask("GET", f"/v1/experiments/{key}/decisions")["items"] for key in made
                },
            }
            text = dump(old)
            # What is acknowledged from here on is in the journal only: Postgres is stopped.
            for number_ in postgres_of(old.data):
                os.kill(number_, 19)
            for n in range(AFTERWARDS):
                old.assign("ranker", f"late-{n}", expose=True)
            old.process.kill()
            old.process.wait()
            files_ = folder(old)
        finally:
            old.process.kill()
            for number_ in postgres_of(root / "data"):
                os.kill(number_, 9)
    finally:
        time.sleep(1.0)
        shutil.rmtree(root, ignore_errors=True)
    (HERE / f"{release}.sql.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (HERE / f"{release}.tar.gz").write_bytes(files_)
    told = json.dumps(kept, sort_keys=True).encode()
    (HERE / f"{release}.json.gz").write_bytes(gzip.compress(told, mtime=0))


def postgres_of(data: Path) -> list[int]:
    """The processes of the Postgres of a data folder."""
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                inside = (place / "cwd").readlink().is_relative_to(data / "postgres")
            except OSError:
                continue
            if inside:
                found.append(int(place.name))
    return found


if __name__ == "__main__":
    make(*sys.argv[1:3])
