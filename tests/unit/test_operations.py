"""What a server does for those who run it: limits, logs, histograms."""

import asyncio
import json
import logging
import logging.config
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from serving.app import create_app
from serving.errors import MEDIA_TYPE
from serving.logs import REQUEST_ID, JsonFormatter, configuration
from serving.metrics import Metrics
from serving.middleware import RequestMiddleware
from tests.support import noise_forecaster
from urlhealth.platform import Platform
from urlhealth.prediction.champion import Champion
from urlhealth.prediction.stages import STAGES
from urlhealth.settings import Settings


def test_beyond_the_limit_requests_are_sent_away_at_once_and_reading_goes_on(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, max_requests=2)

    async def scenario() -> None:
        begun, finish = asyncio.Semaphore(0), asyncio.Event()

        async def slow(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "POST":
                begun.release()
                await finish.wait()
            await PlainTextResponse("done")(scope, receive, send)

        app = RequestMiddleware(slow, Metrics(lambda: pytest.fail("not asked for")), settings=lambda: settings)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            waiting = [asyncio.create_task(http.post("/api/v1/predictions")) for _ in range(2)]
            for _ in waiting:
                await begun.acquire()
            for path, form in (
                ("/api/v1/predictions", "detail"),
                ("/v2/models/m/infer", "error"),
                ("/invocations", "message"),
            ):
                refused = await http.post(path, content=b"x" * 1000)
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
                assert "2 requests are under way" in refused.json()[form]
                assert (refused.headers["content-type"] == MEDIA_TYPE) == (form == "detail")
            assert (await http.get("/health/live")).status_code == 200
            finish.set()
            assert [(await reply).text for reply in waiting] == ["done", "done"]
            assert (await http.post("/api/v1/predictions")).status_code == 200

    asyncio.run(scenario())


def test_a_json_log_names_the_request() -> None:
    logger = logging.getLogger("urlhealth.test_operations")
    record = logger.makeRecord(logger.name, logging.ERROR, "", 0, "it %s", ("failed",), None)
    token = REQUEST_ID.set("r-1")
    try:
        said = json.loads(JsonFormatter().format(record))
    finally:
        REQUEST_ID.reset(token)
    assert (said["level"], said["logger"], said["message"]) == ("error", "urlhealth.test_operations", "it failed")
    assert said["request_id"] == "r-1"
    assert "request_id" not in json.loads(JsonFormatter().format(record))
    assert configuration(as_json=False)["loggers"]["urlhealth.requests"]["level"] == "WARNING"


def test_a_server_with_a_json_log_has_a_line_for_each_request(tmp_path: Path) -> None:
    class Lines(logging.Handler):
        def __init__(self) -> None:
            super().__init__()
            self.setFormatter(JsonFormatter())
            self.lines: list[dict[str, object]] = []

        def emit(self, record: logging.LogRecord) -> None:
            self.lines.append(json.loads(self.format(record)))

    logger, lines = logging.getLogger("urlhealth.requests"), Lines()
    level = logger.level
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    try:
        with (
            Platform(Settings(home=tmp_path, mlflow_tracking_uri="")) as platform,
            TestClient(create_app(platform)) as http,
        ):
            http.get("/health/live", headers={"x-request-id": "mine"})
    finally:
        logger.removeHandler(lines)
        logger.setLevel(level)
    (line,) = lines.lines
    assert (line["request_id"], line["method"], line["path"], line["status"]) == ("mine", "GET", "/health/live", 200)


def test_histograms_by_stage(tmp_path: Path) -> None:
    with (
        Platform(Settings(home=tmp_path, mlflow_tracking_uri="")) as platform,
        TestClient(create_app(platform)) as http,
    ):
        platform.champion.current = Champion(name="url-health", version="1", forecaster=noise_forecaster())
        for _ in range(3):
            http.post("/api/v1/predictions", json={"urls": ["https://a.example"]}).raise_for_status()
        families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    samples = families["urlhealth_prediction_stage_seconds"].samples
    counts = {s.labels["stage"]: s.value for s in samples if s.name.endswith("_count")}
    assert counts == dict.fromkeys(STAGES, 3)
