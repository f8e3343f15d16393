"""The platform's parts together: what happens when one of them fails."""

import http.server
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.support import wait_until
from urlhealth import platform as platform_module
from urlhealth.crawl.schema import leases
from urlhealth.errors import ConfigurationError, StoreUnavailable
from urlhealth.platform import Platform
from urlhealth.probing.process import ProbeProcess
from urlhealth.settings import Settings
from urlhealth.vocabulary import TaskStatus


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    settings = Settings(home=tmp_path, mlflow_tracking_uri="", allow_addresses="127.0.0.0/8", lease_s=2)
    with Platform(settings) as opened:
        yield opened


@pytest.fixture
def site() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def engine_works(platform: Platform) -> bool:
    (check,) = (check for check in platform.checks() if check.name == "engine")
    assert check.needed
    return check.ok


def engine_pid(platform: Platform) -> int:
    assert platform._crawler is not None
    return platform._crawler._engine.pid


def test_an_engine_that_fails_is_replaced_and_its_probes_are_made_again(platform: Platform, site: str) -> None:
    platform.start(predict=False)
    first = engine_pid(platform)
    os.kill(first, signal.SIGSTOP)  # so that it dies with all of the task's probes under way
    task = platform.crawl.create_task([f"{site}{i}" for i in range(3)])
    wait_until(
        lambda: platform.crawl.task(task.task_id).status is TaskStatus.RUNNING, timeout_s=30, what="the task to begin"
    )
    os.kill(first, signal.SIGKILL)
    wait_until(
        lambda: platform.crawl.task(task.task_id).status is TaskStatus.DONE, timeout_s=30, what="the task to be done"
    )
    assert platform.crawl.task(task.task_id).outcomes == {"ok": 3}
    assert engine_works(platform)
    assert engine_pid(platform) != first


def test_without_an_engine_the_lease_is_given_back_until_there_is_one(
    platform: Platform, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.start(predict=False)
    assert engine_works(platform)

    def holder() -> str:
        assert platform._database is not None
        with platform._database.connect() as connection:
            return str(connection.scalar(sa.select(leases.c.holder)))

    with monkeypatch.context() as broken:
        broken.setattr(platform_module, "ProbeProcess", lambda **_: 1 / 0)
        os.kill(engine_pid(platform), signal.SIGKILL)
        task = platform.crawl.create_task([site])
        wait_until(lambda: holder() == "", timeout_s=30, what="the lease to be free")
        assert not engine_works(platform)
    wait_until(
        lambda: platform.crawl.task(task.task_id).status is TaskStatus.DONE, timeout_s=30, what="the task to be done"
    )
    assert holder() == platform.worker_id


@pytest.mark.parametrize("store", ["mlflow/mlflow.db", "feast/online.db", "urlhealth.db"])
def test_a_damaged_store_is_said_when_the_platform_opens(tmp_path: Path, store: str) -> None:
    (tmp_path / store).parent.mkdir(exist_ok=True)
    (tmp_path / store).write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnavailable, match=store) as raised, Platform(Settings(home=tmp_path)):
        pass
    assert "\n" not in str(raised.value)


def test_the_checks_say_which_store_is_damaged(tmp_path: Path) -> None:
    platform = Platform(Settings(home=tmp_path, mlflow_tracking_uri=""))
    for store in ("mlflow/mlflow.db", "feast/online.db"):
        (tmp_path / store).parent.mkdir(exist_ok=True)
        (tmp_path / store).write_bytes(b"no database" * 1000)
    platform.open(check=False)
    platform.champion.refresh()
    assert {check.name: check.ok for check in platform.checks()} == {
        "database": True,
        "pipeline": True,
        "features": False,
        "model": False,
    }
    platform.close()


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_without_certificates_is_said_when_the_platform_opens(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)
    settings = Settings(home=tmp_path / "home", ca_file=file)
    with pytest.raises(ConfigurationError, match=r"ca\.pem"), Platform(settings):
        pass
    assert not settings.home.exists()


def test_a_check_never_raises(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform.crawl, "counts", lambda: {}["targets"])
    checks = {check.name: check for check in platform.checks()}
    assert not checks["database"].ok
    assert checks["pipeline"].ok


def test_closing_gives_the_lease_back_although_a_step_before_fails(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    platform.start(predict=False)
    released = threading.Event()
    monkeypatch.setattr(platform.lease, "release", released.set)

    def fail() -> None:
        raise StoreUnavailable("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(platform.prediction_log, "write", fail)
        broken.setattr(ProbeProcess, "close", lambda _: 1 / 0)
        with pytest.raises(StoreUnavailable):
            platform.close()
    assert released.is_set()
    assert platform._database is None
