"""The README's commands do what it says, as they are written there, on a web and a port of the test's own."""

import json
import re
from pathlib import Path

import httpx
import pytest

from tests.acceptance.conftest import CountingWeb
from tests.support import environment, platform_process, run
from urlhealth.settings import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
#: The platform of the README listens here; the test's own on a free port.
ADDRESS = "http://127.0.0.1:8000"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_the_make_targets_that_it_names_are_there(tmp_path: Path) -> None:
    targets = set(re.findall(r"^make (\w+)", README, re.MULTILINE)) | set(re.findall(r"`make (\w+)`", README))
    assert {"demo", "test", "setup", "run"} <= targets
    run("make", "--dry-run", *sorted(targets), env=environment(tmp_path))


def test_the_commands_work_beside_a_running_platform(tmp_path: Path, counting_web: CountingWeb) -> None:
    commands = [block for block in blocks("sh") if not block.startswith("make")]
    assert len(commands) == 2
    with platform_process(tmp_path) as (api, _):
        for block in commands:
            here = block.replace(ADDRESS, api.url)
            here = re.sub(r"https://example\.(com|org)[\w/]*", lambda match: counting_web.url(f"/{match[1]}"), here)
            shown = run("bash", "-euxc", here, env=environment(tmp_path))
            assert '"status":422' not in shown.stdout
        tasks = api.http.get("/api/v1/tasks").json()["items"]
        assert [task["total"] for task in tasks] == [1, 2]
        assert len(api.http.get("/api/v1/monitors").json()["items"]) == 1
        assert {"/com", "/org"} <= set(counting_web.requests)
        for page in re.findall(rf"<{ADDRESS}(/\w*)>", README):
            assert api.http.get(page).status_code == 200


def test_commands_that_need_history_say_what_is_missing(tmp_path: Path) -> None:
    (block,) = blocks("sh needs-history")
    for line in block.splitlines():
        done = run("bash", "-euc", line, env=environment(tmp_path), check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr


def test_the_reply_that_it_shows_has_the_shape_of_today(tmp_path: Path) -> None:
    (reply,) = blocks("json")
    shown = json.loads(reply)["items"][0]
    with platform_process(tmp_path) as (api, _):
        schema = httpx.get(f"{api.url}/openapi.json").json()["components"]["schemas"]
    item = schema["PredictionsItem"]["properties"]
    assert set(shown) == set(item)
    assert shown["reasons"]


@pytest.mark.parametrize("page", re.findall(r"`((?:docs|notebooks)/[\w.]+)`", README))
def test_the_pages_that_it_names_are_there(page: str) -> None:
    assert (ROOT / page).is_file()
