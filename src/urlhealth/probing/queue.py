"""The dispatcher that sends batches of requests to Celery workers, and takes the results from their reports.

Only the writer files results, because only the writer holds the lease. A worker knows no database: it probes, reports,
and acknowledges the batch when the report is on its way. The broker may lose a batch (Redis restarts), or a report (a
connection breaks), and a worker may die. So the writer does not trust it: a batch of which no worker has told anything
for a while is sent again, under another name. A request has a number, and the first result under it counts.
"""

import heapq
import logging
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from celery import Celery
from kombu import Connection, Consumer, Producer
from kombu.exceptions import OperationalError
from kombu.message import Message

from urlhealth.errors import one_line
from urlhealth.probing.broker import (
    CANCEL,
    PROBE,
    Batch,
    Report,
    heard,
    packed,
    queue_for,
    queue_name,
    reports_queue,
    require_broker,
)
from urlhealth.probing.engine import first_room
from urlhealth.vocabulary import Clock, Probed, ProbeRequest, system_clock

log = logging.getLogger(__name__)

#: Requests of a batch: to send and take one costs as much as to probe a few URLs.
_BATCH: Final = 256
#: As few as this are not divided among workers.
_SMALL_BATCH: Final = 16
#: Requests to one host in one batch. The host's next ones wait until these are done.
_PER_HOST: Final = 64
#: How long before its time the slot of a monitor is sent.
_AHEAD_MS: Final = 300
#: Longest silence of a worker that has a batch: many times the time between two of its reports.
SILENCE_S: Final = 10.0
#: After so long a batch that no worker has taken is sent again. It doubles with each time, up to the longest.
UNTAKEN_S: Final = 30.0
_UNTAKEN_MOST_S: Final = 600.0
#: Pause before the next try to reach a broker that could not be reached.
_RETRY_S: Final = 1.0
#: How long results of cancelled tasks are waited for, which were finished before.
_LATE_S: Final = 10.0
#: Shortest wait for a message, in which one that is there is read.
_LOOK_S: Final = 0.001


@dataclass(slots=True)
class _Sent:
    """A batch that is out."""

    numbers: set[int]
    queue: str
    #: When a worker told of it, or it was sent.
    heard_s: float
    #: How long may pass before the next word.
    patience_s: float
    taken: bool = False


class CeleryDispatcher:
    """A `Dispatcher` for a queue of workers. One thread uses it."""

    #: It needs no replacement: it connects anew by itself.
    failed = False

    def __init__(
        self,
        app: Celery,
        *,
        prefix: str,
        worker_id: str,
        concurrency: int,
        silence_s: float = SILENCE_S,
        clock: Clock = system_clock,
        timer: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            app: see `broker.make_app`.
            prefix: first part of the names of the queues.
            worker_id: of this process; results name the worker that found them.
            concurrency: what a worker can probably do at once, as long as none has told.
            silence_s: after so long without a word from the worker that has it, a batch is sent again.
            clock: when slots of monitors are due.
            timer: seconds that never go back, for what waits.

        Raises:
            ConfigurationError: the broker cannot be used.
        """
        self.worker_id = worker_id
        self._app = app
        self._prefix = prefix
        self._silence_s = silence_s
        self._clock = clock
        self._timer = timer
        self._reports = reports_queue(queue_name(prefix, f"reports.{uuid.uuid4().hex}"))
        self._least_room = first_room(concurrency)
        #: By worker: its room, and when it told.
        self._workers: dict[str, tuple[int, float]] = {}
        self._numbers = count(1)
        #: All that have no result yet, by number.
        self._requests: dict[int, ProbeRequest] = {}
        #: Slots of monitors before their time: when they are sent, number.
        self._ahead: list[tuple[int, int]] = []
        #: By host: what waits, and how many are out.
        self._waiting: dict[str, deque[int]] = {}
        self._out: Counter[str] = Counter()
        self._batches: dict[str, _Sent] = {}
        self._batch_of: dict[int, str] = {}
        #: How often a request was sent in vain.
        self._in_vain: Counter[int] = Counter()
        #: What a task is called on its way: by another name after each time that it was cancelled.
        self._names: dict[str | None, str] = {}
        self._name_numbers = count(1)
        self._cancelled: dict[int, tuple[ProbeRequest, float]] = {}
        self._dropped: list[ProbeRequest] = []
        self._inbox: list[Report] = []
        self._connection: Connection | None = None
        self._producer: Producer
        self._heard_s = self._retry_s = timer()
        with app.connection_for_write() as connection:
            require_broker(connection)
        self._connected()

    @property
    def capacity(self) -> int:
        """How many more requests it can take now: what the workers that are heard of have room for."""
        silent_s = self._timer() - self._silence_s
        room = sum(room for room, told_s in self._workers.values() if told_s > silent_s)
        return max(0, max(room, self._least_room) - len(self._requests) + len(self._ahead))

    @property
    def workers(self) -> int:
        """How many workers were heard of in the last seconds; those that have nothing to do are silent."""
        silent_s = self._timer() - self._silence_s
        return sum(told_s > silent_s for _, told_s in self._workers.values())

    def submit(self, requests: Sequence[ProbeRequest]) -> None:
        """Take requests; what can be sent now is."""
        for number, request in zip(self._numbers, requests, strict=False):
            self._requests[number] = request
            if request.due_ms is not None and request.due_ms - _AHEAD_MS > self._clock():
                heapq.heappush(self._ahead, (request.due_ms - _AHEAD_MS, number))
            else:
                self._wait(number)
        self._send()

    def results(self, timeout_s: float, *, at_least: int = 1) -> list[Probed]:
        """All that is finished; waits up to `timeout_s` for `at_least` of them, or until no more are under way.

        Without the broker it waits, and tries to reach it.
        """
        finished: list[Probed] = []
        until_s = self._timer() + timeout_s
        while True:
            self._send()
            wait_s = until_s - self._timer()
            if self._ahead:
                wait_s = min(wait_s, (self._ahead[0][0] - self._clock()) / 1000)
            if self._receive(max(wait_s, _LOOK_S)):
                for report in self._inbox:
                    self._read(report, finished)
                self._inbox.clear()
            if (finished and (len(finished) >= at_least or not self._requests)) or self._timer() >= until_s:
                return finished

    def dropped(self) -> list[ProbeRequest]:
        """Slots of monitors that no worker took in time, since the last call."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def cancel(self, task_ids: Set[str]) -> None:
        """Drop the requests of these tasks; returns at once. What is finished still comes."""
        gone = {number for number, request in self._requests.items() if request.task_id in task_ids}
        until_s = self._timer() + _LATE_S
        for number in gone:
            request = self._requests[number]
            if number in self._batch_of:
                self._cancelled[number] = (request, until_s)
                self._end(number)
            else:
                self._waiting[_site(request)].remove(number)
                self._forget_empty(_site(request))
            del self._requests[number]
        names = [name for task_id in task_ids if (name := self._names.pop(task_id, None))]
        if names and self._connected():
            with self._broker_errors("tell what was cancelled"):
                self._app.control.broadcast(CANCEL, arguments={"tasks": names}, connection=self._connection)
        self._send()

    def close(self) -> None:
        """Stop; requests under way are dropped."""
        self.cancel({request.task_id for request in self._requests.values() if request.task_id})
        if self._connected():
            with self._broker_errors("be left"):
                self._reports(self._producer.channel).delete()
        self._disconnect()

    # What is sent.

    def _wait(self, number: int, *, first: bool = False) -> None:
        waiting = self._waiting.setdefault(_site(self._requests[number]), deque())
        (waiting.appendleft if first else waiting.append)(number)

    def _send(self) -> None:
        """Send what waits, except for hosts that something is out for."""
        now_ms = self._clock()
        while self._ahead and self._ahead[0][0] <= now_ms:
            self._wait(heapq.heappop(self._ahead)[1], first=True)
        ready = [site for site in self._waiting if not self._out[site]]
        if not ready or not self._connected():
            return
        groups: dict[str, list[list[int]]] = {}
        for site in ready:
            waiting = self._waiting[site]
            group = [waiting.popleft() for _ in range(min(_PER_HOST, len(waiting)))]
            self._forget_empty(site)
            # A host's slots and its URLs of tasks go together, so that they are in one worker.
            queue = min(queue_for(self._requests[number]) for number in group)
            groups.setdefault(queue, []).append(group)
        for queue in sorted(groups):
            share = sum(map(len, groups[queue])) // max(1, self.workers)
            for numbers in packed(groups[queue], min(max(share, _SMALL_BATCH), _BATCH)):
                self._send_batch(queue, numbers)

    def _send_batch(self, queue: str, numbers: Sequence[int]) -> None:
        batch_id = uuid.uuid4().hex
        tries = max(self._in_vain[number] for number in numbers)
        patience_s = min(UNTAKEN_S * 2**tries, _UNTAKEN_MOST_S)
        requests = [self._requests[number] for number in numbers]
        self._batches[batch_id] = _Sent(set(numbers), queue, self._timer(), patience_s)
        for number, request in zip(numbers, requests, strict=True):
            self._batch_of[number] = batch_id
            self._out[_site(request)] += 1
        if self._connection is not None:
            batch = Batch(batch_id=batch_id, reply_to=self._reports.name, numbers=numbers, requests=requests)
            with self._broker_errors("take probes"):
                self._app.send_task(
                    PROBE,
                    (batch.encode(self._named(requests)),),
                    task_id=batch_id,
                    queue=queue_name(self._prefix, queue),
                    expires=patience_s,
                    argsrepr=f"({len(numbers)} requests)",  # with credentials in them, which events would show
                    producer=self._producer,
                    retry=False,
                )
                return
        self._send_again(batch_id)

    def _named(self, requests: Sequence[ProbeRequest]) -> Mapping[str | None, str]:
        """Our names for the tasks of requests, by id."""
        for task_id in {request.task_id for request in requests} - self._names.keys():
            if task_id is not None:
                self._names[task_id] = f"{self._reports.name} {next(self._name_numbers)}"
        return self._names

    def _send_again(self, batch_id: str) -> None:
        """Put what a batch has no result of first in line."""
        for number in sorted(self._batches[batch_id].numbers, reverse=True):
            self._end(number)
            self._wait(number, first=True)

    def _give_up_silent(self) -> None:
        """Of batches of which nothing was heard for too long: send what is missing again.

        A slot that no worker took in all that time is dropped: the monitor's next one is as good.
        """
        now_s = self._timer()
        silent = [batch_id for batch_id, sent in self._batches.items() if now_s - sent.heard_s > sent.patience_s]
        for batch_id in silent:
            sent = self._batches[batch_id]
            if sent.taken:
                log.warning("%d probes are sent again: the worker that had them is silent", len(sent.numbers))
            else:
                log.warning("%d probes waited in vain: no worker takes from %r", len(sent.numbers), sent.queue)
                self._in_vain.update(sent.numbers)
                for number in [number for number in sent.numbers if self._requests[number].due_ms is not None]:
                    self._end(number)
                    self._dropped.append(self._requests[number])
                    self._settle(number)
            if batch_id in self._batches:
                self._send_again(batch_id)
        if silent and now_s - self._heard_s > self._silence_s:
            self._disconnect()  # perhaps it is the connection that says nothing any more
        for number in [number for number, (_, until_s) in self._cancelled.items() if until_s < now_s]:
            del self._cancelled[number]

    # What comes back.

    def _receive(self, wait_s: float) -> bool:
        """Wait for a message; False if none came."""
        if not self._connected():
            time.sleep(min(wait_s, max(_LOOK_S, self._retry_s - self._timer())))
            return False
        assert self._connection is not None
        with self._broker_errors("give results"):
            try:
                self._connection.drain_events(timeout=wait_s)
            except TimeoutError:
                self._give_up_silent()  # all that was told until now is read
        return bool(self._inbox)

    def _read(self, report: Report, finished: list[Probed]) -> None:
        now_s = self._heard_s = self._timer()
        self._workers[report.worker_id] = (report.room, now_s)
        for batch_id in report.batches:
            if (sent := self._batches.get(batch_id)) is not None:
                sent.heard_s, sent.patience_s, sent.taken = now_s, self._silence_s, True
        for number, *values in report.results:
            if (request := self._requests.get(number)) is not None:
                if number in self._batch_of:
                    self._end(number)
                else:  # it waits to be sent again, and need not be
                    self._waiting[_site(request)].remove(number)
                    self._forget_empty(_site(request))
                self._settle(number)
            elif number in self._cancelled:
                request, _ = self._cancelled.pop(number)
            else:
                continue  # it has its result
            result = heard(request.target.key, values)
            finished.append(Probed(request=request, result=result, worker_id=report.worker_id))

    def _settle(self, number: int) -> None:
        del self._requests[number]
        self._in_vain.pop(number, None)

    def _end(self, number: int) -> None:
        """The request is out no more."""
        batch_id = self._batch_of.pop(number)
        sent = self._batches[batch_id]
        sent.numbers.discard(number)
        if not sent.numbers:
            del self._batches[batch_id]
        site = _site(self._requests[number])
        self._out[site] -= 1
        if not self._out[site]:
            del self._out[site]

    def _forget_empty(self, site: str) -> None:
        if not self._waiting[site]:
            del self._waiting[site]

    # The broker.

    def _connected(self) -> bool:
        """Whether there is a connection; tries to make one, not too often."""
        if self._connection is not None:
            return True
        if self._timer() < self._retry_s:
            return False
        self._connection = connection = self._app.connection_for_write()
        with self._broker_errors("be reached"):
            channel = connection.channel()
            self._producer = Producer(channel)
            Consumer(channel, [self._reports], on_message=self._take, no_ack=True).consume()
            self._heard_s = self._timer()
            return True
        return False

    def _take(self, message: Message) -> None:
        body: Any = message.body
        try:
            self._inbox.append(Report.decode(body))
        except (ValueError, TypeError) as error:
            log.warning("a message that is no report was left out: %s", error)

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # it is broken
                connection.collect()

    @contextmanager
    def _broker_errors(self, doing: str) -> Iterator[None]:
        """Ends the connection when the broker fails in the block, and goes on after it; the requests are kept."""
        connection = self._connection
        assert connection is not None
        try:
            yield
        except (OSError, OperationalError, *connection.connection_errors, *connection.channel_errors) as error:
            log.warning("the broker cannot %s: %s; trying again", doing, one_line(error))
            self._retry_s = self._timer() + _RETRY_S
            self._disconnect()


def _site(request: ProbeRequest) -> str:
    """Whom requests ask: what has to be polite to a host is one worker, or one of each region."""
    return f"{request.region or ''} {request.target.host}"
