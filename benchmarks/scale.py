"""Beyond one machine: what PostgreSQL takes, what a queue adds to the cost of a probe, and pages of huge databases.

Needs PostgreSQL (URLHEALTH_TEST_POSTGRES, by default that of 127.0.0.1), Redis, redis-server and nginx. CPU is
that of all the processes together, so that other work on the machine does not count; times of the database are medians.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from ipaddress import ip_network
from pathlib import Path
from typing import Final

import numpy as np
import sqlalchemy as sa
from redis import Redis

from benchmarks.web import free_port, nginx
from urlhealth.crawl.database import open_database, order_probe_ids, writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import cursor_after, insert_probes, probe_row
from urlhealth.crawl.store import CrawlStore
from urlhealth.crawl.sums import ENTRY
from urlhealth.feast_stores import segments
from urlhealth.features.catalog import STATE_VIEWS
from urlhealth.platform import Platform
from urlhealth.probing.broker import make_app
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.process import ProbeProcess
from urlhealth.probing.queue import CeleryDispatcher
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Dispatcher, Outcome, Probed, ProbeRequest, ProbeResult, ProbeSource

POSTGRES: Final = os.environ.get("URLHEALTH_TEST_POSTGRES", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres")
REDIS: Final = os.environ.get("URLHEALTH_TEST_REDIS", "redis://127.0.0.1:6379/0")
AIM_ROWS_A_SECOND: Final = 20_000
AIM_QUEUE: Final = 0.25
AIM_PAGE: Final = 1.5
BATCH: Final = 1_000
PAGE: Final = 500
T0: Final = 1_800_000_000_000
CONCURRENCY: Final = 256
_HOURS: Final = 24
_DAY_MS: Final = 86_400_000
_TICKS: Final = os.sysconf("SC_CLK_TCK")


@contextmanager
def database() -> Iterator[sa.Engine]:
    """A database of PostgreSQL of this run's own."""
    name = f"urlhealth_bench_{uuid.uuid4().hex[:8]}"
    server = sa.create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine = open_database(sa.make_url(POSTGRES).set(database=name).render_as_string(hide_password=False))
    try:
        yield engine
    finally:
        engine.dispose()
        with server.connect() as connection:
            connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))


def result_of(key: str, ts_ms: int) -> ProbeResult:
    return ProbeResult(
        target=key, ts_ms=ts_ms, outcome=Outcome.OK, status_code=200, dns_ms=0.1, connect_ms=0.2, first_byte_ms=1.5,
        total_ms=2.25, size_bytes=2_048, address="127.0.0.1", http_version="1.1",
    )  # fmt: skip


def filing(engine: sa.Engine, rows: int) -> None:
    """Rows a second into `probes` alone, and of `file_results` with all that belongs to it."""
    store, lease = CrawlStore(engine), Lease(engine, holder="bench", ttl_s=3600)
    lease.acquire()
    task = store.create_task(f"http://h{i}.bench.test/" for i in range(rows))
    (opened,) = store.open_tasks(limit=1)
    waiting = store.waiting_targets(opened.number, after=0, limit=rows)
    with engine.connect() as connection:
        server = connection.scalar(sa.text("SELECT pg_backend_pid()"))
    timed, before = [], (time.process_time(), _cpu_s(server))
    for start in range(0, rows, BATCH):
        some = waiting[start : start + BATCH]
        written = [
            probe_row(result_of(t.key, T0 + start), n, owner="local", source=ProbeSource.CRAWL, feeds_features=True)
            for n, t in some
        ]
        began_s = time.perf_counter()
        with writing(engine) as connection:
            order_probe_ids(connection)
            insert_probes(connection, written)
        timed.append(time.perf_counter() - began_s)
    print(f"  a row into probes: {_both_us(before, server, rows)}")
    _told("rows a second into probes (COPY)", BATCH / statistics.median(timed), AIM_ROWS_A_SECOND, at_least=True)
    timed, before = [], (time.process_time(), _cpu_s(server))
    for start in range(0, rows, BATCH):
        results = [
            Probed(
                request=ProbeRequest(target=t, target_id=n, task_id=task.task_id),
                result=result_of(t.key, T0 + rows + start),
            )
            for n, t in waiting[start : start + BATCH]
        ]
        began_s = time.perf_counter()
        store.file_results(results, worker="bench", lease=lease)
        timed.append(time.perf_counter() - began_s)
    print(f"  a result of a task filed, all told: {_both_us(before, server, rows)}")
    print(f"  such results a second: {BATCH / statistics.median(timed):,.0f}")


def _both_us(before: tuple[float, float], server: int, rows: int) -> str:
    ours, theirs = (
        1e6 * (now - then) / rows for now, then in zip((time.process_time(), _cpu_s(server)), before, strict=True)
    )
    return f"{ours:.0f} us of CPU of this process, {theirs:.0f} us of the database's"


def sizes(probes: int) -> None:
    """Bytes and CPU that a probe costs after it was filed: rows and indexes, roll-ups, features offline and online."""
    redis_url = f"{REDIS}?prefix=urlhealth-bench-{uuid.uuid4().hex[:8]}"
    with database() as engine, tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            home=Path(folder),
            database_url=engine.url.render_as_string(hide_password=False),
            online_store=redis_url,
            mlflow_tracking_uri="",
        )
        urls = probes // _HOURS
        with Platform(settings, clock=lambda: T0 + _DAY_MS) as platform:
            targets = [parse_target(f"https://h{i}.bench.test/") for i in range(urls)]
            platform.crawl.import_probes(
                (target, result_of(target.key, T0 + hour * 3_600_000 + i)) for hour in range(_HOURS)
                for i, target in enumerate(targets)
            )  # fmt: skip
            began_s = time.process_time()
            platform.roll_up()
            rolled_s = time.process_time()
            print(f"  to roll a probe up: {1e6 * (rolled_s - began_s) / probes:.0f} us of CPU of this process")
            platform.build_features()
            with engine.connect() as connection:
                for table, rows in (("probes", probes), ("rollups", urls * (_HOURS + 1)), ("carried_states", None)):
                    size = connection.scalar(sa.text(f"SELECT pg_total_relation_size('{table}')"))
                    rows = rows or connection.scalar(sa.text(f"SELECT count(*) FROM {table}"))
                    print(f"  a row of {table}, with its indexes: {size / rows:.0f} bytes")
            for view in STATE_VIEWS:
                found = segments.files(platform.features.offline_folder / view.name)
                size = sum(file.stat().st_size for file in found)
                rows, table = platform.features.online(view)
                used = Redis.from_url(REDIS).memory_usage(f"{{{redis_url.partition('=')[2]}}}:rows:{table}", samples=0)
                print(
                    f"  {view.name}: {size / probes:.0f} bytes a probe offline, "
                    f"{used / rows.count(table):.0f} bytes an entity in Redis"
                )
                rows.drop([table])


def pages(small: int, large: int) -> None:
    """Pages all over a task's results, and histories all over the URLs, of a small database and a large one in turn."""
    with database() as few, database() as many:
        engines = {small: few, large: many}
        tasks = {rows: _filled(engine, rows) for rows, engine in engines.items()}
        stores = {rows: CrawlStore(engine, clock=lambda: _DAY_MS) for rows, engine in engines.items()}

        def results(rows: int, share: float) -> None:
            cursor = cursor_after("results", int(rows * share))
            assert len(stores[rows].task_results(tasks[rows], cursor=cursor, limit=PAGE).items) == PAGE

        def history(rows: int, share: float) -> None:
            url = f"http://{tasks[rows]}{int(rows / _HOURS * share) * _HOURS}.test/"
            assert len(stores[rows].url_history(url, from_ms=0, to_ms=_DAY_MS, step_ms=3_600_000).points) == _HOURS
            assert len(stores[rows].url_incidents(url, limit=PAGE).items) == 1
            assert stores[rows].url_state(url, known_for_s=_DAY_MS).uptime["24h"] is not None

        for what, look in ((f"a page of {PAGE} results", results), ("a URL's history, incidents and state", history)):
            timed: dict[int, list[float]] = {small: [], large: []}
            for turn in range(3):
                for place in range(1, 41):
                    for rows in (small, large):
                        began_s = time.perf_counter()
                        look(rows, place / 41)
                        if turn:  # the first reads them from the disk
                            timed[rows].append(time.perf_counter() - began_s)
            medians = [statistics.median(timed[rows]) for rows in (small, large)]
            for rows, median in zip((small, large), medians, strict=True):
                print(f"  {what}, out of {rows:,} rows: {median * 1000:.1f} ms")
            _told(f"time of {what}, large beside small", medians[1] / medians[0], AIM_PAGE, at_least=False)


def _filled(engine: sa.Engine, rows: int) -> str:
    """Makes a finished task with so many results, and as many roll-ups by hour, within the database; its id."""
    task_id, counts = uuid.uuid4().hex, np.array([(Outcome.OK.code, 60)], ENTRY).tobytes()
    with writing(engine) as connection:
        connection.execute(
            sa.text("SET LOCAL session_replication_role = replica")
        )  # what is made refers to what is there
        number = connection.scalar(
            sa.text(
                "INSERT INTO tasks (task_id, status, options, total, done, outcomes, workers, created_ms, finished_ms) "
                "VALUES (:task_id, 'done', '{}', :rows, :rows, '{}', '[]', 0, 1) RETURNING number"
            ),
            {"task_id": task_id, "rows": rows},
        )
        for statement in (
            "INSERT INTO targets (key, host, \"group\", first_seen_ms) SELECT 'http://' || :task_id || i || '.test/', "
            "i || '.test', 'test', 0 FROM generate_series(1, :rows) i",
            "INSERT INTO probes (target_id, ts_ms, outcome, status_code, total_ms, size_bytes, redirects, source, "
            "task_number, feeds_features) SELECT id, 1, 'ok', 200, 2.5, 2048, 0, 'crawl', :number, true FROM targets "
            "WHERE key LIKE 'http://' || :task_id || '%' ORDER BY id",
            "INSERT INTO task_urls (task_number, position, sent_url, target_id, probe_id) SELECT :number, "
            "row_number() OVER (ORDER BY p.id) - 1, t.key, t.id, p.id FROM probes p "
            "JOIN targets t ON t.id = p.target_id WHERE p.task_number = :number",
            # Of each 24th URL those of one day, one of whose hours it was down.
            "INSERT INTO rollups (target_id, span_s, start_ms, counts, sum_us, squares_high, squares_low) "
            "SELECT id, 3600, hour * 3600000, :counts, 1, 0, 1 FROM targets, generate_series(0, 23) hour "
            "WHERE id % 24 = 0 ORDER BY id",
            "INSERT INTO spells (target_id, start_ms, last_ms, end_ms, up, outcome) SELECT id, hour * 3600000, hour * "
            "3600000, (hour + 1) * 3600000, hour <> 7, 'timeout' FROM targets, generate_series(6, 8) hour "
            "WHERE id % 24 = 0 ORDER BY id",
        ):
            values = {"task_id": task_id, "rows": rows, "number": number, "counts": counts}
            connection.execute(sa.text(statement), values)
    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(sa.text("VACUUM ANALYZE"))
    return task_id


def queue(urls: int, folder: Path) -> None:
    """CPU per URL of a probe without and with the queue."""
    loopback = (ip_network("127.0.0.0/8"),)
    with nginx(folder) as web:
        wanted = [ProbeRequest(target=parse_target(url), target_id=i, task_id="bench")
                  for i, url in enumerate(web.named_urls("http", urls))]  # fmt: skip
        process = ProbeProcess(
            user_agent="bench", concurrency=CONCURRENCY, concurrency_per_host=8, rate_per_host=0.0,
            guard=AddressGuard(loopback), worker_id="bench", ca_file=None, canary=None,
        )  # fmt: skip
        with closing(process):
            plain = _cpu_us(process, wanted, [process.pid])
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0"
        redis = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder],
            stdout=subprocess.DEVNULL,
        )
        settings = {
            "URLHEALTH_BROKER_URL": url,
            "URLHEALTH_ALLOW_ADDRESSES": "127.0.0.0/8",
            "URLHEALTH_PROBE_CONCURRENCY": str(CONCURRENCY),
        }
        worker = subprocess.Popen(
            [Path(sys.executable).with_name("urlhealth"), "worker"],
            env=os.environ | settings,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(1.0)
            app = make_app(url, prefix="urlhealth")
            with closing(
                CeleryDispatcher(app, prefix="urlhealth", worker_id="bench", concurrency=CONCURRENCY)
            ) as dispatcher:
                _cpu_us(dispatcher, wanted[:CONCURRENCY], [])  # the worker is there
                queued = _cpu_us(dispatcher, wanted, [worker.pid, redis.pid])
        finally:
            worker.kill()
            redis.kill()
            worker.wait()
            redis.wait()
    for name, parts, labels in (
        ("embedded", plain, ("dispatcher", "probing")),
        ("Celery", queued, ("dispatcher", "worker", "Redis")),
    ):
        told = ", ".join(f"{label} {us:.0f}" for label, us in zip(labels, parts, strict=True))
        print(f"  {name}: {sum(parts):.0f} us of CPU a URL ({told})")
    _told("what the queue adds to a probe's cost", sum(queued) / sum(plain) - 1, AIM_QUEUE, at_least=False)


def _cpu_us(dispatcher: Dispatcher, requests: list[ProbeRequest], others: list[int]) -> list[float]:
    """CPU of this process and the others for each request, in us."""

    def now() -> list[float]:
        return [time.process_time(), *map(_cpu_s, others)]

    before = now()
    waiting = requests[::-1]
    done = 0
    while done < len(requests):
        room = min(dispatcher.capacity, len(waiting))
        if room:
            dispatcher.submit([waiting.pop() for _ in range(room)])
        done += len(dispatcher.results(0.1, at_least=BATCH))
    return [1e6 * (after - start) / len(requests) for start, after in zip(before, now(), strict=True)]


def _cpu_s(pid: int) -> float:
    values = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(values[11]) + int(values[12])) / _TICKS


def _told(what: str, value: float, aim: float, *, at_least: bool) -> None:
    reached = value >= aim if at_least else value <= aim
    print(f"  {what}: {value:,.2f} (aim: {'at least' if at_least else 'at most'} {aim:,g}, "
          f"{'reached' if reached else 'NOT reached'})")  # fmt: skip


def main(arguments: list[str] | None = None) -> None:
    """Run it; `--rows`, `--probes`, `--urls`, `--small` and `--large` make it shorter or longer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--probes", type=int, default=96_000)
    parser.add_argument("--urls", type=int, default=20_000)
    parser.add_argument("--small", type=int, default=200_000)
    parser.add_argument("--large", type=int, default=2_000_000)
    given = parser.parse_args(arguments or [])
    with tempfile.TemporaryDirectory() as folder:
        queue(given.urls, Path(folder))
    with database() as engine:
        filing(engine, given.rows)
    sizes(given.probes)
    pages(given.small, given.large)


if __name__ == "__main__":
    main(sys.argv[1:])
