"""Credentials in options are encrypted where they are stored, and shown nowhere; nor are passwords in URLs."""

import logging
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.fernet import Fernet
from starlette.testclient import TestClient

from serving.app import create_app
from tests.misbehaving import OK, redirect, say, serving
from tests.probes import probe, running_engine
from urlhealth.alerts.apprise_process import _without
from urlhealth.alerts.rules import UNREADABLE, AlertFile, read_file
from urlhealth.alerts.store import AlertStore
from urlhealth.crawl.database import open_database
from urlhealth.crawl.store import CrawlStore
from urlhealth.crawl.vault import Vault
from urlhealth.errors import ConfigurationError, InvalidRequest, UrlHealthError
from urlhealth.platform import Platform
from urlhealth.prediction.champion import ChampionWatch, unavailable
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings, load_settings, redacted
from urlhealth.vocabulary import DEFAULT_OPTIONS, MonitorSpec, Outcome, ProbeOptions

URL = "https://a.example"
OPTIONS = {
    "headers": {"Authorization": "hunter2-header"},
    "basic_auth": "ann:hunter2-basic",
    "proxy": "http://ann:hunter2-proxy@proxy.example:3128",
    "timeout_s": 3,
}
BEARER = {"bearer_token": "hunter2-bearer"}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with Platform(Settings(home=tmp_path / "home", mlflow_tracking_uri="")) as platform:
        yield platform


def test_they_are_stored_encrypted_and_neither_logged_nor_returned(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    said = []
    with TestClient(create_app(platform)) as http:
        for options in (OPTIONS, BEARER):
            said.append(http.post("/api/v1/tasks", json={"urls": [URL], "options": options}))
            body = {"url": f"{URL}/{len(said)}", "interval_s": 60, "options": options}
            said.append(http.post("/api/v1/monitors", json=body))
        assert [reply.status_code for reply in said] == [202, 201, 202, 201]
        for path in ("/api/v1/tasks", "/api/v1/monitors", "/metrics", "/", "/api/v1/audit", "/tasks"):
            said.append(http.get(path))
        bad = {"basic_auth": "hunter2", "proxy": "ftp://hunter2", "headers": {"A": "hunter2\n"}}
        for name, value in bad.items():
            said.append(http.post("/api/v1/tasks", json={"urls": [URL], "options": {name: value}}))
            assert said[-1].status_code == 422
    assert not [reply.text for reply in said if "hunter2" in reply.text]
    assert "hunter2" not in caplog.text
    stored = b"".join(file.read_bytes() for file in platform.settings.home.rglob("*") if file.is_file())
    assert b"hunter2" not in stored
    # And all is there for the probe.
    bearer, both = platform.crawl.tasks(limit=2).items
    assert bearer.options == ProbeOptions(bearer_token="hunter2-bearer")
    assert both.options.headers == (("Authorization", "hunter2-header"),)
    assert (both.options.basic_auth, both.options.timeout_s) == ("ann:hunter2-basic", 3)
    assert [task.options for task in platform.crawl.open_tasks(limit=2)] == [both.options, bearer.options]
    assert [monitor.options for monitor in platform.crawl.monitors(limit=2).items] == [both.options, bearer.options]


def test_the_key_is_made_when_it_is_needed_and_only_its_owner_may_read_it(platform: Platform) -> None:
    key = platform.settings.home / "secret.key"
    platform.crawl.create_task([URL], options=ProbeOptions(timeout_s=3))
    assert not key.exists()
    platform.crawl.create_task([URL], options=ProbeOptions(basic_auth="a:b"))
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with Platform(platform.settings) as other:
        assert other.crawl.tasks(limit=1).items[0].options.basic_auth == "a:b"


def test_keys_can_be_replaced_and_a_lost_one_sends_nothing(tmp_path: Path) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    engine = open_database(f"sqlite:///{tmp_path / 'a.db'}")

    def store(*keys: str) -> CrawlStore:
        return CrawlStore(engine, vault=Vault(lambda: keys))

    spec = MonitorSpec(url=URL, interval_s=60, options=ProbeOptions(basic_auth="a:b", timeout_s=3))
    assert list(store(old).create_monitors([spec]))
    (monitor,) = store(new, old).monitors(limit=1).items
    assert monitor.options == spec.options
    store(new, old).change_monitor(monitor.monitor_id, {"interval_s": 61})
    assert store(new).monitors(limit=1).items[0].options == spec.options
    lost = store(old).monitors(limit=1).items[0].options
    assert (lost.basic_auth, lost.timeout_s) == (None, 3)
    with running_engine() as probing:
        assert probe(probing, "http://127.0.0.1:1/", lost).outcome is Outcome.SELF
    engine.dispose()


def test_what_was_stored_before_is_still_read() -> None:
    vault = Vault(lambda: (Fernet.generate_key().decode(),))
    assert vault.options({"basic_auth": "a:b"}) == ProbeOptions(basic_auth="a:b")
    assert vault.options({}) == DEFAULT_OPTIONS
    assert Vault().stored(ProbeOptions(basic_auth="a:b"))["basic_auth"] == "a:b"


def test_a_key_that_is_none_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_SECRET_KEY", "hunter2")
    with pytest.raises(ConfigurationError, match="32 bytes") as refused:
        load_settings()
    assert "hunter2" not in str(refused.value)
    key = Fernet.generate_key().decode()
    assert key not in repr(Settings(secret_key=(key,)))


@pytest.mark.parametrize(
    "url",
    ["https://ann:hunter2@a.example/", "ann:hunter2@a.example", "//hunter2@a.example", "ftp://ann:hunter2@a.example"],
)
def test_a_url_with_a_password_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_target(url)
    assert "hunter2" not in str(refused.value)


def test_a_password_that_a_redirect_has_is_not_kept() -> None:
    with running_engine() as engine, serving(say(OK)) as port:
        location = f"http://ann:hunter2@127.0.0.1:{port}/end".encode()
        with serving(redirect(location)) as first:
            result = probe(engine, f"http://127.0.0.1:{first}/")
    assert (result.outcome, result.final_url) == (Outcome.OK, f"http://127.0.0.1:{port}/end")
    assert "hunter2" not in repr(result)


def test_stores_are_named_without_their_passwords() -> None:
    uri = "postgresql://ann:hunter2@db.example/mlflow"
    assert redacted(uri) == "postgresql://***@db.example/mlflow"
    assert redacted("sqlite:///a@b.db") == "sqlite:///a@b.db"
    query = "redis://127.0.0.1:1/0?prefix=a&password=hunter2&x=1"
    assert redacted(f"at {query} it is") == "at redis://127.0.0.1:1/0?prefix=a&password=***&x=1 it is"
    assert "hunter2" not in str(unavailable(uri, f"cannot connect to {uri}"))


def test_channels_that_are_given_over_rest_cannot_name_our_environment(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a file, which `urlhealth alerts apply` reads, can: who runs that has the environment already."""
    monkeypatch.setenv("HUNTER2", "hunter2-environment")
    channel = {"name": "out", "url": "https://hooks.example/${HUNTER2}", "secret": "${HUNTER2}-and-more"}
    with TestClient(create_app(platform)) as http:
        assert http.put("/api/v1/alerts/rules", json={"channels": [channel], "rules": []}).status_code == 200
        assert "hunter2" not in http.get("/api/v1/alerts/rules").text
    kept = platform.alerts.channel("out")
    assert (kept.url, kept.secret) == (channel["url"], channel["secret"])
    file = tmp_path / "alerts.yaml"
    file.write_text("channels: [{name: out, url: 'https://hooks.example/${HUNTER2}', secret: '${HUNTER2}-and-more'}]")
    assert read_file(file).channels[0].url == "https://hooks.example/hunter2-environment"


CHANNELS = AlertFile.model_validate(
    {
        "channels": [
            {"name": "hook", "url": "https://hooks.example/hunter2-path", "secret": "hunter2-sixteen-letters"},
            {"name": "mail", "url": "mailto://ann:hunter2-mail@mail.example"},
        ]
    }
)


def test_channels_are_stored_encrypted_and_neither_logged_nor_returned(
    platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = CHANNELS.model_dump(mode="json")
    with TestClient(create_app(platform)) as http:
        said = [http.put("/api/v1/alerts/rules", json=body)]
        assert said[0].json() == {"created": ["hook", "mail"], "changed": [], "deleted": []}
        assert http.put("/api/v1/alerts/rules", json=body).json()["changed"] == []  # although a token is never the same
        said += [http.get(path) for path in ("/api/v1/alerts/rules", "/ui/alerts", "/metrics", "/api/v1/audit")]
        said += [http.post("/api/v1/alerts/test", json={"channel": name}) for name in ("hook", "mail")]
        assert [reply.status_code for reply in said] == [200] * len(said)
        body["channels"][0]["secret"] = "hunter2"
        said.append(http.put("/api/v1/alerts/rules", json=body))
        assert said[-1].status_code == 422
    assert not [reply.text for reply in said if "hunter2" in reply.text]
    assert "hunter2" not in caplog.text
    assert b"hunter2" not in b"".join(f.read_bytes() for f in platform.settings.home.rglob("*") if f.is_file())
    assert platform.alerts.channels() == list(CHANNELS.channels)
    assert "hunter2" not in repr(platform.alerts.channels())


def test_channels_outlive_a_new_key_are_of_no_use_without_it_and_are_encrypted_when_applied_again(
    platform: Platform,
) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    assert platform._database is not None

    def store(*keys: str) -> AlertStore:
        return AlertStore(platform._database, clock=platform.clock, vault=Vault(lambda: keys))  # type: ignore[arg-type]

    store().apply(CHANNELS)  # as before channels were encrypted
    assert store(old).channels() == list(CHANNELS.channels)
    changes, _ = store(old).apply(CHANNELS)
    assert list(changes.changed) == ["hook", "mail"]
    assert store(new, old).channels() == list(CHANNELS.channels)
    assert {channel.url for channel in store(new).channels()} == {UNREADABLE}
    lost = store(new).channel("hook")
    assert "URLHEALTH_SECRET_KEY" in str(platform.alert_sender.try_out(lost))
    changes, _ = store(new).apply(CHANNELS)
    assert list(changes.changed) == ["hook", "mail"]
    assert store(new).channels() == list(CHANNELS.channels)


def test_what_apprise_says_is_not_shown_where_a_part_of_the_url_is_in_it() -> None:
    url = "mailto://ann:hun%2Fter2@mail.example/token-2?to=bob1&pass=pw12"
    said = ["cannot connect to mail.example", "no login as x:hun/ter2", "bad hun%2Fter2", "token-2", "pw12", "for bob1"]
    assert _without(said, url) == "cannot connect to mail.example"


STORES = {
    "database_url": [
        "postgresql://ann:hunter2@127.0.0.1:1/x",
        "nosuch://ann:hunter2@a/x",
        "postgresql://ann:hunter2@a:b/",
    ],
    "online_store": ["redis://:hunter2@127.0.0.1:1/0", "redis://127.0.0.1:1/0?password=hunter2", "http://:hunter2@a/0"],
    "broker_url": ["redis://:hunter2@127.0.0.1:1/0", "amqp://ann:hunter2@127.0.0.1:1//", "nosuch://ann:hunter2@a//"],
    "mlflow_tracking_uri": ["http://ann:hunter2@127.0.0.1:1", "postgresql://ann:hunter2@a/x"],
    "canary": ["http://ann:hunter2@127.0.0.1:1/"],
}


@pytest.mark.parametrize(("setting", "url"), [(name, url) for name, urls in STORES.items() for url in urls])
def test_stores_that_cannot_be_reached_are_told_of_without_their_passwords(
    setting: str, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In errors, in what `doctor`, health and the pages show, and in the log."""
    caplog.set_level(logging.DEBUG)
    settings = Settings(**{"home": tmp_path, "mlflow_tracking_uri": "", setting: url})  # type: ignore[arg-type]
    platform = Platform(settings)
    said = [repr(settings)] if setting != "canary" else []
    try:
        platform.open(check=False)
        said += map(repr, platform.checks())
        if setting != "mlflow_tracking_uri":  # whose client would try again for half a minute
            platform.start()
            said += map(repr, platform.checks())
    except UrlHealthError as error:
        said += [str(error), repr(error)]
    platform.close()
    if setting == "mlflow_tracking_uri" and url.startswith("http"):
        with pytest.raises(UrlHealthError) as refused:
            platform.champion.check()
        said.append(str(refused.value))
    assert "hunter2" not in "\n".join(said)
    assert "hunter2" not in caplog.text


def test_a_tracking_server_with_a_password_in_its_url_is_reached() -> None:
    with serving(say(OK)) as port:
        ChampionWatch(Settings(mlflow_tracking_uri=f"http://ann:hunter2@127.0.0.1:{port}")).check()


def test_the_audit_log_has_no_password_of_a_url(platform: Platform, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with TestClient(create_app(platform)) as http:
        for url in ("https://ann:hunter2@a.example/", "https://a.example/?token=hunter2"):
            http.delete("/api/v1/url", params={"url": url})
        found = http.get("/api/v1/audit").json()["items"]
        assert [item["action"].partition("?")[0] for item in found] == ["DELETE /api/v1/url"] * 2
        assert "hunter2" not in str(found)
        assert "hunter2" not in http.get("/metrics").text
    ours = [record for record in caplog.records if not record.name.startswith("httpx")]  # that is the caller
    assert "hunter2" not in "".join(record.getMessage() for record in ours)
