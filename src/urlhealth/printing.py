"""What commands print: tables for people, one JSON object a line for programs."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from urlhealth.crawl.pools import PollingPool
    from urlhealth.crawl.tasks import Answered
    from urlhealth.polling.gain import Gain

#: The option of commands that print tables.
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object a line instead of a table.")]
#: Wide enough that no row is folded where no terminal sets a width.
_UNFOLDED: Final = 100_000


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> None:
    """Print a table; nothing is cut. What is too long for the terminal goes on in the next line, in a pipe in the same.

    Cells are shown as they are: strings are no markup.
    """
    table = Table(*(Column(header, overflow="fold") for header in headers))
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_UNFOLDED)
    console.print(table)


def print_json_lines(items: "Iterable[BaseModel | Mapping[str, Any]]") -> None:
    """Print one JSON object a line: the shapes of `serving.schemas`, so that they are those of the API's replies."""
    for item in items:
        line = json.dumps(item, ensure_ascii=False) if isinstance(item, Mapping) else item.model_dump_json()
        sys.stdout.write(line + "\n")


def print_checks(checks: Iterable[Any]) -> None:
    """Print which parts work: checks of the platform's, or as the client has them."""
    print_table(
        ("part", "works", "in use", "what to do"),
        (
            (check.name, Text("yes", "green") if check.ok else Text("no", "red"), check.detail, check.advice or "")
            for check in checks
        ),
    )


def print_pools(pools: "Iterable[PollingPool]") -> None:
    """Print where the budgets of pools went, a column a pool."""
    names = (
        "pool",
        "monitors",
        "budget per URL and hour",
        "intervals allowed, s",
        "objective",
        "probes granted",
        "probes spent",
        "planned per hour, of",
        "intervals planned, s",
        "estimated gain",
        "realised gain",
        "since",
    )
    columns = [_words_of_pool(pool) for pool in pools]
    print_table(
        ("", *(column[0] for column in columns)), zip(names[1:], *(column[1:] for column in columns), strict=True)
    )


def _words_of_pool(pool: "PollingPool") -> tuple[str, ...]:
    schedule, report = pool.schedule, pool.report
    known = (
        f"{pool.number}{'' if schedule.pool is None else f' {schedule.pool}'}",
        f"{pool.monitors:,}",
        f"{schedule.budget_per_url_hour:g}",
        f"{schedule.min_interval_s:,} to {schedule.max_interval_s:,}",
        schedule.objective.value,
    )
    if report is None:
        return (*known, *[""] * 7)
    spread = report.intervals_s
    return (
        *known,
        f"{report.granted:,.1f}",
        f"{report.spent:,}",
        f"{report.planned_per_h:,.1f} of {pool.budget_per_h:,.1f}",
        f"{spread[0]:,} to {spread[-1]:,}, median {spread[2]:,}" if spread else "",
        _words_of_gain(report.estimated),
        _words_of_gain(report.realised),
        rfc3339(report.since_ms),
    )


def _words_of_gain(gain: "Gain") -> str:
    if gain.caught_ratio is None or gain.delay_ratio is None:
        return "no outage found yet"
    return f"{gain.caught_ratio:.2f} times as many caught, after {gain.delay_ratio:.2f} of the delay"


def print_results(items: "Iterable[Answered]") -> None:
    """Print results of a task as a table."""
    print_table(
        ("URL", "outcome", "status", "ms", "what was wrong"),
        ((item.sent_url, item.outcome, *_words_of(item)) for item in items),
    )


def result_line(item: "Answered") -> bytes:
    """A result for people, in a line: outcome, status, ms, URL, and what was wrong."""
    status, total_ms, error = _words_of(item)
    return f"{item.outcome:<18} {status:>3} {total_ms:>6} {item.sent_url}  {error}".rstrip().encode() + b"\n"


def result_json(item: "Answered") -> bytes:
    """A result as a line of JSON, as `serving.schemas.TaskResult` has it."""
    import orjson

    _, position, sent_url, target, ts_ms, *found, cert_expires_ms, error, attempts = item
    row = {"position": position, "url": sent_url, "target": target, "timestamp": rfc3339(ts_ms)}
    row |= zip(item._fields[5:-3], found, strict=True)
    row["cert_expires_at"] = None if cert_expires_ms is None else rfc3339(cert_expires_ms)
    row["error"] = error
    row["attempts"] = attempts and [
        {"timestamp": rfc3339(attempt.pop("ts_ms"))} | attempt for attempt in orjson.loads(attempts)
    ]
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def rfc3339(ms: int) -> str:
    """2026-01-01T00:00:00.000Z for milliseconds since 1970 UTC."""
    seconds, rest_ms = divmod(ms, 1000)
    return f"{_seconds(seconds)}.{rest_ms:03d}Z"


@lru_cache(maxsize=1024)
def _seconds(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


def _words_of(item: "Answered") -> tuple[str, str, str]:
    """Status, ms, and what was wrong."""
    return (
        "" if item.status_code is None else str(item.status_code),
        "" if item.total_ms is None else f"{item.total_ms:.0f}",
        item.error or "",
    )
