"""The files in `deploy/` agree with the code and with each other. No container engine runs here."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from urlhealth import cli
from urlhealth.settings import ROOT, Settings, variable

DEPLOY = ROOT / "deploy"
GATEWAY = (DEPLOY / "gateway" / "nginx.conf.template").read_text()
FILES = sorted(path for path in DEPLOY.rglob("*") if path.suffix in {".yaml", ".template"} or path.name == "Dockerfile")


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_settings_and_commands_that_it_names_are_there(path: Path) -> None:
    text = path.read_text()
    known = {variable(name) for name in Settings.model_fields}
    assert set(re.findall(r"\b(?:URLHEALTH|MLFLOW|FEAST)_[A-Z_]+\b", text)) - known <= {"MLFLOW_SERVER", "FEAST_SERVER"}
    commands = {each.name or each.callback.__name__ for each in cli.app.registered_commands if each.callback}
    named = set(re.findall(r"\burlhealth\"?,? \"?(serve|worker|[a-z]+)\b(?=[\"\]`])", text))
    assert named <= commands


def test_the_names_that_the_gateway_wants_are_set_wherever_it_is_started() -> None:
    wanted = set(re.findall(r"\$\{(\w+)\}", GATEWAY))
    compose = documents("compose.yaml")[0]["services"]["gateway"]
    assert set(compose["environment"]) == wanted
    assert set(re.findall(r"\$\$(\w+)", compose["command"][-1])) == wanted
    pod = documents("kubernetes/api.yaml")[0]["spec"]["template"]["spec"]
    gateway = next(each for each in pod["containers"] if each["name"] == "gateway")
    assert {each["name"] for each in gateway["env"]} == wanted
    assert set(re.findall(r"\$(\w+)", gateway["command"][-1])) == wanted


def test_what_kubernetes_refers_to_is_there() -> None:
    folder = DEPLOY / "kubernetes"
    for name in documents("kubernetes/kustomization.yaml")[0]["resources"]:
        assert (folder / name).exists()
    made = [each for name in ("api", "worker") for each in documents(f"kubernetes/{name}.yaml")]
    labels = {}
    for each in made:
        if each["kind"] == "Deployment":
            template = each["spec"]["template"]
            labels[each["metadata"]["name"]] = template["metadata"]["labels"]
            volumes = {volume["name"] for volume in template["spec"].get("volumes", ())}
            mounted = {m["name"] for c in template["spec"]["containers"] for m in c.get("volumeMounts", ())}
            assert mounted == volumes
            for container in template["spec"]["containers"]:
                assert "memory" in container["resources"]["limits"]
    for each in made:
        selector = each["spec"].get("selector", {})
        if selector:
            assert selector.get("matchLabels", selector) in labels.values()
    assert {each["kind"] for each in made} >= {"Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}


def test_what_the_image_copies_is_there() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]]
    assert copied
    assert [name for name in copied if not (ROOT / name).exists()] == []
