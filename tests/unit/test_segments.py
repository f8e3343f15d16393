"""Parquet datasets of segments: atomic, idempotent by name, partitioned by UTC day."""

import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from tests.support import ROOT
from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import segments

DAY_US = 86_400_000_000
NOON_US = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z


def table(*instants_us: int, **columns: list[object]) -> pa.Table:
    return pa.table({"at": pa.array(instants_us, pa.timestamp("us", "UTC")), **columns})


def append(folder: Path, rows: pa.Table, segment: str) -> None:
    segments.append(folder, rows, timestamp_column="at", segment=segment)


def test_rows_go_to_the_folder_of_their_utc_day(tmp_path: Path) -> None:
    append(tmp_path / "d", table(NOON_US, NOON_US + DAY_US, NOON_US + 1, x=[1, 2, 3]), "a")
    assert [str(f.relative_to(tmp_path)) for f in segments.files(tmp_path / "d")] == [
        "d/day=2023-11-14/a.parquet",
        "d/day=2023-11-15/a.parquet",
    ]
    assert sorted(segments.scan(tmp_path / "d").collect()["x"]) == [1, 2, 3]


def test_the_same_name_replaces_all_of_the_segment(tmp_path: Path) -> None:
    append(tmp_path, table(NOON_US, NOON_US + DAY_US, x=[1, 2]), "a")
    append(tmp_path, table(NOON_US, x=[7]), "b")
    append(tmp_path, table(NOON_US + DAY_US, x=[3]), "a")
    assert sorted(segments.scan(tmp_path).collect()["x"]) == [3, 7]


def test_timestamps_are_stored_in_microseconds_utc(tmp_path: Path) -> None:
    rows = pa.table(
        {
            "at": pa.array([datetime(2024, 5, 1, 23, 30)], pa.timestamp("ns")),
            "other": pa.array([datetime(2024, 5, 1, tzinfo=UTC)], pa.timestamp("s", "Europe/Berlin")),
        }
    )
    append(tmp_path, rows, "a")
    frame = segments.scan(tmp_path).collect()
    assert frame.schema == {"at": pl.Datetime("us", "UTC"), "other": pl.Datetime("us", "UTC")}
    assert frame.row(0) == (datetime(2024, 5, 1, 23, 30, tzinfo=UTC), datetime(2024, 5, 1, tzinfo=UTC))


def test_days_outside_the_range_are_not_read(tmp_path: Path) -> None:
    for day in range(4):
        append(tmp_path, table(NOON_US + day * DAY_US, x=[day]), f"{day}")
    frame = segments.scan(tmp_path, since_us=NOON_US + DAY_US, until_us=NOON_US + 2 * DAY_US).collect()
    assert sorted(frame["x"]) == [1, 2]


def test_a_segment_that_is_being_written_is_not_seen(tmp_path: Path) -> None:
    append(tmp_path, table(NOON_US, x=[1]), "a")
    whole = segments.files(tmp_path)[0]
    whole.with_name(".b.parquet.0123").write_bytes(whole.read_bytes()[:20])  # as a killed writer leaves it
    assert segments.scan(tmp_path).collect()["x"].to_list() == [1]


def test_a_torn_segment_is_named(tmp_path: Path) -> None:
    append(tmp_path, table(NOON_US, x=[1]), "a")
    whole = segments.files(tmp_path)[0]
    whole.with_name("b.parquet").write_bytes(whole.read_bytes()[:-9])
    with pytest.raises(StoreUnavailable, match=r"b\.parquet is not a whole Parquet file"):
        segments.scan(tmp_path)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "day=2023-11-14").write_text("a file where a folder must be")
    with pytest.raises(StoreUnavailable, match="segment a cannot be written"):
        append(tmp_path, table(NOON_US, x=[1]), "a")
    assert [f.name for f in tmp_path.iterdir()] == ["day=2023-11-14"]


def test_an_empty_dataset_has_the_schema_asked_for(tmp_path: Path) -> None:
    schema = {"at": pl.Datetime("us", "UTC"), "x": pl.List(pl.Float64)}
    assert segments.scan(tmp_path / "none", schema=schema).collect().schema == schema
    append(tmp_path / "some", table(NOON_US, x=[[1.0]]), "a")
    segments.clear(tmp_path / "some")
    segments.clear(tmp_path / "some")
    frame = segments.scan(tmp_path / "some", schema=schema).collect()
    assert (frame.height, frame.schema) == (0, schema)


def test_older_segments_lack_newer_columns(tmp_path: Path) -> None:
    append(tmp_path, table(NOON_US, x=pa.array([1], pa.int32())), "b")
    append(tmp_path, table(NOON_US + 1, x=pa.array([2], pa.int64()), y=[5.0]), "a")
    frame = segments.scan(tmp_path, schema={"z": pl.String()}).sort("at").collect()
    assert frame.select("x", "y", "z").rows() == [(1, None, None), (2, 5.0, None)]


@pytest.mark.parametrize("name", ["", ".a", "_a", "a/b"])
def test_a_name_that_readers_would_not_find_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="segment name"):
        append(tmp_path, table(NOON_US, x=[1]), name)


def test_several_writers_and_a_reader(tmp_path: Path) -> None:
    """Each of 4 threads writes 10 segments of 50 rows, some under names that others use as well."""

    def write(worker: int) -> None:
        for i in range(10):
            append(tmp_path, table(*[NOON_US + i] * 50, x=[i] * 50), f"{i}" if i % 2 else f"{worker}-{i}")

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if segments.files(tmp_path):
            assert segments.scan(tmp_path).collect().height % 50 == 0
    assert segments.scan(tmp_path).collect().height == 50 * (5 * 4 + 5)


def test_a_full_disk_loses_nothing_and_is_said(tmp_path: Path) -> None:
    """A process that may write 2,000 bytes a file, as on a full disk: what was there stays, and nothing is torn."""
    append(tmp_path, table(NOON_US, x=[1]), "a")
    script = (
        "import resource, signal, sys; from pathlib import Path; import numpy as np; "
        "from tests.unit.test_segments import NOON_US, append, table; "
        "from urlhealth.errors import StoreUnavailable; "
        "rows = table(*[NOON_US] * 5_000, x=np.random.default_rng(0).normal(size=5_000)); "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))\n"
        "for name in 'ab':\n"
        "    try: append(Path(sys.argv[1]), rows, name)\n"
        "    except StoreUnavailable as error: print(error)\n"
    )
    done = subprocess.run(
        (sys.executable, "-c", script, str(tmp_path)), cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert [line.split(" to ")[0] for line in done.stdout.splitlines()] == [
        f"offline store: segment {name} cannot be written" for name in "ab"
    ]
    assert segments.scan(tmp_path).collect()["x"].to_list() == [1]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.parquet"]
