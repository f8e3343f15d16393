"""Roll-ups, spells and what is read from them, over every backend."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from random import Random

import pytest
import sqlalchemy as sa

from tests.contract.conftest import HandClock
from urlhealth.crawl import rollups as rollups_module
from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.reading import DAY_MS, HOUR_MS
from urlhealth.crawl.rollups import Rollups
from urlhealth.crawl.schema import metadata, pipeline_positions
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest, LeaseLost, NotFound
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Health, Outcome, ProbeResult, Target

URL = "https://a.example/"
TARGET = parse_target(URL)
KNOWN_FOR_S = 6 * 3600
TABLES = ("rollups", "spells")


@pytest.fixture
def store(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


@pytest.fixture
def rollups(engine: sa.Engine) -> Rollups:
    return Rollups(engine, known_for_s=KNOWN_FOR_S)


def probe(
    ts_ms: int, outcome: Outcome = Outcome.OK, *, target: Target = TARGET, **more: float
) -> tuple[Target, ProbeResult]:
    return target, ProbeResult(target=target.key, ts_ms=ts_ms, outcome=outcome, **more)  # type: ignore[arg-type]


def kept(engine: sa.Engine) -> dict[str, list[tuple[object, ...]]]:
    """All roll-ups and spells, as they are stored."""
    with engine.connect() as connection:
        return {
            name: [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]
            for name in TABLES
            for table in [metadata.tables[name]]
        }


def forget(engine: sa.Engine) -> None:
    with writing(engine) as connection:
        for name in TABLES:
            connection.execute(sa.delete(metadata.tables[name]))
        connection.execute(sa.delete(pipeline_positions))


def random_probes(random: Random, now_ms: int) -> list[tuple[Target, ProbeResult]]:
    """Probes of a few targets over some days, with gaps, in no order."""
    targets = [parse_target(f"http{'s' * (i % 2)}://h{i}.example/") for i in range(3)]
    outcomes = [Outcome.OK] * 6 + [Outcome.TIMEOUT, Outcome.HTTP_ERROR, Outcome.BLOCKED]
    return [
        probe(
            now_ms - random.randrange(5 * DAY_MS),
            random.choice(outcomes),
            target=random.choice(targets),
            total_ms=random.choice([0.01, random.lognormvariate(4, 1), 1e9]),
            dns_ms=1.0,
            connect_ms=1.0,
        )
        for _ in range(400)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_kept_equals_a_recomputation_however_the_probes_came(
    seed: int,
    store: CrawlStore,
    rollups: Rollups,
    engine: sa.Engine,
    lease: Lease,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random = Random(seed)
    probes = random_probes(random, clock.now_ms)
    monkeypatch.setattr(rollups_module, "BATCH", 37)
    for start in range(0, len(probes), 50):
        store.import_probes(probes[start : start + 50])
        for _ in range(random.randrange(3)):
            rollups.step(lease=lease)
    while rollups.step(lease=lease):
        pass
    before = kept(engine)
    assert before["spells"]
    forget(engine)
    monkeypatch.setattr(rollups_module, "BATCH", 1_000_000)
    assert rollups.step(lease=lease) == len(probes)
    assert kept(engine) == before


def test_what_is_read_equals_a_plain_computation(
    store: CrawlStore, rollups: Rollups, lease: Lease, clock: HandClock
) -> None:
    probes = [found for found in random_probes(Random(7), clock.now_ms) if found[0].url == "https://h1.example/"]
    store.import_probes(probes)
    rollups.step(lease=lease)
    results = sorted((result for _, result in probes), key=lambda result: result.ts_ms)

    for step_ms in (3 * HOUR_MS, DAY_MS):
        history = store.url_history("https://h1.example", from_ms=clock.now_ms - 5 * DAY_MS, step_ms=step_ms)
        by_step: dict[int, list[ProbeResult]] = {}
        for result in results:
            by_step.setdefault(result.ts_ms - result.ts_ms % step_ms, []).append(result)
        assert [point.start_ms for point in history.points] == sorted(by_step)
        for point in history.points:
            expected, found = by_step[point.start_ms], point.summary
            assert found.outcomes == Counter(result.outcome.value for result in expected)
            check_durations(found, [min(r.total_ms or 0, 6e5) for r in expected if r.outcome is Outcome.OK])

    state = store.url_state("https://h1.example/", known_for_s=KNOWN_FOR_S)
    for name, length_ms in {"24h": DAY_MS, "7d": 7 * DAY_MS}.items():
        assert state.uptime[name] == pytest.approx(plain_uptime(results, clock.now_ms - length_ms, clock.now_ms))


def check_durations(found: rollups_module.Any, durations: Sequence[float]) -> None:
    if not durations:
        assert found.mean_ms is None
        return
    ordered = sorted(max(ms, 0.1) for ms in durations)
    assert found.mean_ms == pytest.approx(statistics.fmean(durations), rel=0.01)
    assert found.deviation_ms == pytest.approx(statistics.pstdev(durations), rel=0.01, abs=0.01)
    for share, value in ((0.5, found.p50_ms), (0.95, found.p95_ms)):
        assert value == pytest.approx(ordered[math.ceil(share * len(ordered)) - 1], rel=0.03)


def plain_uptime(results: Sequence[ProbeResult], from_ms: int, now_ms: int) -> float:
    known = [result for result in results if result.outcome.health is not Health.UNKNOWN]
    sums = {Health.UP: 0, Health.DOWN: 0}
    for result, following in pairwise([*[(r.ts_ms, r) for r in known], (2**62, known[-1])]):
        end_ms = min(following[0], result[0] + KNOWN_FOR_S * 1000, now_ms)
        sums[result[1].outcome.health] += max(0, end_ms - max(result[0], from_ms))
    return sums[Health.UP] / sum(sums.values())


def test_the_state_of_a_url(store: CrawlStore, rollups: Rollups, lease: Lease, clock: HandClock) -> None:
    now_ms = clock.now_ms
    store.import_probes([probe(now_ms - 3 * HOUR_MS), probe(now_ms - 2 * HOUR_MS, Outcome.DNS, total_ms=3.0)])
    rollups.step(lease=lease)
    state = store.url_state("https://A.example", known_for_s=KNOWN_FOR_S)
    assert (state.target, state.health, state.since_ms) == (TARGET, Health.DOWN, now_ms - 2 * HOUR_MS)
    assert state.uptime == dict.fromkeys(("24h", "7d", "30d", "1y"), pytest.approx(1 / 3))
    assert state.last == probe(now_ms - 2 * HOUR_MS, Outcome.DNS, total_ms=3.0)[1]
    # What the writer has not come to yet is seen all the same; what says nothing changes nothing.
    store.import_probes([probe(now_ms - HOUR_MS), probe(now_ms - 1000, Outcome.BLOCKED)])
    state = store.url_state(URL, known_for_s=KNOWN_FOR_S)
    assert (state.health, state.since_ms) == (Health.UP, now_ms - HOUR_MS)
    assert state.last is not None
    assert state.last.outcome is Outcome.BLOCKED
    clock.now_ms += 1000 * KNOWN_FOR_S
    state = store.url_state(URL, known_for_s=KNOWN_FOR_S)
    assert (state.health, state.since_ms) == (Health.UNKNOWN, None)


def test_incidents_newest_first_by_page(store: CrawlStore, rollups: Rollups, lease: Lease, clock: HandClock) -> None:
    now_ms = clock.now_ms
    timeout = {"dns_ms": 1.0, "connect_ms": 2.0}
    store.import_probes(
        [
            probe(now_ms - 50 * HOUR_MS, Outcome.HTTP_ERROR),  # nothing is heard for longer than a state is known
            probe(now_ms - 40 * HOUR_MS),
            probe(now_ms - 30 * HOUR_MS, Outcome.TIMEOUT, **timeout),
            probe(now_ms - 29 * HOUR_MS, Outcome.CONNECT),
            probe(now_ms - 28 * HOUR_MS),
            probe(now_ms - HOUR_MS, Outcome.DNS),
        ]
    )
    rollups.step(lease=lease)
    first = store.url_incidents(URL, limit=2)
    second = store.url_incidents(URL, limit=2, cursor=first.next_cursor)
    found = [
        ((now_ms - i.start_ms) / HOUR_MS, i.end_ms and (now_ms - i.end_ms) / HOUR_MS, i.outcome, i.phase)
        for i in first.items + second.items
    ]
    assert found == [
        (1, None, Outcome.DNS, "dns"),
        (30, 28, Outcome.TIMEOUT, "tls"),
        (50, 44, Outcome.HTTP_ERROR, "answer"),
    ]
    assert second.next_cursor is None


def test_steps_below_an_hour_are_read_from_the_probes(store: CrawlStore, clock: HandClock) -> None:
    now_ms = clock.now_ms - clock.now_ms % DAY_MS
    clock.now_ms = now_ms
    store.import_probes(probe(now_ms - 60_000 * minute, total_ms=100.0) for minute in range(1, 31))
    history = store.url_history(URL, from_ms=now_ms - HOUR_MS, step_ms=600_000)
    assert [point.summary.outcomes for point in history.points] == [{"ok": 10}] * 3
    assert (history.points[0].start_ms, history.to_ms) == (now_ms - 30 * 60_000, now_ms)
    assert store.url_history(URL).step_ms == 300_000


@pytest.mark.parametrize(
    ("from_ms", "step_ms", "words"),
    [
        (0, DAY_MS, "1000 are the most"),
        (DAY_MS * 19_000, HOUR_MS // 2, "points"),
        (1_800_000_000_000 - 3 * DAY_MS, HOUR_MS // 2, "a day at most"),
        (1_800_000_000_000 - 400 * DAY_MS, 11 * HOUR_MS, "two months at most"),
        (1_900_000_000_000, HOUR_MS, "not before"),
    ],
)
def test_steps_that_do_not_fit(store: CrawlStore, from_ms: int, step_ms: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        store.url_history(URL, from_ms=from_ms, step_ms=step_ms)


def test_a_url_that_was_never_probed(store: CrawlStore) -> None:
    with pytest.raises(NotFound, match="never probed"):
        store.url_state(URL, known_for_s=KNOWN_FOR_S)


def test_only_the_writer_rolls_up(
    store: CrawlStore, rollups: Rollups, engine: sa.Engine, lease: Lease, clock: HandClock
) -> None:
    store.import_probes([probe(clock.now_ms)])
    clock.now_ms += 60_000
    assert Lease(engine, holder="another", ttl_s=10, clock=clock).acquire()
    with pytest.raises(LeaseLost):
        rollups.step(lease=lease)
    assert kept(engine) == {"rollups": [], "spells": []}
