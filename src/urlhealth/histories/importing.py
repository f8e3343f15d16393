"""Histories in the common form are checked and stored; of each row that is not, the reason is told."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import polars as pl

from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest
from urlhealth.histories.form import OWN
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import LOCAL_OWNER, Outcome, ProbeSource, Target

#: How far the clock that wrote a history may be ahead of ours.
AHEAD_MS: Final = 60_000
#: Pause after each batch, in which others can write.
_PAUSE_S: Final = 0.01
_STORED: Final = [name for name in OWN if name not in ("url", "name", "group", "ts", "cert_expires", "source")]


@dataclass(kw_only=True)
class Imported:
    """What came of an import."""

    #: Rows that were read.
    rows: int = 0
    #: Rows that were stored.
    stored: int = 0
    #: Rows of a target and instant that was there already, in the history or in the store.
    known: int = 0
    #: Of those stored: rows older than the newest verdict of their target. Features need a rebuild to see them.
    late: int = 0
    #: Reason → how many rows were left out for it, and the first of them.
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)


class Importer:
    """Stores the batches of one history."""

    def __init__(
        self, store: CrawlStore, *, clock: Callable[[], int], oldest_ms: int = 0, owner: str = LOCAL_OWNER
    ) -> None:
        """`oldest_ms`: what is older would be deleted at once, and is left out."""
        self._store = store
        self._clock = clock
        self._oldest_ms = oldest_ms
        self._owner = owner
        #: By URL and name: the target's id, or the reason why it is none.
        self._ids: dict[tuple[str, str | None], int | str] = {}
        #: By target id: its newest verdict.
        self._newest_ms: dict[int, int] = {}
        self.result = Imported()

    def run(self, batches: Iterable[pl.DataFrame]) -> Imported:
        """Store all batches, each a frame in the common form. What was stored before a failure stays."""
        remaining = iter(batches)
        with ThreadPoolExecutor(1) as reader:  # reads a batch while the one before it is stored
            following = reader.submit(next, remaining, None)
            while (batch := following.result()) is not None:
                following = reader.submit(next, remaining, None)
                self.add(batch)
                time.sleep(_PAUSE_S)
        return self.result

    def add(self, batch: pl.DataFrame) -> None:
        """Store a batch."""
        result = self.result
        result.rows += len(batch)
        checked = batch.with_columns(ts_ms=pl.col("ts").dt.epoch("ms")).with_columns(problem=self._problem())
        self._leave_out(checked.filter(pl.col("problem").is_not_null()))
        series = self._targets_of(checked.filter(pl.col("problem").is_null()))
        joined = (
            checked.filter(pl.col("problem").is_null())
            .drop("problem")
            .join(series, on=["url", "name"], nulls_equal=True, maintain_order="left")
        )
        self._leave_out(joined.filter(pl.col("problem").is_not_null()))
        good = joined.filter(pl.col("problem").is_null())
        distinct = good.unique(["target_id", "ts_ms"], keep="first", maintain_order=True)
        simulated = pl.col("source") == ProbeSource.SIMULATED.value
        source = (
            pl.when(simulated).then(pl.lit(ProbeSource.SIMULATED.value)).otherwise(pl.lit(ProbeSource.IMPORT.value))
        )
        stored = self._store.add_verdicts(
            distinct.select(
                "target_id", "ts_ms", *_STORED, cert_expires_ms=pl.col("cert_expires").dt.epoch("ms"), source=source
            ),
            owner=self._owner,
        )
        result.stored += stored
        result.known += len(good) - stored
        self._note_late(distinct, stored)

    def _problem(self) -> pl.Expr:
        """Why a row is left out, null where it is not."""
        outcomes = [outcome.value for outcome in Outcome]
        return (
            pl.when(pl.col("url").is_null())
            .then(pl.lit("no URL"))
            .when(pl.col("ts_ms").is_null())
            .then(pl.lit("no time, or none that can be read"))
            .when(pl.col("ts_ms") <= 0)
            .then(pl.lit("before 1970"))
            .when(pl.col("ts_ms") > self._clock() + AHEAD_MS)
            .then(pl.lit("in the future"))
            .when(pl.col("ts_ms") < self._oldest_ms)
            .then(pl.lit("older than probes are kept (URLHEALTH_KEEP_PROBES_DAYS)"))
            .when(~pl.col("outcome").is_in(outcomes).fill_null(value=False))
            .then(pl.lit("no outcome or status that is known"))
        )

    def _targets_of(self, rows: pl.DataFrame) -> pl.DataFrame:
        """`target_id` or `problem` by `url` and `name`."""
        simulated = (pl.col("source") == ProbeSource.SIMULATED.value).any()
        pairs = rows.group_by("url", "name").agg(pl.col("group").drop_nulls().last(), simulated.alias("simulated"))
        wanted: dict[bool, dict[tuple[str, str | None], tuple[Target, bool]]] = {False: {}, True: {}}
        for url, name, group, is_simulated in pairs.iter_rows():
            if (url, name) in self._ids:
                continue
            try:
                target = parse_target(url, group=group, name=name)
            except InvalidRequest as error:
                self._ids[url, name] = str(error)
            else:
                wanted[bool(is_simulated)][url, name] = target, group is not None
        for is_simulated, some in wanted.items():
            if some:
                opened = self._store.open_series(list(some.values()), simulated=is_simulated, owner=self._owner)
                self._newest_ms |= {series.target_id: series.newest_ms for series in opened.values()}
                self._ids |= {pair: opened[target.key].target_id for pair, (target, _) in some.items()}
        found = [(url, name, self._ids[url, name]) for url, name, _, _ in pairs.iter_rows()]
        return pl.DataFrame(
            [(url, name, None, of) if isinstance(of, str) else (url, name, of, None) for url, name, of in found],
            schema={"url": pl.String, "name": pl.String, "target_id": pl.Int64, "problem": pl.String},
            orient="row",
        )

    def _note_late(self, rows: pl.DataFrame, stored: int) -> None:
        """Count rows that are older than one of their target's before this batch, which is stored by time."""
        late = 0
        spans = rows.group_by("target_id").agg(
            pl.col("ts_ms").min().alias("first"), pl.col("ts_ms").max().alias("last")
        )
        for target_id, first_ms, last_ms in spans.iter_rows():
            newest_ms = self._newest_ms[target_id]
            if first_ms < newest_ms:
                late += rows.filter(pl.col("target_id") == target_id, pl.col("ts_ms") < newest_ms).height
            self._newest_ms[target_id] = max(newest_ms, last_ms)
        self.result.late += min(late, stored)

    def _leave_out(self, rows: pl.DataFrame) -> None:
        for reason, count, first in rows.group_by("problem").agg(pl.len(), pl.col("row").min()).iter_rows():
            before = self.result.left_out.get(reason, (0, first))
            self.result.left_out[reason] = before[0] + count, before[1]
