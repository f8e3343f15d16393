"""Load on an HTTP server from a few keep-alive connections, as cheap as Python has it: it shares the server's cores."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CONNECTIONS: Final = 4
_TIMEOUT_S: Final = 30.0

#: Sends the k-th request and waits for its answer.
Call = Callable[[int], None]


class Connection:
    """One keep-alive connection to a server on loopback that says how long its answers are."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def ask(self, request: bytes) -> bytes:
        """Send a whole request; the body of its answer. Raises `ConnectionError` unless the status is 200."""
        self._socket.sendall(request)
        while b"\r\n\r\n" not in self._received:
            self._receive()
        head, _, body = self._received.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        parts, missing = [body], size - len(body)
        while missing > 0:
            self._received = b""
            self._receive()
            parts.append(self._received)
            missing -= len(self._received)
        self._received = b""
        if head.split(b" ", 2)[1] != b"200":
            raise ConnectionError(head.decode(errors="replace")[:200])
        return b"".join(parts)

    def _receive(self) -> None:
        piece = self._socket.recv(1 << 20)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self._received += piece


def post(path: str, body: Any) -> bytes:
    """A POST of JSON as bytes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@dataclass(kw_only=True)
class Load:
    """What came of it: when each answered request was due and how long it took, in seconds; how many failed."""

    due: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: CPU time of the servers meanwhile, in seconds; 0 where nobody counted it.
    cpu_s: float = 0.0

    @property
    def per_second(self) -> float:
        return len(self.took) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU time of the servers for a request: what is left to compare where a machine is busy with other work."""
        return 1000 * self.cpu_s / max(1, len(self.took))

    def ms(self, share: float) -> float:
        """A quantile of the times, in ms."""
        return 1000 * sorted(self.took)[min(len(self.took) - 1, int(share * len(self.took)))]

    def without(self, start: float, end: float) -> "Load":
        """The requests that were not due within this window."""
        kept = [(due, took) for due, took in zip(self.due, self.took, strict=True) if not start <= due < end]
        due, took = zip(*kept, strict=True)
        return Load(due=list(due), took=list(took), failures=self.failures, seconds=self.seconds - (end - start))

    def __str__(self) -> str:
        cpu = f", CPU {self.cpu_ms:6.2f} ms" if self.cpu_s else ""
        failed = f", {len(self.failures)} FAILED ({self.failures[0]})" if self.failures else ""
        return (
            f"{self.per_second:8.1f} requests/s, p50 {self.ms(0.5):7.2f} ms, p99 {self.ms(0.99):7.2f} ms{cpu}{failed}"
        )


def load(
    make: Callable[[], Call],
    *,
    seconds: float,
    rate: float | None = None,
    connections: int = CONNECTIONS,
    pids: Sequence[int] = (),
) -> Load:
    """Ask from several connections at once, each as soon as its last answer is there.

    Args:
        make: called once for each connection.
        pids: the servers, whose CPU time is counted with that of their children.
        rate: requests a second of all together; each is then due at its time, and what it waits for is counted too.
    """
    result, lock = Load(seconds=seconds), threading.Lock()
    calls = [make() for _ in range(connections)]
    for call in calls:
        call(0)  # connections and caches, not measured
    before_s = sum(map(_cpu_s, pids))
    started = time.perf_counter()

    def run(number: int) -> None:
        due, took, failures = [], [], []
        k = number
        while (now := time.perf_counter()) < started + seconds:
            begun = now
            if rate is not None:
                begun = started + k / rate
                if begun >= started + seconds:
                    break
                time.sleep(max(0.0, begun - now))
            try:
                calls[number](k)
                due.append(begun)
                took.append(time.perf_counter() - begun)
            except OSError as error:
                failures.append(repr(error))
                calls[number] = make()
            k += connections
        with lock:
            result.due += due
            result.took += took
            result.failures += failures

    threads = [threading.Thread(target=run, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.cpu_s = sum(map(_cpu_s, pids)) - before_s
    return result


def _cpu_s(pid: int) -> float:
    """CPU time of a process and those that it started and are still there."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    children = " ".join(file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children"))
    return own + sum(_cpu_s(int(child)) for child in children.split())
