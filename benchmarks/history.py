"""A year of history in a small query: what is told of a URL, beside ten years; and how fast histories come in.

The year is one probe a minute of each URL, generated as the roll-ups and spells that its probes would have made.
"""

import argparse
import gc
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from fastapi.testclient import TestClient

from serving.app import create_app
from urlhealth.crawl.database import run, writing
from urlhealth.crawl.rollups import DAY_S, HOUR_S
from urlhealth.crawl.sums import Sums
from urlhealth.histories.files import read_parquet
from urlhealth.histories.importing import Importer
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult

BENCH: Final = Path(__file__).resolve().parents[1] / "var" / "bench"
MINUTE_MS: Final = 60_000
YEAR_H: Final = 365 * 24
AIM_MS: Final = 30.0
AIM_ROWS_A_SECOND: Final = 100_000
REPEATS: Final = 200
#: Rows of the imported file that are made at once.
PART: Final = 200_000


def fill(platform: Platform, urls: int, years: int, *, now_ms: int) -> None:
    """`urls` URLs with so many years of history; each has an outage of ten minutes in every hundredth hour."""
    random = np.random.default_rng(0)
    hours = years * YEAR_H
    start_ms = (now_ms // 3_600_000 - hours) * 3_600_000
    # A month of one URL's probes, over and over, so that filling does not take longer than the benchmark.
    month = 30 * 24
    outcome = np.zeros((month, 60), np.int64)
    outcome[::100, :10] = Outcome.TIMEOUT.code
    durations = random.lognormal(4, 0.5, outcome.shape)
    by_hour, by_day = (
        Sums.of_verdicts(np.repeat(np.arange(n), outcome.size // n), n, outcome.ravel(), durations.ravel()).stored()
        for n in (month, month // 24)
    )
    platform.crawl.import_probes(
        (parse_target(url), ProbeResult(target=url, ts_ms=now_ms - 1000, outcome=Outcome.OK, total_ms=80.0))
        for url in map(url_of, range(urls))
    )
    with platform.lease.kept():
        platform.rollups.step(lease=platform.lease)
    for target_id in range(1, urls + 1):
        rows = [
            (target_id, span_s, start_ms + i * span_s * 1000, *sums[i % len(sums)])
            for span_s, sums in ((HOUR_S, by_hour), (DAY_S, by_day))
            for i in range(hours * HOUR_S // span_s)
        ]
        spells = []
        for hour in range(0, hours, 100):
            begin = start_ms + hour * 3_600_000
            well = begin + 10 * MINUTE_MS
            spells.append((target_id, begin, well - MINUTE_MS, well, False, "timeout", "first_byte"))
            spells.append((target_id, well, begin + 100 * 3_600_000, begin + 100 * 3_600_000, True, "ok", None))
        with writing(platform._database) as connection:  # type: ignore[arg-type]
            marks = "(?, ?, ?, ?, ?, ?, ?)"
            run(connection, f"INSERT INTO rollups VALUES {marks} ON CONFLICT DO NOTHING", rows)
            run(connection, f"INSERT INTO spells VALUES {marks} ON CONFLICT DO NOTHING", spells)


def url_of(number: int) -> str:
    return f"https://h{number}.example/"


def reading(urls: int, years: int, folder: Path) -> dict[str, float]:
    """p99 of each call, in ms, for a URL chosen anew each time; printed."""
    with tempfile.TemporaryDirectory(dir=folder) as home, Platform(Settings(home=Path(home))) as platform:
        now_ms = platform.clock()
        fill(platform, urls, years, now_ms=now_ms)
        size_mb = (Path(home) / "urlhealth.db").stat().st_size / 1e6
        print(f"\n{urls} URLs, {years} years of a probe a minute: {size_mb:,.0f} MB\n")
        print("| call | p50 ms | p99 ms | aim |\n|---|---|---|---|")
        random = np.random.default_rng(1)
        found: dict[str, float] = {}
        gc.freeze()  # as the platform does
        with TestClient(create_app(platform)) as http:

            def ask(path: str, **params: str | int) -> Callable[[], None]:
                def once() -> None:
                    url = {} if path.endswith("targets") else {"url": url_of(int(random.integers(urls)))}
                    http.get(path, params=url | params).raise_for_status()

                return once

            api = "/api/v1/url"
            year = time.strftime("%Y-%m-%dT00:00:00Z", time.gmtime(now_ms / 1000 - 364 * 86_400))
            hours = time.strftime("%Y-%m-%dT%H:00:00Z", time.gmtime(now_ms / 1000 - 999 * 3_600))
            for name, once in {
                "state and uptime": ask(api),
                "history, a year by day": ask(f"{api}/history", step="1d", **{"from": year}),
                "history, 41 days by hour (1,000 points)": ask(f"{api}/history", step="1h", **{"from": hours}),
                "history, the last day": ask(f"{api}/history"),
                "incidents (80)": ask(f"{api}/incidents", limit=80),
            }.items():
                once()
                taken = sorted(_ms(once) for _ in range(REPEATS))
                found[name] = p99 = taken[int(REPEATS * 0.99) - 1]
                aim = "reached" if p99 < AIM_MS else "not reached"
                print(f"| {name} | {taken[REPEATS // 2]:.1f} | {p99:.1f} | under {AIM_MS:.0f}: {aim} |", flush=True)
        return found


def importing(rows: int, folder: Path) -> None:
    """Import a Parquet file of 1,000 URLs; printed."""
    with tempfile.TemporaryDirectory(dir=folder) as home, Platform(Settings(home=Path(home))) as platform:
        path = Path(home) / "history.parquet"
        _write_history(path, rows, platform.clock() - (rows // 1000 + 1) * MINUTE_MS)
        before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        started, cpu = time.perf_counter(), time.process_time()
        stored = Importer(platform.crawl, clock=platform.clock).run(read_parquet(path)).stored
        seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu
        assert stored == rows
        rolled, rolled_cpu = time.perf_counter(), time.process_time()
        platform.roll_up()
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\n{rows:,} rows of Parquet (peak {peak_mib:,.0f} MiB, {before_mib:,.0f} of them before the import)\n")
        print("| work | rows/s | rows per CPU second | aim |\n|---|---|---|---|")
        aim = "reached" if rows / seconds >= AIM_ROWS_A_SECOND else "not reached"
        print(f"| import | {rows / seconds:,.0f} | {rows / cpu_s:,.0f} | {AIM_ROWS_A_SECOND:,}: {aim} |")
        seconds, cpu_s = time.perf_counter() - rolled, time.process_time() - rolled_cpu
        print(f"| roll-ups | {rows / seconds:,.0f} | {rows / cpu_s:,.0f} | |")


def _write_history(path: Path, rows: int, start_ms: int) -> None:
    """1,000 URLs, one probe a minute each, by time; in parts, so that this needs little memory."""
    random = np.random.default_rng(0)
    urls = pl.Series([url_of(i) for i in range(1000)])
    writer = None
    for first in range(0, rows, PART):
        number = np.arange(first, min(first + PART, rows))
        n = len(number)
        outcome = np.where(random.random(n) < 0.99, "ok", "timeout")
        columns = {
            "url": urls.gather(number % 1000),
            "ts": pl.Series(start_ms + number // 1000 * MINUTE_MS).cast(pl.Datetime("ms", "UTC")),
            "outcome": outcome,
            "status_code": pl.Series(np.where(outcome == "ok", 200, 0)).replace(0, None),
            **{name: random.random(n) for name in ("dns_ms", "connect_ms", "tls_ms", "first_byte_ms")},
            "total_ms": random.lognormal(4, 0.5, n),
        }
        table = pl.DataFrame(columns).to_arrow()
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def main(arguments: list[str] | None = None) -> None:
    """Reading with one and with ten years; importing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__)
    parser.add_argument("--urls", type=int, default=1000, help="URLs with a year of history [1000]")
    parser.add_argument("--urls-ten", type=int, default=100, help="URLs with ten years [100]")
    parser.add_argument("--rows", type=int, default=5_000_000, help="rows to import [5000000]")
    options = parser.parse_args(arguments or [])
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load average before the first run {os.getloadavg()[0]:.1f}", flush=True)
    importing(options.rows, BENCH)
    one = reading(options.urls, 1, BENCH)
    ten = reading(options.urls_ten, 10, BENCH)
    print("\n| call | p99 of ten years / one year (aim: 1.2) |\n|---|---|")
    for name in one:
        print(f"| {name} | {ten[name] / one[name]:.2f} |")


def _ms(once: Callable[[], None]) -> float:
    started = time.perf_counter()
    once()
    return (time.perf_counter() - started) * 1000


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
