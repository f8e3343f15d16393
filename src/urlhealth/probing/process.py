"""The probing engine in a process of its own, so that probing and whatever else is done here do not share one core.

The two processes talk over a socket pair: requests go to the child under a number, and come back as that number and the
fields of the result. When either side ends, however it ends, the other one finds the pair closed.
"""

import heapq
import io
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import fields
from itertools import count
from multiprocessing.connection import Connection
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from urlhealth.errors import ConfigurationError
from urlhealth.probing.engine import SWITCH_S, ProbeEngine, canary_request, first_room
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.transfer import TrustedCertificates
from urlhealth.vocabulary import (
    Attempt,
    Outcome,
    Probed,
    ProbeOptions,
    ProbeRequest,
    ProbeResult,
    Target,
    system_clock,
)

#: Results that a busy child sends at once, and how long it waits for so many: each message wakes both sides.
_BATCH: Final = 256
_HAND_OVER_S: Final = 0.02
#: How often a child that has nothing to do looks up.
_IDLE_S: Final = 1.0
#: Longest that `close` waits for the child's end.
_CLOSE_S: Final = 2.0

#: What of a result is sent; its target is known to whoever asked.
_FIELDS: Final = tuple(field.name for field in fields(ProbeResult) if field.name != "target")
_sent = attrgetter(*_FIELDS)


class ProbeProcess:
    """A `Dispatcher` that probes in a child process. One thread uses it; any may ask `failed`."""

    def __init__(
        self,
        *,
        user_agent: str,
        concurrency: int,
        concurrency_per_host: int,
        rate_per_host: float,
        guard: AddressGuard,
        worker_id: str,
        ca_file: Path | None,
        canary: str | None,
    ) -> None:
        """As of :class:`ProbeEngine`.

        Raises:
            ConfigurationError: `ca_file` cannot be read, or holds no certificates; `canary` is no URL; there can be no
                process.
        """
        if ca_file is not None:
            TrustedCertificates(ca_file).close()
        if canary:
            canary_request(canary)
        self.worker_id = worker_id
        self._numbers = count(1)
        self._requests: dict[int, ProbeRequest] = {}
        #: Those that were cancelled: what of them was finished before may still come.
        self._cancelled: dict[int, ProbeRequest] = {}
        #: When slots of monitors are due that the child has got before their time.
        self._ahead_ms: list[int] = []
        self._room = first_room(concurrency)
        self._lost = False
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._child = subprocess.Popen(
                    [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                )
            except OSError as error:
                ours.close()
                raise ConfigurationError(f"no process can be started to probe in: {error.strerror}") from error
        self._connection = Connection(ours.detach())
        self._send(
            {
                "user_agent": user_agent,
                "concurrency": concurrency,
                "concurrency_per_host": concurrency_per_host,
                "rate_per_host": rate_per_host,
                "guard": guard,
                "worker_id": worker_id,
                "ca_file": ca_file,
                "canary": canary,
            }
        )

    @property
    def pid(self) -> int:
        """Of the child."""
        return self._child.pid

    @property
    def capacity(self) -> int:
        """How many more requests it can take now (see :attr:`ProbeEngine.capacity`)."""
        now_ms = system_clock()
        while self._ahead_ms and self._ahead_ms[0] <= now_ms:
            heapq.heappop(self._ahead_ms)
        return max(0, self._room - len(self._requests) + len(self._ahead_ms))

    @property
    def failed(self) -> bool:
        """Whether the child has ended: it takes and gives nothing any more; make another."""
        return self._lost or self._child.poll() is not None

    def submit(self, requests: Sequence[ProbeRequest]) -> None:
        """Take requests. Those that a child gets that has ended are lost, as is what it had under way."""
        numbered = dict(zip(self._numbers, requests, strict=False))
        self._requests |= numbered
        for request in requests:
            if request.due_ms is not None:
                heapq.heappush(self._ahead_ms, request.due_ms)
        self._send(
            [
                (
                    number,
                    request.target.url,
                    request.target.host,
                    request.target.name,
                    request.options,
                    request.task_id,
                    request.due_ms,
                )
                for number, request in numbered.items()
            ]
        )

    def results(self, timeout_s: float, *, at_least: int = 1) -> list[Probed]:
        """As :meth:`ProbeEngine.results`.

        Raises:
            RuntimeError: the child has ended.
        """
        finished: list[Probed] = []
        until_s = time.monotonic() + timeout_s
        try:
            while self._connection.poll(max(0.0, until_s - time.monotonic())):
                self._receive(finished)
                if finished and (len(finished) >= at_least or not self._requests):
                    break
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            self._lost = True
            raise RuntimeError("the probing process has ended, or sends what is no result") from error
        return finished

    def _receive(self, finished: list[Probed]) -> None:
        message = Results(io.BytesIO(self._connection.recv_bytes())).load()
        if message is None:
            self._cancelled.clear()
            return
        self._room, results = message
        for number, values in results:
            request = self._requests.pop(number, None) or self._cancelled.pop(number, None)
            if request is not None:
                result = ProbeResult(target=request.target.key, **dict(zip(_FIELDS, values, strict=True)))
                finished.append(Probed(request=request, result=result))

    def dropped(self) -> list[ProbeRequest]:
        """None: whatever is taken is probed."""
        return []

    def cancel(self, task_ids: Set[str]) -> None:
        """Drop the requests of these tasks; returns at once. What is finished still comes."""
        gone = {number: request for number, request in self._requests.items() if request.task_id in task_ids}
        for number in gone:
            del self._requests[number]
        self._cancelled |= gone
        self._send(frozenset(task_ids))

    def close(self) -> None:
        """Stop; requests under way are dropped."""
        self._connection.close()
        try:
            self._child.wait(_CLOSE_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _send(self, message: Any) -> None:
        try:
            self._connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except OSError:
            self._lost = True  # said by `failed`, and by `results`


class Results(pickle.Unpickler):
    """Takes results of the child and nothing else: libcurl reads there what strangers send."""

    def find_class(self, module: str, name: str) -> Any:
        if module == Outcome.__module__ and name in (Outcome.__name__, Attempt.__name__):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is of no result")


def serve(descriptor: int) -> None:
    """The child: an engine for whoever has the other end of the socket pair, until that is closed."""
    for wanted in (signal.SIGINT, signal.SIGTERM):
        signal.signal(wanted, signal.SIG_IGN)  # whoever started it decides; a Ctrl-C goes to both
    sys.setswitchinterval(SWITCH_S)
    connection = Connection(descriptor)
    try:
        engine = ProbeEngine(**pickle.loads(connection.recv_bytes()))
        cancelled = threading.Event()
        threading.Thread(target=_take, args=(connection, engine, cancelled), daemon=True).start()
        finished: list[Probed] = []
        while True:
            finished = engine.results(_HAND_OVER_S, at_least=_BATCH) if finished else engine.results(_IDLE_S)
            if finished:
                results = [(probed.request.target_id, _sent(probed.result)) for probed in finished]
                connection.send_bytes(pickle.dumps((engine.room, results), pickle.HIGHEST_PROTOCOL))
            if cancelled.is_set():
                cancelled.clear()
                connection.send_bytes(pickle.dumps(None))
    except (OSError, EOFError):
        return  # nobody is there any more


def _take(connection: Connection, engine: ProbeEngine, cancelled: threading.Event) -> None:
    """Hand what comes to the engine."""
    with suppress(OSError, EOFError):
        while True:
            message = pickle.loads(connection.recv_bytes())
            if isinstance(message, frozenset):
                engine.cancel(message)
                cancelled.set()
            else:
                engine.submit([_request(*values) for values in message])
    # Nothing that is under way matters any more, and libcurl may be waiting for a name.
    os._exit(0)


def _request(
    number: int, url: str, host: str, name: str | None, options: ProbeOptions, task_id: str | None, due_ms: int | None
) -> ProbeRequest:
    target = Target(url=url, host=host, group="", name=name)
    return ProbeRequest(target=target, target_id=number, options=options, task_id=task_id, due_ms=due_ms)
