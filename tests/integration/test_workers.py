"""Workers on a broker: nothing is lost or doubled when one dies, hosts are treated alike, and Flower sees them."""

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.brokers import BROKERS, WorkerProcess, broker_url, queues
from tests.misbehaving import OK, Behaviour, say, serving
from tests.support import BIN, environment, free_port, program, run, wait_until
from urlhealth.errors import ConfigurationError
from urlhealth.probing.broker import Batch, Report, heard, make_app, told
from urlhealth.probing.queue import UNTAKEN_S, CeleryDispatcher
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Attempt, Outcome, Probed, ProbeOptions, ProbeRequest, ProbeResult


class Bench:
    """A broker's queues of a test's own: workers and dispatchers on them."""

    def __init__(self, stack: ExitStack, home: Path, url: str) -> None:
        self.stack, self.home, self.url = stack, home, url
        self.prefix = stack.enter_context(queues(url))

    def worker(self, *arguments: str, **settings: str) -> WorkerProcess:
        names = {"URLHEALTH_BROKER_URL": self.url, "URLHEALTH_BROKER_PREFIX": self.prefix}
        return self.stack.enter_context(closing(WorkerProcess(self.home, *arguments, **names | settings)))

    def dispatcher(self, **more: Any) -> CeleryDispatcher:
        app = make_app(self.url, prefix=self.prefix)
        made = CeleryDispatcher(app, prefix=self.prefix, worker_id="tests", concurrency=64, **more)
        return self.stack.enter_context(closing(made))

    def serve(self, behave: Behaviour) -> int:
        return self.stack.enter_context(serving(behave))


@pytest.fixture(params=sorted(BROKERS))
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path, broker_url(request.param))


@pytest.fixture
def on_redis(tmp_path: Path) -> Iterator[Bench]:
    with ExitStack() as stack:
        yield Bench(stack, tmp_path, broker_url("redis"))


def requests_to(port: int, number: int, *, hosts: int = 1, task_id: str | None = "task") -> list[ProbeRequest]:
    return [
        ProbeRequest(target=parse_target(f"http://h{i % hosts}.localhost:{port}/{i}"), target_id=i, task_id=task_id)
        for i in range(number)
    ]


def collect(dispatcher: CeleryDispatcher, number: int, *, until: Callable[[int], bool] | None = None) -> list[Probed]:
    """Results until there are so many, or `until` says of their number that it is enough."""
    found: list[Probed] = []
    deadline = time.monotonic() + 60
    while len(found) < number and not (until and until(len(found))):
        assert time.monotonic() < deadline, f"{number - len(found)} results are missing"
        found += dispatcher.results(0.2)
    return found


def slowly(connection: socket.socket) -> None:
    time.sleep(0.02)
    say(OK)(connection)


def test_the_batches_of_a_worker_that_is_killed_are_probed_by_another_one_and_not_doubled(bench: Bench) -> None:
    first = bench.worker().wait_ready()
    second = bench.worker()
    dispatcher = bench.dispatcher(silence_s=3.0)
    dispatcher.submit(requests_to(bench.serve(slowly), 600, hosts=20))
    found = collect(dispatcher, 600, until=lambda number: number > 50)
    first.close()
    assert len(found) < 600, "the kill did not come in the middle"
    second.wait_ready()
    found += collect(dispatcher, 600 - len(found))
    assert sorted(probed.request.target_id for probed in found) == list(range(600))
    assert len({probed.worker_id for probed in found}) == 2
    assert dispatcher.results(1.5) == []  # what was sent twice is answered twice, and told once


def test_a_worker_that_wakes_up_after_its_batches_went_to_another_one_doubles_nothing(on_redis: Bench) -> None:
    first = on_redis.worker().wait_ready()
    dispatcher = on_redis.dispatcher(silence_s=3.0)
    dispatcher.submit(requests_to(on_redis.serve(slowly), 300, hosts=20))
    found = collect(dispatcher, 300, until=lambda number: number > 20)
    os.killpg(first.process.pid, signal.SIGSTOP)
    assert len(found) < 300, "the stop did not come in the middle"
    on_redis.worker().wait_ready()
    found += collect(dispatcher, 300 - len(found))
    os.killpg(first.process.pid, signal.SIGCONT)
    assert dispatcher.results(3.0) == []
    assert sorted(probed.request.target_id for probed in found) == list(range(300))


def test_two_workers_together_are_as_polite_to_a_host_as_one(on_redis: Bench) -> None:
    lock = threading.Lock()
    now, most = 0, 0

    def count(connection: socket.socket) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.02)
        with lock:
            now -= 1
        say(OK)(connection)

    workers = [on_redis.worker(URLHEALTH_PROBE_CONCURRENCY_PER_HOST="4") for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    dispatcher = on_redis.dispatcher()
    port = on_redis.serve(count)
    for some in range(0, 300, 20):  # as they come from a runner: a few at a time
        dispatcher.submit(requests_to(port, 300)[some : some + 20])
    found = collect(dispatcher, 300)
    assert len({probed.worker_id for probed in found}) == 2
    assert most <= 4


def test_without_a_worker_the_queue_is_bounded_and_a_worker_that_comes_finds_it(on_redis: Bench) -> None:
    dispatcher = on_redis.dispatcher()
    free = dispatcher.capacity
    assert 0 < free < 1_000
    dispatcher.submit(requests_to(on_redis.serve(say(OK)), free, hosts=free))
    assert dispatcher.capacity == 0
    assert dispatcher.results(0.1) == []
    on_redis.worker().wait_ready()
    assert len(collect(dispatcher, free)) == free


def test_a_region_is_probed_by_its_own_workers(on_redis: Bench) -> None:
    here, there = on_redis.worker(), on_redis.worker("--queues", "monitors.there")
    here.wait_ready()
    there.wait_ready()
    dispatcher = on_redis.dispatcher()
    target = parse_target(f"http://127.0.0.1:{on_redis.serve(say(OK))}/")
    found = Counter[str | None]()
    for region in (None, "there", None, "there"):
        dispatcher.submit([ProbeRequest(target=target, due_ms=1, region=region)])
        (probed,) = collect(dispatcher, 1)
        assert (probed.request.region, probed.request.due_ms) == (region, 1)
        found[f"{region} {probed.worker_id}"] += 1
    assert sorted(found.values()) == [2, 2]
    assert len({key.split()[1] for key in found}) == 2


def test_a_slot_in_a_region_without_workers_is_dropped_and_told(on_redis: Bench) -> None:
    skipped_s = 0.0
    dispatcher = on_redis.dispatcher(timer=lambda: time.monotonic() + skipped_s)
    slot = ProbeRequest(target=parse_target("http://a.localhost/"), monitor_id="m", due_ms=1, region="nowhere")
    url = ProbeRequest(target=parse_target("http://b.localhost/"), target_id=1, task_id="task")
    room = dispatcher.capacity
    dispatcher.submit([slot, url])
    assert dispatcher.results(0.1) == []
    assert dispatcher.dropped() == []
    skipped_s = UNTAKEN_S
    assert dispatcher.results(0.1) == []
    assert dispatcher.dropped() == [slot]
    assert dispatcher.dropped() == []
    assert dispatcher.capacity == room - 1  # the URL of a task waits on


def test_batches_and_reports_come_out_as_they_went_in() -> None:
    options = ProbeOptions(basic_auth="me:secret", headers=(("A", "b"),), expected_statuses=(204,))
    sent = [
        ProbeRequest(target=parse_target("http://a.test/"), options=options, task_id="t"),
        ProbeRequest(target=parse_target("http://b.test/", name="own"), due_ms=3),
    ]
    text = Batch(batch_id="b", reply_to="r", numbers=[8, 9], requests=sent).encode({"t": "t in r"})
    got = Batch.decode(text, iter((1, 2)))
    assert (got.batch_id, got.reply_to, got.numbers) == ("b", "r", [8, 9])
    for request, same in zip(sent, got.requests, strict=True):
        assert (same.target.key, same.target.host) == (request.target.key, request.target.host)
        assert (same.options, same.due_ms) == (request.options, request.due_ms)
    assert [(same.target_id, same.task_id) for same in got.requests] == [(1, "t in r"), (2, None)]
    result = ProbeResult(
        target="a",
        ts_ms=1,
        outcome=Outcome.TLS,
        total_ms=0.1 + 0.2,
        final_url="http://c.test/",
        error="broken \ud800 text",
        attempts=(Attempt(ts_ms=1, outcome=Outcome.TLS, error="\udfff"), Attempt(ts_ms=2, outcome=Outcome.OK)),
    )
    report = Report.decode(Report(worker_id="w", room=5, batches=["b"], results=[told(7, result)]).encode())
    assert (report.worker_id, report.room, report.batches) == ("w", 5, ["b"])
    ((number, *values),) = report.results
    assert number == 7
    attempts = (replace(result.attempts[0], error="?"), result.attempts[1])
    assert heard("a", values) == replace(result, error="broken ? text", attempts=attempts)


def test_flower_sees_the_workers_and_no_credentials(bench: Bench) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    env = environment(bench.home, FLOWER_UNAUTHENTICATED_API="true")
    with program(
        str(BIN / "celery"), f"--broker={bench.url}", "flower", "--address=127.0.0.1", f"--port={port}",
        env=env, ready_url=f"{url}/healthcheck", log=bench.home / "flower.log", cwd=bench.home,
    ):  # fmt: skip
        bench.worker().wait_ready()
        dispatcher = bench.dispatcher()
        target = parse_target(f"http://127.0.0.1:{bench.serve(say(OK))}/")

        def seen() -> str | None:
            dispatcher.submit([ProbeRequest(target=target, options=ProbeOptions(basic_auth="me:hush-hush"))])
            (probed,) = collect(dispatcher, 1)
            tasks = httpx.get(f"{url}/api/tasks", timeout=10).text
            return tasks if "SUCCESS" in tasks and str(probed.worker_id) in tasks else None

        tasks = wait_until(seen, timeout_s=20, what="Flower to tell of the batch")
    assert "urlhealth.probe" in tasks
    assert "(1 requests)" in tasks
    assert "hush" not in tasks


def test_a_broker_that_is_not_there_is_said_in_a_line(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"
    with pytest.raises(
        ConfigurationError, match=r"the broker redis://.*cannot be used: .*; check that it runs"
    ) as said:
        CeleryDispatcher(make_app(url, prefix="none"), prefix="none", worker_id="tests", concurrency=1)
    assert "secret" not in str(said.value)
    for settings, words in (({"URLHEALTH_BROKER_URL": url}, "cannot be used"), ({}, "set URLHEALTH_BROKER_URL")):
        done = run(str(BIN / "urlhealth"), "worker", env=environment(tmp_path, **settings), check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert words in " ".join(done.stderr.split())
        assert len(done.stderr.splitlines()) == 1
