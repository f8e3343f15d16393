"""`urlhealth serve` under load: the work of `crawl` through the API, and a task of a million URLs.

What is measured is said in `docs/benchmarks.md`.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from benchmarks.crawl import BENCH, PEERS
from benchmarks.web import Web, free_port, nginx

#: Time between two looks at a task.
POLL_S: Final = 0.02
#: How much of the big task is probed under watch.
WATCHED_S: Final = 60.0


@contextmanager
def service(web: Web, home: Path) -> Iterator[tuple[httpx.Client, int]]:
    """A running platform on an empty home: a client for it, and its process id."""
    port = free_port()
    environment = {
        "PATH": "/usr/bin:/bin",
        "URLHEALTH_HOME": str(home),
        "URLHEALTH_ALLOW_ADDRESSES": "127.0.0.0/8,::1/128",
        "URLHEALTH_CA_FILE": str(web.ca_file),
    }
    command = (str(Path(sys.executable).with_name("urlhealth")), "serve", "--port", str(port))
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=300) as client:
            while not _ready(client):
                if process.poll() is not None:
                    sys.exit("urlhealth serve did not start; what it says stands above")
                time.sleep(POLL_S)
            yield client, process.pid
    finally:
        process.terminate()
        process.wait()


def submitted(client: httpx.Client, urls: list[str]) -> tuple[str, float]:
    """Submit URLs as NDJSON: the task's id, and the seconds until the reply."""
    body = "".join(f'"{url}"\n' for url in urls).encode()
    started = time.perf_counter()
    reply = client.post("/api/v1/tasks", content=body, headers={"Content-Type": "application/x-ndjson"})
    reply.raise_for_status()
    return reply.json()["task_id"], time.perf_counter() - started


def through_the_api(web: Web, folder: Path, *, count: int, runs: int) -> None:
    """The bare loop and the API in turn."""
    urls = web.named_urls("http", count)
    file = folder / "urls.txt"
    file.write_text("\n".join(urls))
    command = (sys.executable, str(PEERS / "pycurl_loop.py"), str(file), str(web.ca_file))
    bare: list[float] = []
    ours: list[float] = []
    with service(web, folder / "api") as (client, _):
        for _ in range(runs):
            bare.append(_seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)))
            ours.append(_seconds(lambda: _until_done(client, submitted(client, urls)[0])))
    ratio = statistics.median(bare) / statistics.median(ours)
    print(f"{count} http URLs through POST /api/v1/tasks, medians of {runs} runs in turn")
    print(f"bare pycurl loop {statistics.median(bare):.2f} s, until done {statistics.median(ours):.2f} s, {ratio:.2f}")


def a_million(web: Web, folder: Path, *, count: int) -> None:
    """One big task: how fast it is taken, and how the platform answers meanwhile."""
    with service(web, folder / "million") as (client, pid):
        replies: list[float] = []
        stop = threading.Event()
        watcher = threading.Thread(target=_watch, args=(str(client.base_url), stop, replies))
        watcher.start()
        task_id, seconds = submitted(client, web.named_urls("http", count))
        print(f"{count:,} URLs as NDJSON are on disk after {seconds:.1f} s: {count / seconds:,.0f} URL/s")
        before = client.get(f"/api/v1/tasks/{task_id}").json()["done"]
        time.sleep(WATCHED_S)
        probed = client.get(f"/api/v1/tasks/{task_id}").json()["done"] - before
        stop.set()
        watcher.join()
        p50, p99 = (statistics.quantiles(replies, n=100)[k - 1] * 1000 for k in (50, 99))
        print(f"then {probed / WATCHED_S:,.0f} results/s; list and status calls: p50 {p50:.1f} ms, p99 {p99:.1f} ms")
        print(f"peak memory of the platform: {_peak_mib(pid):.0f} MiB")
        client.delete(f"/api/v1/tasks/{task_id}").raise_for_status()


def main(arguments: list[str] | None = None) -> None:
    """Both."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--urls", type=int, default=20_000, metavar="N", help="URLs of the smaller task [20000]")
    parser.add_argument("--big", type=int, default=1_000_000, metavar="N", help="URLs of the big task [1000000]")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="runs of the smaller task [3]")
    options = parser.parse_args(arguments or [])
    BENCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as name, nginx(Path(name)) as web:
        through_the_api(web, Path(name), count=options.urls, runs=options.runs)
        a_million(web, Path(name), count=options.big)


def _ready(client: httpx.Client) -> bool:
    """Whether all parts are loaded."""
    try:
        return client.get("/health/ready").is_success
    except httpx.TransportError:
        return False


def _until_done(client: httpx.Client, task_id: str) -> None:
    while client.get(f"/api/v1/tasks/{task_id}").json()["status"] != "done":
        time.sleep(POLL_S)


def _watch(url: str, stop: threading.Event, replies: list[float]) -> None:
    """List the tasks, and read the newest one's status, again and again; keeps the seconds of each call."""
    with httpx.Client(base_url=url, timeout=60) as client:
        while not stop.is_set():
            replies.append(_seconds(lambda: client.get("/api/v1/tasks").raise_for_status()))
            for task in client.get("/api/v1/tasks", params={"limit": 1}).json()["items"]:
                path = f"/api/v1/tasks/{task['task_id']}"
                replies.append(_seconds(lambda path=path: client.get(path).raise_for_status()))
            stop.wait(POLL_S)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _peak_mib(pid: int) -> float:
    """The peaks of a process and of those that it has started, summed."""
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    statuses = [Path(f"/proc/{member}/status").read_text() for member in (pid, *children.split())]
    return sum(int(status.partition("VmHWM:")[2].split()[0]) for status in statuses) / 1024


if __name__ == "__main__":
    main(sys.argv[1:])
