"""The Grafana dashboard and the rules for Prometheus ask for metrics that there are."""

import json
import re
from contextlib import closing
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serving.app import create_app
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
