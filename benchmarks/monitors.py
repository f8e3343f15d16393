"""A hundred thousand monitors in `urlhealth serve`, with a real nginx on loopback to probe.

It is the whole platform on its embedded stores: server, schedule, probing and pipeline in one process. Each monitor has
a host of its own, by address, and each probe a new connection.
"""

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.web import Web, free_port, nginx
from urlhealth.crawl.monitors import next_slot

BENCH: Final = Path(__file__).resolve().parents[1] / "var" / "bench"
INTERVAL_S: Final = 100
#: After a start, a tenth of the monitors is due at once; measured is what comes then.
SETTLE_S: Final = 15
DAY_MS: Final = 86_400_000


class Server:
    """`urlhealth serve` in a folder."""

    def __init__(self, home: Path, web: Web) -> None:
        self._home = home
        self._environment = {
            **os.environ,
            "URLHEALTH_HOME": str(home),
            "URLHEALTH_ALLOW_ADDRESSES": "127.0.0.0/8,::1/128",
            "URLHEALTH_CA_FILE": str(web.ca_file),
        }
        self.database = home / "urlhealth.db"
        self._pid = 0

    @contextmanager
    def running(self) -> Iterator[httpx.Client]:
        """A client of the server, which runs until the `with` block ends; it may not answer yet."""
        port = free_port()
        command = [Path(sys.executable).with_name("urlhealth"), "serve", "--port", str(port)]
        with (self._home / "serve.log").open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._pid = process.pid
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client:
                yield client
        finally:
            process.terminate()
            process.wait(60)

    def cpu_s(self) -> float:
        """CPU time of the running server until now."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, query: str, *values: Any) -> list[Any]:
        """What the database answers."""
        with sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=60) as database:
            return database.execute(query, values).fetchall()


def create(server: Server, urls: list[str]) -> float:
    """Create a monitor a URL in one call, paused; the time it took, in s."""
    lines = "".join(json.dumps({"url": url, "interval_s": INTERVAL_S, "paused": True}) + "\n" for url in urls)
    with server.running() as client:
        wait_for(lambda: answers(client))
        started = time.perf_counter()
        reply = client.post("/api/v1/monitors", content=lines, headers={"Content-Type": "application/x-ndjson"})
        seconds = time.perf_counter() - started
    if reply.text.count('"result":"created"') != len(urls):
        sys.exit(f"not all monitors were created: {reply.text[:400]}")
    return seconds


def begin_after_a_day_off(server: Server) -> None:
    """Make the monitors look as if they had been active, and nobody had probed them for a day."""
    with sqlite3.connect(server.database) as database:
        database.execute("UPDATE monitors SET paused = 0, next_due_ms = next_due_ms - ?", (DAY_MS,))


def until_scheduled(server: Server) -> float:
    """From when the server has the lease until no monitor has a slot that was missed, in s."""
    free = "SELECT 1 FROM leases WHERE holder <> ''"
    wait_for(lambda: server.ask(free))
    started = time.perf_counter()
    missed = "SELECT 1 FROM monitors WHERE paused = 0 AND next_due_ms < ? LIMIT 1"
    wait_for(lambda: not server.ask(missed, time.time_ns() // 1_000_000 - DAY_MS // 2))
    return time.perf_counter() - started


def lags_ms(server: Server, from_ms: int, to_ms: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Of the slots in [from, to): from each until its probe began, until it ended, and how many slots there were."""
    interval_ms = INTERVAL_S * 1000
    keys = [key for (key,) in server.ask("SELECT key FROM targets")]
    slots = {key: next_slot(key, INTERVAL_S, from_ms - 1) for key in keys}
    expected = sum(max(0, -(-(to_ms - slot) // interval_ms)) for slot in slots.values())
    query = "SELECT key, ts_ms, total_ms FROM probes JOIN targets ON targets.id = target_id WHERE ts_ms >= ?"
    began, ended = [], []
    for key, ts_ms, total_ms in server.ask(query, from_ms):
        slot_ms = slots[key] + (ts_ms - slots[key]) // interval_ms * interval_ms
        if from_ms <= slot_ms < to_ms:
            began.append(ts_ms - slot_ms)
            ended.append(ts_ms - slot_ms + (total_ms or 0.0))
    return np.array(began), np.array(ended), expected


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/health/live").status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition: Callable[[], Any], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            sys.exit("waited in vain; see the server's log in var/bench")
        time.sleep(0.02)


def main(arguments: list[str] | None = None) -> None:
    """Create, start, and be punctual."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitors", description=__doc__)
    parser.add_argument("--monitors", type=int, default=100_000, metavar="N", help="monitors [100000]")
    parser.add_argument("--seconds", type=int, default=60, metavar="N", help="time that is measured [60]")
    options = parser.parse_args(arguments or [])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # so that nginx ends too
    BENCH.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} cores, load average before {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as name, nginx(Path(name)) as web:
        home = Path(name) / "home"
        home.mkdir()
        server = Server(home, web)
        rows: list[tuple[str, str, str]] = []
        seconds = create(server, web.numbered_urls("http", options.monitors))
        rows.append((f"{options.monitors:,} created in one call", f"{seconds:.1f} s", "under 10 s"))
        begin_after_a_day_off(server)
        with server.running():
            seconds = until_scheduled(server)
            rows.append(("all scheduled, from the lease on, after a day off", f"{seconds:.2f} s", "within 1 s"))
            time.sleep(SETTLE_S)
            from_ms, cpu_before_s = time.time_ns() // 1_000_000, server.cpu_s()
            time.sleep(options.seconds)
            cores = (server.cpu_s() - cpu_before_s) / options.seconds
            to_ms = time.time_ns() // 1_000_000
            time.sleep(5)  # what began in the last moment ends, and is filed
            began, ended, slots = lags_ms(server, from_ms, to_ms)
        rows.append((f"slots in {options.seconds} s", f"{slots:,}", f"{options.monitors / INTERVAL_S:,.0f} a second"))
        rows.append(("of them probed", f"{len(began):,} ({len(began) / slots:.2%})", "all"))
        for what, lags, aim in (("lag until a probe begins", began, "p99 under 250 ms"), ("until it ends", ended, "")):
            p50, p99, most = np.percentile(lags, [50, 99, 100])
            rows.append((what, f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms", aim))
        rows.append(("cores that the server used meanwhile", f"{cores:.2f}", ""))
        print("\n| what | measured | aim |\n|---|---|---|")
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
