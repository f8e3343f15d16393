"""Predictions that probe first where too little is known."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from serving.app import create_app
from tests.support import noise_forecaster, wait_until
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.settings import Settings
from urlhealth.vocabulary import LOCAL_OWNER

PREDICTIONS = "/api/v1/predictions"


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def settings(home: Path) -> Settings:
    return Settings(home=home, mlflow_tracking_uri="", allow_addresses=(ip_network("127.0.0.0/8"),))


def test_what_is_not_fresh_is_probed_first_and_what_is_fresh_is_not(tmp_path: Path, site: str) -> None:
    with Platform(settings(tmp_path)) as platform, TestClient(create_app(platform)) as http:
        platform.start()
        wait_until(lambda: platform.champion.current, timeout_s=60, what="a model")
        platform.probe_now([f"{site}/"], wait_s=120, owner=LOCAL_OWNER)  # The first features wait for Feast.
        body = {"urls": [f"{site}/a", f"{site}/b"], "probe_wait_s": 30}
        before = http.post(PREDICTIONS, json=body).json()["items"]
        assert [item["status"] for item in before] == ["missing", "missing"]

        first = http.post(PREDICTIONS, json={**body, "probe": "if_stale"}).json()["items"]
        assert [(item["status"], item["health"]) for item in first] == [("fresh", "up")] * 2
        assert all(0 <= item["probability"] <= 1 for item in first)
        probes = platform.crawl.last_probe_id()
        again = http.post(PREDICTIONS, json={**body, "probe": "if_stale", "max_age_s": 3600}).json()["items"]
        assert [item["observed_at"] for item in again] == [item["observed_at"] for item in first]
        assert platform.crawl.last_probe_id() == probes

        third = http.post(PREDICTIONS, json={**body, "probe": "if_stale", "max_age_s": 0.001}).json()["items"]
        assert all(new["observed_at"] > old["observed_at"] for new, old in zip(third, first, strict=True))


def test_the_wait_is_bounded_where_nobody_crawls(tmp_path: Path, site: str) -> None:
    with Platform(settings(tmp_path)) as platform, TestClient(create_app(platform)) as http:
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        body = {"urls": [f"{site}/c"], "probe": "if_stale", "probe_wait_s": 0.2, "on_stale": "error"}
        reply = http.post(PREDICTIONS, json=body)
        assert reply.status_code == 409
        assert "was never probed" in reply.json()["errors"][0]["detail"]
        assert http.post(PREDICTIONS, json={**body, "probe_wait_s": 31}).status_code == 422
