"""What every dispatcher does, in this process, a child or workers; and what becomes of a process that ends."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.brokers import BROKERS, WorkerProcess, broker_url, queues
from tests.misbehaving import OK, Behaviour, hang, redirect, say, serving
from tests.probes import LOOPBACK, QUICK, make_engine
from tests.support import wait_until
from urlhealth.errors import ConfigurationError
from urlhealth.probing.broker import make_app
from urlhealth.probing.engine import ProbeEngine
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.process import ProbeProcess
from urlhealth.probing.queue import CeleryDispatcher
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import Dispatcher, Outcome, Probed, ProbeOptions, ProbeRequest

Serve = Callable[[Behaviour], int]
Make = Callable[..., Dispatcher]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that does the same to each connection; gives its port."""
    with ExitStack() as servers:
        yield lambda behave: servers.enter_context(serving(behave))


def make_process(*, concurrency: int = 64, per_host: int = 8, **more: Any) -> ProbeProcess:
    return ProbeProcess(
        user_agent="urlhealth-tests/1",
        concurrency=concurrency,
        concurrency_per_host=per_host,
        rate_per_host=0.0,
        guard=AddressGuard(LOOPBACK),
        worker_id="tests",
        ca_file=more.get("ca_file"),
        canary=more.get("canary"),
    )


class Workers:
    """Makes dispatchers for a queue, each with a worker of its own at the other end."""

    def __init__(self, stack: ExitStack, home: Path, url: str) -> None:
        self._stack = stack
        self._home = home
        self._url = url

    def __call__(self, *, concurrency: int = 64, per_host: int = 8, **more: Any) -> CeleryDispatcher:
        prefix = self._stack.enter_context(queues(self._url))
        settings = {
            "URLHEALTH_BROKER_URL": self._url,
            "URLHEALTH_BROKER_PREFIX": prefix,
            "URLHEALTH_PROBE_CONCURRENCY": str(concurrency),
            "URLHEALTH_PROBE_CONCURRENCY_PER_HOST": str(per_host),
            "URLHEALTH_CANARY": more.get("canary", ""),
            "URLHEALTH_CA_FILE": str(more.get("ca_file", "")),
        }
        worker = self._stack.enter_context(closing(WorkerProcess(self._home, **settings)))
        try:
            worker.wait_ready()
        except RuntimeError as error:
            raise ConfigurationError(" ".join(str(error).split())) from error
        app = make_app(self._url, prefix=prefix)
        return CeleryDispatcher(app, prefix=prefix, worker_id="tests", concurrency=concurrency)


@pytest.fixture(params=["thread", "process", "redis", "rabbitmq"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes dispatchers, and closes them."""
    with ExitStack() as stack:
        if request.param in BROKERS:
            maker: Make = Workers(stack, tmp_path, broker_url(request.param))
        else:
            maker = {"thread": make_engine, "process": make_process}[request.param]
        yield lambda **arguments: stack.enter_context(closing(maker(**arguments)))


def collect(dispatcher: Dispatcher, count: int) -> list[Probed]:
    found: list[Probed] = []
    while len(found) < count:
        batch = dispatcher.results(10.0)
        assert batch, "results are missing"
        found += batch
    return found


def let_finish(dispatcher: Dispatcher) -> None:
    """Return when a result waits to be fetched."""
    if isinstance(dispatcher, ProbeEngine):
        wait_until(lambda: dispatcher._finished, timeout_s=10, what="the result")
    elif isinstance(dispatcher, ProbeProcess):
        assert dispatcher._connection.poll(10)
    else:
        time.sleep(0.3)  # a broker does not show what it holds


def test_capacity_counts_what_nobody_has_fetched(make: Make, serve: Serve) -> None:
    dispatcher = make(concurrency=2)
    free = dispatcher.capacity
    request = ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(say(OK))}/"))
    dispatcher.submit([request, request])
    assert dispatcher.capacity == free - 2
    fetched = 0
    while fetched < 2:
        fetched += len(dispatcher.results(5.0))
        assert dispatcher.capacity == free - 2 + fetched
    assert dispatcher.results(0.01) == []


def test_a_request_comes_back_as_it_was_sent_with_all_that_was_found(make: Make, serve: Serve) -> None:
    dispatcher = make()
    good = serve(say(OK))
    requests = [
        ProbeRequest(
            target=parse_target(f"http://127.0.0.1:{serve(behave)}/{place}"),
            target_id=7 - place,
            options=ProbeOptions(retries=1, retry_delay_s=0.1, timeout_s=0.5),
            owner="somebody",
            task_id="task",
            monitor_id=None if place else "monitor",
        )
        for place, behave in enumerate((say(OK), redirect(b"http://127.0.0.1:%d/" % good), hang))
    ]
    dispatcher.submit(requests)
    found = {probed.request.target_id: probed for probed in collect(dispatcher, 3)}
    assert [found[request.target_id].request for request in requests] == requests
    answered, redirected, late = (found[request.target_id].result for request in requests)
    assert (answered.target, answered.outcome, answered.status_code) == (requests[0].target.key, Outcome.OK, 200)
    assert answered.total_ms
    assert (redirected.redirects, redirected.final_url) == (1, f"http://127.0.0.1:{good}/")
    assert late.outcome is Outcome.TIMEOUT
    assert [attempt.outcome for attempt in late.attempts] == [Outcome.TIMEOUT] * 2
    assert {field.name for field in fields(answered) if getattr(answered, field.name) is None} == {
        "tls_ms",
        "final_url",
        "cert_expires_ms",
        "error",
    }


def test_cancelled_tasks_are_dropped_wherever_they_are_and_others_go_on(make: Make, serve: Serve) -> None:
    dispatcher = make(concurrency=2, per_host=1)
    free = dispatcher.capacity
    began = threading.Semaphore(0)

    def stall(connection: socket.socket) -> None:
        began.release()
        hang(connection)

    stalling, good = serve(stall), serve(say(OK))

    def request(url: str, task_id: str | None) -> ProbeRequest:
        return ProbeRequest(target=parse_target(url), task_id=task_id)

    # Two under way, one held for its host, one that waits for a slot.
    stalled = [f"http://a.localhost:{stalling}/", f"http://b.localhost:{stalling}/"]
    dispatcher.submit([request(stalled[0], "gone"), request(stalled[1], "gone"), request(stalled[0], "gone")])
    dispatcher.submit([request(f"http://c.localhost:{good}/", "kept"), request(f"http://d.localhost:{good}/", None)])
    assert began.acquire(timeout=5)
    assert began.acquire(timeout=5)
    assert dispatcher.capacity == free - 5
    dispatcher.cancel({"gone", "never known"})
    assert {probed.request.task_id for probed in collect(dispatcher, 2)} == {"kept", None}
    assert dispatcher.capacity == free
    dispatcher.submit([request(f"http://a.localhost:{good}/", "next")])
    assert [probed.request.task_id for probed in collect(dispatcher, 1)] == ["next"]


def test_what_is_finished_when_its_task_is_cancelled_still_comes(make: Make, serve: Serve) -> None:
    dispatcher = make()
    answered = threading.Event()

    def answer(connection: socket.socket) -> None:
        say(OK)(connection)
        answered.set()

    hanging = ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(hang)}/"), task_id="gone")
    dispatcher.submit(
        [ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(answer)}/"), task_id="gone"), hanging]
    )
    assert answered.wait(5)
    let_finish(dispatcher)
    dispatcher.cancel({"gone"})
    assert [probed.result.outcome for probed in dispatcher.results(1.0)] == [Outcome.OK]
    assert dispatcher.results(0.3) == []


def test_a_slot_of_a_monitor_is_begun_at_its_time_and_does_not_stand_in_line(make: Make, serve: Serve) -> None:
    port = serve(say(OK))
    dispatcher = make(concurrency=1)
    free = dispatcher.capacity
    now_ms = time.time_ns() // 1_000_000

    def request(name: str, due_ms: int | None = None) -> ProbeRequest:
        return ProbeRequest(target=parse_target(f"http://127.0.0.1:{port}/{name}"), options=QUICK, due_ms=due_ms)

    dispatcher.submit([request("a"), request("b"), request("later", now_ms + 2_000), request("due", now_ms - 100)])
    wait_until(lambda: dispatcher.capacity == free - 3, timeout_s=1.8, what="the slot to take no room")
    began_ms = {probed.result.target.rpartition("/")[2]: probed.result.ts_ms for probed in collect(dispatcher, 4)}
    assert next(iter(began_ms)) == "due"
    assert began_ms["later"] >= now_ms + 2_000
    assert dispatcher.capacity == free


def test_an_engine_that_cannot_be_is_said_at_once(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the canary cannot be probed: 'nonsense' has no scheme"):
        make(canary="nonsense")
    with pytest.raises(ConfigurationError, match=r"none\.pem: No such file"):
        make(ca_file=tmp_path / "none.pem")


def test_a_process_that_is_killed_is_told_to_whoever_waits_and_whoever_asks(serve: Serve) -> None:
    dispatcher = make_process()
    assert not dispatcher.failed
    request = ProbeRequest(target=parse_target(f"http://127.0.0.1:{serve(hang)}/"))
    dispatcher.submit([request])
    os.kill(dispatcher.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match="the probing process has ended"):
        dispatcher.results(10.0)
    assert dispatcher.failed
    dispatcher.submit([request])
    dispatcher.cancel({"any"})
    dispatcher.close()


def test_what_ends_the_parent_by_ctrl_c_does_not_end_the_child_first(serve: Serve) -> None:
    dispatcher = make_process()
    url = f"http://127.0.0.1:{serve(say(OK))}/"
    for wanted in (signal.SIGINT, signal.SIGTERM):
        dispatcher.submit([ProbeRequest(target=parse_target(url))])
        collect(dispatcher, 1)
        os.kill(dispatcher.pid, wanted)
    dispatcher.submit([ProbeRequest(target=parse_target(url))])
    assert collect(dispatcher, 1)[0].result.outcome is Outcome.OK
    dispatcher.close()
    assert not Path(f"/proc/{dispatcher.pid}").exists()


def test_no_child_stays_behind_when_its_parent_is_killed() -> None:
    script = """
        import time
        from tests.integration.test_dispatchers import make_process
        print(make_process().pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        child = Path(f"/proc/{int(parent.stdout.readline())}")
        assert child.exists()
        parent.kill()
    wait_until(lambda: not child.exists() or "Z" in (child / "stat").read_text(), timeout_s=10, what="the child's end")
