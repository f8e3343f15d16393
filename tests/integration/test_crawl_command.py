"""`urlhealth crawl` as scripts and people meet it: in a pipe, on a terminal, interrupted."""

import json
import os
import pty
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.schemas import TaskResult
from tests.support import BIN, environment, run, wait_until


class Site:
    """A site on loopback: 200, but 404 below `/missing`; `/held` answers when the test lets it."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.release = threading.Event()
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/held":
                    site.asked.set()
                    site.release.wait(60)
                self.send_response(404 if self.path.startswith("/missing") else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.release.set()
    site.server.shutdown()
    site.server.server_close()


def crawl(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(str(BIN / "urlhealth"), "crawl", *arguments, env=environment(home), check=False)


def started(home: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = (str(BIN / "urlhealth"), "crawl", *arguments)
    return subprocess.Popen(
        command,
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_in_a_pipe_each_result_is_a_line_as_soon_as_it_is_there(tmp_path: Path, site: Site) -> None:
    with started(tmp_path, site.url("/held"), site.url("/quick"), "--json", "-o", "timeout_s=60") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        assert not site.release.is_set()
        assert process.poll() is None
        assert (first["position"], first["url"], first["outcome"]) == (1, site.url("/quick"), "ok")
        site.release.set()
        second, nothing = json.loads(process.stdout.readline()), process.stdout.read()
    assert (second["url"], nothing, process.returncode) == (site.url("/held"), "", 0)
    assert list(first) == list(TaskResult.model_fields)
    TaskResult.model_validate(first)


def test_the_exit_code_says_whether_all_answered(tmp_path: Path, site: Site) -> None:
    long = site.url(f"/missing/{'long/' * 60}")
    failed = crawl(tmp_path, long, site.url("/"))
    assert failed.returncode == 1
    lines = sorted(line.split() for line in failed.stdout.splitlines())
    assert [(words[0], words[1], words[3]) for words in lines] == [
        ("http_error", "404", long),
        ("ok", "200", site.url("/")),
    ]
    assert failed.stderr == ""
    assert crawl(tmp_path, long, "--exit-zero").returncode == 0
    assert crawl(tmp_path, long, "-o", "expected_statuses=[404]").returncode == 0


def test_on_a_terminal_a_table_comes_at_the_end(tmp_path: Path, site: Site) -> None:
    master, slave = pty.openpty()
    command = (str(BIN / "urlhealth"), "crawl", site.url("/missing"), site.url("/"))
    env = environment(tmp_path, COLUMNS="200")
    with subprocess.Popen(command, env=env, stdout=slave, stderr=slave, stdin=slave) as process:
        os.close(slave)
        shown = b""
        try:
            while some := os.read(master, 65_536):
                shown += some
        except OSError:  # the terminal's other end was closed
            pass
    os.close(master)
    assert process.returncode == 1
    text = shown.decode()
    assert text.rindex("what was wrong") < text.rindex("/missing") < text.rindex("│ ok")


def test_an_interrupt_cancels_the_task(tmp_path: Path, site: Site) -> None:
    with started(tmp_path, site.url("/held"), "-o", "timeout_s=60") as process:
        assert site.asked.wait(30)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert tasks(tmp_path) == [("cancelled", 0)]


def test_a_task_that_somebody_else_cancels_is_said_to_be(tmp_path: Path, site: Site) -> None:
    with started(tmp_path, site.url("/held"), "-o", "timeout_s=60") as process:
        assert site.asked.wait(30)
        with sqlite3.connect(tmp_path / "urlhealth.db", timeout=30) as database:
            database.execute("UPDATE tasks SET status = 'cancelled', finished_ms = 1")
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "cancelled before all its URLs were probed" in err


def test_a_reader_that_leaves_cancels_the_task(tmp_path: Path, site: Site) -> None:
    with started(tmp_path, site.url("/held"), site.url("/"), "-o", "timeout_s=60", "--json") as process:
        assert site.asked.wait(30)
        assert process.stdout is not None
        process.stdout.close()
        site.release.set()
        process.wait(30)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    wait_until(lambda: tasks(tmp_path)[0][0] in ("cancelled", "done"), timeout_s=10, what="the task to end")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-f", "{urls}"), "{urls}, line 4: scheme 'ftp' cannot be probed"),
        (("http://a/", "nonsense", "-f", "{urls}"), "urls[1]: "),
        (("-f", "{urls}.txt"), "cannot read {urls}.txt"),
        ((), "the list is empty"),
        (("http://a/", "-o", "timeout_s"), "not of the form name=value"),
        (("http://a/", "-o", "timeout_s=-1"), "timeout_s"),
    ],
)
def test_what_cannot_be_crawled_is_said_in_one_line(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    urls = tmp_path / "urls"
    urls.write_text("# ours\nhttp://a/\n\nftp://b/\n")
    done = crawl(tmp_path, *(argument.format(urls=urls) for argument in arguments))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert said.format(urls=urls) in done.stderr
    assert tasks(tmp_path) == []


def tasks(home: Path) -> list[tuple[str, int]]:
    """Status and results of the tasks in a home."""
    path = home / "urlhealth.db"
    if not path.exists():
        return []
    with sqlite3.connect(path) as database:
        return list(database.execute("SELECT status, done FROM tasks"))
