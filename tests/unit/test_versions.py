"""Models other than the champion, by name; the champion swapped under load; the shadow."""

import logging
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from tests.support import noise_forecaster, served_by
from urlhealth.errors import ModelMismatch, NotFound
from urlhealth.platform import Platform
from urlhealth.prediction import champion
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult

URL = "https://a.example/"
NOW_MS = 1_767_225_600_000


class Registry:
    """Aliases in a file as MLflow keeps them; models that are made up, and counted when they are loaded."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.loads: list[str] = []
        connection.execute("CREATE TABLE registered_model_aliases (name, alias PRIMARY KEY, version)")

    def alias(self, alias: str, version: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO registered_model_aliases VALUES ('url-health', ?, ?)", (alias, version)
        )

    def load(self, _uri: str, version: str) -> HealthForecaster:
        if int(version) > 6:
            raise NotFound(f"there is no version {version} of url-health")
        if version == "6":
            raise ModelMismatch("other features")
        self.loads.append(version)
        return noise_forecaster(int(version))


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    (tmp_path / "mlflow").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlflow" / "mlflow.db", isolation_level=None)) as connection:
        registry = Registry(connection)
        registry.alias("champion", 1)
        registry.alias("challenger", 2)
        monkeypatch.setattr(champion, "load_version", registry.load)
        yield registry


@pytest.fixture
def platform(tmp_path: Path, registry: Registry) -> Iterator[Platform]:  # noqa: ARG001
    """Where one URL was probed, and version 1 serves."""
    settings = Settings(home=tmp_path, mlflow_tracking_uri="", shadow_share=0.5)
    with Platform(settings, clock=lambda: NOW_MS) as opened:
        opened.lease.acquire()
        target = parse_target(URL)
        opened.crawl.import_probes([(target, ProbeResult(target=URL, ts_ms=NOW_MS - 60_000, outcome=Outcome.OK))])
        opened.pipeline.step()
        assert opened.champion.refresh()
        yield opened


@pytest.fixture
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), raise_server_exceptions=False) as client:
        yield client


def item(http: TestClient, model: str | None = None) -> dict[str, Any]:
    reply = http.post("/api/v1/predictions", json={"urls": [URL]}, params={} if model is None else {"model": model})
    assert reply.status_code == 200, reply.text
    return dict(reply.json()["items"][0])


@pytest.mark.parametrize(
    ("model", "version"),
    [
        (None, "1"),
        ("url-health", "1"),
        ("url-health@champion", "1"),
        ("1", "1"),
        ("url-health@challenger", "2"),
        ("2", "2"),
        ("url-health/3", "3"),
        ("bundled", "bundled"),
    ],
)
def test_any_model_answers_by_name_and_says_which_it_is(http: TestClient, model: str | None, version: str) -> None:
    found = item(http, model)
    assert (found["model"], found["model_version"]) == ("url-health", version)
    assert (found["probability"] == item(http)["probability"]) == (version == "1")


def test_v1_and_v2_take_a_version_in_the_path(http: TestClient) -> None:
    tensor = {"name": "url", "shape": [1], "datatype": "BYTES", "data": [URL]}
    body = {"inputs": [tensor], "outputs": [{"name": "onset_24h"}]}
    for version in ("1", "2"):
        expected = item(http, version)["probability"]
        reply = http.post(f"/v2/models/url-health/versions/{version}/infer", json=body).json()
        assert (reply["model_version"], reply["outputs"][0]["data"]) == (version, [expected])
        reply = http.post(f"/v1/models/url-health/versions/{version}:predict", json={"instances": [URL]}).json()
        assert reply["predictions"][0]["onset_24h"] == expected


@pytest.mark.parametrize("version", ["7", "0", "x", "1.0", "9" * 30])
def test_what_there_is_not_is_404_in_the_protocols_form(http: TestClient, version: str) -> None:
    problem = http.post("/api/v1/predictions", json={"urls": [URL]}, params={"model": version})
    assert (problem.status_code, problem.json()["type"]) == (404, "urn:problem-type:urlhealth:not-found")
    reply = http.get(f"/v2/models/url-health/versions/{version}/ready")
    assert (reply.status_code, list(reply.json())) == (404, ["error"])
    assert http.post("/api/v1/predictions", json={"urls": [URL]}, params={"model": "url-health@no"}).status_code == 404


def test_few_versions_are_kept_and_each_is_loaded_once(platform: Platform, registry: Registry) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert {model.version for model in threads.map(platform.versions.named, ["2"] * 8)} == {"2"}
    assert registry.loads == ["1", "2"]
    for version in ("3", "4", "5", "bundled", "3", "2"):
        platform.versions.named(version)
    assert registry.loads == ["1", "2", "3", "4", "5", "2"]
    for _ in range(2):
        with pytest.raises(ModelMismatch, match="url-health version 6 cannot serve: other features"):
            platform.versions.named("6")


def test_no_request_fails_while_the_champion_is_swapped(
    platform: Platform, http: TestClient, registry: Registry
) -> None:
    expected = {version: item(http, version)["probability"] for version in ("1", "2", "3", "4", "5")}
    done, replies = threading.Event(), list[tuple[str, float]]()

    def ask() -> None:
        while not done.is_set():
            found = item(http)
            replies.append((found["model_version"], found["probability"]))

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask) for _ in range(4)]
        for version in (2, 3, 4, 5, 6):  # the last one does not fit
            registry.alias("champion", version)
            assert platform.champion.refresh() == (version != 6)
            seen = len(replies)
            while len(replies) < seen + 8 and not any(future.done() for future in asking):
                pass
        done.set()
        for future in asking:
            future.result()
    assert all(expected[version] == probability for version, probability in replies)
    assert {version for version, _ in replies} >= {"2", "3", "4", "5"}
    assert item(http)["model_version"] == "5"
    metrics = http.get("/metrics").text
    assert "urlhealth_model_problem 1.0" in metrics
    assert "urlhealth_model_load_failures_total 1.0" in metrics


def test_the_challenger_scores_a_share_for_the_log_alone(
    platform: Platform, http: TestClient, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    draws = iter([0.2, 0.7, 0.2])
    monkeypatch.setattr(platform.shadow, "_draw", lambda: next(draws))
    assert [item(http)["model_version"] for _ in range(2)] == ["1", "1"]
    assert platform.shadow.step() == 1
    rows = served_by(platform).to_dicts()
    assert sorted(row["model_version"] for row in rows) == ["1", "1", "2"]
    (shadow,) = (row for row in rows if row["model_version"] == "2")
    assert shadow["__request_id"] == rows[0]["__request_id"]
    assert shadow["probability"] == item(http, "2")["probability"]
    registry.alias("challenger", 6)
    with caplog.at_level(logging.ERROR):
        assert [platform.shadow.step() for _ in range(2)] == [0, 0]
    assert len(caplog.records) == 1
