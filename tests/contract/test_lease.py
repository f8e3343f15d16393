"""The lease that makes one process the writer, and what is written under it, the same over every backend."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import pytest
import sqlalchemy as sa

from tests.support import wait_until
from urlhealth.crawl.carried import REBUILD, CarriedStore
from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.schema import leases
from urlhealth.errors import LeaseLost


class HandClock(Protocol):
    now_ms: int

    def __call__(self) -> int: ...


@pytest.fixture
def other(engine: sa.Engine, clock: HandClock) -> Lease:
    return Lease(engine, holder="other", ttl_s=10, clock=clock)


def fenced(engine: sa.Engine, lease: Lease) -> bool:
    """Whether the lease's holder may write."""
    try:
        with writing(engine) as connection:
            lease.fence(connection)
    except LeaseLost:
        return False
    return True


def expires_ms(engine: sa.Engine) -> int:
    with engine.connect() as connection:
        return int(connection.scalar(sa.select(leases.c.expires_ms)) or 0)


class TestLease:
    def test_one_holds_it_until_it_expires(self, lease: Lease, other: Lease, clock: HandClock) -> None:
        clock.now_ms += 9_999
        assert not other.acquire()
        assert (lease.held, other.held) == (True, False)
        clock.now_ms += 1
        assert not lease.held
        assert other.acquire()
        assert not lease.acquire()
        assert (lease.held, other.held) == (False, True)

    def test_a_renewed_lease_does_not_expire(self, lease: Lease, other: Lease, clock: HandClock) -> None:
        for _ in range(3):
            clock.now_ms += 9_000
            assert lease.acquire()
            assert not other.acquire()

    def test_a_released_lease_is_free_at_once(self, lease: Lease, other: Lease, engine: sa.Engine) -> None:
        lease.release()
        assert not lease.held
        assert not fenced(engine, lease)
        assert other.acquire()

    def test_who_does_not_hold_it_cannot_release_it(self, lease: Lease, other: Lease, engine: sa.Engine) -> None:
        other.release()
        assert fenced(engine, lease)
        assert not other.acquire()

    def test_leases_of_other_names_are_independent(self, lease: Lease, engine: sa.Engine, clock: HandClock) -> None:
        assert Lease(engine, name="another", holder="other", ttl_s=10, clock=clock).acquire()
        assert fenced(engine, lease)

    def test_the_fence_tells_who_was_overtaken(
        self, lease: Lease, other: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        clock.now_ms += 10_000
        assert fenced(engine, lease)  # expired, but nobody else writes
        other.acquire()
        clock.now_ms -= 5_000  # as if this process had not noticed
        assert lease.held
        assert not fenced(engine, lease)
        assert not lease.held
        assert fenced(engine, other)

    def test_a_takeover_waits_for_the_transaction_of_the_holder(
        self, lease: Lease, other: Lease, engine: sa.Engine, clock: HandClock
    ) -> None:
        with ThreadPoolExecutor(1) as pool:
            with writing(engine) as connection:
                lease.fence(connection)
                clock.now_ms += 10_000
                takeover = pool.submit(other.acquire)
                with pytest.raises(TimeoutError):
                    takeover.result(timeout=0.2)
                lease.fence(connection)
            assert takeover.result(timeout=10)

    def test_it_is_renewed_while_its_holder_works_and_given_back(
        self, engine: sa.Engine, other: Lease, clock: HandClock
    ) -> None:
        brief = Lease(engine, holder="brief", ttl_s=0.04, clock=clock)
        with brief.kept() as mine:
            assert mine
            for _ in range(3):
                clock.now_ms += 39
                wait_until(
                    lambda: expires_ms(engine) == clock.now_ms + 40, timeout_s=30, what="the lease to be renewed"
                )
                assert not other.acquire()
        assert other.acquire()
        with brief.kept() as mine:
            assert not mine
        with other.kept() as mine:
            assert mine
        assert other.held  # as before


class TestCarried:
    def test_states_and_position_are_read_back(self, engine: sa.Engine, lease: Lease) -> None:
        carried = CarriedStore(engine)
        assert carried.position() == REBUILD
        assert carried.load("url", ["a"]) == {}
        carried.save(7, {"url": {"a": b"\x00\xff", "b": b""}, "host": {"a": b"h"}}, lease=lease)
        carried.save(9, {"url": {"b": b"2"}}, lease=lease)
        again = CarriedStore(engine)
        assert again.position() == 9
        assert again.load("url", ["a", "b", "c"]) == {"a": b"\x00\xff", "b": b"2"}
        assert again.load("host", ["a", "b"]) == {"a": b"h"}

    def test_many_keys(self, engine: sa.Engine, lease: Lease) -> None:
        states = {f"https://h{i}.example.com/": str(i).encode() for i in range(12_000)}
        carried = CarriedStore(engine)
        carried.save(1, {"url": states}, lease=lease)
        assert carried.load("url", list(states)) == states

    def test_nothing_is_saved_without_the_lease(
        self, engine: sa.Engine, lease: Lease, other: Lease, clock: HandClock
    ) -> None:
        carried = CarriedStore(engine)
        carried.save(3, {"url": {"a": b"old"}}, lease=lease)
        clock.now_ms += 10_000
        other.acquire()
        published: list[int] = []
        with pytest.raises(LeaseLost):
            carried.save(4, {"url": {"a": b"new"}}, lease=lease, publish=lambda: published.append(4))
        assert (carried.position(), published) == (3, [])
        assert carried.load("url", ["a"]) == {"a": b"old"}

    def test_states_computed_from_old_ones_are_refused(
        self, engine: sa.Engine, lease: Lease, other: Lease, clock: HandClock
    ) -> None:
        mine, others = CarriedStore(engine), CarriedStore(engine)
        mine.position()
        clock.now_ms += 10_000
        other.acquire()
        others.position()
        others.save(5, {"url": {"a": b"theirs"}}, lease=other)
        clock.now_ms += 10_000
        lease.acquire()
        with pytest.raises(LeaseLost, match="meanwhile"):
            mine.save(6, {"url": {"a": b"mine"}}, lease=lease)
        assert mine.position() == 5
        mine.save(6, {"url": {"a": b"mine"}}, lease=lease)

    def test_state_and_position_are_saved_together_or_not_at_all(self, engine: sa.Engine, lease: Lease) -> None:
        carried = CarriedStore(engine)
        carried.save(1, {"url": {"a": b"1"}}, lease=lease)
        with pytest.raises(sa.exc.StatementError):
            carried.save(2, {"url": {"a": b"2", "b": None}}, lease=lease)  # type: ignore[dict-item]
        assert carried.position() == 1
        assert carried.load("url", ["a", "b"]) == {"a": b"1"}

    def test_any_process_may_ask_for_a_rebuild_and_the_writer_notices(
        self, engine: sa.Engine, lease: Lease, other: Lease
    ) -> None:
        carried = CarriedStore(engine)
        carried.save(3, {"url": {"a": b"1"}}, lease=lease)
        CarriedStore(engine).clear(lease=other)
        with pytest.raises(LeaseLost, match="a rebuild was asked for"):
            carried.save(4, {}, lease=lease)
        assert carried.position() == REBUILD
        carried.forget(lease=lease)
        assert carried.load("url", ["a"]) == {}
        carried.save(1, {}, lease=lease)

    def test_what_a_rebuild_adds_is_refused_when_another_one_is_asked_for(
        self, engine: sa.Engine, lease: Lease, other: Lease
    ) -> None:
        carried = CarriedStore(engine)
        CarriedStore(engine).clear(lease=other)
        assert carried.position() == REBUILD
        states = {f"https://h{i}.example.com/": b"1" for i in range(4_500)}
        carried.add({"url": states, "host": {"h": b"2"}}, lease=lease)
        assert carried.load("url", [*states]) == states
        assert carried.position() == REBUILD
        CarriedStore(engine).clear(lease=other)
        with pytest.raises(LeaseLost, match="a rebuild was asked for"):
            carried.add({"group": {"g": b"3"}}, lease=lease)
        with pytest.raises(LeaseLost):
            carried.forget(lease=lease)
        assert carried.position() == REBUILD
        carried.forget(lease=lease)
        assert (carried.load("url", [*states]), carried.load("host", ["h"])) == ({}, {})

    def test_a_rebuild_is_asked_for_between_the_writers_transactions(
        self, engine: sa.Engine, lease: Lease, other: Lease
    ) -> None:
        carried = CarriedStore(engine)
        with ThreadPoolExecutor(1) as pool:
            asking: list[Future[None]] = []

            def publish() -> None:
                asking.append(pool.submit(CarriedStore(engine).clear, lease=other))
                with pytest.raises(TimeoutError):
                    asking[0].result(timeout=0.2)

            carried.save(3, {"url": {"a": b"1"}}, lease=lease, publish=publish)
            asking[0].result(timeout=10)
        assert carried.position() == REBUILD
