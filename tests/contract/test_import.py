"""Histories in files of every kind, stored in every backend: nothing is lost, and nothing doubled."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa

from tests.contract.conftest import HandClock
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest
from urlhealth.histories import files
from urlhealth.histories.importing import Imported, Importer
from urlhealth.histories.source import batches_of
from urlhealth.histories.upptime import write_set
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Attempt, Outcome, ProbeResult, ProbeSource

URL = "https://a.example/"
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


def stored(store: CrawlStore) -> list[tuple[Any, ...]]:
    """Target, instant, outcome, status code and duration of each verdict, by target and time."""
    frames = list(store.export_verdicts())
    if not frames:
        return []
    names = ["url", "name", "ts", "outcome", "status_code", "total_ms"]
    frame = pl.concat([frame.select(pl.col(names)) for frame in frames]).with_columns(pl.col("ts").dt.epoch("ms"))
    return sorted(frame.rows(), key=lambda row: (row[0], row[1] or "", row[2]))


def run(store: CrawlStore, clock: HandClock, source: Path, **more: Any) -> Imported:
    return Importer(store, clock=clock, **more).run(batches_of(source))


def rfc3339(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize("suffix", [".parquet", ".ndjson", ".csv"])
def test_what_is_exported_comes_back_whole(
    suffix: str, store: CrawlStore, clock: HandClock, tmp_path: Path, engine: sa.Engine
) -> None:
    now_ms = clock.now_ms
    attempt = Attempt(ts_ms=now_ms - 70, outcome=Outcome.TIMEOUT, total_ms=60.0)
    results = [
        ProbeResult(
            target="", ts_ms=now_ms - 60, outcome=Outcome.HTTP_ERROR, status_code=503, dns_ms=0.25, connect_ms=1.5,
            tls_ms=2.0, first_byte_ms=3.0, total_ms=7.125, size_bytes=12, redirects=1, final_url="https://a.example/b",
            address="192.0.2.1", http_version="2", cert_expires_ms=now_ms + DAY_MS,
            error='HTTP 503, "down"\n', attempts=(attempt,),
        ),
        ProbeResult(target="", ts_ms=now_ms - 50, outcome=Outcome.OK),
    ]  # fmt: skip
    named, plain = parse_target(URL, name="shop", group="shops"), parse_target("https://b.example")
    store.import_probes((target, result) for target in (named, plain) for result in results)
    store.import_probes(
        [(plain, ProbeResult(target="", ts_ms=now_ms - 40, outcome=Outcome.DNS))], source=ProbeSource.SIMULATED
    )
    out, again = tmp_path / f"history{suffix}", tmp_path / f"again{suffix}"
    assert files.write(store.export_verdicts(), out) == 5
    known = run(store, clock, out)
    assert (known.stored, known.known, known.left_out) == (0, 5, {})

    for table in ("probes", "targets"):
        with engine.begin() as connection:
            connection.execute(sa.text(f"DELETE FROM {table}"))
    assert run(store, clock, out).stored == 5
    files.write(store.export_verdicts(), again)
    rows = [pl.concat(list(batches_of(path))).drop("row", "source").sort("url", "ts") for path in (out, again)]
    assert rows[0].rows() == rows[1].rows()
    assert store.simulated_targets([named.key, plain.key]) == {plain.key}
    assert store.find_targets([named.key])[named.key] == named


def test_a_verdict_that_a_task_asked_for_is_not_doubled(
    store: CrawlStore, clock: HandClock, tmp_path: Path, engine: sa.Engine
) -> None:
    store.import_probes([(parse_target(URL), ProbeResult(target=URL, ts_ms=clock.now_ms, outcome=Outcome.OK))])
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE probes SET task_number = 7"))
    files.write(store.export_verdicts(), tmp_path / "history.parquet")
    assert run(store, clock, tmp_path / "history.parquet").known == 1


def test_rows_that_are_odd(store: CrawlStore, clock: HandClock, tmp_path: Path) -> None:
    """Unsorted, repeated and contradictory rows; broken lines, times, numbers and URLs; the future."""
    now_ms = clock.now_ms
    good = {"url": "HTTPS://A.example", "ts": rfc3339(now_ms - 1000), "outcome": "ok", "total_ms": 5}
    lines = [
        json.dumps(good),
        json.dumps(good | {"ts": rfc3339(now_ms - 2000), "total_ms": -1, "status_code": 99_999}),
        json.dumps(good | {"outcome": "timeout"}),  # of two at one instant the first counts
        json.dumps(good | {"ts": now_ms - 3000, "status_code": "200", "size_bytes": "many", "unknown": 1}),
        json.dumps(good | {"ts": rfc3339(now_ms + DAY_MS)}),
        json.dumps(good | {"ts": "soon"}),
        json.dumps(good | {"ts": 1e400}),
        json.dumps(good | {"ts": "0001-01-01T00:00:00"}),
        json.dumps(good | {"ts": rfc3339(now_ms - 9 * DAY_MS)}),
        json.dumps(good | {"url": "wss://a.example"}),
        json.dumps(good | {"url": 5}),
        json.dumps(good | {"outcome": "fine"}),
        '{"url": "https://a.example", "ts": "20',
        "",
        "[]",
        "\udcff{}",
        json.dumps(
            {
                "url": URL,
                "ts": rfc3339(now_ms - 9 * HOUR_MS).replace("Z", ""),
                "status": "degraded",
                "response_ms": 40,
                "error": "a\0b",
            }
        ),
    ]
    source = tmp_path / "history.ndjson"
    source.write_text("\n".join(lines), errors="surrogateescape")
    found = run(store, clock, source, oldest_ms=now_ms - 8 * DAY_MS)
    assert (found.rows, found.stored, found.known) == (16, 4, 1)
    assert found.left_out == {
        "no URL": (5, 7),
        "no time, or none that can be read": (1, 6),
        "before 1970": (1, 8),
        "in the future": (1, 5),
        "no outcome or status that is known": (1, 12),
        "older than probes are kept (URLHEALTH_KEEP_PROBES_DAYS)": (1, 9),
        "scheme 'wss' cannot be probed: only http and https can": (1, 10),
    }
    assert stored(store) == [
        (URL, None, now_ms - 9 * HOUR_MS, "ok", None, 40.0),
        (URL, None, now_ms - 3000, "ok", 200, 5.0),
        (URL, None, now_ms - 2000, "ok", None, None),
        (URL, None, now_ms - 1000, "ok", None, 5.0),
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_rows_that_are_odd_in_other_files(suffix: str, store: CrawlStore, clock: HandClock, tmp_path: Path) -> None:
    source = tmp_path / f"history{suffix}"
    at = datetime.fromtimestamp((clock.now_ms - 1000) / 1000, UTC)
    if suffix == ".csv":
        source.write_text(
            f"url,ts,status,code\n{URL},{at.isoformat()},down\n{URL},{at.isoformat()},up,200,5,6\n{URL}\n"
        )
    else:
        columns = {"url": [URL, URL, URL], "ts": [at, at, None], "status": ["down", "up", "up"], "code": [0, 200, 1]}
        pl.DataFrame(columns).write_parquet(source)
    found = run(store, clock, source)
    assert (found.rows, found.stored, found.known) == (3, 1, 1)
    assert found.left_out == {"no time, or none that can be read": (1, 3)}
    assert stored(store) == [(URL, None, clock.now_ms - 1000, "http_error", None, None)]


def test_late_rows_are_counted(store: CrawlStore, clock: HandClock, tmp_path: Path) -> None:
    store.import_probes([(parse_target(URL), ProbeResult(target=URL, ts_ms=clock.now_ms - 5000, outcome=Outcome.OK))])
    source = tmp_path / "history.ndjson"
    rows = [{"url": URL, "ts": clock.now_ms - ms, "outcome": "ok"} for ms in (4000, 5000, 6000, 7000)]
    source.write_text("\n".join(map(json.dumps, rows)))
    found = run(store, clock, source)
    assert (found.stored, found.known, found.late) == (3, 1, 2)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.parquet", b"no Parquet", "cannot be read as a Parquet file"),
        ("none.csv", b"a,b\n1,2\n", "no url, no ts, no outcome or status"),
        ("none.txt", b"", "no history that is known here"),
        ("none.db", b"SQLite format 3\0 and no more", "Uptime Kuma"),
    ],
)
def test_what_is_no_history_is_named(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidRequest, match=words) as caught:
        list(batches_of(tmp_path / name))
    assert name in str(caught.value)


@pytest.mark.parametrize("name", ["", "absent.csv"])
def test_where_there_is_no_history(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"no clone|not there"):
        batches_of(tmp_path / name)


def git(clone: Path, *arguments: str, at_ms: int = 1_600_000_000_000) -> None:
    at = f"{at_ms // 1000} +0000"
    environment = {"PATH": os.environ["PATH"], "GIT_AUTHOR_DATE": at, "GIT_COMMITTER_DATE": at, "HOME": str(clone)}
    name = ["-c", "user.name=Upptime Bot", "-c", "user.email=bot@a.example", "-c", "init.defaultBranch=master"]
    subprocess.run(["git", "-C", clone, *name, *arguments], check=True, capture_output=True, env=environment)


def site(url: str, status: str, at_ms: int, *, code: int = 200, response_ms: int = 120) -> str:
    """A file as Upptime writes it."""
    return (
        f"url: {url}\nstatus: {status}\ncode: {code}\nresponseTime: {response_ms}\nlastUpdated: {rfc3339(at_ms)}\n"
        "startTime: 2020-08-20T12:00:00.000Z\ngenerator: Upptime <https://github.com/upptime/upptime>\n"
    )


@pytest.fixture
def clone(tmp_path: Path, clock: HandClock) -> Path:
    """A repository with two sites, a branch, a merge, a template's row and a secret."""
    clone, start_ms = tmp_path / "clone", clock.now_ms - DAY_MS
    (clone / "history").mkdir(parents=True)
    git(clone, "init")
    git(clone, "remote", "add", "origin", "https://github.com/ann/status.git")

    def commit(minute: int, **sites: str) -> None:
        for slug, text in sites.items():
            (clone / "history" / f"{slug}.yml").write_text(text)
        git(clone, "add", "-A")
        git(clone, "commit", "-m", "\U0001f7e9 a site is up", at_ms=start_ms + 60_000 * minute)

    def at(minute: int) -> int:
        return start_ms + 60_000 * minute

    commit(0, a=site(URL, "up", at(0)), template=site("https://t.example", "up", at(-9000)))
    commit(10, a=site(URL, "down", at(10), code=0, response_ms=0), secret=site("https://$HOST/", "up", at(10)))
    git(clone, "checkout", "-b", "branch")
    commit(20, b=site("https://b.example", "degraded", at(20), response_ms=9000))
    git(clone, "checkout", "master")
    commit(30, a=site(URL, "up", at(30)), broken="url: https://c.example\nstatus: up\nlastUp")
    git(clone, "merge", "branch", "-m", "merge", at_ms=at(40))
    (clone / "history" / "a.yml").unlink()
    commit(50)
    return clone


def test_a_clone_of_an_upptime_repository(store: CrawlStore, clock: HandClock, clone: Path) -> None:
    start_ms = clock.now_ms - DAY_MS
    found = run(store, clock, clone)
    assert found.left_out == {"no time, or none that can be read": (1, 5)}
    assert stored(store) == [
        (URL, None, start_ms, "ok", 200, 120.0),
        (URL, None, start_ms + 600_000, "http_error", None, None),
        (URL, None, start_ms + 1_800_000, "ok", 200, 120.0),
        ("https://b.example/", None, start_ms + 1_200_000, "ok", 200, 9000.0),
    ]
    assert store.find_targets([URL])[URL].group == "ann"


def test_a_set_of_upptime_repositories(store: CrawlStore, clock: HandClock, clone: Path, tmp_path: Path) -> None:
    """The Parquet form: of one URL in two repositories, each is a series of its own."""
    out, other = tmp_path / "set.parquet", tmp_path / "other"
    shutil.copytree(clone, other)
    git(other, "remote", "set-url", "origin", "git@github.com:bob/status.git")
    assert write_set([clone, other], out) == 8
    rows = pl.read_parquet(out)
    assert rows.columns == ["repo", "site_slug", "url", "ts", "status", "code", "response_ms", "source"]
    first = rows.filter(pl.col("repo") == "ann/status", pl.col("url") == URL)
    assert first.select("site_slug", "status", "code", "response_ms", "source").rows() == [
        ("a", "up", 200, 120, "status-change"),
        ("a", "down", 0, 0, "status-change"),
        ("a", "up", 200, 120, "status-change"),
    ]
    assert run(store, clock, out).stored == 8
    named = store.find_targets([f"{URL}#ann/status", f"{URL}#bob/status"])
    assert sorted(target.group for target in named.values()) == ["ann", "bob"]


KUMA = """
CREATE TABLE [monitor] (
    id INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, name VARCHAR(150), active BOOLEAN NOT NULL DEFAULT 1,
    user_id INTEGER, interval INTEGER NOT NULL DEFAULT 20, url TEXT, type VARCHAR(20), hostname VARCHAR(255),
    port INTEGER, created_date DATETIME NOT NULL DEFAULT (DATETIME('now')), keyword VARCHAR(255),
    maxretries INTEGER NOT NULL DEFAULT 0, ignore_tls BOOLEAN NOT NULL DEFAULT 0, method TEXT NOT NULL DEFAULT 'GET'
);
CREATE TABLE [heartbeat] (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, important BOOLEAN NOT NULL DEFAULT 0, monitor_id INTEGER NOT NULL
    REFERENCES [monitor] (id) ON DELETE CASCADE ON UPDATE CASCADE, status SMALLINT NOT NULL, msg TEXT,
    time DATETIME NOT NULL, ping INTEGER, duration INTEGER NOT NULL DEFAULT 0, down_count INTEGER NOT NULL DEFAULT 0
);
INSERT INTO monitor (id, name, url, type) VALUES
    (1, 'a', 'https://a.example', 'http'), (2, 'word', 'https://a.example', 'keyword'), (3, 'ping', 'https://', 'ping'),
    (4, 'b', 'https://b.example', 'http');
"""
BEATS = [
    (1, 1, "200 - OK", 31, "ok", 200),
    (1, 2, "timeout of 48000ms exceeded", None, None, None),  # pending
    (1, 0, "timeout of 48000ms exceeded", None, "timeout", None),
    (1, 3, "Monitor under maintenance", None, None, None),
    (2, 0, "but keyword is not in [<html>]", 12, "condition", None),
    (3, 1, "", 5, None, None),
    (4, 0, "Request failed with status code 503", 9, "http_error", 503),
    (4, 0, "getaddrinfo ENOTFOUND b.example", None, "dns", None),
    (4, 0, "connect ECONNREFUSED 192.0.2.1:443", None, "connect", None),
    (4, 0, "certificate has expired", None, "tls", None),
    (4, 0, "something new", None, "http_error", None),
]


def test_the_database_of_uptime_kuma(store: CrawlStore, clock: HandClock, tmp_path: Path) -> None:
    source, expected = tmp_path / "kuma.db", []
    keys = {1: (URL, "a"), 2: (URL, "word"), 4: ("https://b.example/", None)}
    with closing(sqlite3.connect(source)) as connection:
        connection.executescript(KUMA)
        for number, (monitor, status, message, ping, outcome, code) in enumerate(BEATS, 1):
            at_ms = clock.now_ms - 60_000 * (100 - number)
            at = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S.123")
            connection.execute(
                "INSERT INTO heartbeat (monitor_id, status, msg, time, ping) VALUES (?, ?, ?, ?, ?)",
                (monitor, status, message, at, ping),
            )
            if outcome is not None:
                expected.append((*keys[monitor], at_ms + 123, outcome, code, ping))
        connection.commit()
    found = run(store, clock, source)
    assert (found.stored, found.left_out) == (len(expected), {})
    assert stored(store) == sorted(expected, key=lambda row: (row[0], row[1] or "", row[2]))
