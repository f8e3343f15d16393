"""Replays of histories: what is to be found, what was found, and that nothing of the future is used."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from urlhealth.cli import app
from urlhealth.errors import InvalidRequest, NotEnoughHistory, UrlHealthError
from urlhealth.polling.policy import HOUR_MS, AdaptivePolicy
from urlhealth.polling.replay import (
    Probes,
    Series,
    judge,
    judge_oracle,
    judge_uniform,
    outages_of,
    replay_adaptive,
    replay_uniform,
)

MINUTE_MS = 60_000


def series(hours: list[float], failing: list[bool], start_h: float, url: str = "a") -> Series:
    ts_ms = np.array([round(h * HOUR_MS) for h in hours], np.int64)
    return Series(url=url, group="g", ts_ms=ts_ms, failing=np.array(failing, bool), start_ms=round(start_h * HOUR_MS))


def flapping(number: int, days: int = 60) -> Series:
    """Bursts of short outages, as sites have them."""
    rng = np.random.default_rng(number)
    hours, states = [0.0], [False]
    while hours[-1] < days * 24:
        for _ in range(rng.integers(1, 6)):
            hours += [hours[-1] + rng.exponential(0.5) + 0.1, 0.0]
            hours[-1] = hours[-2] + rng.exponential(0.3) + 0.05
            states += [True, False]
        hours.append(hours[-1] + rng.exponential(60.0 * (1 + number % 4)))
        states.append(False)
    return series(hours, states, days * 12, url=f"u{number}")


def test_outages_are_those_that_begin_after_the_start() -> None:
    one = series([0, 1, 2, 9, 10, 11, 11.5, 12, 15], [1, 0, 1, 0, 1, 1, 0, 1, 1], 5)
    found = outages_of([one])
    assert (found.begin_ms / HOUR_MS).tolist() == [10, 12]
    assert (found.end_ms / HOUR_MS).tolist() == [11.5, 15]


def test_an_outage_is_caught_by_a_probe_within_and_otherwise_costs_its_length() -> None:
    one = series([0, 10, 11, 20, 21, 30], [0, 1, 0, 1, 0, 0], 5)
    at = np.array([10.25, 20.0, 21.0]) * HOUR_MS
    outages = outages_of([one, replace(one, url="b")])
    probes = Probes(series=np.array([0, 0, 1]), ts_ms=at.astype(np.int64), failing=np.ones(3, bool))
    found = judge(outages, probes)
    assert found.caught.tolist() == [1, 1, 0, 0]
    assert found.delay_h.tolist() == [0.25, 0, 1, 1]
    oracle = judge_oracle(outages, min_interval_s=300)
    assert oracle.caught.min() == 1
    assert oracle.delay_h.max() == 0


def test_uniform_is_the_mean_over_phases() -> None:
    rng = np.random.default_rng(0)
    begins = np.sort(rng.uniform(10, 5_000, 400))
    begins = begins[np.diff(begins, prepend=0) > 1]
    hours = np.ravel(np.column_stack([begins, begins + 0.5])).tolist()
    one = series([0, *hours, 6_000], [False, *[True, False] * len(begins), False], 5)
    outages = outages_of([one])
    found = judge_uniform([one], outages, 1.0)
    assert found.caught.mean() == pytest.approx(0.5, abs=0.01)
    assert found.delay_h.mean() == pytest.approx(0.5 - 0.5**2 / 2, abs=0.01)
    single = judge(outages, replay_uniform([one], 1.0))
    assert single.caught.mean() == pytest.approx(0.5, abs=0.1)


def test_the_policy_uses_nothing_later_than_each_probe() -> None:
    whole = [flapping(number) for number in range(6)]
    cut_ms = 40 * 24 * HOUR_MS
    other = [replace(one, failing=np.where(one.ts_ms <= cut_ms, one.failing, ~one.failing)) for one in whole]
    first, second = (replay_adaptive(lines, AdaptivePolicy(budget_per_url_hour=1.0)) for lines in (whole, other))
    early, alike = first.ts_ms <= cut_ms, second.ts_ms <= cut_ms
    assert early.sum() > 1_000
    assert first.ts_ms[early].tolist() == second.ts_ms[alike].tolist()
    assert first.series[early].tolist() == second.series[alike].tolist()
    assert len(first) != len(second) or (first.ts_ms != second.ts_ms).any()


def test_bursts_are_found_sooner_and_more_often_within_the_budget() -> None:
    lines = [flapping(number) for number in range(12)]
    lines += [series([0, 1440], [False, False], 720, url=f"quiet{number}") for number in range(12)]
    outages = outages_of(lines)
    policy = AdaptivePolicy(budget_per_url_hour=1.0)
    found, uniform = judge(outages, replay_adaptive(lines, policy)), judge_uniform(lines, outages, 1.0)
    assert policy.spent == pytest.approx(policy.granted, rel=0.01)
    assert found.delay_h.mean() < 0.85 * uniform.delay_h.mean()
    assert found.caught.mean() > 1.3 * uniform.caught.mean()


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Two URLs, an outage of one after the middle, rows out of order."""
    first = datetime(2026, 1, 1, tzinfo=UTC)
    rows = [
        ("https://a.example/", first + timedelta(hours=hour), "down" if hour in (30, 70) else "up")
        for hour in range(100)
    ] + [("https://b.example/", first + timedelta(hours=hour), "degraded") for hour in range(0, 100, 5)]
    frame = pl.DataFrame(rows, schema=["url", "ts", "status"], orient="row").reverse()
    path = tmp_path / "history.parquet"
    frame.with_columns(code=200, response_ms=10).write_parquet(path)
    return path


@pytest.mark.parametrize("policy", ["uniform", "adaptive"])
def test_the_command_writes_probes_and_a_report(policy: str, history: Path, tmp_path: Path) -> None:
    out, report = tmp_path / "probes.parquet", tmp_path / "report"
    options = ["--history", history, "--policy", policy, "--budget-per-url-hour", 2, "--out", out, "--report", report]
    done = CliRunner().invoke(app, ["replay", *map(str, options)])
    assert done.exit_code == 0, done.output
    probes = pl.read_parquet(out)
    assert probes.columns == ["url", "ts", "observed"]
    assert probes.schema["ts"] == pl.Datetime("ms", "UTC")
    # Budgets to the middle of each series: 49.5 and 47.5 h, twice an hour.
    assert len(probes) == pytest.approx(194, abs=3)
    down = probes.filter(pl.col("observed") == "down")
    assert (down["ts"].dt.truncate("1h") == datetime(2026, 1, 3, 22, tzinfo=UTC)).all()
    assert "https://a.example/" in (report / "index.html").read_text()
    assert {path.name for path in report.iterdir()} == {"index.html", "caught.png", "delay.png", "probes.png"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"--policy": "best"}, InvalidRequest),
        ({"--objective": "all"}, InvalidRequest),
        ({"--start": "yesterday"}, InvalidRequest),
        ({"--start": "2027-01-01"}, NotEnoughHistory),
        ({"--budget-per-url-hour": "0"}, UrlHealthError),
        ({"--out": "/nowhere/at/all.parquet"}, InvalidRequest),
    ],
)
def test_what_cannot_be_replayed_is_said(
    change: dict[str, str], problem: type[Exception], history: Path, tmp_path: Path
) -> None:
    options = {"--history": str(history), "--out": str(tmp_path / "o.parquet"), **change}
    done = CliRunner().invoke(app, ["replay", *(part for option in options.items() for part in option)])
    assert isinstance(done.exception, problem)


def test_a_bad_row_is_named(history: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(history)
    frame[3, "status"] = "sideways"
    frame.write_parquet(history)
    done = CliRunner().invoke(app, ["replay", "--history", str(history), "--out", str(tmp_path / "o.parquet")])
    assert isinstance(done.exception, InvalidRequest)
    assert "row 3" in str(done.exception)


def test_a_start_before_all_rows_replays_all_of_them_as_new(history: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.parquet"
    options = ["--history", str(history), "--out", str(out), "--start", "2025-12-01T00:00:00+01:00"]
    done = CliRunner().invoke(app, ["replay", *options])
    assert done.exit_code == 0, done.output
    assert len(pl.read_parquet(out)) == pytest.approx(99 + 95, abs=4)
