"""The quick start and tutorials, word for word, on a web of the test's own."""

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import polars as pl
import pytest

from tests.integration.test_alerts import receiving
from tests.support import BIN, ROOT, environment, platform_process, run, wait_until

#: Where the pages say that things are.
ADDRESS = "http://127.0.0.1:8000"
SITE = "https://example.com"


def fences(page: str) -> list[tuple[str, str]]:
    """The blocks of code of a page: what they are said to be, and their text."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```([^\n]+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(page: str, folder: Path, **instead: str) -> list[str]:
    """Write a page's files into a folder, and give its blocks of commands; with other words `instead` of some."""
    scripts = []
    for kind, text in fences(page):
        for word, other in instead.items():
            text = text.replace(word, other)
        if title := re.fullmatch(r'yaml title="([\w.]+)"', kind):
            (folder / title[1]).write_text(text)
        elif kind == "sh":
            scripts.append(text)
    return scripts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a checkout that is installed looks like to who types commands into it."""
    made = tmp_path / "checkout"
    made.mkdir()
    (made / ".venv").symlink_to(BIN.parent)
    (made / "feature_repo").symlink_to(ROOT / "feature_repo")
    return made


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def site(folder: Path) -> Iterator[str]:
    """A web with a first page and nothing else; its address."""
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_from_a_clone_to_an_alert(tmp_path: Path, folder: Path) -> None:
    (setup,) = [text for kind, text in fences("quickstart.md") if kind == "sh clone"]
    run("make", "--dry-run", *re.findall(r"^make (\w+)$", setup, re.MULTILINE), env=environment(tmp_path))
    began = time.monotonic()
    with site(tmp_path / "web") as web, receiving() as chat, platform_process(tmp_path / "home") as (api, _):
        instead = {ADDRESS: api.url, SITE: web, "ntfy://a-topic-of-yours": chat.url.replace("http", "json")}
        scripts = commands("quickstart.md", folder, **instead)
        env = environment(tmp_path / "home", URLHEALTH_SERVER=api.url)
        until_test = next(i for i, script in enumerate(scripts) if "alerts test" in script) + 1
        run("bash", "-euxc", "\n".join(scripts[:until_test]), env=env, cwd=folder)
        assert len(chat.got) == 1

        told = f"{web}/there-is-no-such-page is down"
        wait_until(lambda: told in chat.bodies()[-1]["title"], timeout_s=90, what="the alert")
        shown = run("bash", "-euxc", "\n".join(scripts[until_test:]), env=env, cwd=folder).stdout
        assert "it is down" in shown
        assert [each["url"] for each in api.http.get("/api/v1/monitors").json()["items"]] == [f"{web}/"]
        for page in ("/", "/ui/alerts"):
            assert web in api.http.get(page).text
    # What is left of the ten minutes is for the installation.
    assert time.monotonic() - began < 240


def history(file: Path) -> None:
    """Verdicts of eight days in the form of Upptime's: some sites are down some hours of each day."""
    now = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
    rows = [
        {
            "url": f"https://{name}.example.com/",
            "ts": now - timedelta(hours=hour, minutes=-i),
            "status": "down" if (hour * (i + 1)) % 11 < i else "up",
            "code": 503 if (hour * (i + 1)) % 11 < i else 200,
            "response_ms": 80 + i,
        }
        for hour in range(8 * 24, 0, -1)
        for i, name in enumerate(("shop", "flaky", "poor", "other"))
    ]
    pl.DataFrame(rows).write_parquet(file)


def test_a_data_scientist_and_one_on_call_get_where_the_tutorials_lead(tmp_path: Path, folder: Path) -> None:
    history(folder / "history.parquet")
    with platform_process(tmp_path / "home") as (api, _):
        env = environment(tmp_path / "home", URLHEALTH_SERVER=api.url)
        shown = run("bash", "-euxc", "\n".join(commands("tutorial-data-scientist.md", folder)), env=env, cwd=folder)
        assert "flaky.example.com" in shown.stdout
        assert (folder / "report" / "report.html").is_file()
        shown = run("bash", "-euxc", "\n".join(commands("tutorial-on-call.md", folder)), env=env, cwd=folder)
        assert "will fail" in shown.stdout
