"""Numbered segments are merged unseen: the same rows at every instant, in few files."""

import logging
import random
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from urlhealth.feast_stores import segments
from urlhealth.feast_stores.compaction import FILES, Compactor
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features.catalog import HOST_STATE
from urlhealth.features.columns import StateRows
from urlhealth.settings import Settings

DAY_US = 86_400_000_000
NOON_US = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z
LAST = "9" * 16


class Writer:
    """Publishes segments of one row each (x counting) and merges, as the pipeline's thread does."""

    def __init__(
        self, folder: Path, *, files: int = 4, merged_bytes: int = 1_000_000, merged_rows: int = 1_000
    ) -> None:
        self.folder = folder
        self.now_s = 0.0
        self.compactor = Compactor(
            {folder: ("key", "at")},
            files=files,
            merged_bytes=merged_bytes,
            merged_rows=merged_rows,
            grace_s=10,
            monotonic=lambda: self.now_s,
        )

    def publish(self, numbers: Iterable[int], *, day: int = 0) -> None:
        for i in numbers:
            rows = pa.table(
                {"at": pa.array([NOON_US + day * DAY_US + i], pa.timestamp("us", "UTC")), "key": [f"k{i % 3}"]}
            )
            staged = segments.stage(
                self.folder, rows.append_column("x", pa.array([i])), timestamp_column="at", segment=f"{i:016d}"
            )
            staged.publish()
            self.compactor.published(staged.files.values())

    def merge(self, *, before: str = LAST) -> bool:
        """One merge, if one is due."""
        merged = self.compactor.stage(before=before)
        if merged is not None:
            merged.publish()
            self.compactor.published(merged.files.values())
        return merged is not None


def xs(folder: Path) -> list[int]:
    return sorted(segments.scan(folder).collect()["x"])


def on_disk(folder: Path) -> int:
    return len(list(folder.glob("day=*/*")))


def names(folder: Path) -> list[str]:
    return [
        f"{file.parent.name[-2:]}/{file.name.removesuffix('.parquet').lstrip('0')}" for file in segments.files(folder)
    ]


def test_merged_rows_are_the_same_and_sorted(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.publish(range(1, 5))
    assert not writer.merge()
    writer.publish([5])
    before = segments.scan(tmp_path).collect()
    assert writer.merge()
    assert names(tmp_path) == ["14/1-0000000000000005"]
    after = segments.scan(tmp_path).collect()
    assert (after.schema, after.rows()) == (before.schema, before.sort("key", "at").rows())


def test_who_listed_before_still_reads_until_the_grace_is_over(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.publish(range(5))
    frame = segments.scan(tmp_path)
    assert writer.merge()
    writer.merge()  # finds what was replaced: its grace begins
    writer.now_s = 9
    writer.merge()
    assert sorted(frame.collect()["x"]) == xs(tmp_path) == [0, 1, 2, 3, 4]
    assert on_disk(tmp_path) == 6
    writer.now_s = 10
    writer.merge()
    assert (on_disk(tmp_path), xs(tmp_path)) == (1, [0, 1, 2, 3, 4])


def test_a_process_that_starts_again_removes_what_was_replaced(tmp_path: Path) -> None:
    """However far the removal had come when the one before was killed."""
    first = Writer(tmp_path)
    first.publish(range(5))
    assert first.merge()
    for gone in sorted(tmp_path.glob("day=*/*"))[1:3]:
        gone.unlink()
        assert xs(tmp_path) == [0, 1, 2, 3, 4]
    again = Writer(tmp_path)
    again.merge()
    again.now_s = 10
    again.merge()
    assert (on_disk(tmp_path), xs(tmp_path)) == (1, [0, 1, 2, 3, 4])


def test_in_any_order_of_removal_rows_of_several_merges_stay_single(tmp_path: Path) -> None:
    writer = Writer(tmp_path, files=2)
    for start in range(0, 24, 3):
        writer.publish(range(start, start + 3))
        writer.merge()
    assert any(segments.span_of(file.name) == (f"{0:016d}", f"{23:016d}") for file in tmp_path.glob("day=*/*"))
    replaced = sorted(set(tmp_path.glob("day=*/*")).difference(segments.files(tmp_path)))
    random.Random(5).shuffle(replaced)
    for file in replaced:
        file.unlink()
        assert xs(tmp_path) == list(range(24))


def test_files_stay_few_and_rows_are_merged_rarely(tmp_path: Path) -> None:
    writer, written = Writer(tmp_path), 0
    for i in range(150):
        writer.publish([i])
        before = set(segments.files(tmp_path))
        writer.merge()
        written += sum(file.stat().st_size for file in set(segments.files(tmp_path)) - before)
        writer.now_s += 1
        assert len(segments.files(tmp_path)) <= 4 + 8
    assert xs(tmp_path) == list(range(150))
    assert on_disk(tmp_path) < 40
    assert written < 2 * 150 * 1_000  # a segment has about 1,000 bytes


def test_large_files_are_left_alone_and_none_grows_beyond_the_limit(tmp_path: Path) -> None:
    writer = Writer(tmp_path, merged_bytes=6_000)  # a segment has about 1,200 bytes
    for i in range(60):
        writer.publish([i])
        writer.merge()
    sizes = [file.stat().st_size for file in segments.files(tmp_path)]
    assert max(sizes) < 6_000
    assert len(sizes) < 30
    assert xs(tmp_path) == list(range(60))


def test_a_day_that_is_over_becomes_one_file(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.publish(range(1, 4))
    assert not writer.merge()
    writer.publish([4], day=1)
    assert writer.merge()
    assert not writer.merge()
    assert names(tmp_path) == ["14/1-0000000000000003", "15/4"]
    writer.publish([5])  # late
    assert not writer.merge()


def test_a_merge_takes_so_many_rows_at_most(tmp_path: Path) -> None:
    writer = Writer(tmp_path, merged_rows=3)
    writer.publish(range(1, 8))
    while writer.merge():
        pass
    assert names(tmp_path) == ["14/1-0000000000000003", "14/4", "14/5", "14/6", "14/7"]
    assert max(map(segments.row_count, segments.files(tmp_path))) == 3


def test_what_may_be_written_again_and_what_is_not_numbered_is_not_merged(tmp_path: Path) -> None:
    writer = Writer(tmp_path, files=1)
    writer.publish(range(1, 4))
    table = segments.scan(tmp_path).collect().to_arrow().slice(0, 1)
    for name in ("0000000000000002ab", "rebuilt-0000000000000002"):
        segments.append(tmp_path, table, timestamp_column="at", segment=name)
    assert writer.merge(before=f"{3:016d}")
    assert not writer.merge(before=f"{3:016d}")
    assert names(tmp_path) == ["14/1-0000000000000002", "14/2ab", "14/3", "14/rebuilt-0000000000000002"]


def test_what_cannot_be_merged_is_logged_and_left(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(tmp_path)
    writer.publish(range(5))
    torn = segments.files(tmp_path)[2]
    whole = torn.read_bytes()
    torn.write_bytes(whole[:-9])
    with caplog.at_level(logging.WARNING):
        assert not writer.merge()
    assert "day=2023-11-14 are not merged" in caplog.text
    torn.write_bytes(whole)
    assert xs(tmp_path) == [0, 1, 2, 3, 4]
    assert not list((tmp_path / ".staged").iterdir())


def test_a_merge_that_was_refused_shows_nothing_and_is_due_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.publish(range(5))
    refused = writer.compactor.stage(before=LAST)
    assert refused is not None
    refused.discard()
    assert len(segments.files(tmp_path)) == 5
    writer.publish([5])
    assert writer.merge()


def test_writing_merging_and_reading_at_once(tmp_path: Path) -> None:
    """The reader moves the clock, after each reading: what is removed was replaced for some readings."""
    writer, published, done, failed = Writer(tmp_path), [0], threading.Event(), []

    def write() -> None:
        try:
            for i in range(80):
                writer.publish([i])
                published[0] = i + 1
                writer.merge()
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        before = published[0]
        if before:
            seen = xs(tmp_path)
            assert len(seen) == len(set(seen))
            assert seen[:before] == list(range(before))
        writer.now_s += 4
    thread.join()
    assert not failed
    assert xs(tmp_path) == list(range(80))
    assert len(segments.files(tmp_path)) <= 4 + 8


def test_a_point_in_time_join_gives_the_same_from_merged_files(tmp_path: Path) -> None:
    stores = FeatureStores(Settings(home=tmp_path))
    stores.apply()
    t0_ms, rng = NOON_US // 1000, np.random.default_rng(3)
    folder = tmp_path / "feast" / "offline" / "host_state"
    asked = pd.DataFrame(
        {
            "host": [f"h{k}" for k in rng.integers(0, 10, 300)],
            "event_timestamp": pd.to_datetime(t0_ms + rng.integers(-2, 40, 300), unit="ms", utc=True),
        }
    )
    features = [f"host_state:{column.name}" for column in HOST_STATE.columns]

    def publish(i: int) -> None:
        states = HOST_STATE.initial(4)
        for column in HOST_STATE.columns:
            states[column.name] = rng.integers(0, 100, states[column.name].shape)
        keys = np.array([f"h{k}" for k in rng.integers(0, 9, 4)], object)
        ts_ms = np.full(4, t0_ms + (i // 2 if i <= FILES else 10_000))
        with stores.staged(
            [StateRows(view=HOST_STATE, keys=keys, ts_ms=ts_ms, states=states)],
            segment=f"{i:016d}",
            created_ms=t0_ms + i,
        ) as publish:
            publish()

    def joined() -> pa.Table:
        return stores.feast().get_historical_features(asked, features).to_arrow()

    for i in range(FILES + 1):
        publish(i)
    before, rows = joined(), segments.scan(folder).collect()
    publish(FILES + 1)
    publish(FILES + 2)
    assert len(segments.files(folder)) < 5
    assert joined().equals(before)
    after = segments.scan(folder).filter(pl.col("created_timestamp") <= rows["created_timestamp"].max()).collect()
    assert after.sort(pl.all()).equals(rows.sort(pl.all()))
