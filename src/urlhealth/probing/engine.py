"""The probing engine: one libcurl multi loop in a thread of its own.

Requests go in through `submit`, wait here while their host or the engine is busy, and come out of `results` in batches.
A probe's clock starts when libcurl takes it, so that waiting in our own queue is never counted as the target's time.
"""

import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Final

import pycurl

from urlhealth.errors import ConfigurationError, InvalidRequest
from urlhealth.probing.guard import AddressGuard
from urlhealth.probing.own_network import OwnNetwork
from urlhealth.probing.politeness import LONGEST_PAUSE_S, Politeness, Turn
from urlhealth.probing.robots import MOST_BYTES, RobotsFiles, robots_target
from urlhealth.probing.transfer import Transfer, TrustedCertificates
from urlhealth.probing.urls import parse_target
from urlhealth.probing.verdict import judge_attempts, may_pass
from urlhealth.vocabulary import Clock, Outcome, Probed, ProbeOptions, ProbeRequest, ProbeResult, system_clock

#: pycurl cannot be woken while it waits for sockets: a new request waits for at most this long.
_WAIT_S: Final = 0.01
#: Probes begun between two looks at the sockets: more would make the phases of the first among them too long.
_STARTS_PER_TURN: Final = 16
#: Results are handed over when there are so many, or so long after the last ones, and at once when nothing is under
#: way: to wake the other side costs more than to probe.
_BATCH: Final = 256
_HAND_OVER_S: Final = 0.005
#: In a process that does little else, threads wait so long for each other, not Python's 5 ms: libcurl calls back many
#: times in a probe.
SWITCH_S: Final = 0.0005
#: How often the queue is fitted to the speed, so that it is half a second long: long enough for a caller to come back,
#: short enough for what comes next not to wait behind slow hosts.
_FIT_S: Final = 0.25
_LEAST_QUEUE: Final = 64
#: By how much the clock may fall behind while a slot of a monitor waits: none is begun before its time.
_DRIFT_MS: Final = 2
#: Longest that `close` waits for the loop's end.
_CLOSE_S: Final = 1.0

_log = logging.getLogger(__name__)


class _Job:
    """A request on its way through the engine."""

    __slots__ = ("attempts", "request", "then")

    def __init__(self, request: ProbeRequest, then: Callable[[ProbeResult, bytes], None] | None = None) -> None:
        self.request = request
        #: Where the result goes, with the body, if the engine itself has asked.
        self.then = then
        #: The attempts that were made, if there may be several.
        self.attempts: list[ProbeResult] = []


class ProbeEngine:
    """A `Dispatcher` that probes in this process. `submit`, `results` and `cancel` may be called from any thread."""

    def __init__(
        self,
        *,
        user_agent: str,
        concurrency: int,
        concurrency_per_host: int,
        rate_per_host: float = 0.0,
        guard: AddressGuard,
        clock: Clock = system_clock,
        timer: Callable[[], float] = time.monotonic,
        worker_id: str,
        ca_file: Path | None = None,
        canary: str | None = None,
    ) -> None:
        """
        Args:
            user_agent: the User-Agent header of every probe.
            concurrency: probes under way at once.
            concurrency_per_host: probes under way at once to one host (`Target.host`).
            rate_per_host: probes begun in a second to one host; 0 is no limit.
            guard: decides at each connect, also after a redirect, whether the address may be used.
            clock: gives `ProbeResult.ts_ms`.
            timer: seconds that never go back, for what waits.
            worker_id: who does the work, for `CrawlTask.workers`.
            ca_file: certificates (PEM) to trust beside the machine's own.
            canary: URL that is probed to tell an outage of our own network (`self`) from many hosts that fail; without
                one, no outage is told.

        Raises:
            ConfigurationError: `ca_file` cannot be read, or holds no certificates; `canary` is no URL.
        """
        self.worker_id = worker_id
        self._concurrency = concurrency
        self._user_agent = user_agent
        self._guard = guard
        self._clock = clock
        self._timer = timer
        self._canary = canary_request(canary) if canary else None
        self._trusted = TrustedCertificates(ca_file)

        # Shared with callers, under the lock.
        self._lock = threading.Condition()
        self._submitted: list[ProbeRequest] = []
        self._finished: list[Probed] = []
        self._wanted = 1
        self._cancelled: set[str] = set()
        self._unfinished = 0
        self._room = first_room(concurrency)
        self._closing = False
        self._failure: BaseException | None = None

        # The loop's own.
        self._multi = pycurl.CurlMulti()
        self._ready: deque[_Job] = deque()
        self._hosts: Politeness[_Job] = Politeness(
            concurrency_per_host=concurrency_per_host, rate_per_host=rate_per_host
        )
        self._robots = RobotsFiles(user_agent)
        #: Jobs that wait for a robots.txt, by its URL.
        self._for_robots: dict[str, list[_Job]] = {}
        #: Jobs that are tried again: when, a tie-break, which.
        self._later: list[tuple[float, int, _Job]] = []
        #: The same of slots of monitors before their time.
        self._ahead: list[tuple[float, int, _Job]] = []
        self._tie = count()
        self._network = OwnNetwork() if self._canary else None
        self._active: dict[pycurl.Curl, tuple[Transfer, _Job]] = {}
        self._idle: list[Transfer] = []
        self._found: list[Probed] = []
        self._handed_over_s = self._fitted_s = timer()
        self._since_fitted = 0
        self._thread = threading.Thread(target=self._run, name="urlhealth-probing", daemon=True)
        self._thread.start()

    @property
    def capacity(self) -> int:
        """How many more requests it can take now; results that nobody has fetched take room too, and slots of monitors
        none before their time.
        """
        with self._lock:
            return max(0, self._room - self._unfinished + len(self._ahead))

    @property
    def room(self) -> int:
        """How many requests it holds at most, so that its queue is short and never empty: fitted to its speed."""
        return self._room

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
            self._submitted += requests
            self._unfinished += len(requests)
            self._lock.notify_all()

    def results(self, timeout_s: float, *, at_least: int = 1) -> list[Probed]:
        """All that is finished; waits up to `timeout_s` until there are `at_least` so many, or nothing is under way.

        Raises:
            RuntimeError: the engine's own thread has failed (a defect of the engine, never a server's doing).
        """
        with self._lock:
            self._wanted = at_least
            self._lock.wait_for(lambda: self._enough() or self._closing or self._failure, timeout_s)
            self._wanted = 1
            if self._failure is not None:
                raise RuntimeError("the probing engine has failed") from self._failure
            finished, self._finished = self._finished, []
            self._unfinished -= len(finished)
            return finished

    def _enough(self) -> bool:
        finished = len(self._finished)
        return finished > 0 and (finished >= self._wanted or finished == self._unfinished)

    def dropped(self) -> list[ProbeRequest]:
        """None: whatever is taken is probed."""
        return []

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
        # A name that is being resolved cannot be interrupted, and libcurl waits for it.
        self._thread.join(_CLOSE_S)
        self._trusted.close()

    def _run(self) -> None:
        try:
            while self._take():
                now_s = self._timer()
                self._wake(now_s)
                self._start(now_s)
                self._perform()
        except BaseException as error:
            _log.exception("the probing engine has failed")
            with self._lock:
                self._failure = error
                self._lock.notify_all()
        finally:
            for curl in self._active:
                self._multi.remove_handle(curl)
            for transfer in (*(transfer for transfer, _ in self._active.values()), *self._idle):
                transfer.close()
            self._multi.close()

    def _take(self) -> bool:
        """Move what was submitted into the loop; sleeps while there is nothing to do. False when closing."""
        if not (self._ready or self._active):
            with self._lock:
                self._lock.wait_for(lambda: self._submitted or self._cancelled or self._closing, self._idle_s())
        if self._submitted or self._cancelled:
            with self._lock:
                submitted, self._submitted = self._submitted, []
                self._accept(submitted)
                if self._cancelled:
                    self._unfinished -= self._drop(self._cancelled)
                    self._cancelled.clear()
                    self._lock.notify_all()
        return not self._closing

    def _accept(self, requests: Sequence[ProbeRequest]) -> None:
        """Take requests into the loop: a slot of a monitor waits for its time."""
        for request in requests:
            if request.due_ms is None:
                self._ready.append(_Job(request))
            else:
                due_s = self._timer() + (request.due_ms - self._clock() + _DRIFT_MS) / 1000
                heapq.heappush(self._ahead, (due_s, next(self._tie), _Job(request)))

    def _idle_s(self) -> float | None:
        """How long until something that waits is due; None if nothing waits."""
        waiting = (
            self._hosts.next_due_s,
            self._network.next_due_s if self._network else None,
            self._later[0][0] if self._later else None,
            self._ahead[0][0] if self._ahead else None,
        )
        due_s = min((when_s for when_s in waiting if when_s is not None), default=None)
        return None if due_s is None else max(due_s - self._timer(), 0.0)

    def _drop(self, task_ids: Set[str]) -> int:
        """Forget the requests of these tasks; returns how many there were."""

        def wanted(job: _Job) -> bool:
            return job.request.task_id not in task_ids

        # Held jobs take their turn anew, for what they wait for may be among the dropped.
        waiting = [*self._hosts.release(self._timer()), *self._ready]
        self._ready = deque(filter(wanted, waiting))
        dropped = len(waiting) - len(self._ready)
        later = [entry for entry in self._later if wanted(entry[2])]
        dropped += len(self._later) - len(later)
        heapq.heapify(later)
        self._later = later
        for site, jobs in self._for_robots.items():
            self._for_robots[site] = [*filter(wanted, jobs)]
            dropped += len(jobs) - len(self._for_robots[site])
        for curl in [curl for curl, (_, job) in self._active.items() if not wanted(job)]:
            transfer, job = self._active.pop(curl)
            self._multi.remove_handle(curl)
            self._release(transfer, job, self._timer())
            dropped += 1
        return dropped

    def _wake(self, now_s: float) -> None:
        """Take up what has waited for long enough."""
        while self._later and self._later[0][0] <= now_s:
            self._ready.append(heapq.heappop(self._later)[2])
        due = []
        while self._ahead and self._ahead[0][0] <= now_s:
            due.append(heapq.heappop(self._ahead)[2])
        self._ready.extendleft(reversed(due))  # not in line behind tasks
        if (due_s := self._hosts.next_due_s) is not None and due_s <= now_s:
            self._ready.extendleft(reversed(self._hosts.due(now_s)))
        if self._network is not None:
            due_s = self._network.next_due_s
            if due_s is not None and due_s <= now_s:
                self._found += self._network.due(now_s)

    def _start(self, now_s: float) -> None:
        """Begin as many probes as the limits allow."""
        ready, active, begin = self._ready, self._active, self._hosts.begin
        limit = min(self._concurrency, len(active) + _STARTS_PER_TURN)
        while ready and len(active) < limit:
            job = ready.popleft()
            request = job.request
            if request.options.robots and not self._robots_allow(job, now_s):
                continue
            turn = begin(request.target.host, job, now_s)
            if turn is Turn.GO:
                self._begin(job, now_s)
            elif turn is Turn.GIVE_UP:
                self._give_up(job)

    def _begin(self, job: _Job, now_s: float) -> None:
        transfer = self._idle.pop() if self._idle else self._new_transfer()
        try:
            transfer.begin(job.request, ts_ms=self._clock(), keep_bytes=0 if job.then is None else MOST_BYTES)
            self._multi.add_handle(transfer.curl)
        except Exception as error:
            # Whatever stands in a request must not end the thread.
            self._release(transfer, job, now_s)
            self._conclude(job, transfer.unrequestable(error))
        else:
            self._active[transfer.curl] = (transfer, job)

    def _new_transfer(self) -> Transfer:
        return Transfer(user_agent=self._user_agent, guard=self._guard, trusted=self._trusted)

    def _perform(self) -> None:
        """Let libcurl work, and file what has finished."""
        if self._active:
            self._multi.perform()
            now_s = self._timer()
            finished = False
            left = 1
            while left:
                left, good, bad = self._multi.info_read()
                for curl in good:
                    self._finish(curl, pycurl.E_OK, "", now_s)
                for curl, code, message in bad:
                    self._finish(curl, code, message, now_s)
                finished = finished or bool(good or bad)
            if not finished and not (self._ready and len(self._active) < self._concurrency):
                self._multi.select(_WAIT_S)
        if self._found:
            self._hand_over()

    def _finish(self, curl: pycurl.Curl, code: int, message: str, now_s: float) -> None:
        transfer, job = self._active.pop(curl)
        try:
            result = transfer.result(code, message)
            if result.status_code is not None and job.request is not self._canary:
                self._heed(result, transfer)
        except Exception as error:
            # A server may send what nobody thought of, and must not end the thread by it.
            _log.exception("the answer of %s cannot be read", job.request.target.url)
            result = transfer.unreadable(error)
        self._multi.remove_handle(curl)
        self._release(transfer, job, now_s)
        self._conclude(job, result, transfer)

    def _release(self, transfer: Transfer, job: _Job, now_s: float) -> None:
        """Keep a transfer for the next job, and let those begin that have waited for this one's end."""
        self._idle.append(transfer)
        if freed := self._hosts.end(job.request.target.host, now_s):
            self._ready.extendleft(reversed(freed))

    def _heed(self, result: ProbeResult, transfer: Transfer) -> None:
        """Leave a host alone that asks for it: by 429, or by 503 with the time after which to come again."""
        host = transfer.request.target.host
        if result.status_code not in (429, 503):
            self._hosts.welcomed(host)
            return
        retry_after_s = transfer.retry_after_s()
        if result.status_code == 429 or retry_after_s:
            if result.final_url is not None:
                host = result.final_url.partition("://")[2].partition("/")[0]
            for job in self._hosts.refused(host, retry_after_s, self._timer()):
                self._give_up(job)

    def _give_up(self, job: _Job) -> None:
        words = f"not asked: for more than {LONGEST_PAUSE_S:g} s the host has only answered that it is asked too often"
        self._conclude(job, self._unasked(job, Outcome.BLOCKED, words))

    def _unasked(self, job: _Job, outcome: Outcome, words: str) -> ProbeResult:
        return ProbeResult(target=job.request.target.key, ts_ms=self._clock(), outcome=outcome, error=words)

    def _robots_allow(self, job: _Job, now_s: float) -> bool:
        """Whether robots.txt lets a job go; if not, it has its result, or waits for the file."""
        target = job.request.target
        if self._robots.knows(target.url, now_s):
            refusal = self._robots.refusal(target.url)
            if refusal is not None:
                self._conclude(job, self._unasked(job, *refusal))
            return refusal is None
        file = robots_target(target)
        if file.url in self._for_robots:
            self._for_robots[file.url].append(job)
        else:
            self._for_robots[file.url] = [job]
            asked = job.request.options
            options = ProbeOptions(
                connect_timeout_s=asked.connect_timeout_s,
                timeout_s=asked.timeout_s,
                max_bytes=MOST_BYTES,
                verify_tls=asked.verify_tls,
                proxy=asked.proxy,
                ip_family=asked.ip_family,
            )
            self._ready.appendleft(_Job(ProbeRequest(target=file, options=options), self._learn_robots))
        return False

    def _learn_robots(self, result: ProbeResult, body: bytes) -> None:
        self._robots.learn(result, body, self._timer())
        self._ready.extend(self._for_robots.pop(result.target))

    def _conclude(self, job: _Job, result: ProbeResult, transfer: Transfer | None = None) -> None:
        """A job has this result: it is tried again, or goes to whoever asked."""
        if job.then is not None:
            job.then(result, bytes(transfer.body) if transfer else b"")
            return
        request = job.request
        if request.options.retries:
            job.attempts.append(result)
            tried = len(job.attempts)
            if tried <= request.options.retries and may_pass(result):
                again_s = self._timer() + request.options.retry_delay_s * 2 ** (tried - 1)
                heapq.heappush(self._later, (again_s, next(self._tie), job))
                return
            result = judge_attempts(job.attempts)
        probed = Probed(request=request, result=result)
        if self._network is None:
            self._found.append(probed)
        else:
            self._ask_canary_or_deliver(self._network, probed)

    def _ask_canary_or_deliver(self, network: OwnNetwork, probed: Probed) -> None:
        now_s = self._timer()
        self._found += network.judge(probed, now_s)
        if self._canary is not None and network.wants_canary(now_s):
            self._ready.appendleft(
                _Job(self._canary, lambda result, _: self._found.extend(network.canary(result, self._timer())))
            )

    def _hand_over(self) -> None:
        now_s = self._timer()
        if len(self._found) < _BATCH and self._active and now_s - self._handed_over_s < _HAND_OVER_S:
            return
        found, self._found = self._found, []
        self._handed_over_s = now_s
        self._since_fitted += len(found)
        with self._lock:
            self._finished += found
            if now_s - self._fitted_s >= _FIT_S:
                queued = 0.5 * self._since_fitted / (now_s - self._fitted_s)
                self._room = self._concurrency + max(self._concurrency, _LEAST_QUEUE, round(queued))
                self._fitted_s, self._since_fitted = now_s, 0
            if self._enough():
                self._lock.notify_all()


def first_room(concurrency: int) -> int:
    """How many requests an engine holds at most before it knows its speed."""
    return concurrency + max(concurrency, _LEAST_QUEUE)


def canary_request(url: str) -> ProbeRequest:
    """What is asked of the canary.

    Raises:
        ConfigurationError: `url` is none.
    """
    try:
        target = parse_target(url)
    except InvalidRequest as error:
        raise ConfigurationError(f"the canary cannot be probed: {error}") from error
    # A host of its own for politeness: results wait for it, so it waits for nobody.
    return ProbeRequest(target=replace(target, host=f"canary {target.host}"))
