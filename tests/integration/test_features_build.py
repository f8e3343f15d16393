"""Features brought up to date and made anew, by this process and by another one that is the writer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.rows import string_keys
from urlhealth.features.catalog import URL_STATE
from urlhealth.platform import Platform
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target

TARGET = Target(url="https://example.com/", host="example.com", group="example.com")
T0_MS = 1_700_000_000_000


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings(home=tmp_path)) as platform:
        for minutes in ([50, 100, 101, 103], [0, 102]):  # 0 is too late by more than `late_s`
            platform.crawl.import_probes(
                (TARGET, ProbeResult(target=TARGET.key, ts_ms=T0_MS + 60_000 * minute, outcome=Outcome.OK))
                for minute in minutes
            )
            platform.build_features()
        yield platform


def checks(platform: Platform) -> int:
    return int(platform.features.read(URL_STATE, [TARGET.key]).states["checks"][0])


def test_a_process_alone_builds_and_gives_the_lease_back(platform: Platform) -> None:
    assert (platform.pipeline_lag(), checks(platform), platform.lease.held) == (0, 5, False)
    platform.build_features(rebuild=True)
    assert (platform.pipeline_lag(), checks(platform), platform.lease.held) == (0, 6, False)


def test_a_rebuild_is_made_by_the_running_writer(platform: Platform, tmp_path: Path) -> None:
    with Platform(Settings(home=tmp_path)) as server:
        server.start(predict=False)
        assert server.lease.held
        platform.build_features(rebuild=True)
        assert (checks(platform), server.lease.held) == (6, True)


def test_a_check_finds_what_differs_between_online_and_offline(platform: Platform) -> None:
    def found() -> list[tuple[int, int, int]]:
        return [(view.entities, view.different, view.unknown) for view in platform.features.consistency()]

    assert found() == [(1, 0, 0)] * 3
    rows = platform.features._online
    table = f"urlhealth_{URL_STATE.name}"
    [(key, event_us, row)] = [(k, *v) for k, v in rows.read(table, string_keys("url", [TARGET.key])).items()]
    other = string_keys("url", ["https://other.example.com/"])[0]
    rows.write(table, Layout.of(URL_STATE), [(key, event_us + 1, event_us, row), (other, 1, 1, row)])
    [url, *_] = platform.features.consistency()
    assert (url.different, url.examples, url.unknown, url.ok) == (1, (TARGET.key,), 1, False)
    platform.build_features(rebuild=True)
    assert found() == [(1, 0, 0)] * 3
