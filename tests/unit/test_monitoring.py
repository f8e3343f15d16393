"""The Grafana dashboard and the rules for Prometheus ask for metrics that there are."""

import json
import re
import shutil
from contextlib import closing
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.app import create_app
from tests.support import environment, run, unavailable
from urlhealth.platform import Platform
from urlhealth.settings import ROOT, Settings

FOLDER = ROOT / "deploy" / "monitoring"


def test_every_metric_that_is_asked_for_is_exposed(tmp_path: Path) -> None:
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    groups = yaml.safe_load((FOLDER / "prometheus-rules.yaml").read_text())["groups"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    named = {name for expression in asked for name in re.findall(r"urlhealth_\w+", expression)}
    assert len(named) > 12
    with closing(Platform(Settings(home=tmp_path, mlflow_tracking_uri=""))) as platform:
        platform.open(check=False)
        http = TestClient(create_app(platform))
        http.get("/health/live")
        families = text_string_to_metric_families(http.get("/metrics").text)
        exposed = {family.name for family in families}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in named} <= exposed


def test_prometheus_takes_the_rules_the_configuration_and_the_metrics(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        unavailable("promtool is not installed: apt-get install prometheus")
    env = environment(tmp_path)
    checked = run(promtool, "check", "config", str(FOLDER / "prometheus.yaml"), env=env)
    assert f"{FOLDER / 'prometheus.yaml'} is valid" in checked.stdout
    assert "6 rules found" in checked.stdout
    run(promtool, "test", "rules", str(FOLDER / "prometheus-rules-test.yaml"), env=env)
    # Each panel's expression is one: as the rule of a file of its own.
    panels = json.loads((FOLDER / "grafana-dashboard.json").read_text())["panels"]
    asked = [target["expr"].replace("$__rate_interval", "5m") for panel in panels for target in panel["targets"]]
    rules = [{"record": f"panel:{i}", "expr": expression} for i, expression in enumerate(asked)]
    (tmp_path / "panels.yaml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = run(promtool, "check", "rules", str(tmp_path / "panels.yaml"), env=env)
    assert f"{len(rules)} rules found" in checked.stdout
