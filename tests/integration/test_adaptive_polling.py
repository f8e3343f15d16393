"""Adaptive schedules on a whole platform: a real web on loopback, real probes, a restart."""

import http.server
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa

from tests.support import wait_until
from urlhealth.crawl import monitors
from urlhealth.crawl.schema import probes
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import AdaptiveSchedule, MonitorSpec, Outcome, ProbeResult

MIN_INTERVAL_S = 2
#: Each every 4 s on average.
SCHEDULE = AdaptiveSchedule(budget_per_url_hour=900, min_interval_s=MIN_INTERVAL_S, max_interval_s=10)
FLAPPING = [f"/flapping/{i}" for i in range(3)]
STEADY = [f"/steady/{i}" for i in range(6)]
DAY_MS = 86_400_000


class Web:
    """Answers 200, and counts by path."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        web = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.requests[self.path] += 1
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"


@pytest.fixture
def web() -> Iterator[Web]:
    web = Web()
    yield web
    web.server.shutdown()
    web.server.server_close()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(monitors, "MIN_INTERVAL_S", MIN_INTERVAL_S)  # so that it does not take minutes
    return Settings(home=tmp_path, mlflow_tracking_uri="", allow_addresses="127.0.0.0/8", probe_concurrency_per_host=4)


def remember_outages(platform: Platform, web: Web) -> None:
    """Ten days of history: the flapping ones had an outage every four hours."""
    now_ms = time.time_ns() // 1_000_000
    for path in (*FLAPPING, *STEADY):
        target = parse_target(web.url(path))
        platform.crawl.import_probes(
            (
                target,
                ProbeResult(
                    target=target.key,
                    ts_ms=ts_ms,
                    outcome=Outcome.TIMEOUT if path in FLAPPING and number % 12 == 0 else Outcome.OK,
                ),
            )
            for number, ts_ms in enumerate(range(now_ms - 10 * DAY_MS, now_ms, 1_200_000), start=1)
        )
    platform.roll_up()


def least_gap_ms(platform: Platform) -> int:
    """The least time from the begin of one probe to that of the next, of the probes of monitors."""
    assert platform._database is not None
    query = sa.select(probes.c.target_id, probes.c.ts_ms).where(probes.c.monitor_number.is_not(None))
    with platform._database.connect() as connection:
        rows = np.array(connection.execute(query.order_by(probes.c.target_id, probes.c.ts_ms)).all())
    same = np.diff(rows[:, 0]) == 0
    return int(np.diff(rows[:, 1])[same].min())


def test_what_flapped_is_polled_more_through_a_restart_until_it_is_paused_deleted_or_changed(
    settings: Settings, web: Web
) -> None:
    def more_probes(of: list[str], count: int) -> Counter[str]:
        """Wait until each of these paths was probed so many times more; the requests since the call."""
        before = web.requests.copy()
        wait_until(
            lambda: min(web.requests[path] - before[path] for path in of) >= count, timeout_s=60, what="more probes"
        )
        return web.requests - before

    with Platform(settings) as platform:
        remember_outages(platform, web)
        answers = platform.crawl.create_monitors(
            MonitorSpec(url=web.url(path), schedule=SCHEDULE) for path in (*FLAPPING, *STEADY)
        )
        ids = dict(zip((*FLAPPING, *STEADY), map(str, answers), strict=True))
        platform.start(predict=False)
        found = more_probes(FLAPPING, 3)
        assert min(found[path] for path in FLAPPING) > np.mean([found[path] for path in STEADY])
        (pool,) = wait_until(lambda: platform.crawl.pools(limit=10).items, timeout_s=30, what="the pool")
        assert pool.monitors == len(ids)

    with Platform(settings) as platform:
        platform.start(predict=False)
        found = more_probes(FLAPPING, 2)
        assert min(found[path] for path in FLAPPING) > np.mean([found[path] for path in STEADY])
        assert least_gap_ms(platform) >= 1000 * MIN_INTERVAL_S
        paused, deleted, fixed = FLAPPING
        platform.crawl.change_monitor(ids[paused], {"paused": True})
        platform.crawl.delete_monitor(ids[deleted])
        platform.crawl.change_monitor(ids[fixed], {"interval_s": MIN_INTERVAL_S})
        more_probes([fixed], 4)  # what was handed out up to two seconds ahead is done by now
        found = more_probes([fixed], 2)
        assert paused not in found
        assert deleted not in found
        assert platform.crawl.monitor(ids[fixed]).schedule is None

        def spent() -> int:
            report = platform.crawl.pools(limit=10).items[0].report
            return 0 if report is None else report.spent

        wait_until(spent, timeout_s=30, what="a report: it is written now and then")
