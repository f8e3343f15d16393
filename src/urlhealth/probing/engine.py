"""The probing engine: one libcurl multi loop in a thread of its own.

Requests go in through `submit`, wait here while their host or the engine is busy, and come out of `results` in batches.
A probe's clock starts when libcurl takes it, so that waiting in our own queue is never counted as the target's time.
"""

import logging
import threading
from collections import deque
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Final

import pycurl

from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.transfer import Transfer, TrustedCertificates
from urlhealth.vocabulary import Clock, Probed, ProbeRequest, system_clock

#: Requests that may wait here for each that is under way, so that it never runs dry between two turns of a caller.
_QUEUED_PER_SLOT: Final = 4
#: pycurl cannot be woken while it waits for sockets: a new request waits for at most this long.
_WAIT_S: Final = 0.01
#: Probes begun between two looks at the sockets: more would make the phases of the first among them too long.
_STARTS_PER_TURN: Final = 16

_log = logging.getLogger(__name__)


class ProbeEngine:
    """A `Dispatcher` that probes in this process. `submit` and `results` may be called from any thread."""

    def __init__(
        self,
        *,
        user_agent: str,
        concurrency: int,
        concurrency_per_host: int,
        guard: AddressGuard,
        clock: Clock = system_clock,
        worker_id: str,
        ca_file: Path | None = None,
    ) -> None:
        """
        Args:
            user_agent: the User-Agent header of every probe.
            concurrency: probes under way at once.
            concurrency_per_host: probes under way at once to one host (`Target.host`).
            guard: decides at each connect, also after a redirect, whether the address may be used.
            clock: gives `ProbeResult.ts_ms`.
            worker_id: who does the work, for `CrawlTask.workers`.
            ca_file: certificates (PEM) to trust beside the machine's own.

        Raises:
            ConfigurationError: `ca_file` cannot be read, or holds no certificates.
        """
        self.worker_id = worker_id
        self._concurrency = concurrency
        self._concurrency_per_host = concurrency_per_host
        self._user_agent = user_agent
        self._guard = guard
        self._clock = clock
        self._trusted = TrustedCertificates(ca_file)

        # Shared with callers, under the lock.
        self._lock = threading.Condition()
        self._submitted: deque[ProbeRequest] = deque()
        self._finished: list[Probed] = []
        self._cancelled: set[str] = set()
        self._unfinished = 0
        self._closing = False
        self._failure: BaseException | None = None

        # The loop's own.
        self._multi = pycurl.CurlMulti()
        self._ready: deque[ProbeRequest] = deque()
        self._held: dict[str, deque[ProbeRequest]] = {}
        self._busy: dict[str, int] = {}
        self._active: dict[pycurl.Curl, Transfer] = {}
        self._idle: list[Transfer] = []
        self._thread = threading.Thread(target=self._run, name="urlhealth-probing", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """How many more requests it can take now; results that nobody has fetched take room too."""
        with self._lock:
            return max(0, self._concurrency * (1 + _QUEUED_PER_SLOT) - self._unfinished)

    @property
    def failed(self) -> bool:
        """Whether the engine's own thread has ended by a defect: it takes and gives nothing any more; make another."""
        with self._lock:
            return self._failure is not None

    def submit(self, requests: Sequence[ProbeRequest]) -> None:
        """Take requests; returns at once."""
        with self._lock:
            if self._closing:
                raise RuntimeError("the probing engine is closed")
            self._submitted.extend(requests)
            self._unfinished += len(requests)
            self._lock.notify_all()

    def results(self, timeout_s: float) -> list[Probed]:
        """All that is finished; waits up to `timeout_s` for the first. Empty when there was none.

        Raises:
            RuntimeError: the engine's own thread has failed (a defect of the engine, never a server's doing).
        """
        with self._lock:
            self._lock.wait_for(lambda: self._finished or self._closing or self._failure, timeout_s)
            if self._failure is not None:
                raise RuntimeError("the probing engine has failed") from self._failure
            finished, self._finished = self._finished, []
            self._unfinished -= len(finished)
            return finished

    def cancel(self, task_ids: Set[str]) -> None:
        """Drop the requests of these tasks, waiting or under way; returns at once. What is finished still comes."""
        with self._lock:
            self._cancelled |= task_ids
            self._lock.notify_all()

    def close(self) -> None:
        """Stop; requests under way are dropped."""
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        self._thread.join()
        self._trusted.close()

    def _run(self) -> None:
        try:
            while self._take():
                self._start()
                self._perform()
        except BaseException as error:
            _log.exception("the probing engine has failed")
            with self._lock:
                self._failure = error
                self._lock.notify_all()
        finally:
            for transfer in self._active.values():
                self._multi.remove_handle(transfer.curl)
            for transfer in (*self._active.values(), *self._idle):
                transfer.close()
            self._multi.close()

    def _take(self) -> bool:
        """Move what was submitted into the loop; sleeps while there is nothing to do. False when closing."""
        with self._lock:
            self._lock.wait_for(
                lambda: self._submitted or self._ready or self._active or self._cancelled or self._closing
            )
            self._ready.extend(self._submitted)
            self._submitted.clear()
            if self._cancelled:
                self._unfinished -= self._drop(self._cancelled)
                self._cancelled.clear()
            return not self._closing

    def _drop(self, task_ids: Set[str]) -> int:
        """Forget the requests of these tasks; returns how many there were."""
        waiting = (self._ready, *self._held.values())
        dropped = sum(map(len, waiting))
        for requests in waiting:
            kept = [request for request in requests if request.task_id not in task_ids]
            requests.clear()
            requests.extend(kept)
        self._held = {host: requests for host, requests in self._held.items() if requests}
        dropped -= sum(map(len, (self._ready, *self._held.values())))
        for curl in [curl for curl, transfer in self._active.items() if transfer.request.task_id in task_ids]:
            self._retire(curl)
            dropped += 1
        return dropped

    def _start(self) -> None:
        """Begin as many probes as the limits allow."""
        unstarted: list[Probed] = []
        limit = min(self._concurrency, len(self._active) + _STARTS_PER_TURN)
        while self._ready and len(self._active) < limit:
            request = self._ready.popleft()
            host = request.target.host
            busy = self._busy.get(host, 0)
            if busy >= self._concurrency_per_host:
                self._held.setdefault(host, deque()).append(request)
                continue
            transfer = self._idle.pop() if self._idle else self._new_transfer()
            ts_ms = self._clock()
            try:
                transfer.begin(request, ts_ms=ts_ms)
                self._multi.add_handle(transfer.curl)
            except (pycurl.error, ValueError) as error:
                self._idle.append(transfer)
                unstarted.append(Probed(request=request, result=transfer.unrequestable(error)))
                continue
            self._busy[host] = busy + 1
            self._active[transfer.curl] = transfer
        self._deliver(unstarted)

    def _new_transfer(self) -> Transfer:
        return Transfer(user_agent=self._user_agent, guard=self._guard, trusted=self._trusted)

    def _perform(self) -> None:
        """Let libcurl work, and file what has finished."""
        if not self._active:
            return
        self._multi.perform()
        finished: list[Probed] = []
        left = 1
        while left:
            left, good, bad = self._multi.info_read()
            for curl in good:
                finished.append(self._finish(curl, pycurl.E_OK, ""))
            for curl, code, message in bad:
                finished.append(self._finish(curl, code, message))
        self._deliver(finished)
        if not finished and not (self._ready and len(self._active) < self._concurrency):
            self._multi.select(_WAIT_S)

    def _finish(self, curl: pycurl.Curl, code: int, message: str) -> Probed:
        transfer = self._active[curl]
        request = transfer.request
        try:
            result = transfer.result(code, message)
        except Exception as error:
            # A server may send what nobody thought of, and must not end the thread by it.
            _log.exception("the answer of %s cannot be read", request.target.url)
            result = transfer.unreadable(error)
        self._retire(curl)
        return Probed(request=request, result=result)

    def _retire(self, curl: pycurl.Curl) -> None:
        """Take a transfer out of the loop, finished or not."""
        transfer = self._active.pop(curl)
        self._multi.remove_handle(curl)
        self._idle.append(transfer)
        self._release(transfer.request.target.host)

    def _release(self, host: str) -> None:
        """One probe of a host less; the next that waited for it comes first."""
        self._busy[host] -= 1
        if not self._busy[host]:
            del self._busy[host]
        if held := self._held.get(host):
            self._ready.appendleft(held.popleft())
            if not held:
                del self._held[host]

    def _deliver(self, finished: list[Probed]) -> None:
        if finished:
            with self._lock:
                self._finished.extend(finished)
                self._lock.notify_all()
