"""Features brought up to date and made anew, by this process and by another one that is the writer."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.metrics import Metrics
from tests.support import BIN, environment, wait_until
from urlhealth.children import Child
from urlhealth.feast_stores.packed import TIMES, Layout
from urlhealth.feast_stores.rows import string_keys
from urlhealth.features.catalog import URL_STATE
from urlhealth.platform import Platform
from urlhealth.settings import Settings
from urlhealth.vocabulary import Freshness, Outcome, ProbeResult, ProbeSource, Target

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


SCRIPT = """
import sys
from pathlib import Path

from urlhealth.platform import Platform
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target

print("begins")
with Platform(Settings(home=Path(sys.argv[1]))) as platform:
    targets = [Target(url=f"https://h{i}.example/", host=f"h{i}.example", group=f"{i}") for i in range(2_500)]
    platform.crawl.import_probes(
        (target, ProbeResult(target=target.key, ts_ms=1_700_000_000_000, outcome=Outcome.OK)) for target in targets
    )
    platform.build_features(rebuild=True)
    print(platform.pipeline_lag(), sum(view.entities for view in platform.features.consistency() if view.ok))
"""


def test_a_script_may_rebuild_in_processes_without_a_guard_of_main(tmp_path: Path) -> None:
    """2,500 targets are two parts; the processes that fold them never run the script."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script, tmp_path / "home"], capture_output=True, text=True, timeout=120)
    assert (done.stdout.splitlines(), done.returncode) == (["begins", "0 7500"], 0), done.stderr


def test_a_child_answers_raises_and_ends() -> None:
    with Child() as child:
        assert child.call(int, "1") == 1
        with pytest.raises(ValueError, match="invalid literal"):
            child.call(int, "one")
        assert child.call(int, "2") == 2
        with pytest.raises(RuntimeError, match="_exit has ended"):
            child.call(os._exit, 1)
        with pytest.raises(RuntimeError, match="int has ended"):
            child.call(int, "3")


def test_a_child_does_not_outlive_its_parent() -> None:
    """Not even while it works: here it sleeps."""
    code = (
        "import os, time; from urlhealth.children import Child; child = Child(); "
        "print(child.call(os.getpid), flush=True); child.call(time.sleep, 600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20, what="the end of the child")


def test_a_check_finds_what_differs_between_online_and_offline(platform: Platform) -> None:
    def found() -> list[tuple[int, int, int]]:
        return [(view.entities, view.different, view.unknown) for view in platform.features.consistency()]

    assert found() == [(1, 0, 0)] * 3
    rows = platform.features._online
    table = f"urlhealth_{URL_STATE.name}"
    [key], [other] = string_keys("url", [TARGET.key]), string_keys("url", ["https://other.example.com/"])
    [row] = rows.read(table, [key])
    assert row is not None
    event_us, created_us = TIMES.unpack_from(row)
    later = TIMES.pack(event_us + 1, created_us) + row[TIMES.size :]
    rows.write(table, Layout.of(URL_STATE), [(key, later), (other, row)])
    [url, *_] = platform.features.consistency()
    assert (url.different, url.examples, url.unknown, url.ok) == (1, (TARGET.key,), 1, False)
    platform.build_features(rebuild=True)
    assert found() == [(1, 0, 0)] * 3


def test_the_shell_says_that_the_stores_differ_and_makes_them_anew(platform: Platform) -> None:
    env = environment(platform.settings.home)

    def features(command: str) -> tuple[int, str]:
        done = subprocess.run(
            (str(BIN / "urlhealth"), "features", command), env=env, capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout + done.stderr

    assert features("check")[0] == 0
    platform.features._online.drop([f"urlhealth_{URL_STATE.name}"])
    code, said = features("check")
    assert (code, TARGET.key in said, "run `urlhealth features rebuild`" in said) == (1, True, True)
    assert features("rebuild")[0] == 0
    assert features("check")[0] == 0
    assert checks(platform) == 6


def test_age_at_read_and_the_newest_check_are_metrics(tmp_path: Path) -> None:
    now_ms = T0_MS + 4 * 60_000
    with Platform(Settings(home=tmp_path), clock=lambda: now_ms) as platform:
        platform.crawl.import_probes(
            [(TARGET, ProbeResult(target=TARGET.key, ts_ms=T0_MS, outcome=Outcome.OK))], source=ProbeSource.SIMULATED
        )
        platform.build_features()

        def exposed() -> dict[str, float]:
            lines = Metrics(lambda: platform).exposition().decode().splitlines()
            return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

        assert exposed()['urlhealth_feature_reads_total{status="fresh"}'] == 0
        assert "urlhealth_feature_check_timestamp_seconds" not in exposed()
        platform.predictor.features([TARGET.url, "https://never.example.com/"])
        assert platform.check_features().ok
        found = exposed()
        assert [found[f'urlhealth_feature_reads_total{{status="{status}"}}'] for status in Freshness] == [1, 0, 1]
        assert found['urlhealth_feature_age_seconds_bucket{le="60.0"}'] == 0
        assert found['urlhealth_feature_age_seconds_bucket{le="300.0"}'] == 1
        assert found["urlhealth_feature_age_seconds_sum"] == 240
        assert found["urlhealth_feature_check_timestamp_seconds"] == now_ms / 1000
        assert found[f'urlhealth_feature_entities{{view="{URL_STATE.name}"}}'] == 1
        assert found[f'urlhealth_feature_inconsistent{{kind="different",view="{URL_STATE.name}"}}'] == 0
        platform.features._online.drop([f"urlhealth_{URL_STATE.name}"])
        assert not platform.check_features().ok
        assert exposed()[f'urlhealth_feature_inconsistent{{kind="different",view="{URL_STATE.name}"}}'] == 1
