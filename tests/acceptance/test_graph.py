"""The graph of a running platform: the call and the query of docs/graphql.md, on what was really probed."""

import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.acceptance.conftest import CountingWeb
from tests.support import BIN, environment, free_port, platform_process, run, wait_until
from urlhealth.settings import ROOT
from urlhealth_client import Client

PAGE = (ROOT / "docs/graphql.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def test_the_call_and_the_query_of_the_page(counting_web: CountingWeb, tmp_path: Path) -> None:
    home = tmp_path / "home"
    urls = [counting_web.url("/fine"), f"http://127.0.0.1:{free_port()}/gone"]
    with platform_process(home) as (api, _), Client(api.url) as client:
        task = client.create_task(urls)
        client.wait(task.task_id)
        wait_until(lambda: {item.status for item in client.features(urls)} == {"fresh"}, timeout_s=60, what="features")
        call = block("sh").replace("http://127.0.0.1:8000", api.url)
        said = json.loads(run("bash", "-euc", call, env=environment(home), cwd=tmp_path).stdout)
        (seen,) = said["data"]["tasks"]
        assert (seen["taskId"], seen["status"], seen["done"]) == (task.task_id, "done", 2)
        assert {each["outcome"]: each["urls"] for each in seen["outcomes"]} == {"ok": 1, "connect": 1}

        def graph(key: str | None) -> httpx.Response:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            return httpx.post(f"{api.url}/graphql", json={"query": block("graphql")}, headers=headers, timeout=30)

        check(graph(None).raise_for_status().json(), client, urls)

        # Who may ask, and of what, is as everywhere.
        command = (str(BIN / "urlhealth"), "keys", "create", "graph", "--scope", "read")
        mine, anns = (
            run(*command, "--owner", owner, env=environment(home)).stdout.strip() for owner in ("local", "ann")
        )
        wait_until(lambda: graph(None).status_code == 401, timeout_s=30, what="the first key to close the server")
        assert graph(anns).raise_for_status().json() == {"data": {"tasks": []}}
        assert graph(mine).raise_for_status().json()["data"]["tasks"][0]["taskId"] == task.task_id


def check(reply: dict[str, Any], client: Client, urls: list[str]) -> None:
    """The reply to the query of the page says what the other calls say."""
    assert "errors" not in reply
    (task,) = reply["data"]["tasks"]
    items = task["results"]["items"]
    assert [item["url"] for item in items] == urls
    for item, result in zip(items, client.results(task["taskId"]), strict=True):
        assert item["probe"]["outcome"] == result.outcome
        assert item["probe"]["totalMs"] == result.total_ms
        target = item["target"]
        assert target["key"] == result.target
        assert [probe["outcome"] for probe in target["probes"]] == [result.outcome]
        features = {each["name"]: each["value"] for each in target["features"]}
        assert features["failing_now"] == (result.outcome != "ok")
        one_hour, one_day = target["predictions"]
        assert (one_hour["horizon"], one_day["horizon"]) == ("1h", "24h")
        # Time goes on between the calls, and forecasts with it; a little.
        (forecast,) = client.predict([item["url"]])
        assert forecast.probability is not None
        assert abs(one_day["probability"] - forecast.probability) < 0.02
        assert all(reason["text"] for reason in one_day["reasons"])
