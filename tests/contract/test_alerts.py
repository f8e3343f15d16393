"""Alerts on both databases: when they begin and end, what is told of them, and that each is told once."""

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import orjson
import pytest
import sqlalchemy as sa

from urlhealth.alerts.delivery import Delivery
from urlhealth.alerts.rules import AlertFile
from urlhealth.alerts.store import RETRIES_S, Message, MessageStatus
from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.schema import alerts, current_predictions, targets
from urlhealth.errors import InvalidRequest, LeaseLost, NotFound
from urlhealth.platform import Platform
from urlhealth.probing.urls import parse_target
from urlhealth.settings import Settings
from urlhealth.vocabulary import Outcome, ProbeResult

NOW_MS = 1_767_225_600_000  # 2026-01-01 00:00 UTC
MINUTE_MS = 60_000
A, B, OTHER = "https://one.example/a", "https://one.example/b", "https://two.example/"
HOOK = {"name": "hook", "url": "https://hooks.example/", "secret": "a secret of sixteen"}
STATE = {"name": "down", "kind": "state", "channels": ["hook"], "group_s": 10}


class Bench:
    """A platform that is driven by hand."""

    def __init__(self, platform: Platform, clock: list[int]) -> None:
        self.platform, self.clock = platform, clock

    def apply(self, *rules: dict[str, Any], **options: Any) -> None:
        self.platform.alerts.apply(AlertFile.model_validate({"channels": [HOOK], "rules": rules}), **options)
        self.turn()

    def probe(self, url: str, outcome: Outcome = Outcome.OK, **more: Any) -> None:
        target = parse_target(url)
        self.clock[0] += 1000
        result = ProbeResult(target=target.key, ts_ms=self.clock[0], outcome=outcome, **more)
        self.platform.crawl.import_probes([(target, result)])

    def turn(self, *, later_ms: int = 0) -> None:
        """One turn of the loop that begins and ends alerts."""
        self.clock[0] += later_ms
        while self.platform.alert_evaluator.step():
            pass
        self.platform.alerts.make_messages(lease=self.platform.lease)

    def open(self) -> set[tuple[str, str | None]]:
        return {(a.rule, a.target) for a in self.platform.alerts.alerts(limit=100, only_open=True).items}

    def told(self) -> list[dict[str, Any]]:
        """What the messages that wait say, oldest first."""
        found = self.platform.alerts.messages(MessageStatus.WAITING, limit=100).items
        return [orjson.loads(message.payload) for message in reversed(found)]


@pytest.fixture
def clock() -> list[int]:
    """The time now."""
    return [NOW_MS]


@pytest.fixture
def bench(tmp_path: Path, database_url: str, clock: list[int]) -> Iterator[Bench]:
    """Three targets, of two hosts, that were seen up."""
    settings = Settings(home=tmp_path, database_url=database_url, mlflow_tracking_uri="", lease_s=1e6)
    with closing(Platform(settings, clock=lambda: clock[0])) as platform:
        platform.open(check=False)
        platform.lease.acquire()
        made = Bench(platform, clock)
        for url in (A, B, OTHER):
            made.probe(url)
        yield made


def test_a_state_must_be_confirmed_and_its_end_is_told(bench: Bench) -> None:
    bench.apply(STATE)
    bench.probe(A, Outcome.TIMEOUT, error="no answer")
    bench.turn()
    assert bench.open() == set()
    bench.probe(A, Outcome.BLOCKED)  # says nothing
    bench.probe(A, Outcome.HTTP_ERROR, status_code=503)
    bench.turn()
    assert bench.open() == {("down", A)}
    bench.turn(later_ms=10_000)
    (message,) = bench.told()
    assert (message["type"], message["title"]) == ("alert", f"{A} is down")
    assert message["text"] == f"{A}: 2 of the last 3 probes failed, the newest with http_error 503"
    bench.probe(A)
    bench.turn(later_ms=10_000)
    assert bench.open() == {("down", A)}  # 2 of the last 3 still failed
    bench.probe(A, total_ms=80.0)
    bench.turn()
    assert bench.open() == set()
    bench.turn(later_ms=10_000)
    assert [m["type"] for m in bench.told()] == ["alert", "recovery"]
    assert bench.told()[1]["title"] == f"{A}: back up"


def test_targets_of_a_host_share_a_message(bench: Bench) -> None:
    bench.apply(STATE | {"probes": 1, "of": 1})
    for url in (A, OTHER):
        bench.probe(url, Outcome.DNS)
        bench.turn()
    bench.turn(later_ms=5_000)
    assert bench.told() == []
    bench.probe(B, Outcome.DNS)
    bench.turn()
    bench.turn(later_ms=5_000)
    titles = sorted(message["title"] for message in bench.told())
    assert titles == [f"{OTHER} is down", "one.example: 2 URLs are down"]
    bench.turn(later_ms=3_600_000)
    assert len(bench.told()) == 2


def test_what_is_over_before_it_is_told_is_not_told(bench: Bench) -> None:
    bench.apply(STATE | {"probes": 1, "of": 1})
    bench.probe(A, Outcome.DNS)
    bench.turn()
    bench.probe(A)
    bench.turn(later_ms=60_000)
    bench.turn(later_ms=60_000)
    assert (bench.open(), bench.told()) == (set(), [])


def test_quiet_hours_and_maintenance(bench: Bench) -> None:
    quiet = {"start": "22:00", "end": "07:00", "timezone": "Europe/Berlin"}
    window = {"start": "2026-01-01T00:00:00Z", "end": "2026-01-01T00:10:00Z", "every": "day"}
    bench.apply(
        STATE | {"probes": 1, "of": 1, "quiet_hours": quiet},
        STATE | {"probes": 1, "of": 1, "name": "rests", "maintenance": [window]},
    )
    bench.probe(A, Outcome.DNS)
    bench.turn(later_ms=20_000)
    assert bench.open() == {("down", A)}
    bench.turn(later_ms=5 * 3_600_000)
    assert bench.told() == []  # it is 06:00 in Berlin
    bench.turn(later_ms=3_600_000)
    assert [message["rule"] for message in bench.told()] == ["down"]
    bench.probe(A, Outcome.DNS)
    bench.turn()
    assert bench.open() == {("down", A), ("rests", A)}


def test_rules_choose_by_tag_and_group(bench: Bench) -> None:
    bench.platform.crawl.create_monitor(A, interval_s=60, tags=("prod",))
    one = STATE | {"probes": 1, "of": 1}
    bench.apply(one | {"name": "tag", "tag": "prod"}, one | {"name": "group", "group": "two.example"})
    for url in (A, B, OTHER):
        bench.probe(url, Outcome.DNS)
    bench.turn()
    assert bench.open() == {("tag", A), ("group", OTHER)}


def test_slow_answers_and_certificates(bench: Bench) -> None:
    slow = {"kind": "latency", "channels": ["hook"], "probes": 2, "of": 2}
    bench.apply(
        slow | {"name": "slow", "above_ms": 500},
        slow | {"name": "degraded"},
        {"name": "tls", "kind": "certificate", "channels": ["hook"], "days": 7},
    )
    for _ in range(40):  # so many that its usual time is known
        bench.probe(A, total_ms=50.0)
    while bench.platform.pipeline.step():
        pass
    for _ in range(2):
        bench.probe(A, total_ms=400.0)
        bench.probe(B, total_ms=600.0)
    bench.probe(OTHER, cert_expires_ms=bench.clock[0] + 5 * 86_400_000)
    bench.turn()
    assert bench.open() == {("slow", B), ("tls", OTHER)} | ({("degraded", A)} & bench.open())
    bench.probe(OTHER, cert_expires_ms=bench.clock[0] + 90 * 86_400_000)
    bench.turn()
    assert ("tls", OTHER) not in bench.open()


def test_risk_above_a_threshold_is_told_once_with_its_reasons(bench: Bench) -> None:
    bench.apply({"name": "risk", "kind": "risk", "above": 0.5, "channels": ["hook"], "group_s": 0})
    forecast(bench, A, 0.49)
    bench.turn(later_ms=5_000)
    assert bench.open() == set()
    for probability in (0.62, 0.45, 0.7):  # it ends below 0.4 only
        forecast(bench, A, probability)
        bench.turn(later_ms=5_000)
        assert bench.open() == {("risk", A)}
    (message,) = bench.told()
    assert message["text"].startswith(f"{A}: likely to fail in the next 6 h (62%), because: ")
    forecast(bench, A, 0.39)
    bench.turn(later_ms=5_000)
    assert bench.open() == set()
    bench.turn(later_ms=60_000)
    assert len(bench.told()) == 1
    forecast(bench, A, 1.0, health="down")
    bench.turn(later_ms=5_000)
    assert bench.open() == set()


def forecast(bench: Bench, url: str, probability: float, *, health: str = "up") -> None:
    with writing(bench.platform._database) as connection:  # type: ignore[arg-type]
        target_id = connection.scalar(sa.select(targets.c.id).where(targets.c.key == url))
        connection.execute(sa.delete(current_predictions))
        row = {"target_id": target_id, "horizon": "6h", "group": "one.example", "health": health, "status": "fresh"}
        row |= {"probability": probability, "probability_at_end": probability, "observed_ms": bench.clock[0]}
        row |= {"reasons": '[["log_flips_7d", 1.2, 0.8]]', "model": "m", "model_version": "1"}
        connection.execute(sa.insert(current_predictions).values(row | {"scored_ms": bench.clock[0]}))


def test_our_own_lag(bench: Bench) -> None:
    bench.apply({"name": "lag", "kind": "lag", "above_s": 30, "channels": ["hook"], "group_s": 0})
    bench.turn(later_ms=31_000)  # nothing has folded the probes yet
    assert bench.open() == {("lag", None)}
    bench.turn()
    assert [message["title"] for message in bench.told()] == ["urlhealth is late"]
    while bench.platform.pipeline.step():
        pass
    bench.turn(later_ms=5_000)
    bench.turn(later_ms=1_000)
    assert [message["title"] for message in bench.told()] == ["urlhealth is late", "urlhealth: in time again"]


def test_a_turn_reads_by_index_and_asks_only_for_what_is_conspicuous(bench: Bench) -> None:
    bench.apply(STATE)
    for _ in range(50):
        bench.probe(OTHER)
    statements: list[str] = []
    listen = lambda *call: statements.append(call[2])  # noqa: E731
    sa.event.listen(bench.platform._database, "before_cursor_execute", listen)
    bench.turn()
    assert not any("CROSS JOIN probes" in statement for statement in statements)
    assert not any(statement.startswith(("INSERT", "UPDATE")) for statement in statements)


def test_another_writer_takes_over_without_telling_anything_twice(bench: Bench) -> None:
    bench.apply(STATE | {"probes": 1, "of": 1})
    bench.probe(A, Outcome.DNS)
    bench.turn(later_ms=20_000)
    platform = bench.platform
    other = Lease(platform._database, holder="other", ttl_s=1e6, clock=lambda: bench.clock[0])  # type: ignore[arg-type]
    platform.lease.release()
    assert other.acquire()
    bench.probe(B, Outcome.DNS)
    with pytest.raises(LeaseLost):
        bench.turn()
    bench.clock[0] += 20_000
    with pytest.raises(LeaseLost):
        platform.alerts.make_messages(lease=platform.lease)
    assert (bench.open(), bench.told()) == ({("down", A)}, [])
    other.release()
    platform.lease.acquire()
    bench.turn()
    bench.turn(later_ms=20_000)
    assert bench.open() == {("down", A), ("down", B)}
    assert sorted(alert["target"] for message in bench.told() for alert in message["alerts"]) == [A, B]


class Outbox:
    """A sender that answers as it is told, and never claims in vain."""

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.problem: str | None = None

    def send(self, _channel: object, message_id: str, _payload: bytes, *, claim: Callable[[], bool]) -> str | None:
        assert claim()
        assert not claim()  # nobody else gets it
        self.sent.append(message_id)
        return self.problem


@pytest.fixture
def waiting(bench: Bench) -> Message:
    """A message that waits."""
    bench.apply(STATE | {"probes": 1, "of": 1, "group_s": 0})
    bench.probe(A, Outcome.DNS)
    bench.turn()
    (message,) = bench.platform.alerts.messages(MessageStatus.WAITING, limit=10).items
    return message


def test_a_message_is_tried_again_and_then_is_a_dead_letter(bench: Bench, waiting: Message) -> None:
    store, outbox = bench.platform.alerts, Outbox()
    delivery = Delivery(store, outbox, lease=bench.platform.lease)  # type: ignore[arg-type]
    outbox.problem = "no"
    assert delivery.step() == 1
    for pause_s in RETRIES_S:
        assert delivery.step() == 0
        bench.clock[0] += pause_s * 1000
        assert delivery.step() == 1
    bench.clock[0] += 86_400_000
    assert delivery.step() == 0
    (dead,) = store.messages(MessageStatus.DEAD, limit=10).items
    assert (dead.message_id, dead.attempts, dead.error) == (waiting.message_id, len(RETRIES_S) + 1, "no")
    assert set(outbox.sent) == {waiting.message_id}
    outbox.problem = None
    store.retry(dead.message_id)
    assert delivery.step() == 1
    assert [m.message_id for m in store.messages(MessageStatus.SENT, limit=10).items] == [waiting.message_id]
    with pytest.raises(NotFound):
        store.retry(dead.message_id)


def test_what_was_cut_off_is_not_sent_again_by_itself(bench: Bench, waiting: Message) -> None:
    store = bench.platform.alerts
    assert store.claim(waiting, lease=bench.platform.lease)
    bench.platform.lease.release()
    other = Lease(bench.platform._database, holder="other", ttl_s=1e6, clock=lambda: bench.clock[0])  # type: ignore[arg-type]
    assert other.acquire()
    outbox = Outbox()
    assert Delivery(store, outbox, lease=other).step() == 0  # type: ignore[arg-type]
    (dead,) = store.messages(MessageStatus.DEAD, limit=10).items
    assert "may have arrived" in str(dead.error)
    # The first process was only slow: it knows better.
    store.finish(waiting, problem=None)
    assert store.messages(MessageStatus.DEAD, limit=10).items == []


def test_rules_and_channels_become_what_is_applied(bench: Bench) -> None:
    bench.apply(STATE)
    store = bench.platform.alerts
    with pytest.raises(InvalidRequest, match="no channel 'chat'"):
        bench.apply(STATE | {"channels": ["chat"]})
    channels, rules = store.apply(AlertFile.model_validate({"channels": [HOOK], "rules": [STATE]}))
    assert [channels.new, channels.changed, rules.new, rules.changed] == [{}, {}, {}, {}]
    with pytest.raises(InvalidRequest, match="'down' names it"):
        store.delete_channel("hook")
    _, rules = store.apply(AlertFile.model_validate({"rules": [STATE | {"of": 5}]}), dry_run=True)
    assert list(rules.changed) == ["down"]
    assert store.rules()[0].rule.of == 3  # type: ignore[union-attr]
    store.apply(AlertFile(), prune=True)
    assert (store.rules(), store.channels()) == ([], [])


def test_what_is_erased_takes_its_alerts_along(bench: Bench, waiting: Message) -> None:
    platform = bench.platform
    platform.erase_url(A, owner="local")
    with platform._database.connect() as connection:  # type: ignore[union-attr]
        assert connection.scalar(sa.select(sa.func.count()).select_from(alerts)) == 0
    assert platform.alerts.messages(MessageStatus.WAITING, limit=10).items == []
    assert waiting.rule == "down"


def test_history_that_was_there_before_is_no_news(bench: Bench) -> None:
    bench.probe(A, Outcome.DNS)
    bench.apply(STATE | {"probes": 1, "of": 1})
    bench.turn()
    assert bench.open() == set()
    bench.probe(A, Outcome.DNS)
    bench.turn()
    assert bench.open() == {("down", A)}
