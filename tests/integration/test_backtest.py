"""`urlhealth backtest`: forecasts of past instants from a file, as serving would have made them then."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from models.backtest import forecast, report
from models.registry import resolve
from models.replay import replay
from models.tables import read_history
from models.training import train_from
from urlhealth.cli import app
from urlhealth.errors import InvalidRequest, NotEnoughHistory
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.platform import Platform
from urlhealth.prediction.champion import load_bundled
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import HORIZONS, Outcome, ProbeResult

START = datetime(2024, 3, 1, tzinfo=UTC)
URLS = [f"https://{name}.example.com/" for name in ("steady", "flapping", "other")]
KNOWN_FOR_S = 172_800.0


def history(path: Path, *, until_h: float = 24 * 20) -> Path:
    """Probes every 50 minutes of URLs up to an hour; one fails every seven hours for an hour."""
    rows = [
        (url, START + timedelta(hours=hour), "down" if url == URLS[1] and hour % 7 < 1 else "up", 200, 100 + i)
        for i, url in enumerate(URLS)
        for hour in np.arange(0, 24 * 20, 5 / 6)
        if hour <= until_h
    ]
    pl.DataFrame(rows, schema=["url", "ts", "status", "code", "response_ms"], orient="row").sample(
        fraction=1, shuffle=True, seed=1
    ).write_parquet(path)
    return path


def instants(path: Path, hours: list[float], url: str = URLS[1]) -> Path:
    pl.DataFrame({"url": [url] * len(hours), "ts": [START + timedelta(hours=hour) for hour in hours]}).write_parquet(
        path
    )
    return path


def test_the_command_forecasts_each_instant_and_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    at = instants(tmp_path / "p.parquet", [300.0, -5.0, 24 * 20 + 40, 24 * 20 + 60, 300.0])
    out = tmp_path / "o.parquet"
    done = CliRunner().invoke(
        app, ["backtest", "--history", str(history(tmp_path / "h.parquet")), "--at", str(at), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    table = pl.read_parquet(out)
    assert table.columns == ["url", "ts", "horizon_h", "p_onset", "p_failing", "status"]
    assert table["horizon_h"].to_list() == [1, 6, 24] * 5
    assert table["ts"].to_list()[::3] == pl.read_parquet(at)["ts"].to_list()
    assert table["status"].to_list()[::3] == ["fresh", "missing", "fresh", "stale", "fresh"]
    assert table["p_onset"].is_null().to_list()[::3] == [False, True, False, False, False]
    np.testing.assert_allclose(table["p_onset"][0:3], table["p_onset"][12:15], rtol=1e-9)
    assert (table["p_onset"][0:3].diff().drop_nulls() >= 0).all()
    assert not (tmp_path / "home").exists()


def test_nothing_later_than_an_instant_moves_its_forecast(tmp_path: Path) -> None:
    """Forecasts on the history cut at the instant are the same."""
    whole, model = history(tmp_path / "whole.parquet"), load_bundled()
    for hour in (0.0, 0.5, 30.0, 100.0, 343.25):
        at = instants(tmp_path / "at.parquet", [hour])
        tables = []
        for name, source in (("whole", whole), ("cut", history(tmp_path / "cut.parquet", until_h=hour))):
            forecast(model, source, at, tmp_path / name, known_for_s=KNOWN_FOR_S)
            tables.append(pl.read_parquet(tmp_path / name).select("p_onset", "p_failing").to_numpy())
        np.testing.assert_allclose(*tables, rtol=1e-9, err_msg=f"{hour} h")


def test_a_backtest_says_what_serving_would_have_said(tmp_path: Path) -> None:
    """The same history imported into a platform whose clock stands at the instant."""
    whole, t = history(tmp_path / "whole.parquet"), START + timedelta(hours=300.4)
    forecast(load_bundled(), whole, instants(tmp_path / "at", [300.4]), tmp_path / "out", known_for_s=KNOWN_FOR_S)
    rows = pl.read_parquet(whole).filter(pl.col("ts") <= t).sort("ts")
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri="", known_for_s=KNOWN_FOR_S)
    with Platform(settings, clock=lambda: int(t.timestamp() * 1000)) as platform:
        platform.crawl.import_probes(
            (
                parse_target(url),
                ProbeResult(
                    target=url,
                    ts_ms=int(ts.timestamp() * 1000),
                    outcome=Outcome.HTTP_ERROR if status == "down" else Outcome.OK,
                    status_code=code,
                    total_ms=ms,
                ),
            )
            for url, ts, status, code, ms in rows.iter_rows()
        )
        platform.build_features()
        platform.champion.refresh()
        served = platform.predictor.predict([URLS[1]], horizons=list(HORIZONS))
    expected = [(prediction.probability, prediction.probability_at_end) for prediction in served]
    table = pl.read_parquet(tmp_path / "out")
    np.testing.assert_allclose(table.select("p_onset", "p_failing").to_numpy(), expected, rtol=1e-6)


def test_a_history_folded_in_small_batches_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = read_history(history(tmp_path / "whole.parquet"))
    t_ms = (START.timestamp() * 1000 + np.linspace(0, 480, 60) * 3_600_000).astype(np.int64)
    url = np.array(URLS, dtype=object)[np.arange(60) % 3]
    whole = replay(verdicts, url, t_ms, known_for_s=KNOWN_FOR_S)
    monkeypatch.setattr("models.replay.VERDICTS", 97)
    monkeypatch.setattr("models.replay.INSTANTS", 7)
    parts = replay(verdicts, url, t_ms, known_for_s=KNOWN_FOR_S)
    assert whole.X.shape == (60, len(VECTOR))
    np.testing.assert_allclose(parts.X, whole.X, rtol=1e-6, atol=1e-9)
    state = names(VECTOR).index("failing_now")
    assert set(whole.X[:, state]) == {0.0, 1.0}


def test_a_history_of_which_nothing_follows_is_refused(tmp_path: Path) -> None:
    model, settings, file = load_bundled(), Settings(home=tmp_path / "home", mlflow_tracking_uri=""), tmp_path / "h"
    seen = pl.DataFrame({"url": URLS[:2], "ts": [START, START + timedelta(hours=999)], "status": ["up", "down"]})
    seen[:1].write_parquet(file)
    with pytest.raises(InvalidRequest, match="nothing is known of what followed"):
        report(model, "url-health", file, tmp_path / "r", known_for_s=KNOWN_FOR_S)
    seen.write_parquet(file)
    with pytest.raises(NotEnoughHistory, match="too few"):
        train_from(settings, file, report=lambda _: None)


def test_the_report_says_how_good_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    source = str(history(tmp_path / "h.parquet", until_h=100))
    done = CliRunner().invoke(app, ["backtest", "--history", source, "--report", str(tmp_path / "report")])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report" / "report.html").read_text()
    assert "onset_24h" in page
    assert "flips in 24 h" in page
    assert {file.name for file in (tmp_path / "report").glob("*.png")} >= {"reliability.png", "roc.png"}


def test_a_model_learns_from_such_a_file_and_is_judged_by_name(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri="")
    made = train_from(settings, history(tmp_path / "h.parquet"), promote=False, budget=1, report=lambda _: None)
    assert (made.version, made.promoted) == ("2", False)
    forecaster, label = resolve(settings, "url-health@challenger")
    assert label == "url-health version 2"
    source, at = tmp_path / "h.parquet", instants(tmp_path / "at", [300.0])
    for model, out in ((forecaster, tmp_path / "new"), (resolve(settings, None)[0], tmp_path / "bundled")):
        forecast(model, source, at, out, known_for_s=KNOWN_FOR_S)
    new, bundled = (pl.read_parquet(tmp_path / name)["p_onset"].to_list() for name in ("new", "bundled"))
    assert new != bundled


def test_what_to_make_must_be_said(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["backtest", "--history", str(history(tmp_path / "h.parquet"))])
    assert "say what to make" in str(done.exception)
