"""The gateway's configuration, in a real nginx before real servers."""

import json
import os
import shutil
import ssl
import subprocess
import threading
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template

import httpx
import pytest

from tests.support import ROOT, free_port, kill, platform_process, program

TEMPLATE = ROOT / "deploy" / "gateway" / "nginx.conf.template"
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin")
USER = ("me", "secret")

pytestmark = pytest.mark.skipif(
    NGINX is None and os.environ.get("URLHEALTH_REQUIRE_SERVICES") != "1", reason="nginx is not installed"
)


class Upstream:
    """A server that says its name and what it was asked."""

    def __init__(self, name: str) -> None:
        self.requests = Counter[str]()
        upstream = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                upstream.requests[self.path] += 1
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                body = json.dumps({"name": name, "path": self.path, "headers": dict(self.headers)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def gateway(folder: Path, *, api: list[str], mlflow: str = "127.0.0.1:9", feast: str = "127.0.0.1:9") -> Iterator[str]:
    """nginx with the configuration, before these servers; its URL."""
    folder.mkdir()
    openssl = (
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    )
    name = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    files = ("-keyout", str(folder / "tls.key"), "-out", str(folder / "tls.pem"))
    subprocess.run((*openssl, *name, *files), capture_output=True, check=True)
    hashed = subprocess.run(("openssl", "passwd", "-apr1", USER[1]), capture_output=True, text=True, check=True).stdout
    (folder / "users").write_text(f"{USER[0]}:{hashed}")
    port = free_port()
    text = Template(TEMPLATE.read_text()).safe_substitute(
        GATEWAY_PORT=str(port),
        GATEWAY_FOLDER=folder,
        API_SERVERS="\n".join(f"server {each} max_fails=1 fail_timeout=2s;" for each in api),
        MLFLOW_SERVER=mlflow,
        FEAST_SERVER=feast,
    )
    # Started by root it would become nobody, who may not read the test's folder.
    (folder / "nginx.conf").write_text("user root;\n" + text if os.geteuid() == 0 else text)
    command = (str(NGINX), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr")
    checked = subprocess.run((*command, "-t"), capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
    with program(
        *command, env={}, ready_url=f"http://127.0.0.1:{port}/", log=folder / "nginx.log", cwd=folder
    ):  # (in plain http it answers 400)
        yield f"https://localhost:{port}"


@pytest.fixture
def upstreams() -> Iterator[dict[str, Upstream]]:
    made = {name: Upstream(name) for name in ("one", "two", "mlflow", "feast")}
    yield made
    for upstream in made.values():
        upstream.close()


def client(url: str, folder: Path, **more: object) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(folder / "tls.pem"))
    return httpx.Client(base_url=url, verify=context, timeout=30, **{"auth": USER, "http2": True} | more)  # type: ignore[arg-type]


def test_one_door_to_all_services(tmp_path: Path, upstreams: dict[str, Upstream]) -> None:
    folder = tmp_path / "gateway"
    api = [upstreams["one"].address, upstreams["two"].address]
    there = {"mlflow": upstreams["mlflow"].address, "feast": upstreams["feast"].address}
    with (
        gateway(folder, api=api, **there) as url,
        client(url, folder) as http,
        client(url, folder, auth=None) as anyone,
    ):
        for path, name, asked in (
            ("/mlflow/", "mlflow", "/mlflow/"),
            ("/mlflow/api/2.0/x?y=1", "mlflow", "/mlflow/api/2.0/x?y=1"),
            ("/feast/p/demo", "feast", "/p/demo"),
        ):
            reply = http.get(path)
            assert (reply.http_version, reply.json()["name"], reply.json()["path"]) == ("HTTP/2", name, asked)
        told = http.get("/api/v1/tasks?limit=1").json()
        assert told["name"] in {"one", "two"}
        assert told["headers"]["X-Forwarded-Proto"] == "https"
        assert "Authorization" not in told["headers"]
        assert http.get("/mlflow").headers["location"].endswith("/mlflow/")
        assert {http.get("/").json()["name"] for _ in range(20)} == {"one", "two"}
        for path in ("/", "/mlflow/", "/feast/", "/api/v1/tasks", "/metrics"):
            assert anyone.get(path).status_code == 401
            wrong = {"Authorization": "Basic " + b64encode(b"me:wrong").decode()}
            assert anyone.get(path, headers=wrong).status_code == 401
        assert anyone.get("/health/live").status_code == 200
        assert "max-age" in http.get("/").headers["strict-transport-security"]


def test_a_replica_that_is_gone_is_passed_over_and_a_flood_is_stopped(
    tmp_path: Path, upstreams: dict[str, Upstream]
) -> None:
    folder = tmp_path / "gateway"
    with (
        gateway(folder, api=[upstreams["one"].address, upstreams["two"].address]) as url,
        client(url, folder, http2=False) as http,
    ):
        upstreams["two"].close()
        told = [http.post("/api/v1/tasks", content=b"x" * 100) for _ in range(20)]
        assert {reply.status_code for reply in told} == {200}
        assert {reply.json()["name"] for reply in told} == {"one"}
        with ThreadPoolExecutor(8) as pool:
            statuses = Counter(pool.map(lambda _: http.get("/").status_code, range(1_000)))
        assert set(statuses) == {200, 429}
        assert statuses[200] >= 200


def test_the_platform_works_behind_it_and_a_killed_replica_shows_only_in_its_own_replies(tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    with ExitStack() as stack:
        replicas = [stack.enter_context(platform_process(tmp_path / "home", URLHEALTH_LEASE_S="2")) for _ in range(2)]
        addresses = [api.url.removeprefix("http://") for api, _ in replicas]
        url = stack.enter_context(gateway(folder, api=addresses))
        http = stack.enter_context(client(url, folder))
        lines = "".join(f"http://127.0.0.1:1/{i}\n" for i in range(1_000))
        made = http.post("/api/v1/tasks", content=lines, headers={"Content-Type": "text/plain"})
        assert made.status_code == 202, made.text
        kill(replicas[0][1])
        for _ in range(50):
            assert http.get(f"/api/v1/tasks/{made.json()['task_id']}").status_code == 200
        assert http.get("/docs").status_code == 200
