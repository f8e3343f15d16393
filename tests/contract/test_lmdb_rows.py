"""The embedded online store's file: what can happen to it, to its writers and to its readers."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.contract.test_online_rows import LAYOUT, row, stored
from urlhealth.errors import StoreUnavailable
from urlhealth.feast_stores import lmdb_rows
from urlhealth.feast_stores.lmdb_rows import LmdbRows
from urlhealth.feast_stores.rows import Row, string_keys

HERE = Path(__file__).parent
START = f"""
import sys
sys.path.insert(0, {str(HERE)!r})
from pathlib import Path
from test_online_rows import LAYOUT, row, stored
from urlhealth.feast_stores.lmdb_rows import LmdbRows
rows = LmdbRows(Path(sys.argv[1]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "feast" / "online.db"


def many(n: int, event_us: int) -> list[Row]:
    keys = string_keys("thing", [f"https://example.com/{i}" for i in range(n)])
    return [row(i, event_us, key=key) for i, key in enumerate(keys)]


def python(script: str, path: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        (sys.executable, "-c", START + script, str(path)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_reader_follows_when_the_file_is_deleted_and_made_anew(path: Path) -> None:
    reader = LmdbRows(path)
    assert (stored(reader), reader.tables(), reader.count("t")) == (None, [], 0)
    LmdbRows(path).write("t", LAYOUT, [row(1, 100)])
    assert stored(reader) == (100, 1)
    path.unlink()
    assert stored(reader) is None
    LmdbRows(path).write("t", LAYOUT, [row(2, 50)])
    assert stored(reader) == (50, 2)
    assert sorted(item.name for item in path.parent.iterdir()) == [".online.db.lock", "online.db", "online.db-lock"]


@pytest.mark.parametrize("damage", [b"not a database" * 1000, b"SQLite format 3\0" + bytes(8176), b""])
def test_a_file_that_is_none_is_said(path: Path, damage: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(damage)
    with pytest.raises(StoreUnavailable, match=r"^online store .*online\.db cannot be read: [^\n]*$"):
        LmdbRows(path).read("t", [b"k"])
    with pytest.raises(StoreUnavailable, match=r"cannot be written"):
        LmdbRows(path).write("t", LAYOUT, [row(1, 1)])
    assert path.read_bytes() == damage


@pytest.mark.parametrize("opened", [False, True])
def test_a_file_without_its_end_is_said_and_kills_nobody(path: Path, opened: bool) -> None:
    rows = LmdbRows(path)
    rows.write("t", LAYOUT, many(1000, 1))
    if opened:
        assert rows.count("t") == 1000
    else:
        del rows
    os.truncate(path, path.stat().st_size // 2 // 4096 * 4096)
    with pytest.raises(StoreUnavailable, match="its end is missing"):
        LmdbRows(path).count("t")
    with pytest.raises(StoreUnavailable, match="its end is missing"):
        LmdbRows(path).write("t", LAYOUT, [])


def test_a_file_without_free_pages_at_its_end_is_whole(path: Path) -> None:
    """LMDB need not write what became free in the transaction that asked for it."""
    rows = LmdbRows(path)
    rows.write("t", LAYOUT, many(100, 1))
    rows.write("dropped", LAYOUT, many(5000, 1))
    rows.drop(["dropped"])
    for i in range(2, 8):  # moves to the pages that became free
        rows.write("t", LAYOUT, many(100, i))
    del rows
    whole = path.stat().st_size
    os.truncate(path, whole - 4096)
    rows = LmdbRows(path)
    assert rows.count("t") == 100
    assert path.stat().st_size == whole
    rows.write("again", LAYOUT, many(5000, 3))
    assert rows.count("again") == 5000


def test_a_full_file_is_said_and_loses_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_rows, "_MOST_BYTES", 1 << 20)
    rows = LmdbRows(path)
    rows.write("t", LAYOUT, many(100, 1))
    with pytest.raises(StoreUnavailable, match=r"cannot be written: .*MDB_MAP_FULL"):
        rows.write("u", LAYOUT, many(50_000, 2))
    assert (rows.tables(), rows.count("t")) == (["t"], 100)
    rows.write("t", LAYOUT, many(100, 2))
    assert rows.count("t") == 100


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    """A process that may write 300,000 bytes a file, as on a full disk; there is room again afterwards."""
    script = """
import resource, signal
from urlhealth.errors import StoreUnavailable
rows.write("t", LAYOUT, [row(1, 1, key=b"%d" % i) for i in range(1000)])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for table in "tu":
    try:
        rows.write(table, LAYOUT, [row(2, 2, key=b"%d" % i) for i in range(50_000)])
    except StoreUnavailable as error:
        print(str(error).partition(".db ")[2].partition(":")[0])
print(rows.count("t"), stored(rows, b"7"))
"""
    with python(script, path) as writer:
        said, _ = writer.communicate(timeout=60)
    assert said.splitlines() == ["cannot be written"] * 2 + ["1000 (1, 1)"]
    rows = LmdbRows(path)
    assert (rows.tables(), rows.count("t"), stored(rows, b"999")) == (["t"], 1000, (1, 1))
    rows.write("t", LAYOUT, many(50_000, 3))
    assert rows.count("t") == 51_000


def test_a_killed_writer_leaves_whole_batches_and_no_lock(path: Path) -> None:
    """It is killed between two rows of its second batch."""
    script = """
def batch():
    for i in range(1000):
        if i == 500:
            print("midway", flush=True)
            sys.stdin.readline()
        yield row(2, 2, key=b"%d" % i)
rows.write("t", LAYOUT, [row(1, 1, key=b"%d" % i) for i in range(1000)])
rows.write("t", LAYOUT, batch())
"""
    with python(script, path) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "midway\n"
        rows = LmdbRows(path)
        assert stored(rows, b"0") == (1, 1)  # a reader waits for nobody
        writer.send_signal(signal.SIGKILL)
    assert [stored(rows, b"%d" % i) for i in (0, 499, 999)] == [(1, 1)] * 3
    rows.write("t", LAYOUT, [row(3, 3, key=b"0")])
    assert stored(rows, b"0") == (3, 3)


def test_a_killed_reader_does_not_let_the_file_grow_for_ever(path: Path) -> None:
    script = """
with rows._file.environment().begin() as transaction:
    print(stored(rows)[0], flush=True)
    sys.stdin.readline()
"""
    rows = LmdbRows(path)
    rows.write("t", LAYOUT, [row(1, 1), *many(1000, 1)])
    with python(script, path) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "1\n"
        reader.send_signal(signal.SIGKILL)
    sizes = []
    for i in range(2, 12):
        rows.write("t", LAYOUT, many(1000, i))
        sizes.append(path.stat().st_size)
    assert len(set(sizes[3:])) == 1


def test_a_child_of_a_fork_reads_and_writes_and_its_parent_goes_on(path: Path) -> None:
    """In a process of its own, which has no threads."""
    script = """
import os
rows.write("t", LAYOUT, [row(1, 1)])
assert stored(rows) == (1, 1)
child = os.fork()
if not child:
    try:
        assert stored(rows) == (1, 1)
        rows.write("t", LAYOUT, [row(2, 2)])
        assert stored(rows) == (2, 2)
        os._exit(0)
    finally:
        os._exit(1)
assert os.waitpid(child, 0)[1] == 0
assert stored(rows) == (2, 2)
rows.write("t", LAYOUT, [row(3, 3)])
assert stored(rows) == (3, 3)
"""
    with python(script, path) as program:
        program.communicate(timeout=60)
    assert program.returncode == 0
    assert stored(LmdbRows(path)) == (3, 3)


def test_threads_read_and_write_through_one_file(path: Path) -> None:
    """Each has an object of its own for the same path."""
    failed: list[BaseException] = []

    def work(key: bytes) -> None:
        try:
            for i in range(1, 51):
                rows = LmdbRows(path)
                rows.write("t", LAYOUT, [row(i, i, key=key)])
                assert stored(rows, key) == (i, i)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(b"%d" % i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert LmdbRows(path).count("t") == 4


def test_keys_of_any_length_are_told_apart(path: Path) -> None:
    """LMDB has keys of at most 511 bytes."""
    rows, start = LmdbRows(path), b"x" * 475
    keys = [start + b"y" * i for i in (*range(28, 40), 200, 3000)] + [start + b"y" * 199 + b"z"]
    rows.write("t", LAYOUT, [row(i, i, key=key) for i, key in enumerate(keys)])
    rows.write("t", LAYOUT, [row(99, 99, key=keys[-1]), row(98, 98, key=keys[-1])])
    assert [stored(rows, key) for key in keys[:-1]] == [(i, i) for i in range(len(keys) - 1)]
    assert stored(rows, keys[-1]) == (99, 99)
    assert rows.erase("t", keys, until_us=98) == len(keys) - 1


def test_the_first_rows_of_a_table_leave_no_room_between_them(path: Path) -> None:
    """Tables that were made before it and after it notwithstanding."""
    rows, batch = LmdbRows(path), many(20_000, 1)
    for table in ("a", "b", "c"):
        rows.define(table, LAYOUT)
    for table in ("b", "a"):
        rows.write(table, LAYOUT, [batch[i] for i in np.random.default_rng(0).permutation(len(batch))])
    needed = sum(len(key) + len(packed) for key, packed in batch)
    assert path.stat().st_size < 2 * 1.25 * needed
    assert [rows.count(table) for table in ("a", "b", "c")] == [20_000, 20_000, 0]
