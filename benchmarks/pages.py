"""The pages with 100,000 monitored targets: how long each takes to answer, with and without counting all anew."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import quote

import numpy as np
from fastapi.testclient import TestClient

from serving.app import create_app
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import MonitorSpec, Outcome, ProbeResult

AIM_MS: Final = 200.0
REPEATS: Final = 50
#: Counts over all targets are made anew after ten seconds.
COUNTED_ANEW_MS: Final = 11_000


def url_of(number: int) -> str:
    """The URL of a target; ten have a host."""
    return f"https://host-{number // 10}.example/page-{number}"


def fill(platform: Platform, targets: int, now_ms: int) -> None:
    """Targets with a monitor and a probe each, one in fifty failing; features and forecasts of all."""
    urls = [url_of(number) for number in range(targets)]
    for start in range(0, targets, 20_000):
        specs = [MonitorSpec(url=url, interval_s=300, tags=("prod",)) for url in urls[start : start + 20_000]]
        list(platform.crawl.create_monitors(specs))
    platform.crawl.import_probes(
        (parse_target(url), ProbeResult(target=url, ts_ms=now_ms - 1000 - i % 300_000, outcome=outcome, total_ms=80.0))
        for i, url in enumerate(urls)
        for outcome in [Outcome.TIMEOUT if i % 50 == 0 else Outcome.OK]
    )
    platform.build_features()
    platform.champion.refresh()
    with platform.lease.kept():
        while platform.rescorer.step():
            pass


def main() -> None:
    """Print the median and the 95th percentile of each page, in wall time and in this process's CPU time."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages")
    parser.add_argument("--targets", type=int, default=100_000)
    targets = parser.parse_args([] if __name__ != "__main__" else None).targets
    now_ms = [time.time_ns() // 1_000_000]
    print(f"load {os.getloadavg()[0]:.1f}", flush=True)
    with tempfile.TemporaryDirectory(prefix="urlhealth-bench-") as home:
        settings = Settings(home=Path(home), mlflow_tracking_uri="")
        with Platform(settings, clock=lambda: now_ms[0]) as platform:
            platform.open(check=False)
            began_s = time.monotonic()
            fill(platform, targets, now_ms[0])
            print(
                f"{targets:,} targets in {time.monotonic() - began_s:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True
            )
            http = TestClient(create_app(platform))
            pages = {
                "overview": ("/", 0),
                "overview, all counted anew": ("/", COUNTED_ANEW_MS),
                "overview, those that are up": ("/?now=up", 0),
                "monitors": ("/ui/monitors", 0),
                "monitors, by a part of the URL": (f"/ui/monitors?search=page-{targets - 1}", 0),
                "a URL": (f"/ui/url?url={quote(url_of(targets // 2), safe='')}", 0),
                "features": ("/ui/features", 0),
            }
            for name, (path, step_ms) in pages.items():
                wall_ms, cpu_ms = [], []
                for _ in range(REPEATS):
                    now_ms[0] += step_ms
                    wall_s, cpu_s = time.perf_counter(), time.process_time()
                    http.get(path).raise_for_status()
                    wall_ms.append(1000 * (time.perf_counter() - wall_s))
                    cpu_ms.append(1000 * (time.process_time() - cpu_s))
                p50, p95 = np.percentile(wall_ms[1:], [50, 95])
                cpu = np.median(cpu_ms)
                print(f"{name}: first {wall_ms[0]:.0f}, p50 {p50:.1f}, p95 {p95:.1f} ms; CPU p50 {cpu:.1f} ms")
            print(f"aim: the overview under {AIM_MS:.0f} ms")


if __name__ == "__main__":
    main()
