"""Traces of a running platform, as an OpenTelemetry collector gets them."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support import free_port, platform_process, wait_until

URL = "https://shop.example/"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """Takes traces over OTLP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            collector.take(ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if self.path == "/v1/traces" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield collector, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


def test_a_request_is_a_span_with_its_stages_and_passwords_stay_here(tmp_path: Path) -> None:
    with collecting() as (collector, address):
        with platform_process(tmp_path, URLHEALTH_OTLP_ENDPOINT=address) as (api, _):
            wait_until(
                lambda: api.http.get("/health/ready").status_code == 200, timeout_s=60, what="the platform is ready"
            )
            request = {"urls": [URL]}
            assert api.http.post("/api/v1/predictions", json=request, headers={"traceparent": PARENT}).is_success
            api.http.get("/api/v1/url", params={"url": "https://ann:secret@shop.example/"})
        # The last spans are sent when the server stops.
        (span,) = collector.named("POST /api/v1/predictions")
        (looked_up,) = collector.named("GET /api/v1/url")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (PARENT[3:35], PARENT[36:52])
    assert attributes(span)["http.response.status_code"] == 200
    stages = [stage for stage in collector.spans if stage.trace_id == span.trace_id and stage is not span]
    assert {stage.name for stage in stages} == {"parse", "state", "vector", "model", "encode"}
    assert all(span.start_time_unix_nano <= stage.start_time_unix_nano for stage in stages)
    assert "secret" not in str(collector.spans)
    assert "***@shop.example" in attributes(looked_up)["url.query"]


@pytest.mark.parametrize("setting", ["", "nobody"])
def test_without_a_collector_the_platform_serves_all_the_same(tmp_path: Path, setting: str) -> None:
    address = f"http://127.0.0.1:{free_port()}" if setting else ""
    with platform_process(tmp_path, URLHEALTH_OTLP_ENDPOINT=address) as (api, process):
        wait_until(lambda: api.http.get("/health/ready").status_code == 200, timeout_s=60, what="the platform is ready")
        assert api.predict([URL])[0]["status"] == "missing"
        process.terminate()
        assert process.wait(30) is not None
