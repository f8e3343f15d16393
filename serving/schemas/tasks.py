"""Tasks and their results."""

from dataclasses import asdict
from typing import Self

from pydantic import BaseModel, Field

from serving.schemas.common import RequestBody, Target, Time, Url, Urls, rfc3339, rfc3339_or_none
from serving.schemas.options import Options
from urlhealth import vocabulary as words
from urlhealth.vocabulary import Outcome, TaskStatus


class TaskRequest(RequestBody):
    """URLs to probe once."""

    urls: Urls
    options: Options = Field(default_factory=Options)


class TaskOptions(RequestBody):
    """What the first line of a task may say that is sent as JSON lines."""

    options: Options


class TaskCreated(BaseModel):
    """A task that is stored and will be carried out, whatever happens to this server."""

    task_id: str
    status: TaskStatus
    total: int = Field(description="URLs as sent.")


class Task(TaskCreated):
    """A task and how far it has come."""

    done: int = Field(description="URLs that have their result.")
    outcomes: dict[str, int] = Field(
        description="How many of them had each outcome.", examples=[{"ok": 41, "timeout": 1}]
    )
    workers: list[str] = Field(description="Ids of the workers that probed for it.")
    options: Options
    created_at: Time
    started_at: Time | None
    finished_at: Time | None

    @classmethod
    def of(cls, task: words.CrawlTask) -> Self:
        """The task as a reply."""
        return cls(
            task_id=task.task_id,
            status=task.status,
            total=task.total,
            done=task.done,
            outcomes=task.outcomes,
            workers=list(task.workers),
            options=Options.of(task.options),
            created_at=rfc3339(task.created_ms),
            started_at=rfc3339_or_none(task.started_ms),
            finished_at=rfc3339_or_none(task.finished_ms),
        )


class Attempt(BaseModel):
    """One of several attempts; the fields mean what they mean in `TaskResult`."""

    timestamp: Time
    outcome: Outcome
    status_code: int | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    error: str | None

    @classmethod
    def of(cls, attempt: words.Attempt) -> Self:
        """The attempt as a reply."""
        said = asdict(attempt)
        return cls(timestamp=rfc3339(said.pop("ts_ms")), **said)


class TaskResult(BaseModel):
    """One URL of a task. While its probe is waited for, everything but `position` and `url` is null."""

    position: int = Field(description="Place in the list as it was sent, from 0.")
    url: Url
    target: Target | None = None
    timestamp: Time | None = Field(None, description="When the probe began.")
    outcome: Outcome | None = Field(None, description="What was found; null while the probe is waited for.")
    status_code: int | None = Field(None, description="HTTP status of the last answer.")
    dns_ms: float | None = Field(None, description="Time until the name was resolved; null if not reached, as below.")
    connect_ms: float | None = Field(None, description="Time for the TCP connection.")
    tls_ms: float | None = Field(None, description="Time for the TLS handshake.")
    first_byte_ms: float | None = Field(None, description="Time from the request until the answer's first byte.")
    total_ms: float | None = Field(None, description="Time for everything, redirects included.")
    size_bytes: int | None = Field(None, description="Body bytes read.")
    redirects: int | None = Field(None, description="Redirects followed.")
    final_url: str | None = Field(None, description="Where the answer came from, if not from the URL itself.")
    address: str | None = Field(None, description="IP address that answered.")
    http_version: str | None = Field(None, examples=["2"])
    cert_expires_at: Time | None = None
    error: str | None = Field(None, description="What went wrong, in words.")
    attempts: list[Attempt] | None = Field(
        None,
        description="All attempts in their order, where there was more than one; the result is one of theirs.",
    )

    @classmethod
    def of(cls, item: words.TaskResult) -> Self:
        """The result as a reply."""
        found = item.result
        if found is None:
            return cls(position=item.position, url=item.sent_url)
        return cls(
            position=item.position,
            url=item.sent_url,
            target=found.target,
            timestamp=rfc3339(found.ts_ms),
            outcome=found.outcome,
            status_code=found.status_code,
            dns_ms=found.dns_ms,
            connect_ms=found.connect_ms,
            tls_ms=found.tls_ms,
            first_byte_ms=found.first_byte_ms,
            total_ms=found.total_ms,
            size_bytes=found.size_bytes,
            redirects=found.redirects,
            final_url=found.final_url,
            address=found.address,
            http_version=found.http_version,
            cert_expires_at=rfc3339_or_none(found.cert_expires_ms),
            error=found.error,
            attempts=[Attempt.of(attempt) for attempt in found.attempts] or None,
        )
