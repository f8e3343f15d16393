"""The commands for a running platform, as people and scripts meet them."""

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.acceptance.conftest import CountingWeb
from tests.support import BIN, Api, environment, free_port, platform_process, program, run, wait_until
from urlhealth import cli
from urlhealth.link_report import Link, page
from urlhealth.remote_cli import sparkline
from urlhealth.settings import ROOT
from urlhealth_client import Client


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Done]


@pytest.fixture(scope="module")
def web() -> Iterator[CountingWeb]:
    web = CountingWeb(delay_s=0.01)
    yield web
    web.close()


@pytest.fixture(scope="module")
def bad() -> str:
    """A URL at which nothing listens."""
    return f"http://127.0.0.1:{free_port()}/<b>"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, web: CountingWeb, bad: str) -> Iterator[Api]:
    """A platform that knows a URL that is up, one that is down, and a monitor."""
    with platform_process(tmp_path_factory.mktemp("home")) as (api, _), Client(api.url) as client:
        wait_until(lambda: client.ready().status == "ready", timeout_s=60, what="the bundled model")
        client.probe([web.url("/com"), bad])
        client.create_monitor({"url": web.url("/com"), "interval_s": 3600, "tags": ["prod"]})
        wait_until(lambda: len(list(client.riskiest())) == 2, timeout_s=60, what="forecasts")
        for url in (web.url("/com"), bad):
            wait_until(lambda url=url: client.history(url, step="1h").points, timeout_s=60, what="roll-ups")
        yield api


@pytest.fixture
def command(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `urlhealth` in this process, from a folder of its own, on the platform."""
    monkeypatch.setenv("URLHEALTH_SERVER", api.url)
    monkeypatch.chdir(tmp_path)

    def run_it(*arguments: str) -> Done:
        monkeypatch.setattr("sys.argv", ["urlhealth", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return Done(int(exit_.value.code or 0), *capfd.readouterr())

    return run_it


def test_what_a_platform_is_and_has(command: Command, api: Api, web: CountingWeb) -> None:
    status = command("status")
    assert (status.returncode, status.stderr) == (0, "")
    assert f"{api.url} is ready" in status.stdout
    assert json.loads(command("status", "--json").stdout)["status"] == "ready"

    (task,) = [json.loads(line) for line in command("tasks", "--json", "--status", "done").stdout.splitlines()]
    assert task == api.task(task["task_id"])
    assert task["task_id"] in command("tasks").stdout

    (monitor,) = [
        json.loads(line) for line in command("monitors", "list", "--json", "--tag", "prod").stdout.splitlines()
    ]
    assert (monitor["url"], monitor["interval_s"]) == (web.url("/com"), 3600)
    assert "3600 s" in command("monitors").stdout
    assert json.loads(command("monitors", "--tag", "prod", "--json").stdout) == monitor
    assert "apply" in command("monitors", "--help").stdout
    assert command("monitors", "list", "--tag", "other", "--json").stdout == ""


def test_the_riskiest(command: Command, web: CountingWeb, bad: str) -> None:
    items = [json.loads(line) for line in command("top", "--json").stdout.splitlines()]
    assert {item["url"] for item in items} == {web.url("/com"), bad.replace("<b>", "%3Cb%3E")}
    assert items[0]["probability"] >= items[1]["probability"]
    shown = command("top", "--limit", "1")
    assert shown.returncode == 0
    assert items[0]["url"] in shown.stdout
    assert items[1]["url"] not in shown.stdout
    assert command("top", "--fail-above", "0").returncode == 3
    assert command("top", "--fail-above", "1").returncode == 0
    wrong = command("top", "--horizon", "2h")
    assert (wrong.returncode, wrong.stderr) == (1, "error: horizon '2h' is none of 1h, 6h, 24h\n")


class Screen:
    """A terminal of 40 lines of 200 characters, with a command in it."""

    def __init__(self, *arguments: str, env: Mapping[str, str]) -> None:
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
        # The terminal becomes its own, so that Ctrl-C reaches it.
        begin = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
        )
        self.process = subprocess.Popen(
            (sys.executable, "-c", begin, str(BIN / "urlhealth"), *arguments),
            env={**env, "TERM": "xterm", "COLUMNS": "200", "LINES": "40"},
            stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.written = ""

    def shows(self, *texts: str) -> None:
        """Wait until all texts are on the screen together."""

        def there() -> bool:
            self._read()
            return all(text in self.now() for text in texts)

        try:
            wait_until(there, timeout_s=60, what=f"{', '.join(texts)} on the screen")
        except AssertionError as error:
            raise AssertionError(f"{error}, which shows: {self.now()[-2000:]!r}") from None

    def now(self) -> str:
        """What was drawn last, without colours."""
        return re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", self.written.rpartition("\x1b[H")[2])

    def types(self, text: str) -> None:
        os.write(self._master, text.encode())

    def close(self) -> None:
        """Kill what is still running."""
        self.process.kill()
        self.process.wait(10)
        os.close(self._master)

    def ends(self) -> int:
        """Its exit code."""
        wait_until(lambda: self._read() or self.process.poll() is not None, timeout_s=30, what="it to end")
        self._read()
        return self.process.wait()

    def _read(self) -> None:
        while select.select([self._master], [], [], 0)[0]:
            try:
                self.written += os.read(self._master, 65_536).decode(errors="replace")
            except OSError:  # it has ended
                return


def test_the_live_screen(web: CountingWeb, tmp_path: Path) -> None:
    """What is probed meanwhile comes, a platform that is away is waited for, and Ctrl-C ends it."""
    port, good, bad = free_port(), web.url("/com"), f"http://127.0.0.1:{free_port()}/bad"
    server = f"http://127.0.0.1:{port}"
    env = environment(tmp_path, URLHEALTH_SERVER=server)

    def serve() -> AbstractContextManager[object]:
        command = (str(BIN / "urlhealth"), "serve", "--port", str(port))
        return program(*command, env=env, ready_url=f"{server}/health/live", log=tmp_path / "serve.log")

    with ExitStack() as stack, Client(server) as client:
        with serve():
            client.probe([good])
            wait_until(lambda: list(client.riskiest()), timeout_s=60, what="a forecast")
            screen = Screen("top", "--every", "0.5", env=env)
            stack.callback(screen.close)
            screen.shows("may fail", good, " up ")
            assert bad not in screen.now()
            client.probe([bad])
            screen.shows(good, " up ", bad, " down ")
        screen.shows(f"no reply from {server}", good, bad)
        with serve():
            client.probe([web.url("/back")])
            screen.shows(web.url("/back"), bad)
            assert "no reply" not in screen.now()
            screen.types("\x03")
            assert screen.ends() == 0
    # It has given back the screen that was there before, and the cursor.
    assert "\x1b[?1049h" in screen.written
    assert screen.written.rindex("\x1b[?1049l") > screen.written.rindex("\x1b[?1049h")
    assert screen.written.rindex("\x1b[?25h") > screen.written.rindex("\x1b[?25l")


def test_a_url_s_history_and_incidents(
    command: Command, web: CountingWeb, bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form in (("history",), ("history", "show")):
        up = command(*form, web.url("/com"))
        assert up.returncode == 0, up.stderr
        assert f"{web.url('/com')} is up since 20" in up.stdout
        assert "at most 0%" in up.stdout
    down = command("history", bad)
    assert "is down since" in down.stdout
    assert re.search(r"failures  .*█ *  at most 100%", down.stdout)
    assert "none" in down.stdout
    found = json.loads(command("history", "--step", "1h", web.url("/com"), "--json").stdout)
    assert (found["step_s"], found["points"][0]["outcomes"]) == (3600, {"ok": 1})
    assert command("history", "export", str(web.port)).returncode == 1  # the command, not a URL
    for columns, step_s in ((60, 3_600), (80, 2_100), (400, 300)):  # a day has 288 steps of 300 s
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = command("history", web.url("/com")).stdout
        assert f"in steps of {step_s} s" in shown
        assert max(map(len, shown.splitlines()[2:])) <= columns
    monkeypatch.setenv("COLUMNS", "60")
    for days in (2, 59, 3_650):
        start = f"{datetime.now(UTC) - timedelta(days=days):%Y-%m-%d}"
        shown = command("history", web.url("/com"), "--from", start).stdout
        assert max(map(len, shown.splitlines()[2:])) <= 60, shown

    assert command("incidents", web.url("/com"), "--json").returncode == 0
    lasting = command("incidents", bad)
    assert (lasting.returncode, "it lasts" in lasting.stdout) == (3, True)
    assert json.loads(command("incidents", bad, "--json").stdout)["outcome"] == "connect"
    of_all = command("incidents")
    assert (of_all.returncode, of_all.stdout.count("it lasts")) == (3, 1)
    assert bad.replace("<b>", "%3Cb%3E") in of_all.stdout
    (incident,) = [json.loads(line) for line in command("incidents", "--json").stdout.splitlines()]
    assert incident == {"target": bad.replace("<b>", "%3Cb%3E")} | json.loads(
        command("incidents", bad, "--json").stdout
    )


def test_a_report_on_links(command: Command, web: CountingWeb, bad: str, tmp_path: Path) -> None:
    (tmp_path / "site.txt").write_text(f"# ours\n{web.url('/com')}\n\n{bad}\n{web.url('/com')}\n")
    done = command("report", "site.txt")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.endswith("2 links, 1 not fine: site.html\n")
    text = (tmp_path / "site.html").read_text()
    assert text.index("&lt;b&gt;") < text.index(web.url("/com"))
    assert "<b>" not in text
    assert re.findall(r"""(?:src|href)=|url\(""", text) == []
    links = [json.loads(line) for line in command("report", "site.txt", "--json").stdout.splitlines()]
    assert [link["outcome"] for link in links] == ["connect", "ok"]
    (tmp_path / "none.txt").write_text("# nothing\n")
    assert command("report", "none.txt").stderr == "error: none.txt has no links: write a URL a line\n"
    assert command("report", "nowhere.txt").returncode == 1


def test_a_platform_that_is_not_there_is_one_line(command: Command) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for arguments in (("status",), ("tasks", "--json"), ("incidents", "https://example.com")):
        done = command(*arguments, "--server", nobody)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"error: no reply from {nobody}: ")
        assert done.stderr.count("\n") == 1
    wrong = command("status", "--server", "nowhere")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert command("status", "--sever", nobody).returncode == 2
    unknown = command("incidents", "https://never-seen.example")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (1, 1)


def test_the_commands_of_the_page_run(api: Api, web: CountingWeb, tmp_path: Path) -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        here = re.sub(r"https://example\.(com|org)[\w/]*", lambda match: web.url(f"/{match[1]}"), block)
        run("bash", "-euxc", here, env=environment(tmp_path, URLHEALTH_SERVER=api.url), cwd=tmp_path)
    assert web.url("/org") in (tmp_path / "links.html").read_text()
    assert (tmp_path / "risky.ndjson").read_text().count("\n") >= 2


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("urlhealth mon", ["monitors"]),
        ("urlhealth monitors ex", ["export"]),
        ("urlhealth top --fail", ["--fail-above"]),
        ("urlhealth history sh", ["show"]),
    ],
)
def test_a_shell_completes(line: str, offered: list[str], tmp_path: Path) -> None:
    """In a bash that has read what `--show-completion` prints, as one has after `--install-completion`."""
    script = f"""
        eval "$(urlhealth --show-completion bash)"
        function_=$(complete -p urlhealth | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=({line}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        "$function_" urlhealth
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = run("bash", "-euc", script, env=environment(tmp_path, SHELL="/bin/bash"), cwd=tmp_path)
    assert done.stdout.split() == offered


def test_a_shell_gets_its_completion_installed(tmp_path: Path) -> None:
    env = environment(tmp_path / "home", SHELL="/bin/bash", HOME=str(tmp_path))
    run("urlhealth", "--install-completion", "bash", env=env, cwd=tmp_path)
    done = run("bash", "-ic", "complete -p urlhealth", env=env, cwd=tmp_path)
    assert "urlhealth" in done.stdout


def test_spark_lines() -> None:
    assert sparkline([0, 50, None, 100]) == "▁▅ █"
    assert sparkline([0, 0.5, 1], most=1) == "▁▅█"
    assert sparkline([None, 0]) == " ▁"
    assert sparkline([]) == ""


def test_a_report_escapes_what_sites_say() -> None:
    link = Link(
        url="https://a.example", outcome="http_error", status_code=500, total_ms=1.5, final_url="https://b.example/<i>",
        error="<script>", probed_at=None, probability=0.123, reason="<u>",
    )  # fmt: skip
    text = page([link], source="<list>", horizon="24h")
    for tag in ("<script>", "<i>", "<u>", "<list>"):
        assert tag not in text
        assert tag.replace("<", "&lt;").replace(">", "&gt;") in text
    assert "12.3 %" in text
