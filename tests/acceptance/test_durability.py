"""Nothing is lost or doubled: not by `kill -9`, not by a second server on the same database."""

import os
import random
import sqlite3
import time
from pathlib import Path

import pytest

from tests.acceptance.conftest import CountingWeb
from tests.support import BIN, Api, environment, free_port, kill, platform_process, program, wait_until


def probes_of(home: Path, task_id: str) -> tuple[int, int]:
    """Stored probes of a task, and their distinct targets."""
    with sqlite3.connect(f"file:{home / 'urlhealth.db'}?mode=ro", uri=True) as database:
        row = database.execute(
            "SELECT count(*), count(DISTINCT target_id) FROM probes "
            "WHERE task_number = (SELECT number FROM tasks WHERE task_id = ?)",
            (task_id,),
        ).fetchone()
    return int(row[0]), int(row[1])


def test_a_task_survives_kill_9_and_each_url_ends_with_one_result(tmp_path: Path, counting_web: CountingWeb) -> None:
    urls = [counting_web.url(f"/{i}") for i in range(2_000)]
    with platform_process(tmp_path, URLHEALTH_LEASE_S="2") as (api, process):
        task_id = api.submit(urls)
        wait_until(lambda: api.task(task_id)["done"] > 200, timeout_s=30, what="the task to be under way")
        kill(process)
    stored_before, _ = probes_of(tmp_path, task_id)
    assert 200 <= stored_before < 2_000, "the kill did not come in the middle of the task"

    with platform_process(tmp_path, URLHEALTH_LEASE_S="2") as (api, _):
        task = api.wait_done(task_id)
        results = api.results(task_id)
    assert task["done"] == task["total"] == 2_000
    assert task["outcomes"] == {"ok": 2_000}
    assert len(task["workers"]) == 2
    assert [item["url"] for item in results] == urls
    assert {item["outcome"] for item in results} == {"ok"}
    assert probes_of(tmp_path, task_id) == (2_000, 2_000)


#: More than one with `KILL_SEEDS=20 python -m pytest -k random_moment`.
SEEDS = range(1, 1 + int(os.environ.get("KILL_SEEDS", "1")))


@pytest.mark.parametrize("seed", SEEDS)
def test_kill_9_at_a_random_moment_of_a_big_task_loses_and_doubles_nothing(tmp_path: Path, seed: int) -> None:
    moments = random.Random(seed)
    urls, kill_at, after_s = 20_000, moments.randrange(20_000), moments.random() / 5
    settings = {
        "URLHEALTH_LEASE_S": "2",
        "URLHEALTH_PROBE_CONCURRENCY_PER_HOST": "64",
    }
    web = CountingWeb(delay_s=0)
    try:
        with platform_process(tmp_path, **settings) as (api, process):
            task_id = api.submit([web.url(f"/{i}") for i in range(urls)])
            wait_until(lambda: api.task(task_id)["done"] >= kill_at, timeout_s=120, what=f"{kill_at} results")
            time.sleep(after_s)  # not to wait for anything: the moment is to be any
            kill(process)
        with platform_process(tmp_path, **settings) as (api, _):
            task = api.wait_done(task_id, timeout_s=120)
    finally:
        web.close()
    assert (task["total"], task["done"], task["outcomes"]) == (urls, urls, {"ok": urls})
    assert probes_of(tmp_path, task_id) == (urls, urls)
    assert answered_by_its_own_probe(tmp_path) == urls
    # Asked twice is only what had no result on disk at the kill: what was under way, and what waited to be filed.
    assert urls <= web.requests.total() < urls + 3_000


def answered_by_its_own_probe(home: Path) -> int:
    """URLs of tasks whose probe is one of their target, for their task."""
    with sqlite3.connect(f"file:{home / 'urlhealth.db'}?mode=ro", uri=True) as database:
        (count,) = database.execute(
            "SELECT count(*) FROM task_urls AS u JOIN probes AS p "
            "ON p.id = u.probe_id AND p.target_id = u.target_id AND p.task_number = u.task_number"
        ).fetchone()
    return int(count)


def test_urlhealth_serve_beside_bentoml_serve_probes_each_target_once(
    tmp_path: Path, counting_web: CountingWeb
) -> None:
    bento_port = free_port()
    bento_url = f"http://127.0.0.1:{bento_port}"
    with (
        platform_process(tmp_path, "--workers", "2") as (api, _),
        program(
            str(BIN / "bentoml"), "serve", "--host", "127.0.0.1", "--port", str(bento_port),
            env=environment(tmp_path), ready_url=f"{bento_url}/health/live", log=tmp_path / "bento.log",
        ),
        Api(bento_url) as bento,
    ):  # fmt: skip
        tasks = [api.submit([counting_web.url(f"/a/{i}") for i in range(100)])]
        tasks.append(bento.submit([counting_web.url(f"/b/{i}") for i in range(100)]))
        for task_id in tasks:
            assert bento.wait_done(task_id)["outcomes"] == {"ok": 100}
        assert api.results(tasks[1]) == bento.results(tasks[1])
    assert len(counting_web.requests) == 200
    assert set(counting_web.requests.values()) == {1}
