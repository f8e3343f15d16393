"""The history in Uptime Kuma's database (SQLite, versions 1 and 2): each heartbeat of a monitor of a URL is a row.

Heartbeats that are no verdict are left out: pending ones (a retry follows), and those under maintenance. So are
monitors that ask no URL (ping, port, DNS, push, ...).
"""

import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.histories.form import of_texts
from urlhealth.vocabulary import Outcome

_BATCH: Final = 50_000
#: Types of monitors that ask a URL.
_TYPES: Final = ("http", "keyword", "json-query", "real-browser")
_DOWN, _UP = 0, 1
_STATUS: Final = re.compile(r"(?:^|status code )(\d{3})\b")
#: What Uptime Kuma says of a failure → what it is. The first that is found counts.
_FAILURES: Final = tuple(
    (re.compile(words, re.IGNORECASE), outcome)
    for words, outcome in (
        (r"status code \d{3}", Outcome.HTTP_ERROR),
        (r"ENOTFOUND|EAI_AGAIN|getaddrinfo", Outcome.DNS),
        (r"timeout|ETIMEDOUT|timed out|aborted", Outcome.TIMEOUT),
        (r"certificate|\bSSL\b|\bTLS\b|EPROTO", Outcome.TLS),
        (r"ECONNREFUSED|EHOSTUNREACH|ENETUNREACH", Outcome.CONNECT),
        (r"redirects", Outcome.TOO_MANY_REDIRECTS),
        (r"keyword|JSON query|expected value", Outcome.CONDITION),
        (r"ECONNRESET|socket hang up|EPIPE|Parse Error", Outcome.PROTOCOL),
    )
)


def is_kuma(path: Path) -> bool:
    """Whether the file is an SQLite database."""
    with path.open("rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def read_kuma(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a database, in the common form; rows are numbered as the heartbeats are.

    Of several monitors of one URL each is a series of its own, named after the monitor.

    Raises:
        InvalidRequest: it is none of Uptime Kuma's.
    """
    try:
        # Read by one thread, and perhaps closed by another.
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, check_same_thread=False)) as connection:
            series = _series(connection)
            if not series:
                return
            monitors = ", ".join(f"{number:d}" for number in series)
            beats = connection.execute(
                "SELECT id, CAST(monitor_id AS INTEGER), CAST(time AS TEXT), status, CAST(msg AS TEXT), ping "
                f"FROM heartbeat WHERE monitor_id IN ({monitors}) AND status IN ({_DOWN}, {_UP}) ORDER BY id"
            )
            while some := beats.fetchmany(_BATCH):
                yield of_texts([series[beat[1]] | _said(*beat[2:]) for beat in some], [beat[0] for beat in some])
    except (sqlite3.Error, OSError) as error:
        raise InvalidRequest(f"{path} cannot be read as Uptime Kuma's database: {error}") from error


def _series(connection: sqlite3.Connection) -> dict[int, dict[str, str]]:
    """URL, and perhaps name, of each monitor of a URL."""
    types = ", ".join(f"'{name}'" for name in _TYPES)
    # In SQLite any column may hold anything.
    columns = "CAST(id AS INTEGER), CAST(url AS TEXT), CAST(name AS TEXT)"
    wanted = f"type IN ({types}) AND url <> '' AND id IS NOT NULL"
    found = connection.execute(f"SELECT {columns} FROM monitor WHERE {wanted}").fetchall()
    by_url, by_name = Counter(url for _, url, _ in found), Counter((url, name) for _, url, name in found)
    series: dict[int, dict[str, str]] = {}
    for number, url, name in found:
        series[number] = {"url": url}
        if by_url[url] > 1:
            series[number]["name"] = f"{name} {number}" if by_name[url, name] > 1 or not name else name
    return series


def _said(time: str, status: int, message: str | None, ping_ms: float | None) -> dict[str, Any]:
    message = message or ""
    code = _STATUS.search(message)
    row: dict[str, Any] = {"ts": time, "total_ms": ping_ms, "status_code": code[1] if code else None}
    if status == _UP:
        return row | {"outcome": Outcome.OK.value}
    found = (outcome for words, outcome in _FAILURES if words.search(message))
    return row | {"outcome": next(found, Outcome.HTTP_ERROR).value, "error": message}
