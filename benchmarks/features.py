"""The feature platform's own work: live micro-batches, a rebuild, vectors at an instant, and a join onto much history.

`python -m benchmarks.features` runs all of it in full size, which takes 30 minutes and 25 GB of disk; `--urls`,
`--rounds`, `--seconds` and `--rows` make it smaller, and names (`live`, `rebuild`, `at`, `join`) choose parts of it.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from urlhealth.crawl.carried import CarriedStore
from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.store import CrawlStore
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features import vector
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE
from urlhealth.pipeline import Pipeline
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target, system_clock

BENCH = Path(__file__).resolve().parents[1] / "var" / "bench"
KNOWN_FOR_S, LATE_S = 172_800.0, 600.0
STEP_MS = 300_000
NAMES = ("live", "rebuild", "at", "join")


def target(number: int) -> Target:
    """Two URLs a host, ten a group."""
    host = f"h{number // 2}.g{number // 10}.example"
    return Target(url=f"https://{host}/{number}", host=host, group=f"g{number // 10}.example")


def result(of: Target, ts_ms: int, draw: int) -> ProbeResult:
    """One of 50 fails; all have times."""
    down, ms = draw % 50 == 0, 50.0 + draw % 100
    return ProbeResult(
        target=of.key,
        ts_ms=ts_ms,
        outcome=Outcome.TIMEOUT if down else Outcome.OK,
        status_code=None if down else 200,
        dns_ms=ms / 10,
        connect_ms=ms / 5,
        tls_ms=ms / 4,
        first_byte_ms=ms / 2,
        total_ms=ms,
        size_bytes=2000,
        redirects=0,
        cert_expires_ms=None if down else ts_ms + 40 * 86_400_000,
    )


class Store:
    """A platform's database and feature stores, without its server, in a folder of its own."""

    def __init__(self, home: Path) -> None:
        self.engine = open_database(f"sqlite:///{home}/urlhealth.db")
        self.probes = CrawlStore(self.engine)
        self.lease = Lease(self.engine, holder="benchmark", ttl_s=1e6)
        self.lease.acquire()
        self.features = FeatureStores(Settings(home=home))
        self.pipeline = Pipeline(
            probes=self.probes,
            carried=CarriedStore(self.engine),
            features=self.features,
            lease=self.lease,
            clock=system_clock,
            known_for_s=KNOWN_FOR_S,
            late_s=LATE_S,
        )

    def fill(self, urls: int, rounds: int) -> int:
        """So many rounds of a probe of each URL, the last one just now; returns the instant after it."""
        targets = [target(number) for number in range(urls)]
        end_ms = system_clock()
        start_ms = end_ms - rounds * STEP_MS

        def probes() -> Iterator[tuple[Target, ProbeResult]]:
            for round_ in range(rounds):
                for number, of in enumerate(targets):
                    ts_ms = start_ms + round_ * STEP_MS + number * STEP_MS // urls
                    yield of, result(of, ts_ms, 7919 * round_ + 31 * number)

        self.probes.import_probes(probes())
        return end_ms


def rebuild(urls: int, rounds: int) -> None:
    """`urlhealth features rebuild` of so many probes in SQLite, into Parquet and the online store."""
    with tempfile.TemporaryDirectory(dir=BENCH) as home:
        store = Store(Path(home))
        store.fill(urls, rounds)
        print(rebuilt(store, Path(home)), flush=True)


def rebuilt(store: Store, home: Path) -> str:
    """What a rebuild of all that is stored took."""
    store.pipeline.request_rebuild()
    before = cpu_s()
    started_s = time.perf_counter()
    with memory() as peaks_mb:
        count = store.pipeline.step()
    took_s, used_s = time.perf_counter() - started_s, cpu_s() - before
    size_mb = sum(file.stat().st_size for file in home.rglob("*.parquet")) / 1e6
    child_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return (
        f"rebuild: {count:,} probes in {took_s:.1f} s: {count / took_s:,.0f} probes/s, "
        f"{1e6 * used_s / count:.1f} us of CPU a probe, at most {peaks_mb[0]:,.0f} MB in all processes together, "
        f"{peak_mb():,.0f} MB in the writer and {child_mb:,.0f} MB in each other, {size_mb:,.0f} MB of Parquet"
    )


@contextmanager
def memory() -> Iterator[list[float]]:
    """The most memory, in MB, that this process and its children took together meanwhile; shared pages count once."""
    peaks_mb, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            mb = 0.0
            children = [
                pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
            ]
            for process in ("self", *children):
                with suppress(OSError):
                    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
                    mb += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
            peaks_mb[0] = max(peaks_mb[0], mb)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks_mb
    finally:
        stop.set()
        watcher.join()


def live(urls: int, rounds: int, seconds: int, rate: int) -> None:
    """So many probes a second of URLs in turn, with that much history: from stored to readable online, and the rate."""
    with tempfile.TemporaryDirectory(dir=BENCH) as home:
        store = Store(Path(home))
        store.fill(urls, rounds)
        store.pipeline.step()
        ages = run_live(store, urls, seconds, rate)
        print(
            f"live: {rate:,} probes/s for {seconds} s, {urls:,} URLs with {rounds} probes each: readable online after "
            f"p50 {np.median(ages):.2f}, p99 {np.quantile(ages, 0.99):.2f}, at most {ages.max():.2f} s",
            flush=True,
        )
        # As fast as it can: the same again, all stored beforehand.
        count = min(urls, 30_000)
        now_ms = system_clock()
        targets = [target(number) for number in range(count)]
        store.probes.import_probes((of, result(of, now_ms + i // 8, i)) for i, of in enumerate(targets))
        before, started_s, done = time.process_time(), time.perf_counter(), 0
        while some := store.pipeline.step():
            done += some
        took_s, used_s = time.perf_counter() - started_s, time.process_time() - before
        print(
            f"at most: {done / took_s:,.0f} probes/s, {1e6 * used_s / done:.0f} us of CPU a probe, {peak_mb():,.0f} MB",
            flush=True,
        )
        store.engine.dispose()


def run_live(store: Store, urls: int, seconds: int, rate: int) -> np.ndarray:
    """Age in seconds, when the pipeline's step ended and it could be read online, of each stored probe."""
    stop = threading.Event()
    stored: list[tuple[float, Target, int]] = []

    def probe() -> None:
        turn_s, number = 0.1, 0
        begun_s = time.perf_counter()
        for turn in range(round(seconds / turn_s)):
            ts_ms = system_clock()
            some = [target((number + i) % urls) for i in range(round(rate * turn_s))]
            store.probes.import_probes([(of, result(of, ts_ms + i % 100, number + i)) for i, of in enumerate(some)])
            number += len(some)
            stored.append((time.perf_counter(), some[-1], len(some)))
            time.sleep(max(0.0, begun_s + (turn + 1) * turn_s - time.perf_counter()))
        stop.set()

    prober = threading.Thread(target=probe)
    prober.start()
    ages: list[np.ndarray] = []
    seen = folded = counted = 0
    while True:
        last = stop.is_set()
        some = store.pipeline.step()
        folded += some
        now_s = time.perf_counter()
        while seen < len(stored) and counted + stored[seen][2] <= folded:
            at_s, newest, count = stored[seen]
            assert store.features.read(URL_STATE, [newest.key]).states["checks"][0] > 1
            ages.append(np.full(count, now_s - at_s))
            counted += count
            seen += 1
        if last and not some:
            break
        if not some:
            time.sleep(0.02)
    prober.join()
    return np.concatenate(ages)


def at(entities: int) -> None:
    """Vectors of so many URLs from their states: p50 of CPU time."""
    with tempfile.TemporaryDirectory(dir=BENCH) as home:
        store = Store(Path(home))
        now_ms = store.fill(entities, 100)
        store.pipeline.step()
        of = [target(number) for number in range(entities)]
        keys = {"url": [t.key for t in of], "host": [t.host for t in of], "group": [t.group for t in of]}
        states = {view.name: store.features.read(view, keys[view.entity]).states for view in STATE_VIEWS}
        t_ms = np.full(entities, now_ms + 60_000)
        times = []
        for _ in range(100):
            started_s = time.process_time()
            vector.at(states, t_ms, known_for_s=KNOWN_FOR_S)
            times.append(time.process_time() - started_s)
        print(f"features.at of {entities:,} entities: p50 {1000 * np.median(times):.2f} ms of CPU", flush=True)


def join(rows: int) -> None:
    """1,000,000 entity rows onto so many rows in the offline store's format, by Feast."""
    with tempfile.TemporaryDirectory(dir=BENCH) as home:
        write_rows(Path(home) / "rows", rows)
        command = (sys.executable, "-m", "benchmarks.features", "--folder", home, "joined")
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        size_gb = sum(file.stat().st_size for file in (Path(home) / "rows").rglob("*.parquet")) / 1e9
        print(
            f"join of 1,000,000 rows onto {rows:,} ({size_gb:.1f} GB of Parquet): {found['seconds']:.1f} s, "
            f"{found['peak_mb']:,.0f} MB",
            flush=True,
        )


def write_rows(folder: Path, rows: int, *, a_file: int = 1_000_000) -> None:
    """Rows of 25 features of 10,000 entities over ten days, by time, in files as the offline store has them."""
    import pyarrow as pa

    from urlhealth.feast_stores.segments import append

    rng = np.random.default_rng(0)
    start_us, span_us = 1_767_225_600_000_000, 10 * 86_400_000_000
    for number, first in enumerate(range(0, rows, a_file)):
        n = min(a_file, rows - first)
        instants = start_us + (np.arange(first, first + n) * (span_us / rows)).astype(np.int64)
        table = pa.table(
            {
                "entity": rng.integers(0, 10_000, n),
                "event_timestamp": pa.array(instants).cast(pa.timestamp("us", "UTC")),
                **{f"f{i:02d}": rng.normal(size=n).astype(np.float32) for i in range(25)},
            }
        )
        append(folder, table, timestamp_column="event_timestamp", segment=f"{number:04d}")


def joined(folder: Path) -> None:
    """In a process of its own: the join, as JSON."""
    from benchmarks.feast import join_onto

    print(json.dumps(join_onto(folder, "rows", 1_000_000)))


def peak_mb() -> float:
    """Of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def cpu_s() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main(chosen: Sequence[str] = ()) -> None:
    """The command line; without arguments, all in full size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=NAMES, choices=(*NAMES, "joined"))
    parser.add_argument("--urls", type=int, default=100_000)
    parser.add_argument(
        "--rounds", type=int, default=10, help="probes of each URL before; live also with ten times that"
    )
    parser.add_argument("--rate", type=int, default=3_000, help="probes a second, live")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(chosen)
    BENCH.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(BENCH).free < 30e9 and arguments.rows >= 50_000_000:
        print("less than 30 GB are free", file=sys.stderr)
    for name in arguments.names:
        if name == "live":
            for rounds in (arguments.rounds, 10 * arguments.rounds):
                live(arguments.urls, rounds, arguments.seconds, arguments.rate)
        elif name == "rebuild":
            rebuild(arguments.urls, 10 * arguments.rounds)
        elif name == "at":
            at(1_000)
        elif name == "join":
            join(arguments.rows)
        else:
            joined(arguments.folder)


if __name__ == "__main__":
    main(sys.argv[1:])
