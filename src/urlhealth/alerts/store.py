"""Rules, channels, alerts and the outbox of messages, as the database keeps them.

An alert is open while what its rule says holds of its target, and there is one at most. What is to be told of it, its
beginning or its end, has an instant (`due_ms`); at that a message is made of all that a rule has to say of a host, one
for each of its channels, in the transaction that takes the instants away. So an alert is in one message, whatever
crashes. A message is claimed, in a transaction of its own, at the moment in which it is sent.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

import orjson
import sqlalchemy as sa

from urlhealth.alerts.messages import payload_of
from urlhealth.alerts.rules import UNREADABLE, AlertFile, Channel, Rule, rule_of
from urlhealth.crawl.database import writing
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.records import TARGET_COLUMNS, Records, cursor_number, new_id, page, target_of
from urlhealth.crawl.schema import alert_channels, alert_messages, alert_rules, alerts, pipeline_positions, targets
from urlhealth.crawl.vault import Vault
from urlhealth.errors import InvalidRequest, LeaseLost, NotFound
from urlhealth.vocabulary import LOCAL_OWNER, Clock, Page

Definition = TypeVar("Definition", bound=Channel | Rule)

#: Times after which a message is sent again that could not be; after the last one it is a dead letter.
RETRIES_S: Final = (1, 5, 30, 120, 600, 3_600)
#: For how long messages that were sent, and alerts that are over, are kept.
KEPT_MS: Final = 90 * 86_400_000

_NAME: Final = "alerts"
_SEALED: Final = "sealed"
_INTERRUPTED: Final = "the process that sent it ended meanwhile: it may have arrived, so it is not sent again by itself"


class MessageStatus(StrEnum):
    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    #: Given up: a dead letter.
    DEAD = "dead"


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """What a rule says of a target, or of the platform itself."""

    number: int
    rule: str
    #: Key of the target; None for one on the platform itself.
    target: str | None
    host: str
    text: str
    opened_ms: int
    closed_ms: int | None
    #: When a message on it was made.
    told_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """One message for one channel."""

    message_id: str
    owner: str
    channel: str
    rule: str
    #: JSON, as a webhook is sent it.
    payload: bytes
    status: MessageStatus
    attempts: int
    created_ms: int
    error: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """An alert that begins."""

    owner: str
    rule_number: int
    target_id: int | None
    host: str
    text: str
    due_ms: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Closing:
    """An alert that ends."""

    number: int
    text: str
    #: When its end is to be told, if it is; only one whose beginning was told has an end to tell.
    due_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredRule:
    """A rule with the number and owner of its row."""

    number: int
    owner: str
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Changes(Generic[Definition]):
    """What makes a table match a file, by name."""

    new: dict[str, Definition]
    changed: dict[str, Definition]
    surplus: list[str]


class AlertStore(Records):
    """The tables of alerts. Usable from any thread; every change is on disk when its method returns.

    URLs and secrets of channels are stored encrypted.
    """

    def __init__(self, engine: sa.Engine, *, clock: Clock, vault: Vault | None = None) -> None:
        super().__init__(engine, clock=clock)
        self._vault = vault or Vault()

    # Rules and channels

    def rules(self, *, owner: str | None = LOCAL_OWNER) -> list[StoredRule]:
        """The rules of an owner, or of all, by name."""
        return [
            StoredRule(number=row.number, owner=row.owner, rule=rule_of(orjson.loads(row.definition)))
            for row in self._rows(alert_rules, owner)
        ]

    def channels(self, *, owner: str = LOCAL_OWNER) -> list[Channel]:
        """The channels of an owner, by name; the URL of one that no key fits is `UNREADABLE`."""
        found = [(row.name, self._opened(row.definition)) for row in self._rows(alert_channels, owner)]
        return [Channel.model_validate_json(plain) if plain else _unreadable(name) for name, plain in found]

    def channel(self, name: str, *, owner: str = LOCAL_OWNER) -> Channel:
        """The channel; raises `NotFound`."""
        found = next((channel for channel in self.channels(owner=owner) if channel.name == name), None)
        if found is None:
            raise NotFound(f"there is no channel {name!r}")
        return found

    def apply(
        self, file: AlertFile, *, prune: bool = False, dry_run: bool = False, owner: str = LOCAL_OWNER
    ) -> tuple[Changes[Channel], Changes[Rule]]:
        """Make rules and channels what a file says; what it does not have goes only with `prune`.

        Raises:
            InvalidRequest: a rule would name a channel that is not there; nothing was changed.
        """
        with writing(self._engine) as connection:
            channels = _changes(file.channels, self._known(connection, file, owner))
            rules = _changes(file.rules, self._definitions(connection, alert_rules, owner))
            file.check_channels(() if prune else channels.surplus)
            if prune:
                # Rules that stay name no channel that goes: all that stay are the file's.
                _delete(connection, alert_channels, owner, channels.surplus)
                _delete(connection, alert_rules, owner, rules.surplus)
            _write(connection, alert_channels, owner, channels, self._sealed)
            _write(connection, alert_rules, owner, rules, str)
            if dry_run:
                connection.rollback()
        return channels, rules

    def delete_rule(self, name: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete a rule with its alerts; raises `NotFound`."""
        with writing(self._engine) as connection:
            if not _delete(connection, alert_rules, owner, [name]):
                raise NotFound(f"there is no rule {name!r}")

    def delete_channel(self, name: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete a channel that no rule names.

        Raises:
            NotFound: there is none of this name.
            InvalidRequest: a rule names it.
        """
        user = next((stored.rule.name for stored in self.rules(owner=owner) if name in stored.rule.channels), None)
        if user is not None:
            raise InvalidRequest(f"the rule {user!r} names it: change or delete that first")
        with writing(self._engine) as connection:
            if not _delete(connection, alert_channels, owner, [name]):
                raise NotFound(f"there is no channel {name!r}")

    def _rows(self, table: sa.Table, owner: str | None) -> Sequence[Any]:
        query = sa.select(table).order_by(table.c.name)
        with self._engine.connect() as connection:
            return connection.execute(query if owner is None else query.where(table.c.owner == owner)).all()

    @staticmethod
    def _definitions(connection: sa.Connection, table: sa.Table, owner: str) -> dict[str, str]:
        query = sa.select(table.c.name, table.c.definition).where(table.c.owner == owner)
        return {row.name: row.definition for row in connection.execute(query)}

    def _known(self, connection: sa.Connection, file: AlertFile, owner: str) -> dict[str, str]:
        """The channels as JSON by name, and nothing for one that is to be written anew whatever the file says."""
        stored = self._definitions(connection, alert_channels, owner)
        if not file.channels:
            return stored
        # Stored before there was a key, or with one that is lost.
        keyed = self._vault.seal("") is not None
        return {
            name: (self._opened(text) or "") if _SEALED in orjson.loads(text) or not keyed else ""
            for name, text in stored.items()
        }

    def _sealed(self, definition: str) -> str:
        token = self._vault.seal(definition)
        return definition if token is None else orjson.dumps({_SEALED: token}).decode()

    def _opened(self, definition: str) -> str | None:
        token = orjson.loads(definition).get(_SEALED)
        return definition if token is None else self._vault.unseal(token)

    # Alerts

    def alerts(
        self, *, limit: int, cursor: str | None = None, only_open: bool = False, owner: str = LOCAL_OWNER
    ) -> Page[Alert]:
        """Alerts, newest first."""
        before = 2**62 if cursor is None else cursor_number("alerts", cursor)
        query = _ALERTS.where(alerts.c.owner == owner, alerts.c.number < before)
        if only_open:
            query = query.where(alerts.c.closed_ms.is_(None))
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(alerts.c.number.desc()).limit(limit + 1)).all()
        return page(rows, limit, "alerts", _alert_of)

    def open_of_targets(self, target_ids: Iterable[int]) -> dict[tuple[int, int], Any]:
        """Open alerts of these targets: rows with `number` and `told_ms` by rule's number and target's id."""
        query = _OPEN.where(alerts.c.target_id.in_(sorted(target_ids)))
        with self._engine.connect() as connection:
            return {(row.rule_number, row.target_id): row for row in connection.execute(query)}

    def open_of_rule(self, rule_number: int) -> Sequence[Any]:
        """The open alerts of a rule: rows with `number`, `target_id` and `told_ms`."""
        with self._engine.connect() as connection:
            return connection.execute(_OPEN.where(alerts.c.rule_number == rule_number)).all()

    def position(self) -> int | None:
        """Id of the last probe that rules were asked about; None before the first."""
        with self._engine.connect() as connection:
            return connection.scalar(_POSITION)

    def save(
        self,
        openings: Sequence[Opening],
        closings: Sequence[Closing],
        *,
        lease: Lease,
        seen: int | None = None,
        before: int | None = None,
    ) -> None:
        """Begin and end alerts and, with `seen`, move the position there from `before`, in one transaction.

        Raises:
            LeaseLost: another process is the writer, or has moved the position; nothing was written.
        """
        now_ms = self._clock()
        with writing(self._engine) as connection:
            lease.fence(connection)
            if seen is not None:
                if connection.scalar(_POSITION) != before:
                    raise LeaseLost("another process has looked for alerts meanwhile: nothing was written")
                move = pipeline_positions.c.name == _NAME
                if before is None:
                    connection.execute(sa.insert(pipeline_positions).values(name=_NAME, probe_id=seen))
                else:
                    connection.execute(sa.update(pipeline_positions).where(move).values(probe_id=seen))
            rows = [asdict(opening) | {"opened_ms": now_ms} for opening in _still_possible(connection, openings)]
            if rows:
                connection.execute(sa.insert(alerts), rows)
            for closing in closings:
                # One that was not told yet is never told.
                due_ms = sa.case((alerts.c.told_ms.is_(None), None), else_=sa.literal(closing.due_ms, sa.BigInteger))
                ended = sa.update(alerts).where(alerts.c.number == closing.number, alerts.c.closed_ms.is_(None))
                connection.execute(ended.values(closed_ms=now_ms, text=closing.text, due_ms=due_ms))

    # Messages

    def make_messages(self, *, lease: Lease) -> int:
        """Make the messages that are due, one for each rule, host and channel; returns how many.

        Raises:
            LeaseLost: another process is the writer; nothing was written.
        """
        now_ms = self._clock()
        due = sa.and_(alerts.c.due_ms.is_not(None), alerts.c.due_ms <= now_ms)
        with self._engine.connect() as connection:
            if connection.scalar(sa.select(alerts.c.number).where(due).limit(1)) is None:
                return 0
        rules = {stored.number: stored for stored in self.rules(owner=None)}
        rows: list[dict[str, Any]] = []
        with writing(self._engine) as connection:
            lease.fence(connection)
            there = {(row.owner, row.name) for row in connection.execute(sa.select(alert_channels))}
            # Also those of the host that would be due a little later.
            waiting = connection.execute(_ALERTS.where(alerts.c.due_ms.is_not(None)).order_by(alerts.c.number)).all()
            ripe = {(row.rule_number, row.host, row.closed_ms is None) for row in waiting if row.due_ms <= now_ms}
            for number, host, begins in sorted(ripe):
                stored = rules.get(number)
                if stored is None:  # it was deleted just now; its alerts are gone too
                    continue
                of_host = [
                    row
                    for row in waiting
                    if (row.rule_number, row.host, row.closed_ms is None) == (number, host, begins)
                ]
                numbers = [row.number for row in of_host]
                told = sa.update(alerts).where(alerts.c.number.in_(numbers))
                connection.execute(told.values(due_ms=None, told_ms=sa.func.coalesce(alerts.c.told_ms, now_ms)))
                payload = payload_of(stored.rule, host, [_alert_of(row) for row in of_host], begins=begins)
                for channel in stored.rule.channels:
                    if (stored.owner, channel) in there:
                        rows.append(self._message(payload, stored.owner, channel, stored.rule.name, host, now_ms))
            if rows:
                connection.execute(sa.insert(alert_messages), rows)
        return len(rows)

    def _message(
        self, payload: Mapping[str, Any], owner: str, channel: str, rule: str, host: str, now_ms: int
    ) -> dict[str, Any]:
        message_id = new_id(self._clock)
        return {
            "message_id": message_id,
            "owner": owner,
            "channel": channel,
            "rule": rule,
            "host": host,
            "payload": orjson.dumps({"id": message_id, **payload}).decode(),
            "status": MessageStatus.WAITING.value,
            "created_ms": now_ms,
            "due_ms": now_ms,
        }

    def due_messages(self, *, limit: int) -> list[Message]:
        """Messages whose next attempt is due, the longest due first."""
        query = sa.select(alert_messages).where(
            alert_messages.c.due_ms.is_not(None),
            alert_messages.c.due_ms <= self._clock(),
            alert_messages.c.status == MessageStatus.WAITING.value,
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(alert_messages.c.due_ms).limit(limit)).all()
        return [_message_of(row) for row in rows]

    def claim(self, message: Message, *, lease: Lease) -> bool:
        """At the moment in which it is sent: note that, so that no other process ever sends it; False if one has.

        Raises:
            LeaseLost: another process is the writer.
        """
        waits = _this(message) & (alert_messages.c.status == MessageStatus.WAITING.value)
        with writing(self._engine) as connection:
            lease.fence(connection)
            claim = sa.update(alert_messages).where(waits)
            values = {"status": MessageStatus.SENDING.value, "claimed_by": lease.holder}
            return connection.execute(claim.values(values)).rowcount == 1

    def finish(self, message: Message, *, problem: str | None) -> None:
        """Note what became of an attempt: it was sent, or is sent again later, or is given up."""
        now_ms, attempts = self._clock(), message.attempts + 1
        values: dict[str, Any] = {"attempts": attempts, "claimed_by": None, "error": problem, "due_ms": None}
        if problem is None:
            values |= {"status": MessageStatus.SENT.value, "finished_ms": now_ms}
        elif attempts <= len(RETRIES_S):
            values |= {"status": MessageStatus.WAITING.value, "due_ms": now_ms + 1000 * RETRIES_S[attempts - 1]}
        else:
            values |= {"status": MessageStatus.DEAD.value, "finished_ms": now_ms}
        with writing(self._engine) as connection:
            connection.execute(sa.update(alert_messages).where(_this(message)).values(values))

    def give_up_interrupted(self, *, lease: Lease) -> int:
        """Make dead letters of what other processes were sending when they ended; returns how many.

        They may have arrived, and nothing is sent twice by itself.
        """
        cut = sa.and_(
            alert_messages.c.due_ms.is_not(None),
            alert_messages.c.status == MessageStatus.SENDING.value,
            alert_messages.c.claimed_by != lease.holder,
        )
        with self._engine.connect() as connection:
            if connection.scalar(sa.select(alert_messages.c.number).where(cut).limit(1)) is None:
                return 0
        with writing(self._engine) as connection:
            lease.fence(connection)
            dead = {"status": MessageStatus.DEAD.value, "due_ms": None, "finished_ms": self._clock()}
            return connection.execute(
                sa.update(alert_messages).where(cut).values(dead | {"error": _INTERRUPTED})
            ).rowcount

    def messages(
        self, status: MessageStatus, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER
    ) -> Page[Message]:
        """Messages of one status, newest first; `dead` are the dead letters."""
        kind = f"messages-{status}"
        before = 2**62 if cursor is None else cursor_number(kind, cursor)
        query = sa.select(alert_messages).where(
            alert_messages.c.owner == owner,
            alert_messages.c.status == status.value,
            alert_messages.c.number < before,
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(alert_messages.c.number.desc()).limit(limit + 1)).all()
        return page(rows, limit, kind, _message_of)

    def retry(self, message_id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Have a dead letter sent again, under the same id.

        Raises:
            NotFound: there is no such dead letter.
        """
        dead = sa.and_(
            alert_messages.c.owner == owner,
            alert_messages.c.message_id == message_id,
            alert_messages.c.status == MessageStatus.DEAD.value,
        )
        values = {"status": MessageStatus.WAITING.value, "attempts": 0, "due_ms": self._clock(), "finished_ms": None}
        with writing(self._engine) as connection:
            if not connection.execute(sa.update(alert_messages).where(dead).values(values)).rowcount:
                raise NotFound(f"there is no dead letter {message_id[:80]!r}")

    def drop_old(self, *, lease: Lease) -> None:
        """Delete messages that were sent, and alerts that ended, longer ago than they are kept."""
        until_ms = self._clock() - KEPT_MS
        with writing(self._engine) as connection:
            lease.fence(connection)
            connection.execute(sa.delete(alert_messages).where(alert_messages.c.finished_ms < until_ms))
            connection.execute(sa.delete(alerts).where(alerts.c.closed_ms < until_ms))


_POSITION: Final = sa.select(pipeline_positions.c.probe_id).where(pipeline_positions.c.name == _NAME)
_ALERTS: Final = (
    sa.select(alerts, alert_rules.c.name.label("rule"), *TARGET_COLUMNS[:2], targets.c.group)
    .join(alert_rules, alert_rules.c.number == alerts.c.rule_number)
    .outerjoin(targets, targets.c.id == alerts.c.target_id)
)
_OPEN: Final = sa.select(alerts.c.number, alerts.c.rule_number, alerts.c.target_id, alerts.c.told_ms).where(
    alerts.c.closed_ms.is_(None)
)


def _this(message: Message) -> sa.ColumnElement[bool]:
    return alert_messages.c.message_id == message.message_id


def _alert_of(row: Any) -> Alert:
    return Alert(
        number=row.number,
        rule=row.rule,
        target=None if row.key is None else target_of(row).key,
        host=row.host,
        text=row.text,
        opened_ms=row.opened_ms,
        closed_ms=row.closed_ms,
        told_ms=row.told_ms,
    )


def _message_of(row: Any) -> Message:
    return Message(
        message_id=row.message_id,
        owner=row.owner,
        channel=row.channel,
        rule=row.rule,
        payload=row.payload.encode(),
        status=MessageStatus(row.status),
        attempts=row.attempts,
        created_ms=row.created_ms,
        error=row.error,
    )


def _still_possible(connection: sa.Connection, openings: Sequence[Opening]) -> Iterator[Opening]:
    """Those whose rule and target are still there, and that are not open."""
    if not openings:
        return
    rules = set(connection.scalars(sa.select(alert_rules.c.number)))
    wanted = {opening.target_id for opening in openings if opening.target_id is not None}
    there = {None, *connection.scalars(sa.select(targets.c.id).where(targets.c.id.in_(wanted)))}
    mine = alerts.c.target_id.in_(wanted) | alerts.c.target_id.is_(None)
    already = {(row.rule_number, row.target_id) for row in connection.execute(_OPEN.where(mine))}
    for opening in openings:
        key = (opening.rule_number, opening.target_id)
        if opening.rule_number in rules and opening.target_id in there and key not in already:
            already.add(key)
            yield opening


def _changes(wanted: Sequence[Definition], there: Mapping[str, str]) -> Changes[Definition]:
    by_name = {part.name: part for part in wanted}
    return Changes(
        new={name: part for name, part in by_name.items() if name not in there},
        changed={
            name: part for name, part in by_name.items() if name in there and there[name] != part.model_dump_json()
        },
        surplus=sorted(there.keys() - by_name.keys()),
    )


def _write(
    connection: sa.Connection,
    table: sa.Table,
    owner: str,
    changes: Changes[Definition],
    stored: Callable[[str], str],
) -> None:
    for name, part in changes.new.items():
        definition = stored(part.model_dump_json())
        connection.execute(sa.insert(table).values(owner=owner, name=name, definition=definition))
    for name, part in changes.changed.items():
        mine = sa.and_(table.c.owner == owner, table.c.name == name)
        connection.execute(sa.update(table).where(mine).values(definition=stored(part.model_dump_json())))


def _unreadable(name: str) -> Channel:
    return Channel(name=name, url=UNREADABLE)


def _delete(connection: sa.Connection, table: sa.Table, owner: str, names: Sequence[str]) -> int:
    return connection.execute(sa.delete(table).where(table.c.owner == owner, table.c.name.in_(names))).rowcount
