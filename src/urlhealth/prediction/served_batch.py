"""Answers as Arrow: what a row of the served log is, and how many of them travel to the writer together.

Columns are named as Feast names those of logged features, where it has a name. The work is by column: no Python object
is made of a prediction.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.served import ServedBatch
from urlhealth.features.decay import DAY_MS
from urlhealth.vocabulary import NO_HORIZON, PROBABILITIES, Forecasts, Freshness, Health, Served

if TYPE_CHECKING:
    import pyarrow as pa

#: When the request was answered (as Feast calls it), its day and its id.
TIMESTAMP: Final = "__log_timestamp"
DATE: Final = "__log_date"
REQUEST_ID: Final = "__request_id"
#: The target: the join key of Feast's entity.
KEY: Final = "url"

#: Predictions that are made into columns at once: bounds how long a thread keeps the interpreter from requests.
_PIECE: Final = 10_000


def pack(answers: Sequence[Served]) -> ServedBatch:
    """All predictions of answers, of which there is at least one; an Arrow IPC stream, compressed."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    # LZ4: Zstandard makes it a quarter smaller, for half as much processor time again, to be read once in seconds.
    options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
    writer, rows = None, 0
    for piece in _pieces(answers):
        table = _table(piece)
        if writer is None:
            writer = pa.ipc.new_stream(sink, table.schema, options=options)
        writer.write_table(table)
        rows += table.num_rows
    assert writer is not None
    writer.close()
    times_ms = [answer.ts_ms for answer in answers]
    return ServedBatch(first_ms=min(times_ms), last_ms=max(times_ms), rows=rows, data=memoryview(sink.getvalue()))


def unpack(data: bytes | memoryview) -> "pa.Table":
    """The predictions of a batch, a row each."""
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()


def instant() -> "pa.DataType":
    """The type of times in the log."""
    import pyarrow as pa

    return pa.timestamp("us", "UTC")


def _pieces(answers: Sequence[Served]) -> Iterator[list[Served]]:
    """The answers in runs that are for the same horizons each, and not too long."""
    for _, alike in groupby(sorted(answers, key=_horizons), _horizons):
        piece: list[Served] = []
        rows = 0
        for answer in alike:
            piece.append(answer)
            rows += len(answer.forecasts)
            if rows >= _PIECE:
                yield piece
                piece, rows = [], 0
        if piece:
            yield piece


def _horizons(answer: Served) -> tuple[str, ...]:
    return tuple(answer.forecasts.horizons)


def _table(answers: Sequence[Served]) -> "pa.Table":
    """A row for each URL and horizon, URLs outermost, of answers for the same horizons. All fields are read here."""
    import pyarrow as pa

    forecasts = [answer.forecasts for answer in answers]
    horizons = _horizons(answers[0])
    urls = np.array([len(each.sent_urls) for each in forecasts])
    of_url = np.repeat(np.arange(urls.sum()), len(horizons))
    of_answer = np.repeat(np.arange(len(answers)), urls * len(horizons))
    ts_ms = np.array([answer.ts_ms for answer in answers], np.int64)[of_answer]
    probabilities = np.concatenate([each.probabilities for each in forecasts])

    def by_url(column: Any) -> Any:
        return column if len(horizons) == 1 else column.take(pa.array(of_url))

    def numbers(name: str, kind: Any) -> Any:
        return by_url(pa.array(_joined(forecasts, name), kind, from_pandas=True))  # NaN is null

    def texts(name: str) -> Any:
        return by_url(_strings([*chain.from_iterable(getattr(each, name) for each in forecasts)]))

    def by_answer(values: Sequence[str]) -> Any:
        return pa.array(values, pa.string()).dictionary_encode().take(pa.array(of_answer))

    def words(name: str, known: "Sequence[str]") -> Any:
        column = [*chain.from_iterable(getattr(each, name) for each in forecasts)]
        if column and column.count(column[0]) == len(column):  # as it is most often, and found in no time
            codes = np.full(len(column), known.index(column[0]), np.int32)
        else:
            code = {word: i for i, word in enumerate(known)}
            codes = np.fromiter(map(code.__getitem__, column), np.int32, len(column))
        return by_url(pa.DictionaryArray.from_arrays(codes, pa.array(list(known), pa.string())))

    def by_horizon(kind: str) -> Any:
        if horizons == (NO_HORIZON,):
            values = probabilities[:, 0] if kind == "onset" else np.full(len(probabilities), np.nan)
        else:
            values = probabilities[:, [PROBABILITIES.index(f"{kind}_{horizon}") for horizon in horizons]].ravel()
        return pa.array(values, pa.float64(), from_pandas=True)

    return pa.table(
        {
            KEY: texts("targets"),
            "owner": by_answer([answer.owner for answer in answers]),
            "sent_url": texts("sent_urls"),
            "horizon": pa.array(horizons, pa.string())
            .dictionary_encode()
            .take(pa.array(np.tile(np.arange(len(horizons)), int(urls.sum())))),
            "probability": by_horizon("onset"),
            "probability_at_end": by_horizon("failing"),
            "status": words("status", tuple(Freshness)),
            "health": words("health", tuple(Health)),
            "age_s": numbers("age_s", pa.float64()),
            "model": by_answer([each.model for each in forecasts]),
            "model_version": by_answer([each.model_version for each in forecasts]),
            "observed_at": numbers("observed_ms", pa.timestamp("ms", "UTC")).cast(instant()),
            TIMESTAMP: pa.array(ts_ms * 1000, instant()),
            DATE: pa.array((ts_ms // DAY_MS).astype(np.int32)).cast(pa.date32()),
            REQUEST_ID: by_answer([answer.request_id for answer in answers]),
        }
    )


def _strings(texts: Sequence[str]) -> "pa.Array":
    """Texts as Arrow has them. URLs are ASCII, nearly always: then those of Arrow are theirs, one after the other."""
    import pyarrow as pa

    ends = np.zeros(len(texts) + 1, np.int32)
    np.cumsum(np.fromiter(map(len, texts), np.int32, len(texts)), out=ends[1:])
    data = "".join(texts)
    if not data.isascii():
        return pa.array(texts, pa.string())
    return pa.StringArray.from_buffers(len(texts), pa.py_buffer(ends), pa.py_buffer(data.encode("ascii")))


def _joined(forecasts: Sequence[Forecasts], name: str) -> "list[Any] | npt.NDArray[Any]":
    """One column of all answers."""
    parts = [getattr(each, name) for each in forecasts]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return list(chain.from_iterable(parts))
