"""Two servers on one database: whoever dies, each slot of each monitor is probed at most once."""

import sqlite3
import time
from itertools import pairwise
from pathlib import Path

from tests.acceptance.conftest import CountingWeb
from tests.support import Api, kill, platform_process, wait_until
from urlhealth.crawl.monitors import next_slot
from urlhealth.settings import Settings

INTERVAL_S = 10
#: With the default, the lease passes within 10 s of a death.
LEASE_WITHIN_S = 10.0


def is_writer(api: Api) -> bool:
    return "\nurlhealth_writer 1.0" in api.http.get("/metrics").text


def probed_at_ms(home: Path) -> dict[str, list[int]]:
    """When each target was probed, in order."""
    found: dict[str, list[int]] = {}
    with sqlite3.connect(f"file:{home / 'urlhealth.db'}?mode=ro", uri=True) as database:
        query = "SELECT key, ts_ms FROM probes JOIN targets ON targets.id = target_id ORDER BY ts_ms"
        for key, ts_ms in database.execute(query):
            found.setdefault(key, []).append(ts_ms)
    return found


def test_kill_9_of_the_scheduler_moves_the_lease_and_no_slot_is_probed_twice(
    tmp_path: Path, counting_web: CountingWeb
) -> None:
    assert Settings.model_fields["lease_s"].default < LEASE_WITHIN_S
    urls = [counting_web.url(f"/{i}") for i in range(40)]
    with platform_process(tmp_path) as (first, process), platform_process(tmp_path) as (second, _):
        assert is_writer(first)
        assert not is_writer(second)
        started_ms = time.time_ns() // 1_000_000
        items = [{"url": url, "interval_s": INTERVAL_S} for url in urls]
        assert second.http.post("/api/v1/monitors", json=items).json()["created"] == len(urls)
        wait_until(
            lambda: len(counting_web.requests) == len(urls), timeout_s=3 * INTERVAL_S, what="the first probe of each"
        )

        kill(process)
        died_s = time.monotonic()
        wait_until(lambda: is_writer(second), timeout_s=60, what="the lease to move")
        assert time.monotonic() - died_s < LEASE_WITHIN_S

        before = counting_web.requests.copy()
        wait_until(
            lambda: len(counting_web.requests - before) == len(urls),
            timeout_s=3 * INTERVAL_S,
            what="a probe of each by the second",
        )
        requests = counting_web.requests.copy()
        ended_ms = time.time_ns() // 1_000_000

    probed = probed_at_ms(tmp_path)
    assert set(probed) == set(urls)
    for url, times_ms in probed.items():
        # A slot ends where the next one begins.
        slots = [next_slot(url, INTERVAL_S, ts_ms) for ts_ms in times_ms]
        assert all(earlier < later for earlier, later in pairwise(slots)), url
    for i, url in enumerate(urls):
        slots_passed = (next_slot(url, INTERVAL_S, ended_ms) - next_slot(url, INTERVAL_S, started_ms)) // 1000
        assert requests[f"/{i}"] <= slots_passed / INTERVAL_S  # also of those that were asked and not filed
