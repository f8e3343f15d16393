"""The client on a running platform, in programs of others: in an environment that has nothing else of ours."""

import asyncio
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.conftest import CountingWeb, install, install_client
from tests.support import Api, platform_process, run, wait_until
from urlhealth.settings import ROOT
from urlhealth_client import AsyncClient, Client, Conflict, Invalid, NotFound

PAGE = (ROOT / "docs/client.md").read_text(encoding="utf-8")
README = (ROOT / "clients/python/README.md").read_text(encoding="utf-8")
#: What drives each program of the page, appended to it.
DRIVERS = {
    "readme": "",
    "quick": "",
    "async": "",
    "errors": "",
    "flask": "reply = app.test_client().get('/links')\nprint(reply.status_code, reply.json)\n",
    "django": """\
from django.conf import settings
from django.urls import path
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["testserver"])
import django
django.setup()
urlpatterns = [path("links", links)]
from django.test import Client as Browser
reply = Browser().get("/links")
print(reply.status_code, reply.json())
""",
    "celery": """\
from celery.contrib.testing.worker import start_worker
with start_worker(app, pool="solo", perform_ping_check=False):
    print(check.delay(["https://example.com/celery", "https://example.com/celery2"]).get(timeout=60))
""",
}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with platform_process(tmp_path_factory.mktemp("home")) as (api, _), Client(api.url) as client:
        wait_until(lambda: client.ready().status == "ready", timeout_s=60, what="the bundled model")
        yield api


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with the client's wheel, and Flask, Django and Celery."""
    python = install_client(tmp_path_factory.mktemp("elsewhere"))
    (packages,) = (python.parents[1] / "lib").glob("*/site-packages")
    size_bytes = sum(path.stat().st_size for path in packages.rglob("*") if path.is_file())
    assert size_bytes < 10_000_000, "the client, with all that it needs"
    install(python, "flask", "django", "celery")
    return python


def program(kind: str, api: Api, web: CountingWeb) -> str:
    """A program of the page, or that of the distribution's own, on the test's own platform and web."""
    page, fence = (README, "python") if kind == "readme" else (PAGE, f"python {kind}")
    (block,) = re.findall(rf"^```{fence}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    text = (block + DRIVERS[kind]).replace("http://127.0.0.1:8000", api.url)
    return re.sub(r"https://example\.(?:com|org)", web.url(""), text)


@pytest.mark.parametrize("kind", DRIVERS)
def test_the_programs_of_the_page_run_elsewhere(
    kind: str, elsewhere: Path, api: Api, counting_web: CountingWeb, tmp_path: Path
) -> None:
    if kind == "readme":
        with Client(api.url) as client:
            client.probe([counting_web.url("/known")])
            wait_until(lambda: list(client.riskiest()), timeout_s=30, what="a forecast to list")
    file = tmp_path / "program.py"
    file.write_text(program(kind, api, counting_web))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        (str(elsewhere), "-W", "error:::urlhealth_client", str(file)),
        env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    match kind:
        case "readme":
            assert " ok " in done.stdout
            assert "%" in done.stdout
        case "quick":
            assert " ok " in done.stdout
            assert "1h" in done.stdout
        case "async":
            assert done.stdout.splitlines()[-1] == "200 are fine"
            assert "done 200" in done.stdout
        case "errors":
            assert "['/urls/1']" in done.stdout
        case "celery":
            assert "{'ok': 2}" in done.stdout
        case _:
            assert done.stdout.startswith("200 ")
            assert "ok" in done.stdout
            assert counting_web.requests[f"/{kind}"] == 1


def test_nothing_else_of_ours_is_there(elsewhere: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('urlhealth', 'serving', 'models') if u.find_spec(n)])"
    assert run(str(elsewhere), "-c", code, env=dict(os.environ), cwd=elsewhere.parent).stdout == "[]\n"


def test_every_call_on_a_running_platform(api: Api, counting_web: CountingWeb) -> None:
    url, other = counting_web.url("/a"), counting_web.url("/b")
    with Client(api.url) as client:
        assert client.ready().status == "ready"
        task = client.create_task([url, other], idempotency_key="k")
        again = client.create_task([url, other], idempotency_key="k")
        assert (again.task_id, again.total) == (task.task_id, task.total)  # it may run by now
        seen = list(client.events(task.task_id))
        assert seen[-1].name == "done"
        assert list(client.events(task.task_id, last_event_id=seen[-1].event_id)) == []
        assert [result.url for result in client.results(task.task_id)] == [url, other]
        assert task.task_id in [listed.task_id for listed in client.tasks(status="done")]
        assert client.cancel_task(task.task_id).status == "done"
        client.delete_task(task.task_id)
        with pytest.raises(NotFound):
            client.task(task.task_id)

        # Roll-ups follow the probes.
        points = wait_until(lambda: client.history(url).points, timeout_s=30, what="the URL's history")
        assert points[0].outcomes == {"ok": 1}
        assert client.url(url).state == "up"
        assert list(client.incidents(url)) == []
        assert [item.url for item in client.features([url])] == [url]
        assert [item.horizon for item in client.predict([url], horizons=["1h", "6h"])] == ["1h", "6h"]
        assert all(item.horizon == "6h" for item in client.riskiest(horizon="6h"))
        (new,) = client.predict([counting_web.url("/new")], probe="if_stale", probe_wait_s=30)
        assert (new.status, new.health) == ("fresh", "up")

        monitor = client.create_monitor({"url": url, "interval_s": 3600, "tags": ["t"]})
        with pytest.raises(Conflict):
            client.create_monitor({"url": url, "interval_s": 60})
        answers = list(client.create_monitors([{"url": url, "interval_s": 60}, {"url": other, "interval_s": 60}]))
        assert [answer.result for answer in answers] == ["exists", "created"]
        assert [found.monitor_id for found in client.monitors(tag="t")] == [monitor.monitor_id]
        assert client.change_monitor(monitor.monitor_id, {"paused": True}).paused
        assert client.monitor(monitor.monitor_id).options.timeout_s == 10
        for found in client.monitors():
            client.delete_monitor(found.monitor_id)
        assert list(client.monitors()) == []
        with pytest.raises(Invalid, match="scheme"):
            client.probe(["nowhere"])
        client.erase(url)
        with pytest.raises(NotFound):
            client.url(url)


def test_the_other_client_on_a_running_platform(api: Api, counting_web: CountingWeb) -> None:
    async def ask() -> None:
        async with AsyncClient(api.url) as client:
            results = await client.probe([counting_web.url("/async")], options={"method": "HEAD"})
            assert [result.outcome for result in results] == ["ok"]
            assert (await anext(client.tasks())).options.method == "HEAD"

    asyncio.run(ask())
