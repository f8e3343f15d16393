"""Packed rows, in the embedded file and on a Redis server: what every user of them relies on."""

import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.paths import online_rows
from urlhealth.feast_stores.rows import OnlineRows, Row, string_keys
from urlhealth.features.columns import Column, StateView

VIEW = StateView(
    name="things",
    entity="thing",
    columns=(
        Column(name="a", dtype="float64", about="A double."),
        Column(name="d", dtype="int64", about="A long.", initial=-1),
    ),
)
LAYOUT = Layout.of(VIEW)


@pytest.fixture
def place(tmp_path: Path, online_store: str) -> tuple[str | None, str | None]:
    """Path and Redis server of a store that is empty."""
    return (None, f"{online_store}-{uuid.uuid4().hex}") if online_store else (str(tmp_path / "online.db"), None)


@pytest.fixture
def rows(place: tuple[str | None, str | None]) -> OnlineRows:
    return online_rows(*place, None)


def row(value: int, event_us: int, created_us: int = 0, key: bytes = b"k") -> Row:
    one = VIEW.initial(1)
    one["d"] = value
    return key, LAYOUT.pack_states(one, event_us, created_us)[0]


def stored(rows: OnlineRows, key: bytes = b"k", table: str = "t") -> tuple[int, int] | None:
    """Event time and the value of column d."""
    (found,) = rows.read(table, [key])
    if found is None:
        return None
    head = LAYOUT.heads([found])[0]
    return int(head["event_us"]), int(head["state"]["d"])


def test_late_rows_do_not_overwrite_newer_ones(rows: OnlineRows) -> None:
    assert stored(rows) is None
    rows.write("t", LAYOUT, [row(1, 100, 5)])
    rows.write("t", LAYOUT, [row(2, 99, 9)])
    assert stored(rows) == (100, 1)
    rows.write("t", LAYOUT, [row(3, 100, 4)])
    assert stored(rows) == (100, 1)
    rows.write("t", LAYOUT, [row(4, 100, 5)])
    assert stored(rows) == (100, 4)
    rows.write("t", LAYOUT, [row(6, 102), row(5, 101)])
    assert stored(rows) == (102, 6)


def test_a_changed_schema_is_said_at_the_write_and_cleared_by_define(rows: OnlineRows) -> None:
    rows.write("t", LAYOUT, [row(1, 100)])
    assert not rows.define("t", LAYOUT)
    other = Layout(view="things", fields=LAYOUT.fields[1:])
    with pytest.raises(StoreUnavailable, match="another schema"):
        rows.write("t", other, [])
    assert rows.define("t", other)
    assert rows.read("t", [b"k"]) == [None]
    rows.drop(["t", "never there"])
    rows.write("t", LAYOUT, [row(2, 1)])
    assert stored(rows) == (1, 2)


def test_more_keys_than_one_query_takes(rows: OnlineRows) -> None:
    keys = string_keys("thing", [f"key {i}" for i in range(2500)])
    rows.write("t", LAYOUT, [row(i, i + 1, key=key) for i, key in enumerate(keys)])
    found = rows.read("t", [*keys, b"absent", keys[0]])
    assert found[2500] is None
    events = LAYOUT.heads([row for row in found if row is not None])["event_us"]
    assert events.tolist() == [*range(1, 2501), 1]


def test_times_are_exact_to_the_microsecond_and_may_be_before_1970(rows: OnlineRows) -> None:
    now_us = 1_800_000_000_000_001
    for value, event_us in ((1, -5), (2, -6), (3, now_us), (4, now_us - 1), (5, now_us)):
        rows.write("t", LAYOUT, [row(value, event_us)])
    assert stored(rows) == (now_us, 5)
    rows.write("t", LAYOUT, [row(6, now_us, now_us)])
    rows.write("t", LAYOUT, [row(7, now_us, now_us - 1)])
    assert stored(rows) == (now_us, 6)


def test_erasing_spares_what_is_newer(rows: OnlineRows) -> None:
    assert rows.erase("t", [b"k"], until_us=9) == 0
    rows.write("t", LAYOUT, [row(1, 10, key=b"k"), row(2, 11, key=b"l"), row(3, 9, key=b"m")])
    assert rows.erase("t", [b"k", b"l", b"absent"], until_us=10) == 1
    assert [stored(rows, key) for key in (b"k", b"l", b"m")] == [None, (11, 2), (9, 3)]
    assert (rows.count("t"), rows.count("never there")) == (2, 0)


def test_successors_take_the_place_of_tables(rows: OnlineRows) -> None:
    """One has rows, one has only its schema, and one is not there at all."""
    for table in ("a", "b", "c", "new a"):
        rows.write(table, LAYOUT, [row(len(table), 1)])
    rows.define("new b", LAYOUT)
    rows.replace({"a": "new a", "b": "new b", "c": "new c"})
    assert sorted(rows.tables()) == ["a", "b"]
    assert [stored(rows, table=table) for table in ("a", "b", "c", "new a")] == [(1, 5), None, None, None]


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from test_online_rows import LAYOUT, online_rows, row
rows = online_rows(sys.argv[1] or None, sys.argv[2] or None, None)
for i in range(1, 61):
    rows.write("t", LAYOUT, [row(i, i, key=key) for key in (b"k", b"l", b"m")])
"""


def test_several_processes_write_while_threads_read(rows: OnlineRows, place: tuple[str | None, str | None]) -> None:
    """Event time equals value in each row that is ever read, and no reader sees one go back."""
    command = (sys.executable, "-c", WRITER, place[0] or "", place[1] or "", str(Path(__file__).parent))
    writers = [subprocess.Popen(command) for _ in range(2)]
    torn: list[object] = []

    def read() -> None:
        newest = 0
        while any(writer.poll() is None for writer in writers):
            for key in (b"k", b"l", b"m"):
                found = stored(rows, key)
                if found is not None and (found[0] != found[1] or (key == b"k" and found[0] < newest)):
                    torn.append(found)
                if found is not None and key == b"k":
                    newest = found[0]

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.wait(30) for writer in writers] == [0, 0]
    assert torn == []
    assert stored(rows) == (60, 60)
