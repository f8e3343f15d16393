"""The pipeline over every backend: what a writer that was replaced, a crash and a rebuild leave in the stores."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl
import pytest
import sqlalchemy as sa

from urlhealth import rebuild
from urlhealth.crawl.carried import REBUILD, CarriedStore
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import LeaseLost
from urlhealth.feast_stores import segments
from urlhealth.feast_stores.packed import Layout
from urlhealth.feast_stores.stores import Draft, FeatureStores
from urlhealth.features.catalog import STATE_VIEWS, URL_STATE
from urlhealth.pipeline import Pipeline
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult, Target

T0_MS = 1_800_000_000_000 - 86_400_000
TARGETS = [Target(url=f"https://h{i}.example.com/", host=f"h{i}.example.com", group="example.com") for i in range(5)]
KEYS = [target.key for target in TARGETS]


class HandClock(Protocol):
    now_ms: int

    def __call__(self) -> int: ...


@dataclass
class Process:
    """What one process has of its own: a lease and the stores' objects."""

    lease: Lease
    carried: CarriedStore
    features: FeatureStores
    pipeline: Pipeline


@pytest.fixture
def probes(engine: sa.Engine, clock: HandClock) -> CrawlStore:
    return CrawlStore(engine, clock=clock)


@pytest.fixture
def process(
    engine: sa.Engine, clock: HandClock, probes: CrawlStore, tmp_path: Path, online_store: str
) -> Callable[[str], Process]:
    """Makes processes of one platform, which has run before."""
    settings = Settings(home=tmp_path, online_store=online_store and f"{online_store}-{uuid.uuid4().hex}")

    def make(name: str) -> Process:
        lease, carried = Lease(engine, holder=name, ttl_s=10, clock=clock), CarriedStore(engine)
        features = FeatureStores(settings)
        pipeline = Pipeline(
            probes=probes, carried=carried, features=features, lease=lease, clock=clock, known_for_s=9e5, late_s=600.0
        )
        return Process(lease, carried, features, pipeline)

    first = make("first")
    with first.lease.kept():
        assert first.pipeline.step() == 0  # a new database: whatever is in the feature stores is not of it
    return make


def probe(probes: CrawlStore, *minutes: int) -> None:
    """Each target probed at these minutes; every third time it is down."""
    probes.import_probes(
        (target, ProbeResult(target=target.key, ts_ms=T0_MS + 60_000 * minute, outcome=outcome, http_version="2"))
        for minute in minutes
        for target in TARGETS
        for outcome in [Outcome.OK if minute % 3 else Outcome.TIMEOUT]
    )


def offline(tmp_path: Path) -> list[pl.DataFrame]:
    """All rows of each view, without the time at which they were computed."""
    frames = [segments.scan(tmp_path / "feast" / "offline" / view.name).collect() for view in STATE_VIEWS]
    return [frame.drop("created_timestamp").sort(frame.columns[:2]) for frame in frames if frame.height]


def online(process: Process) -> list[bytes]:
    keys = {"url": KEYS, "host": [target.host for target in TARGETS], "group": ["example.com"]}
    return [process.features.read(view, keys[view.entity]).states.tobytes() for view in STATE_VIEWS]


def hidden(tmp_path: Path) -> list[Path]:
    return [
        path for path in (tmp_path / "feast" / "offline").rglob(".*") if path.name != ".staged" or any(path.iterdir())
    ]


@contextmanager
def stalled(process: Process, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BaseException]]:
    """The process's step, begun in a thread of its own and stopped before it saves, until the body ends.

    What the step raised is in the list then.
    """
    reached, go_on, raised, save = threading.Event(), threading.Event(), [], process.carried.save

    def late_save(*args: Any, **kwargs: Any) -> None:
        reached.set()
        assert go_on.wait(60)
        save(*args, **kwargs)

    def step() -> None:
        try:
            process.pipeline.step()
        except BaseException as error:
            raised.append(error)

    monkeypatch.setattr(process.carried, "save", late_save)
    thread = threading.Thread(target=step)
    thread.start()
    assert reached.wait(60)
    try:
        yield raised
    finally:
        go_on.set()
        thread.join()
        monkeypatch.undo()


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_writer_that_stalled_past_its_lease_publishes_nothing(
    rebuild: bool,
    process: Callable[[str], Process],
    probes: CrawlStore,
    clock: HandClock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = process("old"), process("new")
    probe(probes, 0, 1)
    if rebuild:
        old.pipeline.request_rebuild()
    assert old.lease.acquire()
    with stalled(old, monkeypatch) as raised:
        probe(probes, 2, 3, 4, 5)
        clock.now_ms += 10_000
        assert new.lease.acquire()
        assert new.pipeline.step() == 6 * len(TARGETS)
        rows, states = offline(tmp_path), online(new)
        assert rows[0].height == 6 * len(TARGETS)
    assert [type(error) for error in raised] == [LeaseLost]
    assert [frame.equals(before) for frame, before in zip(offline(tmp_path), rows, strict=True)] == [True] * 3
    assert online(new) == states
    assert new.pipeline.is_current()
    assert hidden(tmp_path) == []


def test_a_crash_after_publishing_repeats_the_batch(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = process("writer")
    probe(probes, 0, 1, 2)
    assert writer.lease.acquire()
    monkeypatch.setattr(writer.carried, "_write_position", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.pipeline.step()
    monkeypatch.undo()
    assert offline(tmp_path)[0].height == 3 * len(TARGETS)
    probe(probes, 3)
    writer.pipeline.step()
    assert offline(tmp_path)[0].height == 4 * len(TARGETS)
    assert writer.features.read(URL_STATE, KEYS).states["checks"].sum() == 4 * len(TARGETS)


def test_what_a_killed_writer_left_is_removed(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path
) -> None:
    """A staged segment, and a rebuild's draft, of a process that never came to its `finally`."""
    writer = process("writer")
    probe(probes, 0)
    assert writer.lease.acquire()
    writer.pipeline.step()
    folder = tmp_path / "feast" / "offline"
    rows = segments.scan(folder / "url_state").collect().to_arrow()
    segments.stage(folder / "url_state", rows, timestamp_column="event_timestamp", segment="0")
    draft = Draft(".draft-1", folder, writer.features._online, {URL_STATE: "urlhealth_url_state"})
    segments.append(draft._folder / "url_state", rows, timestamp_column="event_timestamp", segment="0")
    writer.features._online.define(draft._drafts[URL_STATE], Layout.of(URL_STATE))
    assert len(hidden(tmp_path)) == 2
    again = process("again")
    probe(probes, 1)
    writer.lease.release()
    assert again.lease.acquire()
    again.pipeline.step()
    assert hidden(tmp_path) == []
    assert sorted(again.features._online.tables()) == sorted(f"urlhealth_{view.name}" for view in STATE_VIEWS)
    assert offline(tmp_path)[0].height == 2 * len(TARGETS)


def test_a_rebuild_brings_in_what_came_too_late_and_doubles_nothing(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path
) -> None:
    writer, asking = process("writer"), process("asking")
    assert writer.lease.acquire()
    for minutes in ([50, 100, 101, 103], [0, 102], [104]):
        probe(probes, *minutes)
        writer.pipeline.step()
    assert writer.pipeline.late_total == len(TARGETS)
    before = online(writer)
    asking.pipeline.request_rebuild()
    assert (writer.carried.position(), writer.pipeline.is_current()) == (REBUILD, False)
    assert online(writer) == before  # served until the new ones are there
    assert writer.pipeline.step() == 7 * len(TARGETS)
    assert offline(tmp_path)[0].height == 7 * len(TARGETS)
    assert writer.features.read(URL_STATE, KEYS).states["checks"].tolist() == [7] * len(TARGETS)
    assert writer.pipeline.is_current()
    probe(probes, 105)
    writer.pipeline.step()
    live = offline(tmp_path), online(writer)
    writer.pipeline.request_rebuild()
    writer.pipeline.step()
    for now, was in zip(offline(tmp_path), live[0], strict=True):
        assert now.equals(was)
    assert online(writer) == live[1]


def test_a_rebuild_part_by_part_is_the_same(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three parts, read in small batches: one host has two groups, one of these two hosts, two targets are alone."""
    named = [("a", "x", "g1"), ("b", "x", "g2"), ("c", "y", "g2"), ("d", "z", "g3"), ("e", "v", "g4")]
    targets = [Target(url=f"https://{host}.com/{path}", host=f"{host}.com", group=group) for path, host, group in named]
    writer = process("writer")
    assert writer.lease.acquire()
    for minutes in ([0, 1, 2], [3, 4, 6], [9]):
        probes.import_probes(
            (
                target,
                ProbeResult(
                    target=target.key, ts_ms=T0_MS + 60_000 * minute + 1000 * i, outcome=outcome, http_version="2"
                ),
            )
            for minute in minutes
            for i, target in enumerate(targets)
            for outcome in [Outcome.OK if (minute + i) % 3 else Outcome.TIMEOUT]
        )
        writer.pipeline.step()
    keys = {
        "url": [t.key for t in targets],
        "host": sorted({t.host for t in targets}),
        "group": ["g1", "g2", "g3", "g4"],
    }

    def everything() -> tuple[list[pl.DataFrame], list[bytes], list[dict[str, bytes]]]:
        states = [writer.features.read(view, keys[view.entity]).states.tobytes() for view in STATE_VIEWS]
        return offline(tmp_path), states, [writer.carried.load(kind, of_kind) for kind, of_kind in keys.items()]

    live = everything()
    monkeypatch.setattr(rebuild, "TARGETS", 1)
    assert len([*probes.parts(targets_a_part=1)]) == 3
    writer.pipeline.request_rebuild()
    assert writer.pipeline.step() == 7 * len(targets)
    rebuilt = everything()
    assert set(rebuilt[0][0]["http_version"]) == {20}
    assert [now.equals(was) for now, was in zip(rebuilt[0], live[0], strict=True)] == [True] * 3
    assert rebuilt[1] == live[1]
    assert [len(of_kind) for of_kind in rebuilt[2]] == [5, 4, 4]
    assert writer.pipeline.is_current()


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_verdicts_of_a_part_come_once_and_by_time(limit: int, probes: CrawlStore) -> None:
    """Imported backwards, with a gap of a month; five are of one millisecond."""
    for minutes in ([50_003, 50_002], [50_001, 3], [1, 0, 2]):
        probe(probes, *minutes)
    [part] = probes.parts(targets_a_part=100)
    *ids, newest = probes.verdicts_after(0, limit=1000).probe_id.tolist()
    batches = [*probes.verdicts_of(part, until=newest - 1, limit=limit)]
    assert sorted(id_ for batch in batches for id_ in batch.probe_id.tolist()) == ids
    spans = [(batch.ts_ms.min(), batch.ts_ms.max()) for batch in batches]
    assert all(before[1] < after[0] for before, after in pairwise(spans))
    assert all(len(batch) <= max(limit, len(TARGETS)) for batch in batches)


def test_a_step_under_way_when_a_rebuild_is_asked_for_is_refused(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = process("writer")
    assert writer.lease.acquire()
    probe(probes, 0)
    with stalled(writer, monkeypatch) as raised:
        process("asking").pipeline.request_rebuild()
    assert [type(error) for error in raised] == [LeaseLost]
    assert offline(tmp_path) == []
    assert writer.pipeline.step() == len(TARGETS)
    assert offline(tmp_path)[0].height == len(TARGETS)


def test_a_rebuild_that_was_cut_short_is_made_by_the_next_writer(
    process: Callable[[str], Process], probes: CrawlStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer, heir = process("writer"), process("heir")
    probe(probes, *range(4))
    assert writer.lease.acquire()
    writer.pipeline.step()
    before = offline(tmp_path)
    writer.pipeline.request_rebuild()
    monkeypatch.setattr(writer.features._online, "replace", lambda _: 1 / 0)  # the offline rows are in place by then
    with pytest.raises(ZeroDivisionError):
        writer.pipeline.step()
    assert writer.carried.position() == REBUILD
    writer.lease.release()
    assert heir.lease.acquire()
    heir.pipeline.step()
    assert all(now.equals(was) for now, was in zip(offline(tmp_path), before, strict=True))
    assert np.frombuffer(online(heir)[0], URL_STATE.dtype)["checks"].tolist() == [4] * len(TARGETS)


@pytest.mark.parametrize("new_database", [False, True])
def test_a_rebuild_of_no_history_empties_the_stores(
    new_database: bool, process: Callable[[str], Process], probes: CrawlStore, engine: sa.Engine, tmp_path: Path
) -> None:
    writer = process("writer")
    probe(probes, 0)
    assert writer.lease.acquire()
    writer.pipeline.step()
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM probes"))
        if new_database:
            connection.execute(sa.text("DELETE FROM pipeline_positions"))
    if not new_database:
        writer.pipeline.request_rebuild()
    assert writer.pipeline.step() == 0
    assert writer.pipeline.is_current()
    assert offline(tmp_path) == []
    assert not writer.features.read(URL_STATE, KEYS).ts_ms.any()


def test_a_clock_that_goes_back_keeps_no_state_from_being_served(
    process: Callable[[str], Process], probes: CrawlStore, clock: HandClock, tmp_path: Path
) -> None:
    """When a row was computed breaks ties only; what is newer by its probe is newer."""
    writer = process("writer")
    assert writer.lease.acquire()
    probe(probes, 0, 1)
    writer.pipeline.step()
    clock.now_ms -= 86_400_000
    probe(probes, 2)
    with writer.lease.kept():
        assert writer.pipeline.step() == len(TARGETS)
    assert writer.features.read(URL_STATE, KEYS).states["checks"].tolist() == [3] * len(TARGETS)
    assert all(view.ok for view in writer.features.consistency())
    assert offline(tmp_path)[0].height == 3 * len(TARGETS)


def test_after_a_probe_from_the_future_nothing_is_lost(process: Callable[[str], Process], probes: CrawlStore) -> None:
    """What is imported after it is older by more than `late_s`: it enters, for the writer makes all features anew."""
    writer = process("writer")
    assert writer.lease.acquire()
    for minutes in ((0, 1), (1440,), (2, 4)):
        probe(probes, *minutes)
        while writer.pipeline.step():
            pass
    states = writer.features.read(URL_STATE, KEYS)
    assert states.states["checks"].tolist() == [5] * len(TARGETS)
    assert states.ts_ms.tolist() == [T0_MS + 1440 * 60_000] * len(TARGETS)
