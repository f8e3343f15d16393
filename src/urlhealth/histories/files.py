"""Histories in files: Parquet, NDJSON and CSV, read and written batch by batch."""

import csv
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from urlhealth.errors import InvalidRequest
from urlhealth.histories.form import KNOWN, OWN, conform, of_texts, require_columns

_Numbered = tuple[int, dict[str, Any]]

#: Rows of a batch.
BATCH: Final = 50_000


def read_parquet(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a Parquet file, in the common form; rows count from 1.

    Raises:
        InvalidRequest: it is no such file, or no history.
    """
    try:
        with pq.ParquetFile(path) as parquet:
            names = [name for name in parquet.schema_arrow.names if name in KNOWN]
            require_columns(names, str(path))
            shared = _shared_urls(path) if {"repo", "status"} <= set(names) else None
            row = 1
            for batch in parquet.iter_batches(BATCH, columns=names):
                frame = pl.DataFrame(pa.Table.from_batches([batch])).with_row_index("row", row)
                row += len(frame)
                if shared is not None:
                    frame = frame.with_columns(name=pl.when(pl.col("url").is_in(shared)).then("repo"))
                yield conform(frame)
    except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        raise InvalidRequest(f"{path} cannot be read as a Parquet file: {str(error).splitlines()[0]}") from error


def _shared_urls(path: Path) -> pl.Series:
    """URLs that several repositories watch: each is a series of its own, named after its repository."""
    pairs = pl.scan_parquet(path).select("url", "repo").unique()
    return pairs.group_by("url").len().filter(pl.col("len") > 1).select("url").collect(engine="streaming")["url"]


def read_ndjson(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a file with a JSON object a line, in the common form; rows are numbered as lines."""
    return _read_texts(path, lambda lines: ((n, _parsed(line)) for n, line in enumerate(lines, 1) if line.strip()))


def read_csv(path: Path) -> Iterator[pl.DataFrame]:
    """The batches of a CSV file whose first line names the columns, in the common form; rows are numbered from 1.

    Raises:
        InvalidRequest: it is no history.
    """

    def rows(lines: Iterable[str]) -> Iterator[_Numbered]:
        # A line with fewer or more cells than names is one with values missing, or has too many.
        reader = csv.DictReader(line.replace("\0", "") for line in lines)
        require_columns(reader.fieldnames or (), str(path))
        for number, row in enumerate(reader, 1):
            yield number, {name: value for name, value in row.items() if name in KNOWN and value}

    return _read_texts(path, rows)


def _read_texts(path: Path, rows: Callable[[IO[str]], Iterable[_Numbered]]) -> Iterator[pl.DataFrame]:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as lines:
            numbered = iter(rows(lines))
            while some := list(itertools.islice(numbered, BATCH)):
                yield of_texts([row for _, row in some], [number for number, _ in some])
    except (OSError, csv.Error) as error:
        raise InvalidRequest(f"{path} cannot be read: {error}") from error


def _parsed(line: str) -> dict[str, Any]:
    """The object in a line; an empty one, which is left out later, where there is none."""
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def write(frames: Iterable[pl.DataFrame], path: Path) -> int:
    """Write frames with the columns `OWN` in the form that the file's name ends with; returns how many rows there were.

    Raises:
        InvalidRequest: the name ends otherwise, or the file cannot be written.
    """
    make = _WRITERS.get(path.suffix)
    if make is None:
        raise InvalidRequest(f"{path}: let the name end with {', '.join(_WRITERS)}")
    try:
        return make(frames, path)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}") from error


def _write_parquet(frames: Iterable[pl.DataFrame], path: Path) -> int:
    rows = 0
    schema = pl.DataFrame(schema=OWN).to_arrow().schema
    with pq.ParquetWriter(path, schema, compression="zstd") as parquet:
        for frame in frames:
            parquet.write_table(frame.to_arrow().cast(schema))
            rows += len(frame)
    return rows


def _write_ndjson(frames: Iterable[pl.DataFrame], path: Path) -> int:
    rows = 0
    with path.open("wb") as file:
        for frame in frames:
            for row in _texts(frame).iter_rows(named=True):
                file.write(orjson.dumps({name: value for name, value in row.items() if value is not None}) + b"\n")
            rows += len(frame)
    return rows


def _write_csv(frames: Iterable[pl.DataFrame], path: Path) -> int:
    rows = 0
    with path.open("wb") as file:
        file.write((",".join(OWN) + "\n").encode())
        for frame in frames:
            _texts(frame).write_csv(file, include_header=False)
            rows += len(frame)
    return rows


def _texts(frame: pl.DataFrame) -> pl.DataFrame:
    """Instants as text."""
    return frame.with_columns(pl.col("ts", "cert_expires").dt.to_string("%Y-%m-%dT%H:%M:%S%.3fZ"))


_WRITERS: Final = {".parquet": _write_parquet, ".ndjson": _write_ndjson, ".csv": _write_csv}
