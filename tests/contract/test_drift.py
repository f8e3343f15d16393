"""Drift between periods of a stored history, drawn point in time from the offline store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from serving.metrics import Metrics
from urlhealth.errors import InvalidRequest, NotEnoughHistory
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE, VECTOR
from urlhealth.platform import Platform
from urlhealth.prediction import drift
from urlhealth.prediction.drift import Period
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target

T0_MS, HOUR_MS = 1_700_000_000_000, 3_600_000
TARGETS = [Target(url=f"https://h{i}.example.com/", host=f"h{i}.example.com", group="example.com") for i in range(4)]
CALM, ROUGH = (Period(since_ms=T0_MS + a * HOUR_MS, until_ms=T0_MS + b * HOUR_MS) for a, b in ((48, 96), (120, 168)))


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A week: after five days without a failure, every second probe of two targets fails."""
    with Platform(Settings(home=tmp_path_factory.mktemp("home"))) as platform:
        platform.crawl.import_probes(
            (target, ProbeResult(target=target.key, ts_ms=T0_MS + hour * HOUR_MS, outcome=outcome))
            for hour in range(169)
            for i, target in enumerate(TARGETS)
            for outcome in [Outcome.TIMEOUT if hour >= 120 and hour % 2 and i < 2 else Outcome.OK]
        )
        platform.build_features()
        yield platform


def between(platform: Platform, reference: Period, current: Period) -> drift.Drift:
    return drift.between(
        platform.crawl,
        platform.features,
        reference,
        current,
        known_for_s=platform.settings.known_for_s,
        rng=np.random.default_rng(0),
        rows=2000,
    )


def test_what_changed_between_two_periods_comes_first(platform: Platform) -> None:
    found = between(platform, CALM, ROUGH)
    by_name = {feature.feature: feature for feature in found.features}
    assert (found.rows_reference, found.rows_current) == (2000, 2000)
    assert by_name["failing_now"].ks == pytest.approx(0.25, abs=0.05)  # two of four fail half the time
    assert found.largest_psi >= by_name["failing_share_24h"].psi > 1
    same = {feature.feature: feature for feature in between(platform, CALM, CALM).features}
    assert same["failing_now"].psi == same["failing_share_24h"].psi == 0
    assert max(feature.psi for feature in same.values()) < 0.25


def test_states_are_those_of_feasts_point_in_time_join(platform: Platform) -> None:
    rng = np.random.default_rng(1)
    keys = rng.choice([*(target.key for target in TARGETS), "https://never.example.com/"], 50).tolist()
    t_ms = rng.integers(T0_MS - HOUR_MS, T0_MS + 170 * HOUR_MS, 50)
    found = platform.features.as_of(URL_STATE, keys, t_ms)
    frame = pd.DataFrame({"url": keys, "event_timestamp": pd.to_datetime(t_ms, unit="ms", utc=True)})
    names = [f"url_state:{column.name}" for column in URL_STATE.columns]
    table = platform.features.feast().get_historical_features(frame, names).to_arrow()
    assert found.states.tobytes() == URL_STATE.from_arrow(table).tobytes()
    known = (t_ms >= T0_MS) & np.array([key != "https://never.example.com/" for key in keys])
    assert ((found.ts_ms > 0) == known).all()
    assert [len(platform.features.as_of(view, [], np.zeros(0, np.int64)).ts_ms) for view in STATE_VIEWS] == [0] * 3


def test_a_period_without_features_is_said(platform: Platform) -> None:
    never = Period.parse("2001-01-01/2001-01-02T12:00+00:00")
    with pytest.raises(NotEnoughHistory, match="2001-01-01T00:00:00Z/2001-01-02T12:00:00Z has no features"):
        between(platform, never, CALM)
    for wrong in ("yesterday", "2001-01-01", "a/b", "2001-01-02/2001-01-01"):
        with pytest.raises(InvalidRequest, match=wrong):
            Period.parse(wrong)


def test_a_comparison_is_kept(platform: Platform, tmp_path: Path) -> None:
    found = between(platform, CALM, ROUGH)
    file = tmp_path / "deep" / "drift.json"
    assert drift.load(file) is None
    drift.save(found, file)
    drift.save(found, platform.settings.drift_file)
    exposed = Metrics(lambda: platform).exposition().decode()
    platform.settings.drift_file.unlink()
    worst = found.features[0]
    assert f'urlhealth_feature_psi{{feature="{worst.feature}"}} {worst.psi}' in exposed
    assert f'missing_share{{feature="{worst.feature}",period="serving"}} {worst.missing_current}' in exposed
    assert repr(drift.load(file)) == repr(found)  # NaN is not equal to itself
    assert len(found.features) == len(VECTOR)
    file.write_text("{}")
    assert drift.load(file) is None


def test_the_command_prints_json_writes_a_page_and_keeps_what_was_compared_with_training(
    platform: Platform, tmp_path: Path
) -> None:
    """Without a model of one's own there is no training to compare with, which is said."""
    environment = {**os.environ, "URLHEALTH_HOME": str(platform.settings.home)}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        command = (str(Path(sys.executable).with_name("urlhealth")), "features", "drift", *options)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)

    periods = ("--reference", str(CALM), "--current", str(ROUGH))
    found = run(*periods, "--json", "--report", str(tmp_path))
    assert found.returncode == 0, found.stderr
    features = json.loads(found.stdout)["features"]
    assert [f["psi"] for f in features] == sorted((f["psi"] for f in features), reverse=True)
    assert sum(features[0]["shares_current"]) + features[0]["missing_current"] == pytest.approx(1)
    page = (tmp_path / "index.html").read_text()
    assert all(feature.name in page for feature in VECTOR)
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")
    untrained = run()
    assert (untrained.returncode, "was not trained on the history here" in untrained.stderr) == (1, True)
    assert not platform.settings.drift_file.exists()
