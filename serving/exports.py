"""A task's results as a whole, row by row: JSON lines or CSV."""

import csv
import io
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final, Literal

import orjson

from serving.schemas import TaskResult
from urlhealth import vocabulary as words

Format = Literal["json", "ndjson", "csv"]

NDJSON: Final = "application/x-ndjson"
CSV: Final = "text/csv"
#: The form that is meant by a media type in `Accept`.
FORMATS: Final[dict[str, Format]] = {"application/json": "json", NDJSON: "ndjson", CSV: "csv", "text/*": "csv"}

#: Rows that are sent at once.
_BATCH_ROWS: Final = 500
#: A cell that begins so is a formula to a spreadsheet, and may have come from whoever runs the site.
_FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")


def ndjson(results: Iterable[words.TaskResult]) -> Iterator[bytes]:
    """A JSON object a line, with the fields of `TaskResult`."""
    for batch in _batches(results):
        yield b"".join(item.model_dump_json().encode() + b"\n" for item in batch)


def as_csv(results: Iterable[words.TaskResult]) -> Iterator[bytes]:
    """A header line, and a line a result (RFC 4180). A text that a spreadsheet would take for a formula gets a `'`;
    attempts are JSON.
    """
    names = list(TaskResult.model_fields)
    yield _csv_lines([names])
    for batch in _batches(results):
        yield _csv_lines([[_cell(getattr(item, name)) for name in names] for item in batch])


def preferred(accept: str) -> Format:
    """The format that an `Accept` header prefers among ours; JSON where it says nothing about them."""
    best, best_quality = "json", 0.0
    for part in accept.split(","):
        media_type, *parameters = (word.strip().lower() for word in part.split(";"))
        quality = next((_quality(word) for word in parameters if word.startswith("q=")), 1.0)
        if media_type in FORMATS and quality > best_quality:
            best, best_quality = FORMATS[media_type], quality
    return best  # type: ignore[return-value]


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0


def _batches(results: Iterable[words.TaskResult]) -> Iterator[list[TaskResult]]:
    rows = (TaskResult.of(item) for item in results)
    while batch := list(islice(rows, _BATCH_ROWS)):
        yield batch


def _cell(value: object) -> object:
    if isinstance(value, list):
        return orjson.dumps([item.model_dump() for item in value]).decode()
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _csv_lines(rows: Iterable[Iterable[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
