"""The one form that every reader brings a history into, and what is made of rows that do not fit it.

A history has a row a verdict. Files of ours have the names of the probe's fields (`url`, `ts`, `outcome`, ...); others
have `url`, `ts`, `status` (up, down or degraded), and perhaps `code`, `response_ms`, and `group` or `repo`, who runs
it.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.vocabulary import Attempt, Outcome

#: What each status of a history is taken for: it is the verdict as it stands, whatever the code. `degraded` is slow.
OUTCOMES: Final[Mapping[str, Outcome]] = {"up": Outcome.OK, "degraded": Outcome.OK, "down": Outcome.HTTP_ERROR}

INSTANT: Final = pl.Datetime("ms", "UTC")
_DURATIONS: Final = ("dns_ms", "connect_ms", "tls_ms", "first_byte_ms", "total_ms")
#: Columns of files of ours.
OWN: Final[Mapping[str, pl.DataType]] = {
    "url": pl.String(),
    "name": pl.String(),
    "group": pl.String(),
    "ts": INSTANT,
    "outcome": pl.String(),
    "status_code": pl.Int64(),
    **dict.fromkeys(_DURATIONS, pl.Float64()),
    "size_bytes": pl.Int64(),
    "redirects": pl.Int64(),
    "final_url": pl.String(),
    "address": pl.String(),
    "http_version": pl.String(),
    "cert_expires": INSTANT,
    "error": pl.String(),
    "source": pl.String(),
    "attempts": pl.String(),
}
#: Columns of others.
_OTHERS: Final[Mapping[str, pl.DataType]] = {
    "status": pl.String(),
    "code": pl.Float64(),
    "response_ms": pl.Float64(),
    "repo": pl.String(),
}
KNOWN: Final = {**OWN, **_OTHERS}


def require_columns(names: Iterable[str], where: str) -> None:
    """Raises `InvalidRequest` unless the columns are those of a history."""
    missing = [name for name in ("url", "ts") if name not in names]
    if not {"outcome", "status"} & set(names):
        missing.append("outcome or status")
    if missing:
        raise InvalidRequest(f"{where} has no {', no '.join(missing)}: it is not a history that is known here")


def of_texts(rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> pl.DataFrame:
    """Rows of JSON, CSV or others' databases in the common form; a value that is none of its column's is null.

    Args:
        numbers: what each row is called in messages.
    """
    columns = [
        _column([row.get(name) for row in rows], name, dtype)
        for name, dtype in KNOWN.items()
        if any(name in row for row in rows)
    ]
    return conform(pl.DataFrame([pl.Series("row", numbers, pl.Int64), *columns]))


def _column(values: Sequence[Any], name: str, dtype: pl.DataType) -> pl.Series:
    if dtype == INSTANT:
        return pl.Series(name, [instant_ms(value) for value in values], pl.Int64).cast(INSTANT)
    if dtype == pl.String:
        # A list is `attempts` of NDJSON.
        texts = [orjson.dumps(value).decode() if isinstance(value, list) else value for value in values]
        return pl.Series(name, [value if isinstance(value, str) else None for value in texts], pl.String)
    return pl.Series(name, [None if value is None else str(value) for value in values], pl.String).cast(
        pl.Float64, strict=False
    )


def instant_ms(value: Any) -> int | None:
    """Of ISO 8601 (UTC unless it says else) or of milliseconds since 1970."""
    if isinstance(value, str):
        try:
            instant = datetime.fromisoformat(value.strip())
            return int((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000 + 0.5)
        except (ValueError, OverflowError):
            return None
    return int(value) if isinstance(value, int) and abs(value) < 2**53 else None


def conform(frame: pl.DataFrame) -> pl.DataFrame:
    """A frame with columns of `KNOWN`, and `row`, in the common form: `row` and `OWN`.

    What is not said is null. Numbers that cannot be are null: negative durations, NaN, HTTP statuses that are none.
    """
    nothing = pl.lit(None)
    columns = {name: _cast(name, frame.schema[name]) for name in KNOWN if name in frame.columns}
    status, response_ms = columns.get("status", nothing), columns.get("response_ms", nothing)
    names = {status: outcome.value for status, outcome in OUTCOMES.items()}
    others = {
        "outcome": status.cast(pl.String).replace_strict(names, default=None, return_dtype=pl.String),
        "status_code": columns.get("code", nothing),
        "total_ms": pl.when(response_ms > 0).then(response_ms),
        "group": columns.get("repo", nothing).cast(pl.String).str.split("/").list.first(),
    }
    columns |= {name: pl.coalesce(columns.get(name, nothing), other) for name, other in others.items()}
    for name in OWN:
        column = columns.get(name, nothing)
        if name in _DURATIONS:
            column = pl.when(column.is_finite() & (column >= 0)).then(column)
        elif name == "status_code":
            column = pl.when(column.is_between(100, 999)).then(column)
        elif name in ("size_bytes", "redirects"):
            column = pl.when(column.is_between(0, 2**31 if name == "redirects" else 2**53)).then(column).fill_null(0)
        elif OWN[name] == pl.String and name in columns:
            # PostgreSQL has no NUL; an empty text says nothing.
            column = column.str.replace_all("\0", "?", literal=True)
            column = pl.when(column.str.len_bytes() > 0).then(column)
        columns[name] = column.cast(OWN[name], strict=False)
    made = frame.select("row", **{name: columns[name] for name in OWN})
    if made["attempts"].null_count() == len(made):
        return made
    return made.with_columns(pl.Series("attempts", [_attempts(text) for text in made["attempts"]], pl.String))


def _cast(name: str, given: pl.DataType) -> pl.Expr:
    column, wanted = pl.col(name), KNOWN[name]
    if wanted == INSTANT and not isinstance(given, pl.Datetime):
        return pl.lit(None, INSTANT)
    if isinstance(given, pl.Datetime) and given.time_zone is None:
        return column.dt.replace_time_zone("UTC").cast(INSTANT)
    return column.cast(wanted, strict=False)


def _attempts(text: str | None) -> str | None:
    """What is no list of attempts is left out: it could not be read again."""
    try:
        for attempt in orjson.loads(text) if text else ():
            Attempt(**attempt | {"outcome": Outcome(attempt["outcome"])})
    except (ValueError, TypeError, KeyError):
        return None
    return text
