"""Histories from files: what is taken, and how what cannot be is refused."""

from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from models.tables import host_and_domain, read_history, read_instants
from urlhealth.errors import InvalidRequest
from urlhealth.vocabulary import Outcome

T0 = datetime(2024, 3, 1, 12, tzinfo=UTC)
T0_MS = int(T0.timestamp() * 1000)


def written(path: Path, **columns: Any) -> Path:
    file = path / "h.parquet"
    pl.DataFrame(columns).write_parquet(file)
    return file


def history(path: Path, **changes: Any) -> Path:
    """Three rows of one URL, newest first, with the columns changed (None: left out)."""
    columns: dict[str, Any] = {
        "url": ["https://a.shop.example.co.uk/x"] * 3,
        "ts": [T0 + timedelta(hours=2), T0 + timedelta(hours=1), T0],
        "status": ["degraded", "down", "up"],
        "code": [200, None, 200],
        "response_ms": [900, 0, 120],
    }
    return written(path, **{name: values for name, values in (columns | changes).items() if values is not None})


def test_rows_are_put_in_order_and_degraded_is_up(tmp_path: Path) -> None:
    verdicts = read_history(history(tmp_path))
    assert verdicts.ts_ms.tolist() == [T0_MS, T0_MS + 3_600_000, T0_MS + 7_200_000]
    assert verdicts.health.tolist() == [1, 0, 1]
    assert verdicts.status_code.tolist() == [200, 0, 200]
    np.testing.assert_array_equal(verdicts.total_ms, [120, np.nan, 900])
    assert set(verdicts.host) == {"a.shop.example.co.uk"}
    assert set(verdicts.group) == {"example.co.uk"}
    assert verdicts.probe_id.tolist() == [1, 2, 3]


def test_time_zones_are_converted_and_none_is_utc(tmp_path: Path) -> None:
    there = timezone(timedelta(hours=5, minutes=30))
    zoned = [(T0 + timedelta(hours=h)).astimezone(there) for h in (0, 1, 2)]
    naive = [(T0 + timedelta(hours=h)).replace(tzinfo=None) for h in (0, 1, 2)]
    for ts in (zoned, naive, pl.Series(naive, dtype=pl.Datetime("ns"))):
        assert read_history(history(tmp_path, ts=ts)).ts_ms[0] == T0_MS


def test_of_rows_of_one_instant_the_first_counts(tmp_path: Path) -> None:
    verdicts = read_history(history(tmp_path, ts=[T0, T0, T0 + timedelta(hours=1)]))
    assert verdicts.health.tolist() == [1, 1]
    assert verdicts.total_ms[0] == 900


def test_the_oldest_group_that_is_given_counts_and_codes_may_be_missing(tmp_path: Path) -> None:
    verdicts = read_history(history(tmp_path, group=["new", "old", None], code=None, response_ms=None))
    assert set(verdicts.group) == {"old"}
    assert verdicts.status_code.tolist() == [0, 0, 0]
    assert np.isnan(verdicts.total_ms).all()
    assert set(read_history(history(tmp_path, group=[None, None, ""])).group) == {"example.co.uk"}


def test_durations_that_are_none_are_not_known(tmp_path: Path) -> None:
    verdicts = read_history(history(tmp_path, response_ms=[float("inf"), float("nan"), -3.0], code=[1e15, -1.0, 200.0]))
    assert np.isnan(verdicts.total_ms).all()
    assert verdicts.status_code.tolist() == [200, 0, 999]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": ["up", "UP", "flaky"]}, "row 1, counted from 0: status 'UP' is none of up, degraded, down.*1 more"),
        ({"status": ["up", None, "up"]}, "row 1.*status None is empty"),
        ({"url": ["a", "b", None]}, "row 2, counted from 0: url None is empty"),
        ({"ts": [T0, None, T0]}, "row 1.*ts None is empty"),
        ({"ts": ["2024-01-01", "x", "y"]}, "column ts holds String, not timestamps"),
        ({"ts": [T0, T0, datetime(1960, 1, 1, tzinfo=UTC)]}, "row 2.*is not between 1970 and 2200"),
        ({"ts": [T0, datetime(2300, 1, 1, tzinfo=UTC), T0]}, "row 1.*is not between 1970 and 2200"),
        ({"ts": [1_700_000_000, 1_700_003_600, 1_700_007_200]}, "column ts holds Int64, not timestamps"),
        ({"status": None}, "has no column status"),
        ({"code": ["200", "x", "y"]}, "column code holds String, not numbers"),
        ({"group": [1, 2, 3]}, "column group holds Int64, not text"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        read_history(history(tmp_path, **changes))


def test_a_file_that_is_none_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.parquet").write_text("url,ts\n")
    with pytest.raises(InvalidRequest, match="cannot be read as a Parquet file"):
        read_instants(tmp_path / "no.parquet")
    empty = written(tmp_path, url=pl.Series([], dtype=pl.String), ts=pl.Series([], dtype=pl.Datetime("us", "UTC")))
    with pytest.raises(InvalidRequest, match="has no rows"):
        read_instants(empty)


@pytest.mark.parametrize(
    ("url", "host", "domain"),
    [
        ("wss://live.example.com/socket", "live.example.com", "example.com"),
        ("mail.example.com:25", "mail.example.com", "example.com"),
        ("https://a.example.com/#x/y", "a.example.com", "example.com"),
        ("no address at all", "no address at all", "no address at all"),
    ],
)
def test_urls_that_cannot_be_probed_have_a_host_too(url: str, host: str, domain: str) -> None:
    assert host_and_domain(url) == (host, domain)


def test_an_exported_file_is_a_history_with_its_own_words(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        url=["https://a.example/"] * 3,
        name=[None, "login", None],
        ts=[T0, T0, T0 + timedelta(hours=1)],
        outcome=["ok", "timeout", "blocked"],
        status_code=[200, None, 403],
        total_ms=[80.0, None, None],
    )
    verdicts = read_history(file)
    assert verdicts.target.tolist() == ["https://a.example/", "https://a.example/#login", "https://a.example/"]
    assert [list(Outcome)[code] for code in verdicts.outcome] == [Outcome.OK, Outcome.TIMEOUT, Outcome.BLOCKED]
    assert verdicts.status_code.tolist() == [200, 0, 403]
