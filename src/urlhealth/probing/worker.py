"""`urlhealth worker`: takes batches of requests from the broker, probes them, and reports what it finds.

All batches of the process share one engine, so that its limits hold for all of them. A thread for each batch waits for
its end, because Celery acknowledges a batch when its task returns: that is after its last results were sent.
"""

import gc
import logging
import os
import sys
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

from celery import Celery
from celery.worker.control import control_command
from kombu import Connection, Producer
from kombu.exceptions import OperationalError
from kombu.transport import redis as kombu_redis

from urlhealth.errors import one_line
from urlhealth.probing.broker import (
    BEAT_S,
    CANCEL,
    MONITORS,
    PROBE,
    TASKS,
    Batch,
    Report,
    queue_name,
    reports_queue,
    require_broker,
    told,
)
from urlhealth.probing.engine import SWITCH_S, ProbeEngine
from urlhealth.vocabulary import ProbeResult

log = logging.getLogger(__name__)

#: What it takes from, unless it is told.
ALL_QUEUES: Final = (MONITORS, TASKS)
#: Results that are sent at once, and how long it waits for so many.
_MOST: Final = 256
_HAND_OVER_S: Final = 0.05
#: Pause before the next try to reach a broker that could not be reached.
_RETRY_S: Final = 1.0
#: How long what was finished before it was cancelled may take to come.
_LATE_S: Final = 5.0
#: Cancelled tasks that are remembered: their batches may still be on their way.
_REMEMBERED: Final = 10_000


@dataclass(slots=True, eq=False)
class _InHand:
    """A batch that is being probed."""

    batch: Batch
    #: Our numbers of the requests that have no result sent yet.
    pending: set[int] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)


class Prober:
    """The engine of a worker, and the thread that sends its results. `probe` and `cancel` are for any thread."""

    def __init__(self, engine: ProbeEngine, app: Celery) -> None:
        self._engine = engine
        self._app = app
        self._lock = threading.Lock()
        self._numbers = count(1)
        #: By batch id.
        self._in_hand: dict[str, _InHand] = {}
        #: By our number: whose it is, and the writer's number.
        self._requests: dict[int, tuple[_InHand, int, str | None]] = {}
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        #: Requests that were cancelled and may be finished all the same: until when, our number.
        self._late: deque[tuple[float, int]] = deque()
        self._connection: Connection | None = None
        self._producer: Producer
        threading.Thread(target=self._run, name="urlhealth-reports", daemon=True).start()

    def probe(self, text: str) -> None:
        """Probe an encoded batch; returns when its results are sent, except those of cancelled tasks.

        The same batch may come twice, when the broker has lost sight of this worker: the second waits with the first.
        """
        batch = Batch.decode(text, self._numbers)
        with self._lock:
            mine = self._in_hand.get(batch.batch_id)
            if mine is None:
                mine = self._in_hand[batch.batch_id] = _InHand(batch)
                wanted = []
                for number, request in zip(batch.numbers, batch.requests, strict=True):
                    if request.task_id not in self._cancelled:
                        wanted.append(request)
                        mine.pending.add(request.target_id)
                        self._requests[request.target_id] = (mine, number, request.task_id)
                self._engine.submit(wanted)
                self._end_if_done(mine)
        mine.done.wait()

    def cancel(self, task_ids: Iterable[str]) -> None:
        """Drop the requests of these tasks, also of batches that are still to come. What is finished is still sent."""
        gone = set(task_ids)
        with self._lock:
            self._cancelled.update(dict.fromkeys(gone))
            while len(self._cancelled) > _REMEMBERED:
                self._cancelled.popitem(last=False)
            self._engine.cancel(gone)
            touched = set()
            until_s = time.monotonic() + _LATE_S
            for number, (mine, _, task_id) in self._requests.items():
                if task_id in gone:
                    mine.pending.discard(number)
                    touched.add(mine)
                    self._late.append((until_s, number))
            for mine in touched:
                self._end_if_done(mine)

    def _end_if_done(self, mine: _InHand) -> None:
        if not mine.pending:
            self._in_hand.pop(mine.batch.batch_id, None)
            mine.done.set()

    def _run(self) -> None:
        beat_s = 0.0
        some: Sequence[Any] = ()
        try:
            while True:
                some = self._engine.results(_HAND_OVER_S if some else BEAT_S, at_least=_MOST if some else 1)
                now_s = time.monotonic()
                if some or now_s - beat_s >= BEAT_S:
                    self._report([(probed.request.target_id, probed.result) for probed in some])
                    if now_s - beat_s >= BEAT_S:
                        beat_s = now_s
        except BaseException:
            # Batches that are not acknowledged go to another worker; whoever started this one starts the next.
            log.critical("this worker ends: it cannot probe any more", exc_info=True)
            os._exit(1)

    def _report(self, found: Sequence[tuple[int, ProbeResult]]) -> None:
        """Tell each writer what was found for it, and what of its is in hand; then end the batches that are done."""
        results: dict[str, list[Sequence[Any]]] = defaultdict(list)
        batches: dict[str, list[str]] = defaultdict(list)
        ended: list[tuple[_InHand, int]] = []
        with self._lock:
            for number, result in found:
                if (known := self._requests.pop(number, None)) is not None:
                    mine, theirs, _ = known
                    results[mine.batch.reply_to].append(told(theirs, result))
                    ended.append((mine, number))
            for batch_id, mine in self._in_hand.items():
                batches[mine.batch.reply_to].append(batch_id)
            room = self._engine.room
            while self._late and self._late[0][0] < time.monotonic():
                self._requests.pop(self._late.popleft()[1], None)
        for writer in results.keys() | batches.keys():
            self._send(
                writer,
                Report(
                    worker_id=self._engine.worker_id, room=room, batches=batches[writer], results=results[writer]
                ).encode(),
            )
        with self._lock:
            for mine, number in ended:
                mine.pending.discard(number)
                self._end_if_done(mine)

    def _send(self, writer: str, body: bytes) -> None:
        """Publish a report; without the broker, as soon as it is back."""
        while True:
            connection = self._connection
            try:
                if connection is None:
                    self._connection = connection = self._app.connection_for_write()
                    self._producer = Producer(connection.channel())
                self._producer.publish(
                    body,
                    routing_key=writer,
                    exchange="",
                    declare=[reports_queue(writer)],
                    content_type="application/octet-stream",
                    content_encoding="binary",
                    delivery_mode=1,
                )
                return
            except (OSError, OperationalError, *self._errors(connection)) as error:
                log.warning("the broker cannot take results: %s; trying again", one_line(error))
                self._connection = None
                if connection is not None:
                    with suppress(Exception):  # it is broken
                        connection.collect()
                time.sleep(_RETRY_S)

    @staticmethod
    def _errors(connection: Connection | None) -> tuple[type[Exception], ...]:
        return () if connection is None else (*connection.connection_errors, *connection.channel_errors)


class _RedisChannel(kombu_redis.Channel):
    """Says that its connection is gone, where kombu's own stumbles as it gives messages back, and takes Celery along.

    The writer sends again what is not given back.
    """

    def _connparams(self, asynchronous: bool = False) -> Any:
        if self.connection.client is None:
            raise ConnectionError("the connection to the broker is gone")
        return super()._connparams(asynchronous=asynchronous)


def run_worker(
    app: Celery, engine: ProbeEngine, *, prefix: str, queues: Sequence[str], concurrency: int, loglevel: str = "INFO"
) -> int:
    """Work until a signal says to stop; returns the exit code.

    Args:
        app: see `broker.make_app`.
        engine: probes all batches.
        prefix: first part of the names of the queues.
        queues: kinds of queues to take from (`broker.queue_for`), in this order of priority.
        concurrency: batches in hand at once.

    Raises:
        ConfigurationError: the broker cannot be used.
    """
    with app.connection_for_read() as connection:
        require_broker(connection)
    prober = Prober(engine, app)

    @app.task(name=PROBE)
    def probe(batch: str) -> None:
        prober.probe(batch)

    @control_command(name=CANCEL)
    def cancel(_: object, tasks: list[str]) -> None:
        prober.cancel(tasks)

    for noisy in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # two lines for each batch
    worker = app.Worker(
        hostname=f"urlhealth@{engine.worker_id}",
        queues=[queue_name(prefix, queue) for queue in queues],
        pool="threads",
        concurrency=concurrency,
        loglevel=loglevel,
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        optimization="fair",
    )
    kombu_redis.Transport.Channel = _RedisChannel
    gc.freeze()  # what Celery has imported is not walked again and again
    sys.setswitchinterval(SWITCH_S)
    worker.start()
    return int(worker.exitcode or 0)
