"""The graph: its objects, and how each is read."""

import asyncio
from enum import Enum
from functools import partial
from typing import Annotated, Self

import strawberry
from anyio import to_thread
from graphql import GraphQLError
from strawberry.types import ExecutionContext, Info

from serving.graphql.limits import LISTS
from serving.graphql.loaders import Loaders, PredictionKey, ProbesKey
from serving.schemas.common import MAX_URLS, rfc3339, rfc3339_or_none
from urlhealth import vocabulary as words
from urlhealth.errors import InvalidRequest, NotFound
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import TaskStatus

Context = Info[Loaders, None]
First = Annotated[int, strawberry.argument(description="Items at most, from 1 to 1000.")]

strawberry.enum(TaskStatus)


@strawberry.enum(name="Horizon")
class Horizon(Enum):
    """How far ahead a forecast looks."""

    ONE_HOUR = "1h"
    SIX_HOURS = "6h"
    ONE_DAY = "24h"


@strawberry.type(description="What one probe found; times in milliseconds are null where a phase was not reached.")
class Probe:
    at: str
    outcome: str
    status_code: int | None
    dns_ms: float | None
    connect_ms: float | None
    tls_ms: float | None
    first_byte_ms: float | None
    total_ms: float | None
    final_url: str | None
    error: str | None

    @classmethod
    def of(cls, result: words.ProbeResult) -> Self:
        """The result as an object."""
        return cls(
            at=rfc3339(result.ts_ms),
            outcome=result.outcome.value,
            status_code=result.status_code,
            dns_ms=result.dns_ms,
            connect_ms=result.connect_ms,
            tls_ms=result.tls_ms,
            first_byte_ms=result.first_byte_ms,
            total_ms=result.total_ms,
            final_url=result.final_url,
            error=result.error,
        )


@strawberry.type(description="A feature of a URL, now; null where unknown.")
class Feature:
    name: str
    value: float | None


@strawberry.type(description="A feature that moved a prediction, and by how much (log-odds).")
class Reason:
    feature: str
    contribution: float
    text: str


@strawberry.type(description="The forecast for one horizon; probabilities are null for a URL never seen.")
class Prediction:
    horizon: str
    probability: float | None
    probability_at_end: float | None
    status: str
    health: str
    age_s: float | None
    model: str
    model_version: str
    reasons: list[Reason]

    @classmethod
    def of(cls, made: words.Prediction) -> Self:
        """The prediction as an object."""
        return cls(
            horizon=made.horizon,
            probability=made.probability,
            probability_at_end=made.probability_at_end,
            status=made.status.value,
            health=made.health.value,
            age_s=made.age_s,
            model=made.model,
            model_version=made.model_version,
            reasons=[
                Reason(feature=reason.feature, contribution=reason.contribution, text=reason.text)
                for reason in made.reasons
            ],
        )


@strawberry.type(description="A URL as it is probed with default options, and what is known of it now.")
class Target:
    url: str = strawberry.field(description="As it was sent.")
    key: str = strawberry.field(description="The normalised URL that verdicts and features are kept under.")

    @strawberry.field(description="Its newest probes, newest first.")
    async def probes(self, info: Context, first: First = LISTS["probes"]) -> list[Probe]:
        found = await info.context.probes.load(ProbesKey(self.key, _size(first)))
        return [Probe.of(result) for result in found]

    @strawberry.field(description="All features, or those named; null for a URL never seen.")
    async def features(self, info: Context, names: list[str] | None = None) -> list[Feature] | None:
        values = (await info.context.features.load(self.url)).values
        if values is None:
            return None
        wanted = list(values if names is None else dict.fromkeys(names))
        unknown = [name for name in wanted if name not in values]
        if unknown:
            raise InvalidRequest(f"there is no feature {unknown[0]!r}: docs/features.md lists them")
        return [Feature(name=name, value=values[name] if values[name] == values[name] else None) for name in wanted]

    @strawberry.field(description="How likely it is to fail within each horizon; `explain` gives reasons.")
    async def predictions(
        self,
        info: Context,
        horizons: list[Horizon] = [Horizon.ONE_DAY],  # noqa: B006  strawberry copies it
        explain: bool = False,
    ) -> list[Prediction] | None:
        keys = [PredictionKey(self.url, horizon.value, explain) for horizon in dict.fromkeys(horizons)]
        made = await asyncio.gather(*(info.context.predictions.load(key) for key in keys))
        return [Prediction.of(each) for each in made]


@strawberry.type(description="One URL of a task; `probe` is null while it is waited for.")
class Result:
    position: int
    url: str
    probe: Probe | None
    target: Target

    @classmethod
    def of(cls, item: words.TaskResult) -> Self:
        """The result as an object."""
        (target,) = parse_targets([item.sent_url])
        return cls(
            position=item.position,
            url=item.sent_url,
            probe=None if item.result is None else Probe.of(item.result),
            target=Target(url=item.sent_url, key=target.key),
        )


@strawberry.type(description="A page of a task's results; `nextCursor` is null at the end.")
class Results:
    items: list[Result]
    next_cursor: str | None


@strawberry.type(description="How many URLs of a task had an outcome.")
class OutcomeCount:
    outcome: str
    urls: int


@strawberry.type(description="URLs to probe once.")
class Task:
    task_id: str
    status: str
    total: int
    done: int
    outcomes: list[OutcomeCount]
    created_at: str
    finished_at: str | None

    @strawberry.field(description="Its results in the order of its URLs.")
    async def results(self, info: Context, first: First = LISTS["results"], after: str | None = None) -> Results:
        read = partial(
            info.context.platform.crawl.task_results, limit=_size(first), cursor=after, owner=info.context.owner
        )
        page = await to_thread.run_sync(read, self.task_id)
        return Results(items=[Result.of(item) for item in page.items], next_cursor=page.next_cursor)

    @classmethod
    def of(cls, task: words.CrawlTask) -> Self:
        """The task as an object."""
        return cls(
            task_id=task.task_id,
            status=task.status.value,
            total=task.total,
            done=task.done,
            outcomes=[OutcomeCount(outcome=outcome, urls=urls) for outcome, urls in task.outcomes.items()],
            created_at=rfc3339(task.created_ms),
            finished_at=rfc3339_or_none(task.finished_ms),
        )


@strawberry.type(description="What can be read.")
class Query:
    @strawberry.field(description="Tasks, newest first.")
    async def tasks(self, info: Context, first: First = LISTS["tasks"], status: TaskStatus | None = None) -> list[Task]:
        read = partial(info.context.platform.crawl.tasks, status=status, limit=_size(first), owner=info.context.owner)
        return [Task.of(task) for task in (await to_thread.run_sync(read)).items]

    @strawberry.field(description="A task; null if there is none.")
    async def task(self, info: Context, task_id: str) -> Task | None:
        try:
            return Task.of(
                await to_thread.run_sync(partial(info.context.platform.crawl.task, owner=info.context.owner), task_id)
            )
        except NotFound:
            return None

    @strawberry.field(description="URLs, in the order in which they are named, whether known or not; up to 1000.")
    async def targets(self, urls: list[str]) -> list[Target]:
        if len(urls) > MAX_URLS:
            raise InvalidRequest(f"{len(urls)} URLs are named: {MAX_URLS} is the most")
        return [Target(url=url, key=target.key) for url, target in zip(urls, parse_targets(urls), strict=True)]


def _size(first: int) -> int:
    if not 1 <= first <= 1000:
        raise InvalidRequest(f"first is {first}: it must be from 1 to 1000")
    return first


class _Schema(strawberry.Schema):
    def process_errors(self, errors: list[GraphQLError], execution_context: ExecutionContext | None = None) -> None:
        """The route logs those that were not foreseen, and no others."""


schema = _Schema(Query)
