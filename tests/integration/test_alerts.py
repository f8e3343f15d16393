"""Alerts that leave this machine's platform: a real receiver, real processes, and an end by SIGKILL."""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from apprise.manager_plugins import NotificationManager

from tests.support import BIN, environment, free_port, kill, platform_process, run, wait_until
from urlhealth.alerts.apprise_process import LOCAL
from urlhealth.alerts.delivery import Sender, signature
from urlhealth.alerts.rules import Channel, read_file
from urlhealth.alerts.store import MessageStatus
from urlhealth.errors import ConfigurationError, InvalidRequest
from urlhealth.platform import Platform
from urlhealth.settings import Settings
from urlhealth.vocabulary import system_clock

SECRET = "a secret of sixteen"
LOOPBACK = "127.0.0.0/8"


class Receiver(ThreadingHTTPServer):
    """Keeps what it is sent; answers with `status`, and first waits for `answers`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.paths: list[str] = []
        self.status = 200
        self.answers = threading.Event()
        self.answers.set()
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
        self.server.paths.append(self.path)
        self.server.answers.wait(20)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving(port: int = 0) -> Iterator[Receiver]:
    with Receiver(port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.answers.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as server:
        yield server


def sender(home: Path, *allowed: str) -> Sender:
    settings = Settings(home=home, allow_addresses=tuple(map(ip_network, allowed)), mlflow_tracking_uri="")
    return Sender(settings, clock=system_clock)


def test_a_webhook_is_signed_and_claimed_when_it_is_connected(receiver: Receiver, tmp_path: Path) -> None:
    channel = Channel(name="hook", url=receiver.url, secret=SECRET)
    order: list[str] = []

    def claim() -> bool:
        order.append(f"claimed before {len(receiver.got)}")
        return True

    assert sender(tmp_path, LOOPBACK).send(channel, "id-1", b'{"a":1}', claim=claim) is None
    ((headers, body),) = receiver.got
    assert (body, order) == (b'{"a":1}', ["claimed before 0"])
    assert headers["content-type"] == "application/json"
    expected = signature(SECRET, "id-1", int(headers["webhook-timestamp"]), body)
    assert (headers["webhook-id"], headers["webhook-signature"]) == ("id-1", expected)
    # As https://www.standardwebhooks.com has it in its example.
    standard = signature(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert standard == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

    receiver.status = 500
    assert sender(tmp_path, LOOPBACK).try_out(channel) == "it answered with HTTP 500"
    assert sender(tmp_path, LOOPBACK).send(channel, "id-2", b"{}", claim=lambda: False) is not None
    assert len(receiver.got) == 2


@pytest.mark.parametrize("scheme", ["http", "json"])
def test_the_address_guard_holds_for_webhooks_and_for_apprise(receiver: Receiver, tmp_path: Path, scheme: str) -> None:
    url = receiver.url.replace("http", scheme)
    channel = Channel(name="hook", url=url, secret=SECRET if scheme == "http" else None)
    assert "127.0.0.1 is a loopback address" in str(sender(tmp_path).try_out(channel))
    assert receiver.got == []
    assert sender(tmp_path, LOOPBACK).try_out(channel) is None
    assert len(receiver.got) == 1


def test_channels_that_would_act_on_this_machine_are_refused(receiver: Receiver, tmp_path: Path) -> None:
    for url in ("syslog://", "SysLog://x", "gio://", "macosx://"):
        assert "own machine" in str(sender(tmp_path).try_out(Channel(name="log", url=url)))
    assert "does not know" in str(sender(tmp_path).try_out(Channel(name="odd", url="nosuch://service/")))
    # A comma begins no second one: it is of the path.
    both = f"{receiver.url.replace('http', 'json')},syslog://"
    assert sender(tmp_path, LOOPBACK).try_out(Channel(name="two", url=both)) is None
    assert receiver.paths == ["/hook%2Csyslog:/"]


def test_all_of_apprises_services_that_act_on_this_machine_are_known() -> None:
    manager = NotificationManager()
    manager.load_modules()
    local = re.compile(r"import (ctypes|dbus|subprocess|syslog|win32\w*)\b|gi\.repository|AF_UNIX|os\.system")
    found = {
        schema
        for schema, plugin in manager._schema_map.items()
        if local.search(Path(sys.modules[plugin.__module__].__file__ or "").read_text())
    }
    assert "syslog" in found
    assert found <= LOCAL


RULES = """\
channels:
  - {{name: hook, url: "{url}", secret: "${{HOOK_SECRET}}"}}
rules:
  - {{name: down, kind: state, probes: 1, of: 1, group_s: 1, channels: [hook]}}
"""


def test_a_message_survives_sigkill_and_comes_once(tmp_path: Path) -> None:
    """The receiver is away at first; the platform is killed; both come back."""
    port, dead = free_port(), free_port()
    home, file = tmp_path / "home", tmp_path / "alerts.yaml"
    file.write_text(RULES.format(url=f"http://127.0.0.1:{port}/hook"))
    allow = {"URLHEALTH_LEASE_S": "2"}
    run(str(BIN / "urlhealth"), "alerts", "apply", "-f", str(file), env=environment(home, HOOK_SECRET=SECRET))
    with closing(Platform(Settings(home=home, mlflow_tracking_uri=""))) as beside:
        store = beside.open(check=False).alerts

        def count(status: str) -> int:
            return len(store.messages(MessageStatus(status), limit=10).items)

        with platform_process(home, **allow) as (api, process):
            wait_until(lambda: store.position() is not None, timeout_s=30, what="a first look at the probes")
            api.wait_done(api.submit([f"http://127.0.0.1:{dead}/"]))
            wait_until(lambda: count("waiting"), timeout_s=30, what="a message")
            kill(process)
        assert count("sent") == 0
        with receiving(port) as receiver, platform_process(home, **allow) as (api, _):
            wait_until(lambda: count("sent"), timeout_s=60, what="the message")
            (body,) = receiver.bodies()
            assert (body["type"], body["rule"], len(body["alerts"])) == ("alert", "down", 1)
            said = run(str(BIN / "urlhealth"), "alerts", "list", "--open", "--json", env=environment(home)).stdout
            assert [json.loads(line) for line in said.splitlines()] == api.http.get("/api/v1/alerts").json()["items"]


Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs `urlhealth alerts` with arguments, in this process."""
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("URLHEALTH_ALLOW_ADDRESSES", LOOPBACK)
    monkeypatch.setenv("HOOK_SECRET", SECRET)

    def run_(*arguments: str) -> tuple[int, str, str]:
        from urlhealth import cli

        monkeypatch.setattr("sys.argv", ["urlhealth", "alerts", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return (int(exit_.value.code or 0), *capfd.readouterr())

    return run_


def test_a_file_is_applied_and_channels_are_tried(command: Command, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "alerts.yaml"
    assert command("test")[0] == 1
    file.write_text(RULES.format(url=receiver.url))
    assert command("apply", "-f", str(file), "--dry-run")[:2] == (2, "+ channel hook\n+ rule down\n")
    assert command("apply", "-f", str(file))[0] == 0
    assert command("apply", "-f", str(file))[:2] == (0, "")
    code, out, _ = command("test", "hook")
    assert (code, SECRET in out, out.endswith("sent\n")) == (0, False, True)
    assert [body["type"] for body in receiver.bodies()] == ["test"]
    receiver.status = 503
    assert command("test")[0] == 1
    file.write_text("channels: []\nrules: []\n")
    assert command("apply", "-f", str(file), "--prune")[:2] == (0, "- channel hook\n- rule down\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [", "it is not YAML"),
        ("[]", "lists `channels` and `rules`"),
        ("channels: [{name: a, url: 'https://x.example/'}]", "needs a secret"),
        ("rules: [{name: a, kind: risk, above: 2, channels: [b]}]", "less than or equal to 1"),
        ("rules: [{name: a, kind: state, probes: 4, of: 3, channels: [b]}]", "4 of 3 probes"),
        ("rules: [{name: a, kind: odd, channels: [b]}]", "kind"),
        ("channels: [{name: a, url: 'mailto://a:b@c.d'}, {name: a, url: 'mailto://a:b@c.d'}]", "two channels"),
    ],
)
def test_a_file_that_cannot_be_is_said_to_be_so(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "alerts.yaml"
    file.write_text(text)
    with pytest.raises(InvalidRequest, match=said):
        read_file(file)
    file.write_text("channels: [{name: a, url: '${SURELY_NOT_SET}'}]")
    with pytest.raises(ConfigurationError, match="SURELY_NOT_SET is not set"):
        read_file(file)
