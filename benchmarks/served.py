"""What it costs to log predictions: CPU time of each step, for a second of 2,000 requests with 100 URLs each."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.served import ServedBatches
from urlhealth.prediction.log import PredictionLog
from urlhealth.prediction.served import ServedLog
from urlhealth.prediction.served_batch import pack, unpack
from urlhealth.prediction.served_files import ServedFiles
from urlhealth.vocabulary import PROBABILITIES, Forecasts, Freshness, Health, Served

BENCH: Final = Path(__file__).resolve().parents[1] / "var" / "bench"
REQUESTS: Final = 2_000
URLS: Final = 100
KNOWN: Final = 100_000
SECONDS: Final = 8
START_MS: Final = 1_767_225_600_000
DAY_MS: Final = 86_400_000


def main(arguments: Sequence[str] = ()) -> None:
    """All of it, on a new database."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served", description=__doc__)
    parser.add_argument("--database-url", metavar="URL", help="an empty database [a new SQLite file]")
    options = parser.parse_args(list(arguments))
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"CPU time a prediction, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=BENCH) as name:
        engine = open_database(options.database_url or f"sqlite:///{name}/served.db")
        measure(ServedBatches(engine), Lease(engine, holder="bench", ttl_s=3_600), Path(name) / "files")
        engine.dispose()
    print(f"load {os.getloadavg()[0]:.1f}")


def measure(batches: ServedBatches, lease: Lease, folder: Path) -> None:
    """Log some seconds of answers, move and read them."""
    lease.acquire()
    log, files, reader = PredictionLog(batches), ServedFiles(batches, folder, lease=lease), ServedLog(batches, folder)
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {}

    def timed(name: str, step: Callable[[], object]) -> None:
        started = time.process_time()
        step()
        times.setdefault(name, []).append((time.process_time() - started) / (REQUESTS * URLS) * 1e6)

    for second in range(SECONDS):
        answers = [_answer(rng, START_MS + second * 1000 + i // 2) for i in range(REQUESTS)]
        timed("put", lambda answers=answers: [log.put(answer) for answer in answers])
        timed("pack", lambda answers=answers: pack(answers))
        timed("pack and store", log.write)
        timed("move", files.step)
    for name, each in times.items():
        print(f"  {name:15} {np.median(each):6.3f} us, at least {min(each):.3f}")
    batch = pack(answers)
    print(f"  {len(batch.data) / batch.rows:.0f} bytes in a batch of {unpack(batch.data).num_rows:,}")
    written = sum(file.stat().st_size for file in folder.glob("day=*/*.parquet"))
    print(f"  {written / (SECONDS * REQUESTS * URLS):.0f} bytes in the files")
    for what, read in (
        ("a target's", lambda: reader.past(_url(5), horizon="24h", limit=500)),
        ("a sample of all", lambda: reader.answers(from_ms=START_MS, to_ms=START_MS + DAY_MS)),
    ):
        started = time.perf_counter()
        read()
        print(f"  {what}, of {SECONDS * REQUESTS * URLS:,}: read in {1e3 * (time.perf_counter() - started):.0f} ms")


def _url(number: int) -> str:
    return f"https://site-{number % 5_000}.example/path/{number}"


def _answer(rng: np.random.Generator, ts_ms: int) -> Served:
    urls = [_url(int(number)) for number in rng.integers(0, KNOWN, URLS)]
    forecasts = Forecasts(
        sent_urls=[f"{url}/" for url in urls],
        targets=urls,
        horizons=["24h"],
        status=[Freshness.FRESH] * URLS,
        health=[Health.UP] * URLS,
        age_s=rng.uniform(0, 300, URLS).round(3).tolist(),
        observed_ms=rng.integers(ts_ms - 300_000, ts_ms, URLS).tolist(),
        probabilities=rng.random((URLS, len(PROBABILITIES))),
        model="url-health",
        model_version="3",
    )
    return Served(request_id=f"{rng.integers(2**62):032x}", owner="local", ts_ms=ts_ms, forecasts=forecasts)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
