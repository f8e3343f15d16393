"""The brokers of this machine, and workers on them, for the tests."""

import os
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kombu import Connection

from tests.support import BIN, ROOT, environment, kill, unavailable, wait_until

BROKERS = {
    "redis": os.environ.get("URLHEALTH_TEST_REDIS", "redis://127.0.0.1:6379/0"),
    "rabbitmq": os.environ.get("URLHEALTH_TEST_RABBITMQ", "amqp://guest:guest@127.0.0.1:5672//"),
}


def broker_url(kind: str) -> str:
    """The URL of a broker that answers; without one the test is skipped, or fails where the environment demands it."""
    url = BROKERS[kind]
    parts = Connection(url)
    try:
        socket.create_connection((parts.hostname, parts.port or parts.transport.default_port), timeout=2).close()
    except OSError as error:
        unavailable(f"no {kind} answers: {error}")
    return url


@contextmanager
def queues(url: str) -> Iterator[str]:
    """A prefix for queues of the test's own, which are deleted at the end."""
    prefix = f"urlhealth-test-{uuid.uuid4().hex[:12]}"
    try:
        yield prefix
    finally:
        with Connection(url) as connection:
            if url.startswith("redis"):
                client = connection.default_channel.client
                keys = client.keys(f"*{prefix}*")
                client.delete(*keys, "none")
            for kind in () if url.startswith("redis") else ("monitors", "tasks", "monitors.there"):
                with connection.channel() as channel:
                    channel.queue_delete(f"{prefix}.{kind}")
                    channel.exchange_delete(f"{prefix}.{kind}")


class WorkerProcess:
    """`urlhealth worker`, up to when it takes batches."""

    def __init__(self, home: Path, *arguments: str, **settings: str) -> None:
        self.log = home / f"worker-{uuid.uuid4().hex[:6]}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                (str(BIN / "urlhealth"), "worker", *arguments),
                env=environment(home, **settings),
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self) -> "WorkerProcess":
        """Raises `RuntimeError` with what it said, if it ends instead."""
        wait_until(
            lambda: b" ready." in self.log.read_bytes() or self.process.poll() is not None,
            timeout_s=60,
            what="the worker to be ready",
        )
        if self.process.poll() is not None:
            raise RuntimeError(self.log.read_text().strip())
        return self

    def close(self) -> None:
        """`kill -9`: what it has in hand is nobody's any more."""
        if self.process.poll() is None:
            kill(self.process)
