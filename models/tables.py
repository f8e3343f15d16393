"""Histories and instants that come in files, checked before anything is computed from them.

A history has a row a probe: `url` (any text that tells series apart), `ts`, `status` (up, down or degraded; degraded is
up), `code` and `response_ms` (0 or null where there was none; both columns may be missing), and perhaps `group`, who
runs the URL: the oldest row of a URL that gives one says it, so that later rows change nothing earlier. Rows may come
in any order; of several of a URL at one instant the first counts. Timestamps without a zone are UTC, others are
converted. Other columns are not read. A file that `urlhealth history export` wrote is such a history too: its `outcome`
is the status. Imported only by commands, for it imports Polars.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.features.verdicts import HEALTH_CODES, Verdicts
from urlhealth.histories.form import OUTCOMES
from urlhealth.probing.urls import parse_target, registrable_domain
from urlhealth.vocabulary import Outcome

#: What a status may be, and what it is taken for.
_STATUSES: Final = {**OUTCOMES, **{outcome.value: outcome for outcome in Outcome}}
#: Columns of files of ours, and what others call them.
_OURS: Final = {"outcome": "status", "status_code": "code", "total_ms": "response_ms"}
#: Instants at which a history ends at the latest: 2200, in ms since 1970 UTC.
_END_MS: Final = 7_258_118_400_000


@dataclass(frozen=True, kw_only=True, eq=False)
class Instants:
    """n rows of a table of instants: what to forecast, and as of when."""

    #: Strings (object) and ms since 1970 UTC, shape (n,).
    url: npt.NDArray[Any]
    t_ms: npt.NDArray[np.int64]


def read_history(path: Path) -> Verdicts:
    """The verdicts of a history in a Parquet file, ordered by time; `probe_id` counts them from 1.

    Raises:
        InvalidRequest: the file cannot be used; names the row, counted from 0.
    """
    frame = _read(path, ("url", "ts", "status"))
    frame = frame.with_columns(_text(frame, path, "url"), ts_ms=_instants(frame, path))
    status = _text(frame, path, "status")
    _require(status.is_in(list(_STATUSES)), path, status, f"is none of {', '.join(OUTCOMES)}")
    codes = {name: outcome.code for name, outcome in _STATUSES.items()}
    outcomes = status.replace_strict(codes, return_dtype=pl.Int32)
    frame = frame.with_columns(
        outcome=outcomes, code=_number(frame, path, "code"), response_ms=_number(frame, path, "response_ms")
    ).sort("ts_ms", maintain_order=True)
    frame = frame.unique(["url", "ts_ms"], keep="first", maintain_order=True)

    owners = _owners(frame, path)
    n = len(frame)
    health = np.array([HEALTH_CODES[outcome.health] for outcome in Outcome], np.int8)
    unknown, response_ms = np.full(n, np.nan, np.float32), frame["response_ms"].to_numpy().astype(np.float32)
    outcome = frame["outcome"].to_numpy()
    targets = frame["url"].to_numpy()
    return Verdicts(
        probe_id=np.arange(1, n + 1),
        target=targets,
        host=np.array([owners[url][0] for url in targets], dtype=object),
        group=np.array([owners[url][1] for url in targets], dtype=object),
        ts_ms=frame["ts_ms"].to_numpy(),
        health=health[outcome],
        outcome=outcome,
        status_code=np.clip(frame["code"].to_numpy(), 0, 999).astype(np.int32),
        dns_ms=unknown,
        connect_ms=unknown,
        tls_ms=unknown,
        first_byte_ms=unknown,
        total_ms=np.where(response_ms > 0, response_ms, np.float32(np.nan)),
        size_bytes=np.zeros(n, np.int64),
        http_version=np.zeros(n, np.int32),
        redirects=np.zeros(n, np.int32),
        cert_expires_ms=np.zeros(n, np.int64),
    )


def read_instants(path: Path) -> Instants:
    """The rows of a Parquet file with the columns `url` and `ts`, in their order.

    Raises:
        InvalidRequest: the file cannot be used; names the row, counted from 0.
    """
    frame = _read(path, ("url", "ts"))
    return Instants(url=_text(frame, path, "url").to_numpy(), t_ms=_instants(frame, path).to_numpy())


def host_and_domain(url: str) -> tuple[str, str]:
    """The host of a URL, also of those that cannot be probed here (`wss://`, `host:port`), and its domain."""
    try:
        target = parse_target(url)
    except InvalidRequest:
        address = url if "://" in url else f"//{url}"
        try:
            host = urlsplit(address).hostname or url
        except ValueError:
            host = url
        return host, registrable_domain(host)
    return target.host, target.group


def _read(path: Path, needed: tuple[str, ...]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InvalidRequest(f"{path} cannot be read as a Parquet file: {error}") from error
    if "outcome" in frame.columns and "status" not in frame.columns:
        key = pl.when(pl.col("name").is_null()).then("url").otherwise(pl.concat_str("url", "name", separator="#"))
        frame = frame.with_columns(url=key if "name" in frame.columns else "url").rename(_OURS, strict=False)
    missing = [name for name in needed if name not in frame.columns]
    if missing:
        raise InvalidRequest(f"{path} has no column {', '.join(missing)}: it needs {', '.join(needed)}")
    if frame.is_empty():
        raise InvalidRequest(f"{path} has no rows")
    return frame


def _text(frame: pl.DataFrame, path: Path, name: str) -> pl.Series:
    column = frame[name]
    if not isinstance(column.dtype, pl.String | pl.Categorical | pl.Enum):
        raise InvalidRequest(f"{path}: column {name} holds {column.dtype}, not text")
    column = column.cast(pl.String)
    _require(column.is_not_null() & (column.str.len_bytes() > 0), path, column, "is empty")
    return column


def _instants(frame: pl.DataFrame, path: Path) -> pl.Series:
    """`ts` in ms since 1970 UTC; finer parts are cut off, which takes an instant back, never on."""
    column = frame["ts"]
    if not isinstance(column.dtype, pl.Datetime):
        raise InvalidRequest(f"{path}: column ts holds {column.dtype}, not timestamps: convert it first")
    _require(column.is_not_null(), path, column, "is empty")
    at_ms = column.dt.epoch("ms")
    _require(at_ms.is_between(1, _END_MS), path, column, "is not between 1970 and 2200")
    return at_ms


def _number(frame: pl.DataFrame, path: Path, name: str) -> pl.Series:
    """A column of numbers; 0 where it is null, negative, infinite or missing."""
    if name not in frame.columns:
        return pl.zeros(len(frame), pl.Float64, eager=True)
    column = frame[name]
    if not (column.dtype.is_numeric() or column.dtype == pl.Null):
        raise InvalidRequest(f"{path}: column {name} holds {column.dtype}, not numbers")
    values = column.cast(pl.Float64)
    return values.set(~values.is_finite(), 0).fill_null(0).clip(0)


def _owners(frame: pl.DataFrame, path: Path) -> dict[str, tuple[str, str]]:
    """Host and group of each URL: the group of its oldest row that has one, otherwise the registrable domain."""
    owners = {url: host_and_domain(url) for url in frame["url"].unique()}
    if "group" in frame.columns:
        if not isinstance(frame["group"].dtype, pl.String | pl.Categorical | pl.Enum | pl.Null):
            raise InvalidRequest(f"{path}: column group holds {frame['group'].dtype}, not text")
        given = frame.select("url", pl.col("group").cast(pl.String)).filter(pl.col("group").str.len_bytes() > 0)
        for url, group in given.unique("url", keep="first", maintain_order=True).iter_rows():
            owners[url] = owners[url][0], group
    return owners


def _require(fine: pl.Series, path: Path, values: pl.Series, problem: str) -> None:
    wrong = (~fine.fill_null(value=False)).arg_true()
    if len(wrong):
        more = f" (and {len(wrong) - 1:,} more rows)" if len(wrong) > 1 else ""
        raise InvalidRequest(
            f"{path}: row {wrong[0]}, counted from 0: {values.name} {values[int(wrong[0])]!r} {problem}{more}"
        )
