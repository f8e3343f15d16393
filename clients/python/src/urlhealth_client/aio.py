"""The client for asynchronous programs; `sync.py` is made from this file by `generate.py`."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

import httpx
from pydantic_core import to_json

from urlhealth_client import exchange
from urlhealth_client.errors import NotFound, UrlHealthClientError
from urlhealth_client.exchange import EventParser, Model, Retries, TaskEvent, given, parsed
from urlhealth_client.models import (
    CurrentItem,
    Features,
    FeaturesItem,
    Incident,
    Monitor,
    MonitorAnswer,
    MonitorPatch,
    MonitorRequest,
    OptionsDict,
    Predictions,
    PredictionsItem,
    Ready,
    Task,
    TaskCreated,
    TaskResult,
    UrlHistory,
    UrlState,
)

Horizon = Literal["1h", "6h", "24h"]


class AsyncClient:
    """A connection to a platform. Close it, or use it in a `with`; it may be shared by all parts of a program.

    `server` is the platform's address, `key` an API key of it. `timeout_s` is how long it may be silent.
    Every method raises `ConnectionFailed` or an `ApiError`.
    """

    def __init__(
        self,
        server: str = "http://127.0.0.1:8000",
        *,
        key: str | None = None,
        timeout_s: float = 30.0,
        retries: Retries = Retries(),  # noqa: B008  frozen
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.server = server.rstrip("/")
        self._retries = retries
        headers = {"User-Agent": "urlhealth-client"} | ({} if key is None else {"Authorization": f"Bearer {key}"})
        self._http = httpx.AsyncClient(base_url=self.server, headers=headers, timeout=timeout_s, transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End its connections."""
        await self._http.aclose()

    # Tasks: URLs to probe once.

    async def create_task(
        self, urls: Iterable[str], *, options: OptionsDict | None = None, idempotency_key: str | None = None
    ) -> TaskCreated:
        """Have URLs probed once. The task is on the platform's disk when this returns.

        A call that is repeated because the connection broke makes one task. To make that so beyond this call (a job
        that is started again), give it an `idempotency_key`.
        """
        body, headers = exchange.task_body(urls, options)
        headers["Idempotency-Key"] = idempotency_key or uuid.uuid4().hex
        reply = await self._send("POST", "/api/v1/tasks", content=body, headers=headers)
        return parsed(TaskCreated, reply.content)

    async def probe(self, urls: Iterable[str], *, options: OptionsDict | None = None) -> list[TaskResult]:
        """Probe URLs once, wait for it, and give the results in the order of the URLs."""
        task = await self.create_task(urls, options=options)
        await self.wait(task.task_id)
        return [result async for result in self.results(task.task_id)]

    async def task(self, task_id: str) -> Task:
        """A task, and how far it has come."""
        return parsed(Task, (await self._send("GET", f"/api/v1/tasks/{task_id}")).content)

    def tasks(self, *, status: str | None = None) -> AsyncIterator[Task]:
        """Tasks, newest first; all, or those in one status."""
        return self._listed(Task, "/api/v1/tasks", given(status=status))

    async def results(self, task_id: str) -> AsyncIterator[TaskResult]:
        """A task's results in the order of its URLs, as a stream, also while it is running.

        If the connection breaks, the stream goes on after the last result that came.
        """
        path = f"/api/v1/tasks/{task_id}/results"
        position = 0
        async for line in self._streamed(path, params=lambda: {"format": "ndjson"}):
            result = parsed(TaskResult, line)
            if result.position >= position:
                position = result.position + 1
                yield result

    async def events(self, task_id: str, *, last_event_id: str | None = None) -> AsyncIterator[TaskEvent]:
        """How far a task has come, again and again, up to its end.

        If the connection breaks, or the platform is started anew, it goes on from the last event that came. So does a
        later call with that event's id as `last_event_id`.
        """
        parser = EventParser()
        parser.last_id = last_event_id

        def headers() -> dict[str, str]:
            parser.begin()
            accept = {"Accept": "text/event-stream"}
            return accept if parser.last_id is None else accept | {"Last-Event-ID": parser.last_id}

        path = f"/api/v1/tasks/{task_id}/events"
        async for line in self._streamed(path, headers=headers, ended=lambda: parser.finished):
            event = parser.feed(line)
            if event is not None:
                yield event

    async def wait(self, task_id: str) -> Task:
        """Wait for a task's end; raises `NotFound` if it is deleted meanwhile."""
        async for event in self.events(task_id):
            if event.name == "deleted":
                raise NotFound(404, "about:blank", f"the task {task_id} was deleted")
        return await self.task(task_id)

    async def cancel_task(self, task_id: str) -> Task:
        """Probe nothing more for it; what was found stays."""
        return parsed(Task, (await self._send("POST", f"/api/v1/tasks/{task_id}/cancel")).content)

    async def delete_task(self, task_id: str) -> None:
        """Cancel it if it is running, and delete it. The probes in its URLs' history stay."""
        await self._send("DELETE", f"/api/v1/tasks/{task_id}", again=False)

    # Monitors: URLs to probe again and again.

    async def create_monitor(self, monitor: MonitorRequest) -> Monitor:
        """Probe a URL again and again; raises `Conflict` if it has a monitor already."""
        return parsed(Monitor, (await self._send("POST", "/api/v1/monitors", json=monitor, again=False)).content)

    async def create_monitors(self, monitors: Iterable[MonitorRequest]) -> AsyncIterator[MonitorAnswer]:
        """Many monitors; what became of each, in their order."""
        headers = {"Content-Type": "application/x-ndjson"}
        reply = await self._send("POST", "/api/v1/monitors", content=exchange.lines_body(monitors), headers=headers)
        for line in reply.content.splitlines():
            yield parsed(MonitorAnswer, line)

    async def monitor(self, monitor_id: str) -> Monitor:
        """A monitor, and when it is due next."""
        return parsed(Monitor, (await self._send("GET", f"/api/v1/monitors/{monitor_id}")).content)

    def monitors(
        self,
        *,
        url: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tag: str | None = None,
    ) -> AsyncIterator[Monitor]:
        """All monitors, or those for which everything holds that is given; oldest first."""
        return self._listed(Monitor, "/api/v1/monitors", given(url=url, name=name, group=group, tag=tag))

    async def change_monitor(self, monitor_id: str, change: MonitorPatch) -> Monitor:
        """Change what is named; the rest stays."""
        return parsed(Monitor, (await self._send("PATCH", f"/api/v1/monitors/{monitor_id}", json=change)).content)

    async def delete_monitor(self, monitor_id: str) -> None:
        """Stop probing it. The probes in the URL's history stay."""
        await self._send("DELETE", f"/api/v1/monitors/{monitor_id}", again=False)

    # Features and forecasts.

    async def features(self, urls: Iterable[str]) -> list[FeaturesItem]:
        """What a model sees of each URL now; any number of URLs."""
        items: list[FeaturesItem] = []
        for some in exchange.chunks(urls):
            items += parsed(Features, (await self._send("POST", "/api/v1/features", json={"urls": some})).content).items
        return items

    async def predict(
        self,
        urls: Iterable[str],
        *,
        horizons: Iterable[Horizon] = ("24h",),
        explain: bool = False,
        max_age_s: float | None = None,
        on_stale: Literal["value", "null", "error"] = "value",
        probe: Literal["never", "if_stale"] = "never",
        probe_wait_s: float = 5.0,
        model: str | None = None,
    ) -> list[PredictionsItem]:
        """How likely each URL is to fail: an item a URL and horizon, URLs outermost; any number of URLs.

        `explain` adds the reasons. `max_age_s` is how old the newest probe may be, `on_stale` what to do if it is
        older. With `probe="if_stale"` those that are older are probed first, and waited for up to `probe_wait_s`.
        `model` names another than the champion.
        """
        said = {
            "horizons": list(horizons),
            "explain": explain,
            "max_age_s": max_age_s,
            "on_stale": on_stale,
            "probe": probe,
            "probe_wait_s": probe_wait_s,
        }
        items: list[PredictionsItem] = []
        for some in exchange.chunks(urls):
            reply = await self._send(
                "POST", "/api/v1/predictions", json={"urls": some, **said}, params=given(model=model)
            )
            items += parsed(Predictions, reply.content).items
        return items

    def riskiest(
        self, *, horizon: Horizon = "24h", group: str | None = None, tag: str | None = None
    ) -> AsyncIterator[CurrentItem]:
        """The forecasts that are kept of all targets, riskiest first; of all, or of one group or tag."""
        parameters = given(order="risk", horizon=horizon, group=group, tag=tag)
        return self._listed(CurrentItem, "/api/v1/predictions", parameters)

    # URLs.

    async def url(self, url: str, *, name: str | None = None) -> UrlState:
        """How a URL is, since when, and how much of the time it was up. `name`: of a monitor that has one."""
        return parsed(UrlState, (await self._send("GET", "/api/v1/url", params=given(url=url, name=name))).content)

    async def history(
        self,
        url: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        step: str | None = None,
        name: str | None = None,
    ) -> UrlHistory:
        """Verdicts and durations from `start` to `end` (the last day, unless given) in steps (`5m`, `1h`, `1d`)."""
        parameters = given(url=url, to=end, step=step, name=name) | given(**{"from": start})
        return parsed(UrlHistory, (await self._send("GET", "/api/v1/url/history", params=parameters)).content)

    def incidents(self, url: str, *, name: str | None = None) -> AsyncIterator[Incident]:
        """The times in which a URL was seen failing, newest first."""
        return self._listed(Incident, "/api/v1/url/incidents", given(url=url, name=name))

    async def erase(self, url: str, *, name: str | None = None) -> None:
        """Erase all that the platform knows of a URL."""
        await self._send("DELETE", "/api/v1/url", params=given(url=url, name=name), again=False)

    # The platform.

    async def ready(self) -> Ready:
        """Whether all parts of the platform work."""
        return parsed(Ready, (await self._send("GET", "/health/ready", unready=True)).content)

    # How calls are made.

    async def _listed(self, model: type[Model], path: str, params: Mapping[str, Any]) -> AsyncIterator[Model]:
        """The items of a list, a page after the other."""
        cursor: str | None = None
        size = exchange.FIRST_PAGE
        while True:
            query = {**params, **given(limit=size, cursor=cursor)}
            items, cursor = exchange.parsed_page(model, (await self._send("GET", path, params=query)).content)
            for item in items:
                yield item
            if cursor is None:
                return
            size = exchange.PAGE

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        again: bool = True,
        unready: bool = False,
    ) -> httpx.Response:
        """The reply to a request. `again`: it may be repeated also where the platform may have carried it out."""
        if json is not None:
            content, headers = to_json(json), {"Content-Type": "application/json"}
        pauses = self._retries.pauses()
        while True:
            fault: UrlHealthClientError
            reply = None
            try:
                reply = await self._http.request(method, path, params=params, content=content, headers=headers)
            except httpx.TransportError as error:
                fault = exchange.connection_failed(self.server, error)
                passing = again or isinstance(error, exchange.NOT_SENT)
            else:
                if reply.is_success or (unready and reply.status_code == 503):
                    return reply
                fault = exchange.api_error(reply)
                passing = again and reply.status_code in exchange.PASSING
            pause_s = next(pauses, None) if passing else None
            if pause_s is None:
                raise fault
            await asyncio.sleep(self._retries.after(reply, pause_s))

    async def _streamed(
        self,
        path: str,
        *,
        params: Callable[[], Mapping[str, str]] = dict,
        headers: Callable[[], Mapping[str, str]] = dict,
        ended: Callable[[], bool] = lambda: True,
    ) -> AsyncIterator[str]:
        """The lines of a reply as they come. If it breaks, or ends before it has `ended`, it is asked for again, with
        what `params` and `headers` are then: the caller knows which lines it had.
        """
        pauses = self._retries.pauses()
        while True:
            fault: UrlHealthClientError
            reply = None
            try:
                async with self._http.stream("GET", path, params=params(), headers=headers()) as reply:
                    if reply.is_success:
                        async for line in reply.aiter_lines():
                            pauses = self._retries.pauses()
                            yield line
                        if ended() or reply.status_code == 204:
                            return
                        fault = exchange.broken(self.server)
                    else:
                        await reply.aread()
                        fault = exchange.api_error(reply)
                        if reply.status_code not in exchange.PASSING:
                            raise fault
            except httpx.TransportError as error:
                fault = exchange.connection_failed(self.server, error)
            pause_s = next(pauses, None)
            if pause_s is None:
                raise fault
            await asyncio.sleep(self._retries.after(reply, pause_s))
