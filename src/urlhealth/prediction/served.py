"""The log of what was served, read back: the files, and what is not in them yet.

A reader takes note of what waits in the database, and of the last segment that was published by then; so it finds each
prediction once, whatever is moved meanwhile. Every read is bounded, whatever the log's size.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.served import Lives, ServedBatches, Waiting, WaitingBatch
from urlhealth.feast_stores import segments
from urlhealth.prediction.served_batch import KEY, TIMESTAMP, instant, unpack
from urlhealth.vocabulary import LOCAL_OWNER

if TYPE_CHECKING:
    import pyarrow as pa

Ints = npt.NDArray[np.int64]
T = TypeVar("T")

#: Predictions that are judged at most; of more, every k-th.
MOST: Final = 50_000
#: Files that are opened, and predictions that are read to choose those from; of more, some are drawn.
FILES: Final = 500
READ: Final = 1_000_000
#: Files that are opened, and predictions that are read, in search of a target's.
PAST_FILES: Final = 500
PAST_READ: Final = 500_000

#: Columns that are read here.
_NAMES: Final = (KEY, "owner", "horizon", "probability", "model_version", TIMESTAMP)


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """Logged predictions, or each `every`-th of them. Every array has the shape (n,)."""

    every: int
    target_id: Ints
    ts_ms: Ints
    horizon: npt.NDArray[np.str_]
    model_version: npt.NDArray[np.str_]
    probability: npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PastPrediction:
    """A forecast that was served."""

    ts_ms: int
    probability: float
    horizon: str
    model_version: str


class ServedLog:
    """Reads what `PredictionLog` wrote, wherever `ServedFiles` has moved it. Usable from any thread."""

    def __init__(self, batches: ServedBatches, folder: Path) -> None:
        """`folder`: of the dataset."""
        self._batches = batches
        self._folder = folder

    def answers(self, *, from_ms: int, to_ms: int, owner: str = LOCAL_OWNER, most: int = MOST) -> Answers:
        """The predictions that were served in [from, to) and named a probability; a sample if they are too many.

        Of so many that not all can be looked through, some row groups are drawn: the same ones each time.

        Raises:
            StoreUnavailable: the database failed, or a file is cut short.
        """
        found, every = self._consistent(lambda waiting: self._sample(waiting, from_ms, to_ms, owner, most))
        keys = found[KEY].combine_chunks().dictionary_encode()
        names = keys.dictionary.to_pylist()
        ids = self._batches.target_ids(names, owner=owner)
        target_id = np.array([ids.get(name, -1) for name in names], np.int64)[keys.indices.to_numpy()]
        known = target_id >= 0
        return Answers(
            every=every,
            target_id=target_id[known],
            ts_ms=found[TIMESTAMP].cast("int64").to_numpy()[known] // 1000,
            horizon=np.array(found["horizon"].to_pylist(), np.str_)[known],
            model_version=np.array(found["model_version"].to_pylist(), np.str_)[known],
            probability=found["probability"].to_numpy()[known],
        )

    def lives(self, target_ids: Ints, *, from_ms: int) -> Lives:
        """The spells of these targets that were not over by `from_ms`."""
        return self._batches.lives(target_ids, from_ms=from_ms)

    def past(self, key: str, *, horizon: str, limit: int, owner: str = LOCAL_OWNER) -> list[PastPrediction]:
        """The newest forecasts of a target that were served, oldest first; those that are found without a long search.

        Raises:
            StoreUnavailable: the database failed, or a file is cut short.
        """
        import pyarrow.compute as pc

        wanted = _asked(owner) & (pc.field(KEY) == key) & (pc.field("horizon") == horizon)

        def read(waiting: Waiting) -> list[PastPrediction]:
            found: list[PastPrediction] = []
            left = PAST_READ
            for part in self._newest_first(waiting, wanted):
                if len(found) >= limit or left < part.rows:
                    break
                left -= part.rows
                rows = _plain(part.read()).filter(wanted)
                times_ms = (rows[TIMESTAMP].cast("int64").to_numpy() // 1000).tolist()
                columns = (rows[name].to_pylist() for name in ("probability", "model_version"))
                found += [
                    PastPrediction(ts_ms=ts_ms, probability=probability, horizon=horizon, model_version=version)
                    for ts_ms, probability, version in zip(times_ms, *columns, strict=True)
                ]
            return sorted(found, key=lambda past: past.ts_ms)[-limit:]

        return self._consistent(read)

    def _sample(self, waiting: Waiting, from_ms: int, to_ms: int, owner: str, most: int) -> "tuple[pa.Table, int]":
        """Some of the wanted rows, and of how many predictions one was looked at."""
        import pyarrow as pa
        import pyarrow.compute as pc

        first, end = (pa.scalar(ms * 1000, instant()) for ms in (from_ms, to_ms))
        wanted = _asked(owner) & (pc.field(TIMESTAMP) >= first) & (pc.field(TIMESTAMP) < end)
        rng = np.random.default_rng(0)
        files = self._files(waiting, self._folder, since_us=from_ms * 1000, until_us=to_ms * 1000)
        opened = _drawn(rng, len(files), FILES)
        parts = [part for i in opened for part in _in_file(files[i], wanted)]
        total = sum(part.rows for part in parts) * len(files) / max(1, len(opened))
        late = [_in_database(waiting, b) for b in waiting.batches if b.last_ms >= from_ms and b.first_ms < to_ms]
        total += sum(part.rows for part in late)
        parts += late
        rows = np.array([part.rows for part in parts], np.int64)
        order = rng.permutation(len(parts))
        looked_at = np.sort(order[: np.searchsorted(np.cumsum(rows[order]), READ) + 1]).tolist()
        n = int(rows[looked_at].sum())
        step = _step(n, most)
        tables, seen = [_plain(None)], 0
        for i in looked_at:
            picked = np.arange(-seen % step, rows[i], step)
            tables.append(_plain(parts[i].read().take(pa.array(picked))).filter(wanted))
            seen += int(rows[i])
        return pa.concat_tables(tables), max(1, round(step * total / max(1, n)))

    def _newest_first(self, waiting: Waiting, wanted: Any) -> "Iterator[_Part]":
        """Row groups and batches in which there may be wanted rows, as far as is looked for them."""
        for batch in reversed(waiting.batches):
            yield _in_database(waiting, batch)
        opened = 0
        for day in sorted(self._folder.glob("day=*"), reverse=True):
            for file in reversed(self._files(waiting, day)):
                opened += 1
                if opened > PAST_FILES:
                    return
                yield from reversed(_in_file(file, wanted))

    def _files(self, waiting: Waiting, path: Path, **span_us: int) -> list[Path]:
        """The files of what is not among the waiting.

        Raises:
            _Moved: one holds some of what was waiting.
        """
        found = []
        for file in segments.files(path, **span_us, check=False):
            first, last = segments.span_of(file.name) or ("0", "0")
            if int(first) <= waiting.position < int(last):
                raise _Moved
            if int(first) <= waiting.position:
                found.append(file)
        return found

    def _consistent(self, read: Callable[[Waiting], T]) -> T:
        """What is read when no segment that was published meanwhile is merged with one from before."""
        while True:
            with suppress(_Moved, FileNotFoundError), self._batches.waiting() as waiting:
                return read(waiting)


class _Moved(Exception):
    """Files were merged, or dropped, since it was noted what waits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """A row group of a file, or a batch."""

    rows: int
    read: "Callable[[], pa.Table]"


def _in_file(file: Path, wanted: Any) -> list[_Part]:
    """The row groups of a file in which there may be wanted rows."""
    import pyarrow.dataset as ds
    import pyarrow.fs as fs

    segments.require_sound([file])
    fragment = ds.ParquetFileFormat().make_fragment(str(file), filesystem=fs.LocalFileSystem())

    def read(group: int) -> "pa.Table":
        return fragment.subset(row_group_ids=[group]).to_table(columns=list(_NAMES), use_threads=False)

    groups = fragment.subset(wanted, schema=fragment.physical_schema).row_groups
    return [_Part(rows=group.num_rows, read=partial(read, group.id)) for group in groups]


def _in_database(waiting: Waiting, batch: WaitingBatch) -> _Part:
    return _Part(rows=batch.rows, read=lambda: unpack(waiting.data(batch)))


def _asked(owner: str) -> Any:
    """Which rows an owner may ask for: those that named a probability."""
    import pyarrow.compute as pc

    return (pc.field("owner") == owner) & pc.field("probability").is_valid()


def _plain(table: "pa.Table | None") -> "pa.Table":
    """The columns that are read here, without dictionaries; of no table, without rows."""
    import pyarrow as pa

    kinds = {TIMESTAMP: instant(), "probability": pa.float64()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _NAMES])
    return schema.empty_table() if table is None else table.select(list(_NAMES)).cast(schema)


def _drawn(rng: np.random.Generator, n: int, most: int) -> list[int]:
    """All of n, or as many as are wanted at most, in order."""
    return list(range(n)) if n <= most else np.sort(rng.choice(n, most, replace=False)).tolist()


def _step(n: int, most: int) -> int:
    """Of how many predictions one is taken."""
    step = max(1, -(-n // most))
    # An answer's predictions stand in a row, three horizons a URL: no step may fall into that rhythm.
    while step > 1 and any(step % divisor == 0 for divisor in (2, 3, 5)):
        step += 1
    return step
