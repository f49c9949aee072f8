"""The Kubernetes manifests: sound by their schemas, in step with each other and with Turnout.

kustomize itself runs where kubectl is on the path; what it would resolve is looked up here always.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.test_deploy import SETTING_NAMES
from turnout import __version__
from turnout.settings import PREFIX, load_settings

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
BASE = KUBERNETES / "base"
OVERLAYS = sorted(path for path in (KUBERNETES / "overlays").iterdir() if path.is_dir())
VALIDATE = Path(sys.executable).parent / "kubernetes-validate"
OF_OTHERS = {"HTTPRoute", "PodMonitor"}
"""Kinds that Kubernetes itself does not know."""


def documents(file: Path) -> list[Any]:
    """The objects in a file."""
    return [document for document in yaml.safe_load_all(file.read_text()) if document]


def resources(folder: Path) -> list[Any]:
    """The objects that a kustomization names, as they stand in their files."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    found: list[Any] = []
    for name in [*kustomization.get("resources", []), *kustomization.get("components", [])]:
        path = folder / name
        assert path.exists(), f"{folder.name} names {name}, which is not there"
        found += resources(path.resolve()) if path.is_dir() else documents(path)
    return found


EXAMPLES = [
    document for file in (KUBERNETES / "examples").glob("*") for document in documents(file)
]
PRODUCTION = resources(KUBERNETES / "overlays" / "production")
ALL = [*PRODUCTION, *EXAMPLES]


def of_kind(*kinds: str, among: list[Any] = PRODUCTION) -> list[Any]:
    """The objects of these kinds."""
    return [document for document in among if document["kind"] in kinds]


RUNNING = of_kind("StatefulSet", "Deployment", "Job", among=ALL)
IDS = [document["metadata"]["name"] for document in RUNNING]


def labels_of(workload: Any) -> dict[str, str]:
    """The labels of a workload's pods."""
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: Any, labels: Mapping[str, str]) -> bool:
    """Whether a label selector is met."""
    return all(labels.get(k) == v for k, v in selector.get("matchLabels", {}).items()) and all(
        labels.get(each["key"]) in each["values"] for each in selector.get("matchExpressions", ())
    )


def selected(selector: Any) -> set[str]:
    """The workloads whose pods a selector finds."""
    return {w["metadata"]["name"] for w in RUNNING if selects(selector, labels_of(w))}


def containers(workload: Any) -> Iterator[Any]:
    """All containers of a workload's pods."""
    pod = workload["spec"]["template"]["spec"]
    yield from pod.get("initContainers", ())
    yield from pod["containers"]


def settings_in(file: Path) -> dict[str, str]:
    """The variables in a file of settings."""
    return dict(line.split("=", 1) for line in file.read_text().splitlines())


def test_every_manifest_is_sound_by_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(yaml.safe_dump_all([d for d in ALL if d["kind"] not in OF_OTHERS]))
    assert_valid(file)


def assert_valid(file: Path) -> None:
    """kubernetes-validate has no complaint, and knows every kind."""
    result = subprocess.run(
        [VALIDATE, "--strict", file], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARN" not in result.stdout + result.stderr


@pytest.mark.parametrize("folder", [BASE, *OVERLAYS], ids=lambda folder: folder.name)
def test_kustomize_makes_sound_manifests(folder: Path, tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on the path: kustomize was not run")
    result = subprocess.run(
        [kubectl, "kustomize", folder], capture_output=True, text=True, timeout=60, check=False
    )
    assert (result.returncode, result.stderr) == (0, "")
    file = tmp_path / "made.yaml"
    file.write_text(result.stdout)
    assert_valid(file)
    made = list(yaml.safe_load_all(result.stdout))
    [settings] = of_kind("ConfigMap", among=made)
    for workload in of_kind("StatefulSet", "Deployment", among=made):
        [container] = containers(workload)
        [source] = container["envFrom"]
        assert source["configMapRef"]["name"] == settings["metadata"]["name"] != "turnout"
        if folder != BASE:
            assert container["image"] == f"turnout:{__version__}"
    if folder.name == "production":
        [router] = of_kind("StatefulSet", among=made)
        assert "replicas" not in router["spec"]  # they are the autoscaler's
        assert settings["data"].keys() >= settings_in(folder / "turnout.env").keys()


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda folder: folder.name)
def test_every_patch_has_what_it_changes(overlay: Path) -> None:
    kustomization = yaml.safe_load((overlay / "kustomization.yaml").read_text())
    there = {(d["kind"], d["metadata"]["name"]): d for d in resources(overlay)}
    for patch in kustomization.get("patches", []):
        target = there[patch["target"]["kind"], patch["target"]["name"]]
        for step in yaml.safe_load(patch["patch"]):
            place: Any = target
            for name in step["path"].strip("/").split("/"):
                place = place[int(name) if isinstance(place, list) else name]
    for each in kustomization.get("replicas", []):
        assert any(name == each["name"] for _, name in there)


def test_nothing_names_a_namespace() -> None:
    assert [d for d in ALL if "namespace" in d["metadata"]] == []


@pytest.mark.parametrize("workload", RUNNING, ids=IDS)
def test_pods_meet_the_restricted_standard(workload: Any) -> None:
    """Each item of the Pod Security Standard "restricted", and a root that is read-only."""
    pod = workload["spec"]["template"]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"}
    allowed |= {"persistentVolumeClaim", "projected", "secret"}
    for volume in pod["volumes"]:
        assert volume.keys() - {"name"} <= allowed
    security = pod["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == security["runAsGroup"] == security["fsGroup"] == 10001
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "sysctls" not in security
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False  # TURNOUT_PORT=tcp://… is what it would set
    for container in containers(workload):
        own = container["securityContext"]
        assert own["allowPrivilegeEscalation"] is False
        assert own["readOnlyRootFilesystem"] is True
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert not {"privileged", "procMount", "runAsUser", "runAsNonRoot"} & own.keys()
        assert all("hostPort" not in port for port in container.get("ports", ()))
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_the_user_is_that_of_the_image() -> None:
    dockerfile = (KUBERNETES.parent / "Dockerfile").read_text()
    assert re.search(r"^USER 10001:10001$", dockerfile, re.MULTILINE)


@pytest.mark.parametrize("workload", RUNNING, ids=IDS)
def test_what_is_mounted_is_there(workload: Any) -> None:
    pod = workload["spec"]["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]}
    volumes |= {t["metadata"]["name"] for t in workload["spec"].get("volumeClaimTemplates", ())}
    for container in containers(workload):
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    secrets = {v["secret"]["secretName"] for v in pod["volumes"] if "secret" in v}
    assert secrets == {"turnout"}


def test_selectors_find_their_own_pods_and_no_others() -> None:
    for workload in of_kind("StatefulSet", "Deployment"):
        name = workload["metadata"]["name"]
        assert selected(workload["spec"]["selector"]) == {name}
        for spread in workload["spec"]["template"]["spec"]["topologySpreadConstraints"]:
            assert selected(spread["labelSelector"]) == {name}
    for budget in of_kind("PodDisruptionBudget"):
        assert selected(budget["spec"]["selector"]) == {budget["metadata"]["name"]}
        assert budget["spec"]["maxUnavailable"] == 1
    services = of_kind("Service")
    assert {s["metadata"]["name"] for s in services} == {"turnout", "turnout-router"}
    for service in services:
        assert selected({"matchLabels": service["spec"]["selector"]}) == {"turnout-router"}


def test_ports_are_those_that_turnout_listens_on() -> None:
    settings = settings_in(BASE / "turnout.env")
    for workload in of_kind("StatefulSet", "Deployment"):
        [container] = containers(workload)
        assert container["ports"] == [
            {"name": "http", "containerPort": int(settings["TURNOUT_PORT"])}
        ]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] == "http"
    for service in of_kind("Service"):
        assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    [router] = of_kind("StatefulSet")
    headless = [s for s in of_kind("Service") if s["spec"].get("clusterIP") == "None"]
    assert [s["metadata"]["name"] for s in headless] == [router["spec"]["serviceName"]]
    for route in of_kind("Ingress", "HTTPRoute", among=EXAMPLES):
        assert re.search(r"name: turnout\b", yaml.safe_dump(route["spec"]))


def test_probes_ask_at_doors_that_mean_it() -> None:
    for workload in of_kind("StatefulSet", "Deployment"):
        [container] = containers(workload)
        # Whether the process lives: a router that is cut off must not be restarted for it.
        assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["startupProbe"]["httpGet"]["path"] in {"/healthz", "/readyz"}
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] >= 300  # migrations


def test_a_router_has_the_time_to_end_in_order() -> None:
    from turnout.serving import DRAIN_SECONDS  # noqa: PLC0415 - with it comes the web server

    [router] = of_kind("StatefulSet")
    [container] = containers(router)
    waits = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = waits + DRAIN_SECONDS + DRAIN_SECONDS  # to drain, and then to ship
    assert router["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > needed


def test_what_was_acknowledged_outlives_a_pod() -> None:
    [router] = of_kind("StatefulSet")
    retention = router["spec"]["persistentVolumeClaimRetentionPolicy"]
    assert set(retention.values()) == {"Retain"}
    [claim] = router["spec"]["volumeClaimTemplates"]
    [container] = containers(router)
    [mount] = [m for m in container["volumeMounts"] if m["name"] == claim["metadata"]["name"]]
    for overlay in (BASE, *OVERLAYS):
        changed = overlay / "turnout.env"
        settings = settings_in(BASE / "turnout.env")
        settings |= settings_in(changed) if changed.exists() else {}
        assert Path(settings["TURNOUT_DATA_DIR"]).is_relative_to(mount["mountPath"])
        room = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("Gi")) * 1024
        assert int(settings["TURNOUT_JOURNAL_LIMIT_MIB"]) <= room * 0.8
    [ship] = [d for d in EXAMPLES if d["metadata"]["name"].startswith("turnout-ship")]
    claims = [
        v for v in ship["spec"]["template"]["spec"]["volumes"] if "persistentVolumeClaim" in v
    ]
    name = f"{claim['metadata']['name']}-{router['metadata']['name']}-"
    assert claims[0]["persistentVolumeClaim"]["claimName"].startswith(name)
    [container] = containers(ship)
    assert container["image"] == f"turnout:{__version__}"
    assert container["args"][1] == settings["TURNOUT_DATA_DIR"]


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda folder: folder.name)
def test_turnout_takes_the_settings(overlay: Path, tmp_path: Path) -> None:
    """As it would read them: with the Secret's files where they are mounted."""
    [secret] = of_kind("Secret", among=EXAMPLES)
    settings = settings_in(BASE / "turnout.env")
    if (overlay / "turnout.env").exists():
        settings |= settings_in(overlay / "turnout.env")
    mounted = {
        name: Path(value) for name, value in settings.items() if value.startswith("/etc/turnout/")
    }
    assert {path.name for path in mounted.values()} == secret["stringData"].keys()
    values = {
        "database-url": "postgresql://turnout@postgres/turnout",
        "redis-url": "redis://valkey:6379/0",
        "signing-key": "5" * 64,
    }
    for path in mounted.values():
        (tmp_path / path.name).write_text(values[path.name])
    there = {name: str(tmp_path / path.name) for name, path in mounted.items()}
    loaded = load_settings({**settings, **there}, {})
    assert loaded.database_url == values["database-url"]
    assert loaded.redis_url == values["redis-url"]


def test_every_variable_is_a_setting() -> None:
    for workload in RUNNING:
        for container in containers(workload):
            for variable in container.get("env", ()):
                assert variable["name"] in SETTING_NAMES
    named = [n for o in (BASE, *OVERLAYS) if (o / "turnout.env").exists()
             for n in settings_in(o / "turnout.env")]  # fmt: skip
    assert set(named) <= SETTING_NAMES


def test_no_secret_stands_in_the_manifests() -> None:
    assert of_kind("Secret") == []
    [example] = of_kind("Secret", among=EXAMPLES)
    for value in example["stringData"].values():
        assert "PASSWORD" in value or "of your own" in value
    text = "".join(file.read_text() for file in KUBERNETES.rglob("*.yaml"))
    assert re.search(rf"{PREFIX}(DATABASE_URL|REDIS_URL|SIGNING_KEY)\b(?!_FILE)", text) is None


def test_the_autoscalers_scale_the_routers() -> None:
    for autoscaler in of_kind("HorizontalPodAutoscaler", among=ALL):
        target = autoscaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("StatefulSet", "turnout-router")
        assert autoscaler["spec"]["minReplicas"] >= 2


def test_nothing_comes_in_or_goes_out_but_what_is_named() -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind("NetworkPolicy")}
    every = set(IDS)
    deny = policies.pop("turnout-deny")
    assert selected(deny["podSelector"]) == every
    assert deny == {"podSelector": deny["podSelector"], "policyTypes": ["Ingress", "Egress"]}
    reached = {name: selected(spec["podSelector"]) for name, spec in policies.items()}
    lasting = {"turnout-router", "turnout-worker"}
    assert reached == {
        "turnout-calls": {"turnout-router"},
        "turnout-scrapes": lasting,
        "turnout-servers": every,
        "turnout-webhooks": lasting,
    }
    for name in ("turnout-calls", "turnout-scrapes"):
        [rule] = policies[name]["ingress"]
        assert rule["from"]
        assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
    ports = [p["port"] for rule in policies["turnout-servers"]["egress"] for p in rule["ports"]]
    assert sorted(set(ports)) == [53, 4318, 5432, 6379]
    [webhooks] = policies["turnout-webhooks"]["egress"]
    assert "169.254.0.0/16" in webhooks["to"][0]["ipBlock"]["except"]


def test_prometheus_finds_every_process_that_lasts() -> None:
    [monitor] = of_kind("PodMonitor", among=EXAMPLES)
    assert selected(monitor["spec"]["selector"]) == {"turnout-router", "turnout-worker"}
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
