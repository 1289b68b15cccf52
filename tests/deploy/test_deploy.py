"""What is deployed: linted, checked against schemas, and true to the code."""

import configparser
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from app.settings import Settings
from docs.reference import metrics_reference

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
UNIT = DEPLOY / "batchllm.service"
NOT_SETTINGS = {"BATCHLLM_IMAGE"}


def objects(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def pods(path: Path) -> list[dict[str, Any]]:
    return [one["spec"]["template"]["spec"] for one in objects(path) if one["kind"] == "Deployment"]


def test_the_dockerfile_passes_the_linter() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    result = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_image_runs_as_nobody_in_particular() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER \d+:\d+$", text, flags=re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)$", text, flags=re.MULTILINE)
    assert stages == ["source", "build-cpu", "build-cuda", "runtime", "cuda", "cpu"]
    for word in ("HEALTHCHECK", "VOLUME /data", "ARG TORCH_INDEX"):
        assert word in text
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", text, flags=re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_fit_the_schemas(path: Path) -> None:
    assert len(objects(path)) >= 3
    for one in objects(path):
        kubernetes_validate.validate(one, "1.30", strict=True)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_confined(path: Path) -> None:
    for pod in pods(path):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["terminationGracePeriodSeconds"] > 20  # what `serve` gives its processes
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_services_find_their_pods(path: Path) -> None:
    service = next(one for one in objects(path) if one["kind"] == "Service")
    labels = [o["spec"]["template"]["metadata"]["labels"] for o in objects(path) if o["kind"] == "Deployment"]
    assert service["spec"]["selector"] in labels
    found = (port for pod in pods(path) for port in pod["containers"][0].get("ports", []))
    ports = {port["name"]: port["containerPort"] for port in found}
    fields = Settings.model_fields
    assert ports == {"http": fields["port"].default, "ops": fields["ops_port"].default}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)


def test_compose_names_what_there_is() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = compose["services"]
    assert {name: one["command"] for name, one in services.items() if name != "postgres"} == {
        name: [name] for name in ("api", "keeper", "worker")
    }
    for one in services.values():
        for volume in one["volumes"]:
            assert volume.partition(":")[0] in compose["volumes"]
        assert set(one.get("depends_on", {})) <= set(services)
    for name in ("api", "keeper", "worker"):
        assert services[name]["read_only"] is True
        assert services[name]["build"]["target"] == "cpu"


def test_compose_itself_can_read_the_file() -> None:
    compose = Path(sys.executable).parent / "docker-compose"
    command = [compose, "-f", DEPLOY / "compose.yaml", "config", "--quiet"]
    environment = {"POSTGRES_PASSWORD": "secret"}
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    assert subprocess.run(command, env={}, check=False, capture_output=True).returncode != 0  # no password


def test_only_settings_that_exist_are_set() -> None:
    texts = [path.read_text() for path in (ROOT / "Dockerfile", UNIT, DEPLOY / "compose.yaml", *MANIFESTS)]
    named = set(re.findall(r"BATCHLLM_[A-Z_]+", "".join(texts))) - NOT_SETTINGS
    assert len(named) > 8
    assert named <= {f"BATCHLLM_{name.upper()}" for name in Settings.model_fields}


def test_the_unit_can_be_read() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    assert unit.sections() == ["Unit", "Service", "Install"]
    assert unit["Service"]["ExecStart"].endswith("/batchllm serve")
    assert unit["Service"]["RestartPreventExitStatus"] == "3"


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    board = json.loads((DEPLOY / "grafana.json").read_text())
    known = set(re.findall(r"`(batchllm_\w+)`", metrics_reference()))
    asked = set()
    for panel in board["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"batchllm_\w+", target["expr"]))
    plain = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in known else name for name in asked}
    assert plain <= known
    assert len(plain) > 15
