"""A platform of several processes, whose parts the tests kill, and a proxy that they cut."""

import asyncio
import os
import random
import shutil
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from kombu import Connection

from tests.acceptance.conftest import CountingWeb
from tests.brokers import WorkerProcess, queues
from tests.contract.conftest import postgres_database
from tests.support import Api, free_port, kill, platform_process, unavailable, wait_until

__all__ = ["postgres_database"]

#: How many moments of each fault, and whether those faults too that take longer: `make faults` says 3 and all.
SEEDS = range(1, 1 + int(os.environ.get("FAULT_SEEDS", "1")))
EVERY_FAULT = os.environ.get("FAULTS") == "all"

URLS = 2_000
HOSTS = 50


class Proxy:
    """Passes TCP connections on to a port, until it is told otherwise."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._delay_s = 0.0
        self._open = True
        self._writers: set[asyncio.StreamWriter] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def cut(self, for_s: float) -> None:
        """Break all connections, and take none for a while."""
        self._loop.call_soon_threadsafe(self._break)
        time.sleep(for_s)  # the length of the fault, not a wait for anything
        self._open = True

    def delay(self, delay_s: float) -> None:
        """From now on every piece of data takes so long."""
        self._delay_s = delay_s

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _break(self) -> None:
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._break()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, back}
        try:
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers -= {writer, back}
            writer.transport.abort()
            back.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            if self._delay_s:
                await asyncio.sleep(self._delay_s)
            writer.write(data)
            await writer.drain()
        writer.transport.abort()


@dataclass
class Cluster:
    """PostgreSQL, a broker, workers and API replicas."""

    stack: ExitStack
    home: Path
    database_url: str
    broker_url: str
    web: CountingWeb
    seed: int
    moments: random.Random = field(init=False)
    replicas: list[tuple[Api, "subprocess.Popen[bytes]"]] = field(default_factory=list)
    workers: list[WorkerProcess] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.moments = random.Random(self.seed)
        self.prefix = self.stack.enter_context(queues(self.broker_url))
        self.settings = {
            "URLHEALTH_DATABASE_URL": self.database_url,
            "URLHEALTH_BROKER_URL": self.broker_url,
            "URLHEALTH_BROKER_PREFIX": self.prefix,
            "URLHEALTH_LEASE_S": "2",
            "URLHEALTH_PROBE_CONCURRENCY": "24",  # so that a fault comes in the middle
        }

    def start(self, *, replicas: int = 1, workers: int = 2) -> None:
        for _ in range(workers):
            self.add_worker()
        for _ in range(replicas):
            self.replicas.append(self.stack.enter_context(platform_process(self.home, **self.settings)))
        for worker in self.workers:
            worker.wait_ready()

    def add_worker(self) -> None:
        self.workers.append(self.stack.enter_context(closing(WorkerProcess(self.home, **self.settings))))

    def submit(self) -> str:
        port = self.web.port
        return self.replicas[0][0].submit([f"http://h{i % HOSTS}.localhost:{port}/{i}" for i in range(URLS)])

    def at_a_random_moment(self, task_id: str, fault: Callable[[], object]) -> None:
        """Do it while the task is under way."""
        at = self.moments.randrange(50, URLS // 2)
        api = self.replicas[-1][0]
        wait_until(lambda: api.task(task_id)["done"] >= at, timeout_s=60, what=f"{at} results")
        time.sleep(self.moments.random() / 10)  # not to wait for anything: the moment is to be any
        fault()
        assert self.query("SELECT count(*) FROM tasks WHERE finished_ms IS NULL") == 1, "the fault came too late"

    def writer(self) -> int:
        """Place of the replica that holds the lease."""
        holder = str(self.query("SELECT holder FROM leases WHERE name = 'writer'"))
        return next(i for i, (_, process) in enumerate(self.replicas) if f"-{process.pid}-" in holder)

    def kill_replica(self, place: int) -> None:
        """`kill -9`; the others stay."""
        _, process = self.replicas.pop(place)
        kill(process)

    def query(self, text: str) -> Any:
        engine = sa.create_engine(self.database_url)
        try:
            with engine.connect() as connection:
                return connection.scalar(sa.text(text))
        finally:
            engine.dispose()

    def check_task(self, task_id: str) -> None:
        """Every URL of the task has exactly one verdict, by a probe of its own; recovered without a hand."""
        api = self.replicas[-1][0]
        task = api.wait_done(task_id, timeout_s=60)
        assert (task["total"], task["done"], task["outcomes"]) == (URLS, URLS, {"ok": URLS})
        assert len(api.results(task_id)) == URLS
        assert self.query("SELECT count(*) FROM probes") == URLS
        assert self.query("SELECT count(DISTINCT target_id) FROM probes") == URLS
        answered = (
            "SELECT count(*) FROM task_urls AS u JOIN probes AS p "
            "ON p.id = u.probe_id AND p.target_id = u.target_id AND p.task_number = u.task_number"
        )
        assert self.query(answered) == URLS


@pytest.fixture
def between() -> Iterator[Callable[[str], tuple[str, Proxy]]]:
    """Puts a proxy before a broker; gives the URL through it, and the proxy."""
    with ExitStack() as proxies:

        def put(url: str) -> tuple[str, Proxy]:
            with Connection(url) as there:
                port = there.port or there.transport.default_port
            proxy = proxies.enter_context(closing(Proxy(port)))
            return url.replace(f":{port}", f":{proxy.port}"), proxy

        yield put


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator["RedisServer"]:
    """A Redis to restart."""
    if shutil.which("redis-server") is None:
        unavailable("redis-server is not installed")
    with closing(RedisServer(tmp_path)) as redis:
        yield redis


@pytest.fixture(params=SEEDS)
def make_cluster(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    postgres_database: sa.URL,
    between: object,  # noqa: ARG001 - it ends after what uses it
) -> Iterator[Callable[[str], Cluster]]:
    """Makes a platform on a broker, with a schema of its own in PostgreSQL; the parameter is the moments' seed."""
    with ExitStack() as stack:
        web = stack.enter_context(closing(CountingWeb(delay_s=0.05)))
        schema = f"fault_{uuid.uuid4().hex[:12]}"
        server = sa.create_engine(postgres_database)
        with server.begin() as connection:
            connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
        server.dispose()
        own = postgres_database.update_query_dict({"options": f"-csearch_path={schema}"})
        url = own.render_as_string(hide_password=False)
        yield lambda broker: Cluster(stack, tmp_path, url, broker, web, request.param)


class RedisServer:
    """A Redis of the test's own, without a file: what it holds is gone when it is killed."""

    def __init__(self, home: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._home = home
        self.start()

    def start(self) -> None:
        command = (
            "redis-server",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--dir",
            str(self._home),
        )
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)

    def restart(self, *, after_s: float) -> None:
        kill(self._process)
        time.sleep(after_s)  # the length of the fault, not a wait for anything
        self.start()

    def close(self) -> None:
        kill(self._process)
