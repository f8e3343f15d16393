"""What a writer and its workers say to each other over a broker, and the Celery application that carries it.

A batch of requests goes to a queue that any worker of its kind takes from. What is found comes back in reports, to a
queue of the writer's own. Both are JSON: whoever can write to the broker can make workers probe, but not run code.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final

import orjson
from celery import Celery
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.transport import TRANSPORT_ALIASES

from urlhealth.errors import ConfigurationError, one_line
from urlhealth.vocabulary import DEFAULT_OPTIONS, Attempt, Outcome, ProbeOptions, ProbeRequest, ProbeResult, Target

#: Name of the one Celery task.
PROBE: Final = "urlhealth.probe"
#: Name of the command by which a writer tells all workers that it wants no more of some tasks.
CANCEL: Final = "urlhealth_cancel"

#: Queues by what asks: slots of monitors, which have their time, and URLs of tasks.
MONITORS: Final = "monitors"
TASKS: Final = "tasks"

#: A worker tells at least so often which batches it has in hand.
BEAT_S: Final = 1.0
#: How long a writer's queue of reports outlives it.
_REPORTS_EXPIRE_S: Final = 300.0
#: Longest wait for the broker to connect, or to take what is written.
_BROKER_S: Final = 5.0

_FIELDS: Final = tuple(field.name for field in fields(ProbeResult) if field.name != "target")
_values = attrgetter(*_FIELDS)
_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}


def make_app(url: str, *, prefix: str) -> Celery:
    """The Celery application of writers and workers; nothing is connected yet.

    Args:
        url: of the broker, `redis://` or `amqp://`.
        prefix: first part of the names of all queues.

    Raises:
        ConfigurationError: the URL is of no kind of broker.
    """
    scheme = url.partition(":")[0]
    if scheme not in TRANSPORT_ALIASES:
        raise ConfigurationError(
            f"no broker is known by {scheme[:20]!r}: let URLHEALTH_BROKER_URL begin with redis or amqp"
        )
    app = Celery("urlhealth", broker=url, set_as_current=False)
    app.conf.update(
        task_default_queue=queue_name(prefix, TASKS),
        task_create_missing_queues=True,
        # A batch is done when its results are sent. One of a worker that died goes to another one: RabbitMQ sees that
        # at once; for Redis, which would wait for the visibility timeout, the writer sends it again.
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        # It would be given back, after a connection broke, from the threads of the pool, which would read from the
        # connection beside the loop that owns it: now and then the worker then took nothing any more.
        worker_enable_prefetch_count_reduction=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        broker_connection_timeout=_BROKER_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(url, prefix),
        worker_hijack_root_logger=False,
        worker_send_task_events=True,  # for Flower
        event_queue_expires=60,
    )
    return app


def _transport_options(url: str, prefix: str) -> dict[str, Any]:
    if url.startswith("amqp"):
        return {"confirm_publish": True, "read_timeout": None, "write_timeout": _BROKER_S}
    # An hour of visibility: longer than nearly every batch, so that none runs twice while it is under way.
    return {
        "visibility_timeout": 3600,
        "socket_connect_timeout": _BROKER_S,
        "socket_keepalive": True,
        "health_check_interval": 5,
        "unacked_key": f"{prefix}.unacked",
        "unacked_index_key": f"{prefix}.unacked_index",
        "unacked_mutex_key": f"{prefix}.unacked_mutex",
    }


def require_broker(connection: Connection) -> None:
    """Connect.

    Raises:
        ConfigurationError: the broker does not answer.
    """
    try:
        connection.ensure_connection(max_retries=1, interval_start=0.2, timeout=_BROKER_S)
    except (OSError, OperationalError, *connection.connection_errors) as error:
        raise ConfigurationError(
            f"the broker {connection.as_uri()} cannot be used: {one_line(error)}; check that it runs and that "
            "URLHEALTH_BROKER_URL names it, or leave that empty to probe without one"
        ) from error


def queue_name(prefix: str, kind: str) -> str:
    """The broker's name of a queue: `urlhealth.tasks`."""
    return f"{prefix}.{kind}"


def queue_for(request: ProbeRequest) -> str:
    """The kind of queue that a request goes to: `tasks`, `monitors`, or `monitors.eu` for one region's workers."""
    kind = TASKS if request.due_ms is None else MONITORS
    return f"{kind}.{request.region}" if request.region else kind


def reports_queue(name: str) -> Queue:
    """A writer's queue of reports. Both sides declare it alike; it goes away when nobody has used it for a while."""
    return Queue(name, routing_key=name, durable=False, expires=_REPORTS_EXPIRE_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Requests for one worker."""

    batch_id: str
    #: The writer's queue of reports.
    reply_to: str
    #: The writer's number of each request.
    numbers: Sequence[int]
    requests: Sequence[ProbeRequest]

    def encode(self, names: Mapping[str | None, str]) -> str:
        """As the argument of the task. Options that several requests have are written once.

        `names`: what the tasks of the requests are called on the way, by id.
        """
        places: dict[ProbeOptions, int] = {}
        rows = [
            (
                number,
                request.target.url,
                request.target.host,
                request.target.name,
                places.setdefault(request.options, len(places)),
                names.get(request.task_id),
                request.due_ms,
            )
            for number, request in zip(self.numbers, self.requests, strict=True)
        ]
        return orjson.dumps([self.batch_id, self.reply_to, list(places), rows]).decode()

    @classmethod
    def decode(cls, text: str, own_numbers: Iterable[int]) -> "Batch":
        """The inverse of :meth:`encode`; `target_id` of each request is the next of `own_numbers`."""
        batch_id, reply_to, written, rows = orjson.loads(text)
        options = [DEFAULT_OPTIONS if (made := ProbeOptions(**each)) == DEFAULT_OPTIONS else made for each in written]
        requests = [
            ProbeRequest(
                target=Target(url=url, host=host, group="", name=name),
                target_id=own,
                options=options[place],
                task_id=task_id,
                due_ms=due_ms,
            )
            for (_, url, host, name, place, task_id, due_ms), own in zip(rows, own_numbers, strict=False)
        ]
        return cls(batch_id=batch_id, reply_to=reply_to, numbers=[row[0] for row in rows], requests=requests)


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a worker tells a writer."""

    worker_id: str
    #: How many requests the worker's engine can hold.
    room: int
    #: Batches of the writer's that it has in hand.
    batches: Sequence[str]
    #: The writer's number of a request, and the values of the result's fields but `target`.
    results: Sequence[Sequence[Any]]

    def encode(self) -> bytes:
        """As a message's body."""
        return orjson.dumps([self.worker_id, self.room, self.batches, self.results])

    @classmethod
    def decode(cls, body: bytes) -> "Report":
        """The inverse of :meth:`encode`."""
        worker_id, room, batches, results = orjson.loads(body)
        return cls(worker_id=worker_id, room=room, batches=batches, results=results)


def told(number: int, result: ProbeResult) -> Sequence[Any]:
    """A result as a report has it."""
    return (number, *_values(_clean(result)))


def heard(target: str, values: Sequence[Any]) -> ProbeResult:
    """The inverse of :func:`told`, but for the number."""
    named = dict(zip(_FIELDS, values, strict=True))
    named["outcome"] = _OUTCOMES[named["outcome"]]
    attempts = named["attempts"]
    if attempts:
        attempts = [Attempt(**each | {"outcome": _OUTCOMES[each["outcome"]]}) for each in attempts]
    named["attempts"] = tuple(attempts)
    return ProbeResult(target=target, **named)


def _clean(result: ProbeResult) -> ProbeResult:
    """Without lone surrogates, which a server may have brought into an error, and which JSON cannot hold."""
    if result.error is None and result.final_url is None and not result.attempts:
        return result
    attempts = tuple(replace(attempt, error=_text(attempt.error)) for attempt in result.attempts)
    return replace(result, error=_text(result.error), final_url=_text(result.final_url), attempts=attempts)


def _text(text: str | None) -> str | None:
    return text and text.encode("utf-8", "replace").decode()


def packed(groups: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Groups put together into batches of about `size`; a group is not divided."""
    batch: list[int] = []
    for group in groups:
        if batch and len(batch) + len(group) > size:
            yield batch
            batch = []
        batch.extend(group)
    if batch:
        yield batch
