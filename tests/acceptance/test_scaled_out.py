"""The way of a datum with PostgreSQL, a broker and two workers: chosen by settings alone."""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from demo.sample_web import SampleWeb
from tests.brokers import WorkerProcess, broker_url, queues
from tests.contract.conftest import postgres_database
from tests.support import platform_process, wait_until

__all__ = ["postgres_database"]


@pytest.fixture
def settings(postgres_database: sa.URL, sample_web: SampleWeb) -> Iterator[dict[str, str]]:
    """Of the server and the workers."""
    schema = f"walk_{uuid.uuid4().hex[:12]}"
    server = sa.create_engine(postgres_database)
    with server.begin() as connection:
        connection.execute(sa.text(f"CREATE SCHEMA {schema}"))
    server.dispose()
    own = postgres_database.update_query_dict({"options": f"-csearch_path={schema}"})
    url = broker_url("redis")
    with queues(url) as prefix:
        yield {
            "URLHEALTH_DATABASE_URL": own.render_as_string(hide_password=False),
            "URLHEALTH_BROKER_URL": url,
            "URLHEALTH_BROKER_PREFIX": prefix,
            "URLHEALTH_CA_FILE": str(sample_web.ca_file),
        }


def test_the_walk_of_a_task(tmp_path: Path, settings: dict[str, str], sample_web: SampleWeb) -> None:
    urls = [site.url for site in sample_web.sites]
    with ExitStack() as stack:
        workers = [stack.enter_context(closing(WorkerProcess(tmp_path, **settings))) for _ in range(2)]
        api, _ = stack.enter_context(platform_process(tmp_path / "home", **settings))
        for worker in workers:
            worker.wait_ready()
        ready = api.http.get("/health/ready").json()
        assert "workers on redis://" in str(ready)

        task_id = api.submit(urls)
        task = api.wait_done(task_id)
        results = api.results(task_id)
        assert [item["url"] for item in results] == urls
        assert {"ok", "http_error", "timeout", "tls", "too_many_redirects", "too_large"} <= set(task["outcomes"])
        assert {worker.split("-")[-2] for worker in task["workers"]} <= {str(each.process.pid) for each in workers}

        wait_until(
            lambda: {item["status"] for item in api.features(urls)} == {"fresh"},
            timeout_s=60,
            what="the features to catch up",
        )
        assert all(0 <= item["probability"] <= 1 for item in api.predict(urls))

        # Told to stop, a worker finishes what it has in hand.
        os.kill(workers[0].process.pid, signal.SIGTERM)
        assert workers[0].process.wait(30) == 0
        api.wait_done(api.submit(urls[:5]))
