"""Erasing a URL, over every backend: nothing of it is left, whatever was under way."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from tests.contract.conftest import HandClock
from tests.support import forecasts_of
from urlhealth.crawl.schema import metadata
from urlhealth.errors import InvalidRequest, LeaseLost, NotFound
from urlhealth.feast_stores import segments
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE
from urlhealth.platform import Platform
from urlhealth.prediction.served_batch import unpack
from urlhealth.prediction.served_files import DATASET
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import (
    LOCAL_OWNER,
    Freshness,
    Health,
    Outcome,
    Prediction,
    Probed,
    ProbeRequest,
    ProbeResult,
    Served,
)

GONE, KEPT = "https://secret-shop.example/gone", "https://kept.example/"


@pytest.fixture
def platform(database_url: str, clock: HandClock, tmp_path: Path) -> Iterator[Platform]:
    settings = Settings(home=tmp_path / "home", database_url=database_url, mlflow_tracking_uri="")
    with Platform(settings, clock=clock) as opened:
        yield opened


def file_all(platform: Platform, *task_ids: str, outcome: Outcome = Outcome.OK) -> None:
    """Answer what waits of tasks, as the runner does."""
    for task in platform.crawl.open_tasks(limit=10):
        if task.task_id in task_ids:
            waiting = platform.crawl.waiting_targets(task.number, after=0, limit=100)
            requests = [ProbeRequest(target=t, target_id=i, task_id=task.task_id) for i, t in waiting]
            file(platform, requests, outcome)


def file(platform: Platform, requests: list[ProbeRequest], outcome: Outcome = Outcome.OK) -> None:
    results = [ProbeResult(target=r.target.key, ts_ms=platform.clock(), outcome=outcome) for r in requests]
    probed = [Probed(request=request, result=result) for request, result in zip(requests, results, strict=True)]
    assert platform.lease.acquire()
    platform.crawl.file_results(probed, worker="w", lease=platform.lease)


def everything(platform: Platform) -> str:
    """All that the database and the feature stores hold, as text."""
    assert platform._database is not None
    held: list[Any] = []
    with platform._database.connect() as connection:
        for table in metadata.tables.values():
            held += connection.execute(sa.select(table)).all()
    with platform.served_batches.waiting() as waiting:
        held += [unpack(waiting.data(batch)).to_pylist() for batch in waiting.batches]
    folder = platform.settings.feast_home / "offline"
    held += [
        str(frame.to_dicts())
        for dataset in (*(view.name for view in STATE_VIEWS), DATASET)
        for frame in [segments.scan(folder / dataset).collect()]
        if frame.height
    ]
    rows = platform.features._online._file.environment()  # type: ignore[attr-defined]
    with rows.begin() as transaction, transaction.cursor() as cursor:
        held += list(cursor)
    return repr(held)


@pytest.fixture
def lived(platform: Platform, clock: HandClock) -> list[str]:
    """A platform on which a URL left traces everywhere; ids of a finished task, and one under way."""
    assert platform.lease.acquire()
    done = platform.crawl.create_task([GONE, KEPT, GONE, KEPT])
    file_all(platform, done.task_id, outcome=Outcome.DNS)
    clock.now_ms += 60_000
    under_way = platform.crawl.create_task([KEPT, GONE])
    platform.crawl.create_monitor(GONE, interval_s=60)
    platform.crawl.import_probes(
        (target, ProbeResult(target=url, ts_ms=clock.now_ms - 1000 * i, outcome=Outcome.OK, final_url=url))
        for url in (GONE, KEPT)
        for target in [parse_target(url)]
        for i in range(1, 20)
    )
    platform.build_features()
    platform.roll_up()
    said = {
        "horizon": "1h",
        "probability": 0.1,
        "probability_at_end": 0.1,
        "status": Freshness.FRESH,
        "health": Health.UP,
    }
    said |= {"age_s": 1.0, "observed_ms": 1, "model": "m", "model_version": "1"}
    items = [Prediction(sent_url=url, target=url, **said) for url in (GONE, KEPT)]  # type: ignore[arg-type]
    platform.prediction_log.put(
        Served(request_id="r", owner=LOCAL_OWNER, ts_ms=clock.now_ms, forecasts=forecasts_of(items))
    )
    platform.prediction_log.write()
    return [done.task_id, under_way.task_id]


@pytest.mark.usefixtures("lived")
def test_nothing_is_left(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    assert GONE in everything(platform)
    platform.erase_url(GONE, owner=LOCAL_OWNER)
    held = everything(platform)
    assert "secret-shop" not in held
    assert KEPT in held
    assert "1 monitors, 20 probes, 2 task results" in caplog.text
    assert "1 predictions" in caplog.text
    with pytest.raises(NotFound):
        platform.crawl.url_state(GONE, known_for_s=1)
    assert not platform.features.read(URL_STATE, [GONE]).ts_ms.any()
    assert platform.features.read(URL_STATE, [KEPT]).ts_ms.all()


def test_tasks_go_on_without_it(platform: Platform, lived: list[str]) -> None:
    platform.erase_url(GONE, owner=LOCAL_OWNER)
    done, under_way = (platform.crawl.task(task_id) for task_id in lived)
    assert (done.total, done.done, done.outcomes) == (2, 2, {"dns": 2})
    assert [item.position for item in platform.crawl.iter_results(done.task_id)] == [1, 3]
    assert (under_way.total, under_way.done, under_way.status) == (1, 0, "queued")
    file_all(platform, under_way.task_id)
    assert platform.crawl.task(under_way.task_id).status == "done"


@pytest.mark.usefixtures("lived")
def test_a_task_of_it_alone_is_done(platform: Platform) -> None:
    alone = platform.crawl.create_task([GONE])
    platform.erase_url(GONE, owner=LOCAL_OWNER)
    task = platform.crawl.task(alone.task_id)
    assert (task.total, task.status) == (0, "done")


def test_what_is_found_of_it_afterwards_is_dropped(platform: Platform, lived: list[str]) -> None:
    """A probe of a monitor, in one batch with another URL's."""
    ((task, waiting),) = [
        (task, platform.crawl.waiting_targets(task.number, after=0, limit=9))
        for task in platform.crawl.open_tasks(limit=9)
    ]
    requests = [
        ProbeRequest(target=t, target_id=i, task_id=task.task_id if t.url == KEPT else None) for i, t in waiting
    ]
    platform.erase_url(GONE, owner=LOCAL_OWNER)
    file(platform, requests)
    assert platform.crawl.task(lived[1]).status == "done"
    assert "secret-shop" not in everything(platform)


@pytest.mark.usefixtures("lived")
def test_a_step_under_way_does_not_bring_it_back(
    platform: Platform, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipeline has computed states, and the roll-ups have read verdicts, when the URL is erased."""
    clock.now_ms += 60_000
    results = [ProbeResult(target=url, ts_ms=clock.now_ms, outcome=Outcome.OK) for url in (GONE, KEPT)]
    platform.crawl.import_probes((parse_target(result.target), result) for result in results)
    assert platform.lease.acquire()
    save = platform.carried.save

    def late(*args: Any, **more: Any) -> None:
        platform.crawl.erase_url(GONE, lease=platform.lease)
        save(*args, **more)

    monkeypatch.setattr(platform.carried, "save", late)
    with pytest.raises(LeaseLost, match="erased"):
        platform.pipeline.step()
    monkeypatch.undo()
    platform.lease.release()
    platform.build_features()
    assert platform.lease.acquire()
    platform.carry_out_erasures()
    assert "secret-shop" not in everything(platform)
    assert platform.features.read(URL_STATE, [KEPT]).ts_ms.tolist() == [clock.now_ms]


@pytest.mark.usefixtures("lived")
def test_what_comes_after_it_stays(platform: Platform, clock: HandClock) -> None:
    """The URL is probed again before the writer has come to the feature stores."""
    platform.crawl.erase_url(GONE, lease=platform.lease)
    clock.now_ms += 60_000
    platform.crawl.import_probes(
        [(parse_target(GONE), ProbeResult(target=GONE, ts_ms=clock.now_ms, outcome=Outcome.OK))]
    )
    platform.lease.release()
    platform.build_features()
    assert platform.lease.acquire()
    platform.carry_out_erasures()
    found = platform.features.read(URL_STATE, [GONE])
    assert found.ts_ms.tolist() == [clock.now_ms]
    assert found.states["checks"].tolist() == [1]
    rows = segments.scan(platform.settings.feast_home / "offline" / "url_state").filter(pl.col("url") == GONE).collect()
    assert rows.height == 1


@pytest.mark.usefixtures("lived")
def test_a_url_of_a_task_that_is_being_received(platform: Platform) -> None:
    def urls() -> Iterator[str]:
        yield from [GONE] * 20_000
        with pytest.raises(InvalidRequest, match="being received"):
            platform.erase_url(GONE, owner=LOCAL_OWNER)

    assert platform.crawl.create_task(urls()).total == 20_000
    assert platform.crawl.url_state(GONE, known_for_s=1).last is not None


@pytest.mark.parametrize("url", ["https://never.example", "nonsense"])
def test_what_is_not_there(url: str, platform: Platform) -> None:
    with pytest.raises((NotFound, InvalidRequest)):
        platform.erase_url(url, owner=LOCAL_OWNER)
