"""Parquet datasets made of segments: `<folder>/day=YYYY-MM-DD/<segment>.parquet`.

A segment is written under a hidden name, flushed to disk and renamed, so that a reader sees all of a file or none of
it, and any number of processes may write. A segment written again under the same name replaces the first.

Who may only write while nobody else does stages a segment first, which takes long and is seen by no reader, and
publishes it later, which takes a rename.

Each file has in its metadata a digest of all its bytes, so that one that was changed or damaged is refused rather than
read: Parquet's own readers take what they find. Files without one, which others have written, are read as they are.

The pipeline's segments are numbered. A file `<first>-<last>.parquet` holds all those of its day from `first` to `last`,
merged (`compaction`); readers leave out what such a file stands for.
"""

import fcntl
import hashlib
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from urlhealth.errors import StoreUnavailable

if TYPE_CHECKING:
    import polars as pl

_DAY_US = 86_400_000_000
_DAY_FOLDER = re.compile(r"day=(\d{4}-\d{2}-\d{2})")
_MAGIC = b"PAR1"
#: Key of the digest, and what is there while it is taken: as many hexadecimal digits.
_DIGEST, _NO_DIGEST = b"urlhealth.digest", b"0" * 32
#: What Thrift has between the two.
_BETWEEN = bytes([0x18, len(_NO_DIGEST)])
#: Rows of a row group: of a sorted file, what is read to find a few of them.
_GROUP_ROWS = 32_768
_STAGING = ".staged"
_NUMBERED = re.compile(r"(\d{16})(?:-(\d{16}))?\.parquet")


@dataclass(frozen=True, kw_only=True)
class Staged:
    """Files that are on disk, and that no reader sees before :meth:`publish`."""

    folder: Path
    #: Name of the segment that these are all files of; None for merged files.
    segment: str | None
    #: Hidden file → the file that it becomes.
    files: Mapping[Path, Path]

    def publish(self) -> None:
        """Show the files to readers, in place of those of the same name, and of others of the segment.

        Raises:
            StoreUnavailable: the folder cannot be written.
        """
        with _writing(self.segment or "(merged)", self.folder):
            for hidden, final in self.files.items():
                final.parent.mkdir(exist_ok=True)
                hidden.replace(final)
                _flush(final.parent)
            _flush(self.folder)
            if self.segment is not None:
                _remove_others(self.folder, self.segment, set(self.files.values()))

    def discard(self) -> None:
        """Delete what was not published."""
        for hidden in self.files:
            hidden.unlink(missing_ok=True)


def stage(folder: Path, table: Any, *, timestamp_column: str, segment: str) -> Staged:
    """Write `table` as :func:`append` does, but hidden from readers until it is published.

    Raises:
        StoreUnavailable: the folder cannot be written.
        ValueError: as in :func:`append`.
    """
    parts = _by_day(table, timestamp_column, segment)
    return _stage(folder, segment, ((folder / day / f"{segment}.parquet", part) for day, part in parts))


def stage_merged(files: Sequence[Path], *, sort_by: Sequence[str]) -> Staged:
    """Write the rows of numbered files of one day, which follow each other, as the one that stands for them all.

    Args:
        sort_by: names of columns; of rows that are equal in them, those of the first file come first.

    Raises:
        OSError, ValueError: a file cannot be read, or is of another schema.
        StoreUnavailable: one was changed or cut short.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    spans = [span for file in files if (span := span_of(file.name))]
    require_sound(files)

    def rows(file: Path) -> Any:
        with pq.ParquetFile(file) as parquet:
            return parquet.read(use_threads=False).replace_schema_metadata(None)

    table = pa.concat_tables(map(rows, files)).sort_by([(name, "ascending") for name in sort_by])
    day = files[0].parent
    return _stage(day.parent, None, [(day / f"{spans[0][0]}-{spans[-1][1]}.parquet", table)])


@lru_cache(maxsize=4096)
def row_count(file: Path) -> int:
    """How many rows a Parquet file has that stays as it is."""
    import pyarrow.parquet as pq

    return int(pq.read_metadata(file).num_rows)


def span_of(name: str) -> tuple[str, str] | None:
    """The first and the last of the numbered segments that a file of that name stands for; None for other files."""
    match = _NUMBERED.fullmatch(name)
    return (match[1], match[2] or match[1]) if match else None


def newest_number(path: Path) -> int:
    """The largest number of a segment of a dataset; 0 for none."""
    spans = (span_of(file.name) for file in path.glob("day=*/*.parquet"))
    return max((int(span[1]) for span in spans if span), default=0)


def in_force(names: Iterable[str]) -> list[str]:
    """Those of the files of a day that no merged one among them stands for."""
    kept, numbered = [], []
    for name in names:
        span = span_of(name)
        if span is None:
            kept.append(name)
        else:
            numbered.append((int(span[0]), -int(span[1]), name))
    newest = -1
    for _, minus_last, name in sorted(numbered):
        if -minus_last > newest:
            newest = -minus_last
            kept.append(name)
    return kept


def _stage(folder: Path, segment: str | None, parts: Iterable[tuple[Path, Any]]) -> Staged:
    files: dict[Path, Path] = {}
    staged = Staged(folder=folder, segment=segment, files=files)
    try:
        with _writing(segment or "(merged)", folder):
            (folder / _STAGING).mkdir(parents=True, exist_ok=True)
            for final, part in parts:
                hidden = folder / _STAGING / uuid.uuid4().hex
                files[hidden] = final
                write_parquet(part, hidden)
                _flush(hidden)
    except BaseException:
        staged.discard()
        raise
    return staged


def discard_staged(folder: Path) -> None:
    """Delete what killed writers left staged; not while another one writes."""
    shutil.rmtree(folder / _STAGING, ignore_errors=True)


def append(folder: Path, table: Any, *, timestamp_column: str, segment: str, bulk: bool = False) -> None:
    """Write `table` (`pyarrow.Table`) as the segment of that name, split by UTC day of `timestamp_column`.

    Timestamps are stored in microseconds, UTC; those without a zone are taken for UTC.

    Args:
        bulk: as of :func:`write_parquet`.

    Raises:
        StoreUnavailable: the folder cannot be written.
        ValueError: the segment's name cannot be one of a file, or a row has no timestamp.
    """
    with _writing(segment, folder):
        written = {
            write_atomically(part, folder / day / f"{segment}.parquet", bulk=bulk)
            for day, part in _by_day(table, timestamp_column, segment)
        }
        _remove_others(folder, segment, written)


def _by_day(table: Any, timestamp_column: str, segment: str) -> Iterator[tuple[str, Any]]:
    """The folder's name and the rows of each UTC day of `timestamp_column`."""
    if not segment or segment.startswith((".", "_")) or "/" in segment:
        raise ValueError(f"segment name {segment!r} cannot be used: no '/', no leading '.' or '_', not empty")
    table = in_microseconds(table)
    instants = table.column(timestamp_column)
    if instants.null_count:
        raise ValueError(f"segment {segment!r}: {instants.null_count} rows have no {timestamp_column}")
    days = instants.cast("int64").to_numpy() // _DAY_US
    distinct = np.unique(days)
    for day in distinct.tolist():
        part = table if len(distinct) == 1 else table.filter(days == day)
        yield datetime.fromtimestamp(day * 86_400, UTC).strftime("day=%Y-%m-%d"), part


def _remove_others(folder: Path, segment: str, written: set[Path]) -> None:
    """Delete the segment's files of days that it has no rows of any more."""
    for stale in set(folder.glob(f"day=*/{segment}.parquet")) - written:
        stale.unlink(missing_ok=True)


@contextmanager
def _writing(segment: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"offline store: segment {segment} cannot be written to {folder}: {error}") from error


def write_atomically(table: Any, path: Path, *, bulk: bool = False) -> Path:
    """Write a `pyarrow.Table` to one Parquet file, wholly or not at all; returns `path`."""
    return replace_file(path, lambda temporary: write_parquet(table, temporary, bulk=bulk))


def append_to_file(path: Path, table: Any) -> None:
    """Write one Parquet file anew, with these rows behind its own; of several writers, one after the other.

    Raises:
        StoreUnavailable: it was changed or cut short, or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _writing(path.name, path.parent), _alone(path.parent):
        require_sound([path])
        before = pq.read_table(path)
        write_atomically(pa.concat_tables([before, table.cast(before.schema)]), path)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until nobody else, thread or process, is in here with the same folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_parquet(table: Any, path: Path, *, bulk: bool = False) -> None:
    """Write a `pyarrow.Table` to a Parquet file, with dictionaries for strings alone.

    Those of numbers take twice as long, and make states no smaller. If columns of the table have dictionaries, only
    they do in the file, and are read back without, as what they stand for.

    Args:
        bulk: written by Polars, in half the time; a server that writes little need not load it. Arrow reads strings and
            lists of such a file as its large ones.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if bulk:
        import polars as pl

        metadata = {_DIGEST.decode(): _NO_DIGEST.decode()}
        pl.DataFrame(table).write_parquet(path, compression="zstd", compression_level=1, metadata=metadata)
    else:
        dictionaries = [field.name for field in table.schema if pa.types.is_dictionary(field.type)]
        strings = [field.name for field in table.schema if pa.types.is_string(field.type)]
        with pq.ParquetWriter(
            path,
            table.schema,
            compression="zstd",
            use_dictionary=dictionaries or strings,
            store_schema=not dictionaries,
        ) as writer:
            writer.write_table(table, row_group_size=_GROUP_ROWS)
            writer.add_key_value_metadata({_DIGEST: _NO_DIGEST})
    with path.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as content:
        at = _digest_at(content)
        content[at : at + len(_NO_DIGEST)] = _digest(content, at)


def replace_file(path: Path, write: Callable[[Path], Any]) -> Path:
    """Let `write` make a file under a hidden name beside `path`, flush it to disk, and rename it; returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        write(temporary)
        _flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _flush(path.parent)
    return path


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def erase(folder: Path, entity: Mapping[str, str], *, timestamp_column: str, until_us: int) -> int:
    """Delete the rows of an entity up to an instant, from all files, also from those that a merged one stands for.

    Only by the writer, and not while it publishes. Returns how many rows there were in the files in force.

    Args:
        entity: the column's name, and the key.

    Raises:
        StoreUnavailable: the folder cannot be written.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    ((column, key),) = entity.items()
    count, kept = 0, set(files(folder))
    every = sorted(folder.glob("day=*/*.parquet"))
    require_sound(every)
    for file in every:
        with _writing(file.stem, folder):
            found = pc.equal(pq.read_table(file, columns=[column])[column], key)
            if not pc.any(found).as_py():
                continue
            modified_ns, table = file.stat().st_mtime_ns, pq.read_table(file)
            rows = pc.and_(found, pc.less_equal(table[timestamp_column].cast("int64"), until_us))
            count += pc.sum(rows).as_py() if file in kept else 0
            left = table.filter(pc.invert(rows))

            def write(temporary: Path, left: Any = left, modified_ns: int = modified_ns) -> None:
                write_parquet(left, temporary)
                # The newest file's schema is the dataset's: this one is as old as before.
                os.utime(temporary, ns=(modified_ns, modified_ns))

            replace_file(file, write)
    return count


def in_microseconds(table: Any) -> Any:
    """The `pyarrow.Table` with each timestamp column cast to microseconds, UTC (finer parts are cut off)."""
    import pyarrow as pa

    instant = pa.timestamp("us", "UTC")
    fields = [field.with_type(instant) if pa.types.is_timestamp(field.type) else field for field in table.schema]
    return table.cast(pa.schema(fields), safe=False).replace_schema_metadata(None)


def files(path: Path, *, since_us: int | None = None, until_us: int | None = None, check: bool = True) -> list[Path]:
    """The Parquet files of a dataset (or `path` itself, if it is a file), sorted by name.

    Hidden files, which are those being written, are left out; so are those that a merged file stands for, and folders
    of days wholly outside `[since_us, until_us]` (microseconds since 1970 UTC). Without `check`, who opens one has to
    :func:`require_sound` it.

    Raises:
        StoreUnavailable: a file was changed, or is cut short; names it.
    """
    if path.is_file():
        found = [path]
    else:
        found, folders = [], [path]
        while folders:
            folder, names = folders.pop(), []
            try:
                entries = list(os.scandir(folder))
            except FileNotFoundError:
                continue
            for entry in entries:
                if entry.name.startswith((".", "_")):
                    continue
                if entry.is_dir():
                    if _in_range(entry.name, since_us, until_us):
                        folders.append(Path(entry.path))
                elif entry.name.endswith(".parquet"):
                    names.append(entry.name)
            found += [folder / name for name in in_force(names)]
    if check:
        require_sound(found)
    return sorted(found)


def require_sound(found: Iterable[Path]) -> None:
    """Read files, unless this process has before; raises `StoreUnavailable` as :func:`files` does."""
    faults = [(file, fault) for file in found if (fault := fault_of(file))]
    if faults:
        raise StoreUnavailable(
            f"offline store: {faults[0][0]} {faults[0][1]} ({len(faults)} such). Restore or delete it; what the "
            "platform wrote can be made anew from stored probes with `urlhealth features build --rebuild`"
        )


def fault_of(file: Path) -> str | None:
    """What keeps a Parquet file from being read, in words; looked for once in each process, until it changes."""
    found = file.stat()
    # The time of change, unlike that of modification, cannot be set.
    return _fault(file, found.st_ino, found.st_size, found.st_ctime_ns)


@lru_cache(maxsize=65_536)
def _fault(file: Path, _inode: int, size_bytes: int, _changed_ns: int) -> str | None:
    if size_bytes < 12:
        return "is not a whole Parquet file"
    with file.open("rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[-len(_MAGIC) :] != _MAGIC:
            return "is not a whole Parquet file"
        at = _digest_at(content)
        if at >= 0 and content[at : at + len(_NO_DIGEST)] != _digest(content, at):
            return "was changed after it was written"
    return None


def _digest_at(content: mmap.mmap) -> int:
    """Where in a file the digest is; negative if there is none."""
    found = content.rfind(_DIGEST + _BETWEEN)
    return -1 if found < 0 else found + len(_DIGEST + _BETWEEN)


def _digest(content: mmap.mmap, at: int) -> bytes:
    digest = hashlib.blake2b(digest_size=len(_NO_DIGEST) // 2)
    with memoryview(content) as view, view[:at] as before, view[at + len(_NO_DIGEST) :] as after:
        for part in (before, _NO_DIGEST, after):
            digest.update(part)
    return digest.hexdigest().encode()


def days_before(path: Path, until_us: int) -> list[Path]:
    """The folders of a dataset's days that were over by then (microseconds since 1970 UTC)."""
    return [day for day in path.glob("day=*") if not _in_range(day.name, until_us, None)]


def _in_range(folder: str, since_us: int | None, until_us: int | None) -> bool:
    match = _DAY_FOLDER.fullmatch(folder)
    if match is None:
        return True
    start_us = int(datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()) * 1_000_000
    return not (
        (since_us is not None and start_us + _DAY_US <= since_us) or (until_us is not None and start_us > until_us)
    )


def scan(
    path: Path,
    *,
    schema: "Mapping[str, pl.DataType] | None" = None,
    since_us: int | None = None,
    until_us: int | None = None,
) -> "pl.LazyFrame":
    """All rows of a dataset, or of one Parquet file, in whole days that touch `[since_us, until_us]`.

    The columns are those of the file written last, and those of `schema` that it lacks; a file without one of them
    gives nulls. A dataset without files gives an empty frame of `schema`.

    Raises:
        StoreUnavailable: a file was changed, or is cut short; names it.
    """
    import polars as pl

    schema = dict(schema or {})
    found = files(path, since_us=since_us, until_us=until_us)
    if not found:
        return pl.LazyFrame(schema=schema)
    newest = max(found, key=lambda file: file.stat().st_mtime_ns)
    frame = pl.scan_parquet(
        found,
        schema=pl.read_parquet_schema(newest),
        hive_partitioning=False,
        missing_columns="insert",
        extra_columns="ignore",
        cast_options=pl.ScanCastOptions(
            integer_cast=["upcast", "allow-float"],
            float_cast=["upcast", "downcast"],
            datetime_cast=["nanosecond-downcast", "microsecond-downcast"],
        ),
    )
    present = frame.collect_schema()
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in schema.items() if name not in present]
    return frame.with_columns(missing) if missing else frame


def clear(folder: Path) -> None:
    """Delete a dataset; readers that listed it before may fail, later ones find it empty."""
    replace(folder, None)


def replace(folder: Path, successor: Path | None) -> None:
    """Delete a dataset and let the one at `successor`, if there is one, take its place."""
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    if folder.exists():
        folder.rename(doomed)
    if successor is not None and successor.exists():
        successor.rename(folder)
        _flush(folder.parent)
    shutil.rmtree(doomed, ignore_errors=True)
