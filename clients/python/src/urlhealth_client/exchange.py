"""What both clients share, without waiting for anything: retries, requests' bodies, errors, events."""

import gzip
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from urlhealth_client.errors import ApiError, ConnectionFailed, UrlHealthClientError, error_class
from urlhealth_client.models import ProblemItem, Task

#: Statuses after which the same call may work.
PASSING: Final = frozenset({429, 502, 503, 504})
#: Failures after which the platform cannot have begun with a request.
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: Events that are the last of a task.
LAST_EVENTS: Final = frozenset({"done", "cancelled", "deleted"})
#: URLs that one request for features or predictions may name.
URLS_AT_ONCE: Final = 1000
#: Items of a list's first page, which is often enough, and of the others.
FIRST_PAGE: Final = 100
PAGE: Final = 1000
#: Bodies from this length on are packed.
_PACKED_BYTES: Final = 64 << 10

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How often a call that may be repeated without harm is, and after which pauses.

    Each pause is twice the one before, up to `max_delay_s`, times a number between 0.5 and 1. A `Retry-After` of the
    platform that is longer counts instead, up to `max_delay_s`. `random` gives numbers between 0 and 1.
    """

    attempts: int = 3
    first_delay_s: float = 0.5
    max_delay_s: float = 10.0
    random: Callable[[], float] = field(default=random.random, repr=False)

    def pauses(self) -> Iterator[float]:
        """Seconds before each attempt after the first."""
        for attempt in range(self.attempts):
            yield min(self.first_delay_s * 2.0**attempt, self.max_delay_s) * (0.5 + 0.5 * self.random())

    def after(self, reply: httpx.Response | None, pause_s: float) -> float:
        """The pause, lengthened as far as the reply asks for it."""
        asked = "" if reply is None else reply.headers.get("retry-after", "")
        return max(pause_s, min(float(asked), self.max_delay_s)) if asked.isdecimal() else pause_s


@dataclass(frozen=True, kw_only=True)
class TaskEvent:
    """How far a task has come. `name` is `progress`, `done`, `cancelled` or `deleted`; `task` is None once deleted."""

    name: str
    event_id: str | None
    task: Task | None


class EventParser:
    """Server-Sent Events, line by line."""

    def __init__(self) -> None:
        #: Id of the newest event: what to go on from.
        self.last_id: str | None = None
        #: Whether there is nothing to come.
        self.finished = False
        self.begin()

    def begin(self) -> None:
        """Forget an event of which only a part came."""
        self._id: str | None = None
        self._name, self._data = "message", ""

    def feed(self, line: str) -> TaskEvent | None:
        """The event that is complete with this line."""
        if line:
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            match name:
                case "id":
                    self._id = value
                case "event":
                    self._name = value
                case "data":
                    self._data += value
            return None
        name, data, event_id = self._name, self._data, self._id
        self.begin()
        if not data:
            return None
        self.last_id = event_id or self.last_id
        self.finished = name in LAST_EVENTS
        task = None if name == "deleted" else parsed(Task, data)
        return TaskEvent(name=name, event_id=event_id, task=task)


def task_body(urls: Iterable[str], options: Mapping[str, Any] | None) -> tuple[bytes, dict[str, str]]:
    """A new task as JSON lines, packed if it is long; and the headers that say so."""
    lines = [to_json({"options": options})] if options else []
    lines += [to_json(url) for url in urls]
    body, headers = b"\n".join(lines) + b"\n", {"Content-Type": "application/x-ndjson"}
    if len(body) >= _PACKED_BYTES:
        body, headers = gzip.compress(body, 1), headers | {"Content-Encoding": "gzip"}
    return body, headers


def lines_body(items: Iterable[Mapping[str, Any]]) -> bytes:
    """Objects as JSON lines."""
    return b"".join(to_json(item) + b"\n" for item in items)


def chunks(items: Iterable[str]) -> Iterator[list[str]]:
    """As many URLs as one request may name, again and again."""
    whole = list(items)
    for start in range(0, len(whole), URLS_AT_ONCE):
        yield whole[start : start + URLS_AT_ONCE]


def given(**parameters: Any) -> dict[str, Any]:
    """The parameters that are not None, as a query has them."""
    return {name: _query(value) for name, value in parameters.items() if value is not None}


def _query(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return value


def parsed(model: type[Model], data: str | bytes) -> Model:
    """A reply; raises `UrlHealthClientError` where it is none, as when something else listens there."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        raise _not_ours(error) from error


def parsed_page(model: type[Model], data: bytes) -> tuple[list[Model], str | None]:
    """A part of a list, and the cursor of the next one."""
    try:
        page = _PAGE.validate_json(data)
        items = [model.model_validate(item) for item in page["items"]]
    except (ValidationError, KeyError) as error:
        raise _not_ours(error) from error
    return items, page.get("next_cursor")


_PAGE: Final[TypeAdapter[dict[str, Any]]] = TypeAdapter(dict[str, Any])


def _not_ours(error: Exception) -> UrlHealthClientError:
    return UrlHealthClientError(
        f"the reply is none of a urlhealth platform that this version knows (is the address right?): {error}"
    )


def api_error(reply: httpx.Response) -> ApiError:
    """The error that a reply with a status from 400 on is; its body is read."""
    try:
        body = reply.json()
        detail, kind = str(body["detail"]), str(body.get("type", "about:blank"))
        errors: Sequence[ProblemItem] = [ProblemItem.model_validate(item) for item in body.get("errors", ())]
    except (ValueError, KeyError, TypeError, AttributeError):
        detail, kind, errors = f"{reply.request.url} answered with status {reply.status_code}", "about:blank", ()
    return error_class(reply.status_code)(reply.status_code, kind, detail, errors)


def broken(server: str) -> ConnectionFailed:
    """A stream ended before what it tells of did."""
    return ConnectionFailed(f"the connection to {server} ended too soon")


def connection_failed(server: str, error: httpx.TransportError) -> ConnectionFailed:
    """What to tell people when nothing answers."""
    return ConnectionFailed(f"no reply from {server}: {error or type(error).__name__}")
