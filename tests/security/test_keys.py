"""API keys: made, shown once, rotated, revoked; sessions of browsers; quotas; the audit log; who may be listened to."""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serving.access import COOKIE
from serving.app import create_app
from urlhealth.cli import app as cli
from urlhealth.crawl.keys import CACHED_S, SESSION_S, KeyStore, Quotas, Scope
from urlhealth.errors import ConfigurationError, InvalidRequest, NotFound, QuotaExceeded, Unauthenticated
from urlhealth.platform import Platform
from urlhealth.settings import Settings

DAY_MS = 86_400_000
TASKS = "/api/v1/tasks"


class Time:
    """A clock and a timer that the test moves."""

    def __init__(self) -> None:
        self.ms = 1_767_225_600_000  # 2026-01-01T00:00:00Z

    def clock(self) -> int:
        return self.ms

    def timer(self) -> float:
        return self.ms / 1000

    def advance(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def platform(tmp_path: Path, time: Time) -> Iterator[Platform]:
    settings = Settings(home=tmp_path / "home", mlflow_tracking_uri="")
    with Platform(settings, clock=time.clock) as platform:
        platform.keys = KeyStore(platform._database, clock=time.clock, timer=time.timer)  # type: ignore[arg-type]
        yield platform


@pytest.fixture
def keys(platform: Platform) -> KeyStore:
    return platform.keys


@pytest.fixture
def http(platform: Platform) -> Iterator[TestClient]:
    with TestClient(create_app(platform), follow_redirects=False) as client:
        yield client


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def test_a_secret_is_random_and_nowhere_in_the_database(keys: KeyStore, tmp_path: Path) -> None:
    secrets = [keys.create("a", scopes=[Scope.READ])[1] for _ in range(3)]
    assert len(set(secrets)) == 3
    stored = b"".join(file.read_bytes() for file in (tmp_path / "home").glob("urlhealth.db*"))
    for secret in secrets:
        assert len(secret) == len("uh__") + 12 + 43
        assert secret[16:].encode() not in stored
    assert "secret" not in repr(keys.keys())


def test_a_key_is_what_it_was_made_for(keys: KeyStore) -> None:
    _, secret = keys.create("nightly", scopes=[Scope.READ, Scope.CRAWL], owner="ann")
    caller = keys.caller(secret)
    assert (caller.owner, caller.scopes) == ("ann", {Scope.READ, Scope.CRAWL})
    assert caller.may(Scope.READ)
    assert not caller.may(Scope.PREDICT)
    assert not caller.may(Scope.ADMIN)


@pytest.mark.parametrize("change", [lambda s: s[:-1], lambda s: s + "A", lambda s: s.upper(), lambda s: f"x{s}"])
def test_what_is_not_quite_a_secret_is_none(keys: KeyStore, change: Any) -> None:
    _, secret = keys.create("a", scopes=[Scope.READ])
    with pytest.raises(Unauthenticated):
        keys.caller(change(secret))
    other = "A" if secret[-1] != "A" else "B"
    with pytest.raises(Unauthenticated):
        keys.caller(secret[:-1] + other)


def test_expiry_rotation_and_revocation(keys: KeyStore, time: Time) -> None:
    key, first = keys.create("a", scopes=[Scope.READ], expires_ms=time.ms + 100_000)
    second = keys.rotate(key.key_id, grace_s=10)
    assert keys.caller(first) == keys.caller(second)
    time.advance(10)
    with pytest.raises(Unauthenticated, match="not known"):
        keys.caller(first)
    third = keys.rotate(key.key_id)
    with pytest.raises(Unauthenticated):
        keys.caller(second)
    assert keys.caller(third)
    time.advance(90)
    with pytest.raises(Unauthenticated, match="expired"):
        keys.caller(third)
    other, secret = keys.create("b", scopes=[Scope.READ])
    keys.revoke(other.key_id)
    with pytest.raises(Unauthenticated, match="revoked"):
        keys.caller(secret)
    for change in (keys.revoke, keys.rotate):
        with pytest.raises(NotFound):
            change(other.key_id)


def test_another_process_refuses_a_revoked_key_a_second_later(platform: Platform, time: Time) -> None:
    there = KeyStore(platform._database, clock=time.clock, timer=time.timer)  # type: ignore[arg-type]
    key, secret = platform.keys.create("a", scopes=[Scope.READ])
    assert there.caller(secret)
    platform.keys.revoke(key.key_id)
    time.advance(CACHED_S)
    with pytest.raises(Unauthenticated):
        there.caller(secret)


def test_the_last_use_is_kept_to_the_minute(keys: KeyStore, time: Time) -> None:
    key, secret = keys.create("a", scopes=[Scope.READ])
    assert keys.key(key.key_id).used_ms is None
    keys.caller(secret)
    first_ms = time.ms
    time.advance(59)
    keys.caller(secret)
    assert keys.key(key.key_id).used_ms == first_ms
    time.advance(1)
    keys.caller(secret)
    assert keys.key(key.key_id).used_ms == time.ms


def test_names_and_scopes_that_are_none(keys: KeyStore) -> None:
    for wrong in ({"name": ""}, {"name": "a\nb"}, {"owner": "a/b"}, {"scopes": []}):
        with pytest.raises(InvalidRequest):
            keys.create(**({"name": "a", "scopes": [Scope.READ]} | wrong))  # type: ignore[arg-type]
    assert keys.keys() == []
    assert not keys.exist()


def test_the_first_key_closes_the_server_and_nothing_opens_it_again(http: TestClient, keys: KeyStore) -> None:
    assert http.get(TASKS).status_code == 200
    made = http.post("/api/v1/keys", json={"name": "first", "scopes": ["admin"]})
    assert made.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    secret, key_id = made.json()["secret"], made.json()["key_id"]
    assert http.get(TASKS).status_code == 401
    assert http.get(TASKS, headers=bearer(secret)).status_code == 200
    assert http.get(TASKS, headers={"X-API-Key": secret}).status_code == 200
    (listed,) = http.get("/api/v1/keys", headers=bearer(secret)).json()
    assert (listed["key_id"], listed["scopes"], listed["owner"]) == (key_id, ["admin"], "local")
    again = http.post(f"/api/v1/keys/{key_id}/rotate", json={}, headers=bearer(secret)).json()["secret"]
    assert http.get(TASKS, headers=bearer(secret)).status_code == 401
    assert http.delete(f"/api/v1/keys/{key_id}", headers=bearer(again)).status_code == 204
    assert http.get(TASKS, headers=bearer(again)).status_code == 401
    assert http.get(TASKS).status_code == 401, "with all keys revoked it stays closed"
    assert keys.exist()


def test_a_browser_logs_in_with_a_key_and_out(http: TestClient, keys: KeyStore, time: Time) -> None:
    key, secret = keys.create("a", scopes=[Scope.READ])
    page = http.get("/", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login?next=/")
    assert http.get("/login").status_code == 200
    assert http.post("/login", data={"key": "wrong"}).status_code == 401
    assert COOKIE not in http.cookies
    reply = http.post("/login", data={"key": secret, "next": "//evil.example"})
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert secret not in cookie
    page = http.get("/")
    assert page.status_code == 200
    assert "'unsafe-inline'" not in page.headers["content-security-policy"].partition("style-src")[0]
    assert "<script>" not in page.text
    # Another site's page cannot use it.
    assert http.post("/logout", headers={"origin": "https://evil.example"}).status_code == 403
    assert http.get("/").status_code == 200
    token = http.cookies[COOKIE]
    assert http.post("/logout").status_code == 303
    http.cookies.set(COOKIE, token)
    assert http.get(TASKS).status_code == 401
    # Nor is one of use when its time, or its key, is over.
    http.cookies.clear()
    http.post("/login", data={"key": secret})
    assert http.get(TASKS).status_code == 200
    time.advance(SESSION_S)
    assert http.get(TASKS).status_code == 401
    http.post("/login", data={"key": secret})
    assert http.get(TASKS).status_code == 200
    keys.revoke(key.key_id)
    assert http.get(TASKS).status_code == 401


def test_urls_a_day(http: TestClient, keys: KeyStore, time: Time) -> None:
    _, secret = keys.create("a", scopes=[Scope.CRAWL], quotas=Quotas(urls_per_day=3))
    urls = [f"https://{n}.example" for n in range(2)]
    assert http.post(TASKS, json={"urls": urls}, headers=bearer(secret)).status_code == 202
    time.advance(3600)
    refused = http.post(TASKS, json={"urls": urls}, headers=bearer(secret))
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == str(23 * 3600)
    assert refused.json()["type"] == "urn:problem-type:urlhealth:quota-exceeded"
    assert http.post("/submit", json={"urls": urls[:1]}, headers=bearer(secret)).status_code == 200
    assert http.post("/submit", json={"urls": urls[:1]}, headers=bearer(secret)).status_code == 429
    time.advance(23 * 3600)
    assert http.post(TASKS, json={"urls": urls}, headers=bearer(secret)).status_code == 202


def test_running_tasks_and_monitors(http: TestClient, keys: KeyStore, platform: Platform) -> None:
    _, secret = keys.create("a", scopes=[Scope.CRAWL], quotas=Quotas(running_tasks=1, monitors=2), owner="ann")
    made = http.post(TASKS, json={"urls": ["https://a.example"]}, headers=bearer(secret))
    assert made.status_code == 202
    refused = http.post("/submit", json={"urls": ["https://a.example"]}, headers=bearer(secret))
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
    platform.crawl.cancel_task(made.json()["task_id"], owner="ann")
    assert http.post("/submit", json={"urls": ["https://a.example"]}, headers=bearer(secret)).status_code == 200

    def monitor(*urls: str) -> int:
        body: Any = [{"url": url, "interval_s": 60} for url in urls]
        reply = http.post("/api/v1/monitors", json=body if len(urls) > 1 else body[0], headers=bearer(secret))
        return reply.status_code

    assert monitor("https://a.example") == 201
    assert monitor("https://b.example", "https://c.example") == 429
    assert len(platform.crawl.monitors(limit=10, owner="ann").items) <= 2
    assert platform.crawl.monitors(limit=10).items == []


def test_requests_a_second(platform: Platform, keys: KeyStore, time: Time) -> None:
    _, secret = keys.create("a", scopes=[Scope.READ], quotas=Quotas(requests_per_s=2))
    app = create_app(platform)
    (access,) = [each for each in app.user_middleware if "platform" in each.kwargs]
    access.kwargs["timer"] = time.timer
    http = TestClient(app)
    codes = [http.get(TASKS, headers=bearer(secret)).status_code for _ in range(3)]
    assert codes == [200, 200, 429]
    assert http.get(TASKS, headers=bearer(secret)).headers["retry-after"] == "1"
    assert http.get("/health/live", headers=bearer(secret)).status_code == 200
    time.advance(0.5)
    codes = [http.get(TASKS, headers=bearer(secret)).status_code for _ in range(2)]
    assert codes == [200, 429]


def test_a_quota_is_kept_by_callers_that_come_at_once(keys: KeyStore) -> None:
    _, secret = keys.create("a", scopes=[Scope.CRAWL], quotas=Quotas(urls_per_day=10))
    caller = keys.caller(secret)
    assert list(keys.metered(caller, range(6))) == list(range(6))
    with pytest.raises(QuotaExceeded):
        list(keys.metered(caller, range(5)))
    assert list(keys.metered(caller, range(4))) == list(range(4))


def test_changes_are_in_the_audit_log_and_readings_are_not(http: TestClient, keys: KeyStore) -> None:
    http.post("/submit", json={"urls": ["https://a.example"]})
    _, secret = keys.create("root", scopes=[Scope.ADMIN], owner="ann")
    key, weak = keys.create("weak", scopes=[Scope.READ], owner="bob")
    http.get(TASKS, headers=bearer(secret))
    made = http.post(TASKS, json={"urls": ["https://a.example"]}, headers=bearer(secret) | {"x-request-id": "r1"})
    http.delete(f"{TASKS}/none?why=not", headers=bearer(secret))
    http.post(TASKS, json={"urls": ["https://a.example"]}, headers=bearer(weak))
    http.delete(f"/api/v1/keys/{key.key_id}", headers=bearer(secret))
    page = http.get("/api/v1/audit", headers=bearer(secret), params={"limit": 5}).json()
    found = [(item["owner"], item["action"].partition("'")[0].strip(), item["status"]) for item in page["items"]]
    rest = http.get("/api/v1/audit", headers=bearer(secret), params={"cursor": page["next_cursor"]}).json()["items"]
    found += [(item["owner"], item["action"].partition("'")[0].strip(), item["status"]) for item in rest]
    assert found == [
        ("ann", f"DELETE /api/v1/keys/{key.key_id}", 204),
        ("ann", f"keys revoke {key.key_id}", None),
        ("bob", f"POST {TASKS}", 403),
        ("ann", f"DELETE {TASKS}/none?why=not", 404),
        ("ann", f"POST {TASKS}", 202),
        ("local", f"keys create {key.key_id}", None),
        ("local", rest[1]["action"].partition("'")[0].strip(), None),
        ("local", "POST /submit", 200),
    ]
    assert made.status_code == 202
    assert page["items"][4]["request_id"] == "r1"
    assert secret not in str(page)


def test_the_command_makes_lists_rotates_and_revokes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    run = CliRunner().invoke
    made = run(cli, ["keys", "create", "nightly", "--scope", "read", "--scope", "crawl", "--owner", "ann"])
    secret = made.stdout.strip()
    key_id = secret.split("_")[1]
    listed = run(cli, ["keys", "list"]).stdout
    assert key_id in listed
    assert "good" in listed
    assert secret not in listed
    assert run(cli, ["keys", "rotate", key_id]).stdout.strip().startswith(f"uh_{key_id}_")
    assert run(cli, ["keys", "revoke", key_id]).exit_code == 0
    assert "revoked" in run(cli, ["keys", "list"]).stdout
    (shown,) = [json.loads(line) for line in run(cli, ["keys", "list", "--json"]).stdout.splitlines()]
    assert (shown["key_id"], shown["owner"], shown["scopes"]) == (key_id, "ann", ["crawl", "read"])
    assert shown["revoked_at"]
    wrong = run(cli, ["keys", "create", "x", "--scope", "root"])
    assert isinstance(wrong.exception, InvalidRequest)
    assert "choose among read, crawl, predict, admin" in str(wrong.exception)


def test_beyond_loopback_is_listened_only_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("URLHEALTH_HOME", str(tmp_path / "home"))
    started: list[str] = []
    monkeypatch.setattr("uvicorn.run", lambda *_, host, **__: started.append(host))
    serve = ["serve", "--host", "0.0.0.0", "--port", "0"]
    run = CliRunner().invoke
    refused = run(cli, serve)
    assert isinstance(refused.exception, ConfigurationError)
    assert "urlhealth keys create" in str(refused.exception)
    assert not (tmp_path / "home").exists()
    run(cli, ["doctor"])  # a database without a key
    assert isinstance(run(cli, serve).exception, ConfigurationError)
    run(cli, ["keys", "create", "a", "--scope", "admin"])
    assert run(cli, serve).exit_code == 0
    assert started == ["0.0.0.0"]
    with sqlite3.connect(tmp_path / "home" / "urlhealth.db") as database:
        assert database.execute("SELECT count(*) FROM api_keys").fetchone() == (1,)
