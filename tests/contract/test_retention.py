"""What is too old is deleted, and nothing that is still needed, over every backend."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.contract.conftest import HandClock
from urlhealth.crawl.carried import CarriedStore
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.retention import Kept
from urlhealth.crawl.rollups import Rollups
from urlhealth.crawl.schema import metadata
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import LeaseLost
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, Probed, ProbeRequest, ProbeResult

DAY_MS = 86_400_000
URL = "https://a.example/"


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock, lease: Lease) -> CrawlStore:
    """With a probe a day on ten days, each in the roll-ups and in the features; every other day it is down."""
    store = CrawlStore(engine, clock=clock)
    outcomes = [Outcome.OK, Outcome.DNS] * 5
    store.import_probes(
        (parse_target(URL), ProbeResult(target=URL, ts_ms=clock.now_ms - day * DAY_MS - 1, outcome=outcome))
        for day, outcome in enumerate(outcomes)
    )
    Rollups(engine, known_for_s=172_800).step(lease=lease)
    CarriedStore(engine).save(store.last_probe_id(), {}, lease=lease)
    return store


def count(engine: sa.Engine, name: str) -> int:
    with engine.connect() as connection:
        return connection.scalar(sa.select(sa.func.count()).select_from(metadata.tables[name])) or 0


def test_each_is_kept_for_its_own_time(store: CrawlStore, engine: sa.Engine, lease: Lease, clock: HandClock) -> None:
    assert not store.drop_old(Kept(), lease=lease).total()
    now_ms = clock.now_ms
    kept = Kept(probes_ms=now_ms - 3 * DAY_MS, hours_ms=now_ms - 5 * DAY_MS, days_ms=now_ms - 7 * DAY_MS)
    assert store.drop_old(kept, lease=lease) == {
        "probes": 7,
        "roll-ups by hour": 5,
        "roll-ups by day": 3,
        "spells": 2,
    }
    assert (count(engine, "probes"), count(engine, "rollups"), count(engine, "spells")) == (3, 5 + 7, 8)
    assert store.url_history(URL, from_ms=now_ms - 30 * DAY_MS, step_ms=DAY_MS).points[0].start_ms > now_ms - 9 * DAY_MS


def test_what_is_not_folded_yet_and_the_results_of_tasks_stay(
    store: CrawlStore, engine: sa.Engine, lease: Lease, clock: HandClock
) -> None:
    task = store.create_task(["https://b.example"])
    ((target_id, target),) = store.waiting_targets(1, after=0, limit=1)
    request = ProbeRequest(target=target, target_id=target_id, task_id=task.task_id)
    result = ProbeResult(target=target.key, ts_ms=clock.now_ms, outcome=Outcome.OK)
    store.file_results([Probed(request=request, result=result)], worker="w", lease=lease)
    kept = Kept(probes_ms=clock.now_ms + DAY_MS)
    assert store.drop_old(kept, lease=lease)["probes"] == 10
    Rollups(engine, known_for_s=172_800).step(lease=lease)
    assert store.drop_old(kept, lease=lease)["probes"] == 0
    CarriedStore(engine).save(store.last_probe_id(), {}, lease=lease)
    assert store.drop_old(kept, lease=lease)["probes"] == 0
    store.delete_task(task.task_id)
    assert store.drop_old(kept, lease=lease)["probes"] == 1


def test_only_the_writer_deletes(store: CrawlStore, engine: sa.Engine, lease: Lease, clock: HandClock) -> None:
    clock.now_ms += 60_000
    assert Lease(engine, holder="another", ttl_s=10, clock=clock).acquire()
    with pytest.raises(LeaseLost):
        store.drop_old(Kept(probes_ms=clock.now_ms), lease=lease)


def test_the_settings_say_for_how_many_days(tmp_path: Path, clock: HandClock) -> None:
    platform = Platform(Settings(home=tmp_path, keep_probes_days=2, keep_days_days=9), clock=clock)
    assert platform.kept() == Kept(probes_ms=clock.now_ms - 2 * DAY_MS, days_ms=clock.now_ms - 9 * DAY_MS)
