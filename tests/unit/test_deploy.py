"""The deployment files: sound by the tools for them, and in step with the settings."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from turnout.settings import CLIENT_VARIABLES, IN_FILES, PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
TOOLS = Path(sys.executable).parent
PACKAGES = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"bench", "tests"}
SETTING_NAMES = {
    *(f"{PREFIX}{field.name.upper()}" for field in msgspec.structs.fields(Settings)),
    *(f"{PREFIX}{name.upper()}_FILE" for name in IN_FILES),
}
"""Every variable that Turnout reads."""
NOT_OURS = {"TURNOUT_ROUTER_PORT"}
"""What Kubernetes would set, and is told not to."""
NOT_SOURCE = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def compose() -> Any:
    """The compose file."""
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def passes(*command: str | Path) -> None:
    """A tool has no complaint."""
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def image_variables() -> dict[str, str]:
    """The settings in the image."""
    text = (DEPLOY / "Dockerfile").read_text()
    return dict(re.findall(rf"^(?:ENV| +) ?({PREFIX}\w+)=(\S+)", text, re.MULTILINE))


def test_the_dockerfile_is_sound() -> None:
    passes(TOOLS / "hadolint", DEPLOY / "Dockerfile")


def test_the_compose_file_is_sound() -> None:
    passes(
        TOOLS / "check-jsonschema",
        "--builtin-schema",
        "vendor.compose-spec",
        DEPLOY / "compose.yaml",
    )


def test_every_variable_named_is_a_setting() -> None:
    named = {
        name
        for file in DEPLOY.rglob("*")
        if file.is_file()
        for name in re.findall(rf"{PREFIX}[A-Z_]+", file.read_text())
    }
    assert named
    assert named <= SETTING_NAMES | CLIENT_VARIABLES | NOT_OURS


OF_TURNOUT = ("turnout", "turnout-serve", "turnout-worker-1", "turnout-worker-2")
PARTS = OF_TURNOUT[1:]


@pytest.mark.parametrize("name", OF_TURNOUT)
def test_the_container_s_settings_are_accepted(compose: Any, name: str) -> None:
    service = compose["services"][name]
    given = {
        name: re.sub(r"\$\{\w+:[-?]([^}]*)\}", lambda m: m[1].replace(" ", "-"), value)
        for name, value in service["environment"].items()
    }
    settings = load_settings({**image_variables(), **given}, {})
    assert settings.host == "0.0.0.0"  # noqa: S104 - the container's own
    kept = [volume.split(":")[1] for volume in service.get("volumes", ())]
    assert kept or name.startswith("turnout-worker")  # a worker keeps nothing
    assert settings.data_dir in [*kept, *service["tmpfs"]]
    assert settings.database_url.endswith("@postgres:5432/turnout")
    assert settings.redis_url.startswith("redis://valkey:")


def test_the_parts_are_a_router_and_workers_of_one_image(compose: Any) -> None:
    services = compose["services"]
    assert [services[name]["command"] for name in PARTS] == [["serve"], ["worker"], ["worker"]]
    assert {services[name]["image"] for name in PARTS} == {"turnout:parts"}
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    stages = re.findall(r"^FROM \S+ AS (\S+)$", dockerfile, re.MULTILINE)
    assert {services[name]["build"]["target"] for name in PARTS} <= set(stages)
    assert stages[-1] == "whole"  # what is built where no target is named
    # Parts share the key that the secrets of webhooks follow from.
    keys = {services[name]["environment"]["TURNOUT_SIGNING_KEY"] for name in PARTS}
    assert keys == {"${TURNOUT_SIGNING_KEY:-}"}


def test_prometheus_scrapes_what_the_parts_are_called(compose: Any) -> None:
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    [job] = [j for j in yaml.safe_load(text)["scrape_configs"] if j["job_name"] == "turnout"]
    [static] = job["static_configs"]
    assert set(static["targets"]) == {f"{name}:8080" for name in PARTS}
    sources = [v.split(":")[0] for name in ("prometheus", "grafana")
               for v in compose["services"][name]["volumes"] if v.startswith("./")]  # fmt: skip
    assert [source for source in sources if not (DEPLOY / source).is_dir()] == []


def test_every_container_is_confined(compose: Any) -> None:
    for service in compose["services"].values():
        assert service["read_only"] is True
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"mem_limit", "pids_limit"} <= service.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_no_secret_stands_in_the_files(compose: Any) -> None:
    texts = json.dumps(compose["services"])
    passwords = re.findall(r'POSTGRES_PASSWORD": "([^"]*)"', texts)
    passwords += re.findall(r"//\w+:([^\"@]*)@", texts)
    assert len(passwords) == 1 + len(OF_TURNOUT)
    assert all(re.fullmatch(r"\$\{POSTGRES_PASSWORD:\?[^}]+\}", text) for text in passwords)
    others = re.findall(r'(?:ADMIN_PASSWORD|_KEY)": "([^"]*)"', texts)
    assert all(re.fullmatch(r"\$\{\w+:-\}", text) for text in others)
    ignored = (ROOT / ".gitignore").read_text(), (ROOT / ".dockerignore").read_text()
    assert all(".env" in text for text in ignored)


def test_images_are_named_without_a_registry(compose: Any) -> None:
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    images = re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)
    images += [service["image"] for service in compose["services"].values()]
    assert len(images) == 5 + len(compose["services"])
    assert [image for image in images if re.match(r"[^/]*[.:][^/]*/|localhost/", image)] == []


def test_everything_but_turnout_has_a_health_check_of_its_own(compose: Any) -> None:
    assert "HEALTHCHECK" in (DEPLOY / "Dockerfile").read_text()
    services = compose["services"]
    assert {name for name in services if "healthcheck" not in services[name]} == set(OF_TURNOUT)
    for name in OF_TURNOUT:
        waits = services[name]["depends_on"]
        assert {wait["condition"] for wait in waits.values()} == {"service_healthy"}


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_a_lock_pins_everything_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text()
    assert re.search(r"https?:|index-url|find-links|trusted-host|file:", text) is None
    pins = [line for line in text.splitlines() if line and not line.startswith((" ", "#"))]
    assert pins
    assert [pin for pin in pins if not re.match(r"[a-z0-9._-]+==\S+ ", pin)] == []
    assert text.count("--hash=sha256:") >= len(pins)


def test_an_installation_has_every_file_of_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=NOT_SOURCE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    expected = {
        str(path.relative_to(source))
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    result = subprocess.run(
        [sys.executable, "-c", build, tmp_path],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        installed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert {"migrations/0001_the_loop.sql", "turnout/cli.py"} <= installed
    assert installed == expected
