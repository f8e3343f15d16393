"""Adaptive polling beside equal intervals, on recorded histories (`--data`), and its cost at a million targets.

The data file has the columns `repo, url, ts, status`: real histories, as public status pages keep them. Used are series
with at least 30 days, 10 rows and at most 98 % `down` rows, each replayed from its middle on.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import polars as pl

from urlhealth.crawl.adaptive import SLICE
from urlhealth.crawl.database import open_database
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.runner import AHEAD_MS
from urlhealth.crawl.store import CrawlStore
from urlhealth.polling.policy import AdaptivePolicy
from urlhealth.polling.replay import (
    Series,
    budget_of,
    judge,
    judge_uniform,
    outages_of,
    replay_adaptive,
    series_of,
)
from urlhealth.polling.report import caught_ratios
from urlhealth.vocabulary import AdaptiveSchedule, MonitorSpec, Outcome, Probed, ProbeRequest, ProbeResult

FOLDS = 5
BENCH = Path(__file__).resolve().parents[1] / "var" / "bench"
#: Time between two looks of the schedule in the simulation of the platform.
TURN_MS = 50
WARM_UP_TURNS = 1_200


@dataclass(frozen=True)
class Rows:
    """What `series_of` needs of a history."""

    target: np.ndarray
    group: np.ndarray
    ts_ms: np.ndarray
    health: np.ndarray


def load(path: Path) -> list[Series]:
    """The series that the benchmark is about; `group` is the owner."""
    frame = (
        pl.read_parquet(path)
        .with_columns(key=pl.col("url") + "#" + pl.col("repo"), owner=pl.col("repo").str.split("/").list.first())
        .sort("ts", maintain_order=True)
        .unique(["key", "ts"], keep="first", maintain_order=True)
    )
    span = pl.col("ts").max() - pl.col("ts").min()
    frame = frame.filter(
        (span >= pl.duration(days=30)).over("key")
        & (pl.len() >= 10).over("key")
        & ((pl.col("status") == "down").mean() <= 0.98).over("key")
    )
    rows = Rows(
        target=frame["key"].to_numpy(),
        group=frame["owner"].to_numpy(),
        ts_ms=frame["ts"].dt.epoch("ms").to_numpy(),
        health=(frame["status"] != "down").cast(pl.Int8).to_numpy(),
    )
    return series_of(rows, start_ms=None)


def compare(name: str, series: list[Series], budget_per_url_hour: float) -> None:
    """A line of the table: adaptive at this budget beside uniform at one probe an hour."""
    outages = outages_of(series)
    uniform = judge_uniform(series, outages, 1.0)
    started = time.process_time()
    probes = replay_adaptive(series, AdaptivePolicy(budget_per_url_hour=budget_per_url_hour))
    seconds = time.process_time() - started
    found = judge(outages, probes)
    ratios = caught_ratios(outages, found, uniform)
    print(
        f"| {name} | {budget_per_url_hour:g} | {len(series)} / {len(outages.series):,} "
        f"| {60 * uniform.delay_h.mean():.2f} → {60 * found.delay_h.mean():.2f} "
        f"| {found.delay_h.mean() / uniform.delay_h.mean():.2f} "
        f"| {uniform.caught.mean():.1%} → {found.caught.mean():.1%} "
        f"| {found.caught.mean() / uniform.caught.mean():.2f} "
        f"| {np.quantile(ratios, 0.1):.2f} | {len(probes) / budget_of(series, budget_per_url_hour) - 1:+.3%} "
        f"| {seconds:.0f} |",
        flush=True,
    )


def scale(targets: int, due_per_s: int, seconds: int) -> None:
    """Many targets, all watched, through so many seconds: the share of a core and the memory."""
    policy = AdaptivePolicy(budget_per_url_hour=3600 * due_per_s / targets)
    rng = np.random.default_rng(0)
    started = time.process_time()
    for target in range(targets):
        policy.add(0, group=target // 4)
        policy.start(target, 0)
    print(f"{targets:,} targets added in {time.process_time() - started:.1f} s of one core")
    started, probes = time.process_time(), 0
    for second in range(1, seconds + 1):
        due = policy.due(second * 1000)
        failing = rng.random(len(due)) < 0.01
        for target, down in zip(due, failing.tolist(), strict=True):
            policy.observe(target, second * 1000, down)
        probes += len(due)
    used = time.process_time() - started
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{probes / seconds:,.0f} due a second over {seconds} s: {used / seconds:.0%} of one core, "
        f"{1e6 * used / probes:.0f} µs a probe, {memory_mb:,.0f} MB at most"
    )


class SimulatedClock:
    """Milliseconds since 1970 UTC, as far as the simulation has come."""

    now_ms = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def live(targets: int, due_per_s: int, seconds: int) -> None:
    """So many monitors with one adaptive schedule in the platform's own store and schedule, on SQLite.

    The clock is simulated, the database real; nothing is probed, and no results are stored: what a slot costs until
    it is handed out, and from its result until the next one is planned and in its row. Before what is measured, the
    round has seen all monitors.
    """
    clock = SimulatedClock()
    schedule = AdaptiveSchedule(budget_per_url_hour=3600 * due_per_s / targets, min_interval_s=60)
    rng = np.random.default_rng(0)
    BENCH.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BENCH) as folder:
        engine = open_database(f"sqlite:///{folder}/urlhealth.db")
        store = CrawlStore(engine, clock=clock)
        lease = Lease(engine, holder="benchmark", ttl_s=1e6, clock=clock)
        lease.acquire()
        started = time.process_time()
        specs = (MonitorSpec(url=f"https://m{i}.g{i // 4}.example/", schedule=schedule) for i in range(targets))
        for _ in store.create_monitors(specs):
            pass
        print(f"{targets:,} monitors created in {time.process_time() - started:.0f} s of CPU", flush=True)

        def turn() -> int:
            clock.now_ms += TURN_MS
            due = store.take_due_monitors(10_000, lease=lease, ahead_ms=AHEAD_MS)
            failing = (rng.random(len(due)) < 0.01).tolist()
            store.observe_slots(
                Probed(
                    request=ProbeRequest(target=m.target, target_id=target_id, monitor_id=m.monitor_id),
                    result=ProbeResult(
                        target=m.target.key, ts_ms=m.next_due_ms, outcome=Outcome.TIMEOUT if down else Outcome.OK
                    ),
                )
                for (target_id, m), down in zip(due, failing, strict=True)
            )
            return len(due)

        started, turns = time.process_time(), 0
        while turns < WARM_UP_TURNS + targets // SLICE or store.pools(limit=1).items[0].report is None:
            turn()
            turns += 1
        used, passed_s = time.process_time() - started, turns * TURN_MS / 1000
        print(f"all seen after {passed_s:.0f} s, with {used / passed_s:.0%} of a core", flush=True)
        started, probes, longest_s = time.process_time(), 0, 0.0
        for _ in range(round(seconds * 1000 / TURN_MS)):
            before = time.perf_counter()
            probes += turn()
            longest_s = max(longest_s, time.perf_counter() - before)
        used = time.process_time() - started
        engine.dispose()
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"live: {probes / seconds:,.0f} due a second over {seconds} s: {used / seconds:.0%} of one core, "
        f"{1e6 * used / probes:.0f} µs a probe, the longest turn {longest_s:.2f} s, {memory_mb:,.0f} MB at most"
    )


def main(arguments: Sequence[str] = ()) -> None:
    """The command line; without arguments, the simulation of scale alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.polling", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Parquet file of histories: repo, url, ts, status")
    parser.add_argument("--folds", action="store_true", help="also a line for each of five parts of the owners")
    parser.add_argument("--targets", type=int, default=1_000_000, help="targets of the simulation of scale")
    parser.add_argument("--due", type=int, default=2_000, help="probes due a second in it")
    parser.add_argument("--live", action="store_true", help="the same with the platform's store and schedule")
    parser.add_argument("--seconds", type=int, default=300, help="seconds simulated in it; 0 leaves it out")
    chosen = parser.parse_args(arguments)
    if chosen.data:
        print(
            "| histories | budget | URLs / outages | delay, min | ratio | caught | ratio | p10 | budget kept | CPU, s |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|")
        series = load(chosen.data)
        for budget in (1.0, 0.5):
            compare("all", series, budget)
        alone = [Series(**{**vars(one), "group": one.url}) for one in series]
        compare("all, groups withheld", alone, 1.0)
        for fold in range(FOLDS if chosen.folds else 0):
            part = [one for one in series if crc32(one.group.encode()) % FOLDS == fold]
            compare(f"owners, part {fold + 1} of {FOLDS}", part, 1.0)
    if chosen.live:
        live(chosen.targets, chosen.due, chosen.seconds)
    elif chosen.seconds:
        scale(chosen.targets, chosen.due, chosen.seconds)


if __name__ == "__main__":
    main(sys.argv[1:])
