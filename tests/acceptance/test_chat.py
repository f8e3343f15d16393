"""The chat plugin in Errbot, in an environment of its own, on Errbot's test backend and against a running platform."""

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from typing import Any

import pytest

from tests.acceptance.conftest import CountingWeb, install, install_client
from tests.support import BIN, Api, environment, free_port, platform_process, run, wait_until
from urlhealth.settings import ROOT
from urlhealth_client import Client

PAGE = (ROOT / "docs/chat.md").read_text(encoding="utf-8")
PLUGIN = ROOT / "clients/errbot"
#: After one outage a URL is less likely to fail than this, after three it is likelier.
ABOVE = 0.9


@pytest.fixture(scope="module")
def errbot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The python of an environment with Errbot (whose test backend needs pytest) and the client's wheel."""
    python = install_client(tmp_path_factory.mktemp("errbot"))
    install(python, "errbot>=6.2", "pytest")
    return python


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def key(home: Path) -> str:
    """An API key with the scopes that the page names; with it, each call needs one."""
    (scopes,) = re.findall(r"with the scopes ((?:`\w+`(?:, | and )?)+)", PAGE)
    wanted = [argument for scope in re.findall(r"\w+(?=`)", scopes) for argument in ("--scope", scope)]
    told = run(str(BIN / "urlhealth"), "keys", "create", "chat", *wanted, env=environment(home)).stdout
    return re.findall(r"uh_\S+", told)[0]


@pytest.fixture(scope="module")
def api(home: Path, key: str, errbot: Path) -> Iterator[Api]:  # noqa: ARG001 (without Errbot nothing is to start)
    with platform_process(home) as (api, _), Client(api.url, key=key) as client:
        wait_until(lambda: client.ready().status == "ready", timeout_s=60, what="the bundled model")
        yield api


@pytest.fixture
def client(api: Api, key: str) -> Iterator[Client]:
    with Client(api.url, key=key) as client:
        yield client
        for monitor in client.monitors():
            client.delete_monitor(monitor.monitor_id)


class Bot:
    """A bot that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._heard: Queue[Any] = Queue()
        Thread(target=self._listen, daemon=True).start()

    def say(self, text: str, *, room: str | None = "ops") -> None:
        """Write a line in a room, or to the bot alone."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"text": text, "room": room}) + "\n")
        self._process.stdin.flush()

    def hears(self) -> tuple[str, str]:
        """The next thing that the bot says, and to whom."""
        try:
            found = self._heard.get(timeout=60)
        except Empty:
            raise AssertionError("the bot says nothing") from None
        assert found is not None, "the bot ended"
        return found["to"], found["text"]

    def asks(self, text: str, *, room: str | None = "ops") -> str:
        """Write a line; what the bot replies."""
        self.say(text, room=room)
        return self.hears()[1]

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._heard.put(json.loads(line))
        self._heard.put(None)


@contextmanager
def bot(errbot: Path, home: Path, **settings: Any) -> Iterator[Bot]:
    """A bot whose data are in `home`, with these settings of the plugin; at the end it is stopped as usual."""
    home.mkdir(exist_ok=True)
    command = (str(errbot), str(ROOT / "tests/errbot_room.py"), str(PLUGIN), str(home), json.dumps(settings))
    env = {name: value for name, value in environment(home).items() if not name.startswith("PYTHON")}
    with (home / "bot.log").open("ab") as log, subprocess.Popen(
        command, env=env, cwd=home, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
    ) as process:  # fmt: skip
        try:
            yield Bot(process)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(30) == 0
        finally:
            process.kill()


def probe(client: Client, *urls: str, health: str) -> None:
    """Probe URLs, and wait until the forecasts that are kept of them say that this is their health."""
    client.probe(urls)

    def known() -> bool:
        healths = {item.target: item.health for item in client.riskiest()}
        return all(healths.get(url) == health for url in urls)

    wait_until(known, timeout_s=60, what=f"{', '.join(urls)} to be {health}")


def watch(client: Client, *urls: str, tag: str) -> None:
    """Monitor URLs, with so long an interval that it is the test that probes, and probe them."""
    for url in urls:
        client.create_monitor({"url": url, "interval_s": 86_400, "tags": [tag]})
    probe(client, *urls, health="up")


def shape(text: str) -> list[str]:
    """Lines, but for what differs from run to run: addresses, numbers, reasons."""
    text = re.sub(r"https?://[\w.:/-]+", "URL", text)
    text = re.sub(r"because: .*", "because", text)
    return [line.strip() for line in re.sub(r"\d[\d,.]*", "N", text).splitlines()]


def test_the_conversation_of_the_page(
    errbot: Path, api: Api, key: str, client: Client, counting_web: CountingWeb, tmp_path: Path
) -> None:
    """Lines with `>` are said to the bot, those in parentheses happen, all others are the bot's."""
    (block,) = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    there = re.sub(r"https://example\.(com|org)[\w/]*", lambda match: counting_web.url(f"/{match[1]}"), block)
    com, org = counting_web.url("/com"), counting_web.url("/org")
    watch(client, com, org, tag="prod")
    wait_until(lambda: client.url(com).uptime["24h"], timeout_s=30, what="roll-ups")
    with bot(errbot, tmp_path / "bot", server=api.url, key=key, poll_s=0.2, above=ABOVE) as chat:
        assert chat.hears()[1] == "up"
        heard: list[str] = []
        said: list[str] = []
        for line in there.splitlines():
            match line[:1]:
                case ">":
                    chat.say(line.removeprefix("> "))
                case "(":
                    counting_web.failing ^= {"/org"}
                    probe(client, org, health="down" if counting_web.failing else "up")
                case _:
                    said.append(line)
                    while len(heard) < len(said):
                        heard += chat.hears()[1].splitlines()
    assert shape("\n".join(heard)) == shape("\n".join(said))


def test_a_subscription_outlives_the_bot(
    errbot: Path, api: Api, key: str, client: Client, counting_web: CountingWeb, tmp_path: Path
) -> None:
    a, b = counting_web.url("/a"), counting_web.url("/b")
    watch(client, a, b, tag="shop")
    settings = {"server": api.url, "key": key, "poll_s": 0.2, "above": ABOVE}
    with bot(errbot, tmp_path / "bot", **settings) as chat:
        assert chat.hears()[1] == "up"
        assert "2 such URLs, of which 0 down" in chat.asks("!subscribe shop", room="ops")
        assert "2 such URLs, of which 0 down" in chat.asks("!subscribe shop", room=None)
        counting_web.failing = {"/b"}
        probe(client, b, health="down")
        told = [chat.hears(), chat.hears()]
        assert [to for to, _ in told] == ["ops", "gbin@localhost"]
        assert re.fullmatch(rf"shop:\n• {b} is down since \S+ \S+ UTC \(http_error\)", told[0][1])
        assert told[1][1] == told[0][1]
        counting_web.failing.clear()
        probe(client, b, health="up")
        assert f"{b} is up since" in chat.hears()[1]
        chat.hears()
        assert chat.asks("!unsubscribe shop", room=None) == "no more of shop"
        assert chat.asks("!subscribe", room=None) == "there is no subscription here"

    # While nobody looks, one URL fails, and the other so often that it may again.
    for _ in range(2):
        counting_web.failing = {"/b"}
        probe(client, b, health="down")
        counting_web.failing = set()
        probe(client, b, health="up")
    counting_web.failing = {"/a"}
    probe(client, a, health="down")

    with bot(errbot, tmp_path / "bot", **settings) as chat:
        assert chat.hears()[1] == "up"
        to, text = chat.hears()
        assert (to, text.splitlines()[0], len(text.splitlines())) == ("ops", "shop:", 3)
        assert f"• {a} is down since" in text
        assert re.search(rf"• {b} is up, 9\d% likely to fail in the next 24 h, because: \w", text)
        assert chat.asks("!subscribe") == "• shop"
        counting_web.failing = set()
        probe(client, a, health="up")
        to, text = chat.hears()  # what was told of b is not told again, nor to whom has unsubscribed
        assert (to, b in text, f"{a} is up since" in text) == ("ops", False, True)


def test_what_goes_wrong_is_a_reply(errbot: Path, api: Api, key: str, tmp_path: Path) -> None:
    with bot(errbot, tmp_path / "bot", server=api.url, key=key) as chat:
        assert chat.hears()[1] == "up"
        assert "never probed" in chat.asks("!health https://never-seen.example")
        assert "no scheme" in chat.asks("!crawl nowhere")
        assert chat.asks("!risky no-such-tag") == "nothing is known yet of any such URL"
        assert "the following arguments are required: url" in chat.asks("!health")
        assert chat.hears()[1].startswith("usage: health")
        assert chat.asks("!unsubscribe never") == "there is no subscription to never here"
    with bot(errbot, tmp_path / "bot", server=api.url, key="uh_nobody") as chat:
        assert chat.hears()[1] == "up"
        assert "key" in chat.asks("!risky")
    nobody = f"http://127.0.0.1:{free_port()}"
    with bot(errbot, tmp_path / "bot", server=nobody) as chat:
        assert chat.hears()[1] == "up"
        assert chat.asks("!risky").startswith(f"no reply from {nobody}")


def test_the_settings_of_the_page_are_the_defaults(errbot: Path, tmp_path: Path) -> None:
    (block,) = re.findall(r"^```python config\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    code = f"{block}\nfrom urlhealth_chat import ChatSettings\nassert ChatSettings().model_dump() == URLHEALTH"
    run(str(errbot), "-c", code, env=environment(tmp_path, PYTHONPATH=str(PLUGIN)), cwd=tmp_path)


#: A URL, one look after the other: its state, its probability (the threshold is 0.5), and whether that is told.
LOOKS = (
    ("unknown", None, False),
    ("up", 0.4, False),
    ("up", 0.6, True),
    ("up", 0.7, False),
    ("up", 0.41, False),  # not below 0.8 of the threshold
    ("up", 0.6, False),
    ("up", 0.39, False),
    ("up", 0.6, True),
    ("down", 1.0, True),
    ("unknown", 1.0, False),
    ("down", 1.0, False),
    ("up", 0.6, True),  # it is up again, and likely to fail
    ("unknown", 0.3, False),
    ("up", 0.6, True),
    ("down", 1.0, True),
    ("up", 0.1, True),
    ("up", None, False),
)


def test_what_is_told_of_a_url_and_what_is_no_news(errbot: Path, tmp_path: Path) -> None:
    code = f"""
from types import SimpleNamespace
from urlhealth_chat import _NOTHING, _is_news, _seen
before, told = _NOTHING, []
for health, probability, _ in {LOOKS!r}:
    now = _seen(SimpleNamespace(health=health, probability=probability), before, above=0.5)
    told.append(_is_news(before, now))
    before = now
print(told)
"""
    said = run(str(errbot), "-c", code, env=environment(tmp_path, PYTHONPATH=str(PLUGIN)), cwd=tmp_path).stdout
    assert said.strip() == str([told for _, _, told in LOOKS])


def test_wrong_settings_are_said_and_tell_no_secret(errbot: Path, tmp_path: Path) -> None:
    with bot(errbot, tmp_path / "bot", poll=3, key=7_777_777) as chat:
        assert chat.hears()[1] == "not active"
    log = (tmp_path / "bot/bot.log").read_text()
    assert "Extra inputs are not permitted" in log
    assert "Input should be a valid string" in log
    assert "input_value" not in log
