"""Retraining on a schedule, by a child process of the writer; the command that it runs is a small one here."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.features.drift import FeatureDrift
from urlhealth.prediction.retraining import Retraining
from urlhealth.settings import Settings, environment, load_settings

HOUR_MS = 3_600_000
#: Says its arguments and one of its settings.
SAYS = (sys.executable, "-c", "import os, sys; print(os.environ['URLHEALTH_HOME'], *sys.argv[1:])")
WAITS = (sys.executable, "-c", "import time; time.sleep(600)")


class Clock:
    now_ms = 1_750_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[Lease]:
    engine = open_database(f"sqlite:///{tmp_path / 'db'}")
    lease = Lease(engine, holder="me", ttl_s=3600, clock=lambda: 0)
    yield lease
    engine.dispose()


def retraining(home: Path, lease: Lease, clock: Clock, command: tuple[str, ...]) -> Retraining:
    settings = Settings(home=home, mlflow_tracking_uri="", retrain_every_h=6)
    return Retraining(settings, lease=lease, clock=clock, drift=lambda: None, command=command)


def until_ended(retrains: Retraining) -> None:
    child = retrains._child
    assert child is not None
    child.wait(timeout=60)
    retrains.step()
    assert retrains._child is None


def test_the_writer_alone_trains_and_again_after_the_interval(
    tmp_path: Path, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    retrains = retraining(tmp_path, lease, clock, SAYS)
    retrains.step()
    assert retrains._child is None
    assert lease.acquire()
    retrains.step()
    until_ended(retrains)
    assert f"ended with 0: {tmp_path} --why 6 hours have passed (URLHEALTH_RETRAIN_EVERY_H)" in caplog.text
    clock.now_ms += 6 * HOUR_MS - 1
    retrains.step()
    assert retrains._child is None
    clock.now_ms += 1
    retrains.step()
    until_ended(retrains)


def test_a_writer_that_is_one_no_more_ends_its_training(tmp_path: Path, lease: Lease) -> None:
    assert lease.acquire()
    retrains = retraining(tmp_path, lease, Clock(), WAITS)
    retrains.step()
    child = retrains._child
    assert child is not None
    assert child.poll() is None
    lease.release()
    retrains.step()
    assert child.poll() is not None
    assert retrains._child is None


def test_drift_beyond_the_limit_retrains_once_a_day(
    tmp_path: Path, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert lease.acquire()
    clock, found = Clock(), [None, drifted(0.5), drifted(0.51), drifted(9)]
    settings = Settings(home=tmp_path, mlflow_tracking_uri="", retrain_drift_psi=0.5)
    retrains = Retraining(settings, lease=lease, clock=clock, drift=lambda: found.pop(0), command=SAYS)

    def after(ms: int) -> int:
        """How often drift was not asked for yet."""
        clock.now_ms += ms
        retrains.step()
        return len(found)

    assert [after(0), after(HOUR_MS - 1), after(1)] == [3, 3, 2]
    assert retrains._child is None
    assert after(HOUR_MS) == 1
    until_ended(retrains)
    assert "--why failing_now has drifted since training, with a PSI of 0.51 beyond 0.5 (URLHEALTH_" in caplog.text
    assert after(24 * HOUR_MS - 1) == 1
    assert after(1) == 0
    until_ended(retrains)


def drifted(psi: float) -> FeatureDrift:
    return FeatureDrift(
        feature="failing_now",
        psi=psi,
        ks=0.0,
        missing_reference=0.0,
        missing_current=0.0,
        bin_edges=(),
        shares_reference=(),
        shares_current=(),
    )


def test_what_is_run_is_the_command_that_people_run(
    tmp_path: Path, lease: Lease, caplog: pytest.LogCaptureFixture
) -> None:
    assert lease.acquire()
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri="", retrain_every_h=6)
    retrains = Retraining(settings, lease=lease, clock=Clock(), drift=lambda: None)
    retrains.step()
    until_ended(retrains)
    assert "ended with 1: " in caplog.text
    assert "history" in caplog.text.rpartition("ended with 1: ")[2]


def test_a_child_has_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        home=tmp_path, mlflow_tracking_uri="sqlite:///x", allow_addresses="127.0.0.0/8,::1/128", known_for_s=99.5
    )
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
