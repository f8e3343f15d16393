"""API keys: who calls, what they may do and how much of it; sessions of browsers; the audit log of changes.

A secret is 256 random bits, so that it is stored as a plain SHA-256: there is nothing to guess that a slow hash would
protect. It is shown once, when it is made.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from urlhealth.crawl.database import insert, writing
from urlhealth.crawl.records import Records, cursor_number, page
from urlhealth.crawl.schema import api_keys, audit_log, key_usage, monitors, sessions, tasks
from urlhealth.errors import InvalidRequest, NotFound, QuotaExceeded, Unauthenticated
from urlhealth.vocabulary import LOCAL_OWNER, Clock, Page, system_clock

#: How long a browser stays logged in.
SESSION_S: Final = 12 * 3_600
#: For how long a key that was looked up is taken for what it was: a revoked one is refused after that.
CACHED_S: Final = 1.0
#: `used_ms` is written once in so long.
_USED_MS: Final = 60_000
_DAY_MS: Final = 86_400_000
#: URLs that are counted at once.
_CHUNK: Final = 10_000
_SECRET: Final = re.compile(r"uh_([0-9a-f]{12})_([A-Za-z0-9_-]{43})")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@-]{0,63}")

T = TypeVar("T")


class Scope(StrEnum):
    """What a key may be for. `admin` may do everything, for its own owner's data."""

    READ = "read"
    CRAWL = "crawl"
    PREDICT = "predict"
    ADMIN = "admin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Quotas:
    """How much a key may do; None is any number. Tasks and monitors are counted for its owner."""

    urls_per_day: int | None = None
    running_tasks: int | None = None
    monitors: int | None = None
    requests_per_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """A key without its secret."""

    key_id: str
    name: str
    owner: str
    scopes: tuple[Scope, ...]
    quotas: Quotas
    created_ms: int
    expires_ms: int | None
    revoked_ms: int | None
    used_ms: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who sends a request: whose data they see, what they may do, and by which key."""

    owner: str = LOCAL_OWNER
    scopes: frozenset[Scope] = frozenset(Scope)
    key_id: str | None = None
    quotas: Quotas = field(default_factory=Quotas)

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or Scope.ADMIN in self.scopes


#: Somebody at this machine, while there is no key.
LOCAL: Final = Caller()


@dataclass(frozen=True, kw_only=True, slots=True)
class Audited:
    """A change that was made, or tried."""

    ts_ms: int
    owner: str
    key_id: str | None
    action: str
    status: int | None
    request_id: str | None
    address: str | None


class KeyStore(Records):
    """Makes, lists, rotates and revokes keys, and tells callers by them. Usable from any thread."""

    def __init__(
        self, engine: sa.Engine, *, clock: Clock = system_clock, timer: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(engine, clock=clock)
        self._timer = timer
        #: By digest of what was shown: when it was looked up, and the key's row.
        self._cache: dict[bytes, tuple[float, Any]] = {}
        self._exist = False
        self._looked_s = -CACHED_S

    @property
    def looked(self) -> bool:
        """Whether `exist` answers without a look into the database. That there are keys stays so."""
        return self._exist or self._timer() - self._looked_s < CACHED_S

    def exist(self) -> bool:
        """Whether there is any key, also a revoked or expired one: then each call needs one."""
        if not self.looked:
            now_s = self._timer()
            with self._engine.connect() as connection:
                self._exist = connection.execute(sa.select(api_keys.c.key_id).limit(1)).first() is not None
            self._looked_s = now_s
        return self._exist

    def create(
        self,
        name: str,
        *,
        scopes: Iterable[Scope],
        owner: str = LOCAL_OWNER,
        expires_ms: int | None = None,
        quotas: Quotas = Quotas(),
        by: Caller = LOCAL,
    ) -> tuple[ApiKey, str]:
        """A new key, and its secret, which nobody can tell again.

        Raises:
            InvalidRequest: a name that is none, or no scopes.
        """
        for what, text in (("name", name), ("owner", owner)):
            if not _NAME.fullmatch(text):
                raise InvalidRequest(f"{what}: write letters, digits, spaces and ._@-, 64 at most")
        if not (wanted := sorted(set(scopes))):
            raise InvalidRequest(f"scopes: give at least one of {', '.join(Scope)}")
        key_id = secrets.token_hex(6)
        secret, digest = _new_secret(key_id)
        row = {
            "key_id": key_id,
            "name": name,
            "owner": owner,
            "scopes": " ".join(wanted),
            "digest": digest,
            "created_ms": self._clock(),
            "expires_ms": expires_ms,
        } | {quota: getattr(quotas, quota) for quota in _QUOTAS}
        with writing(self._engine) as connection:
            connection.execute(sa.insert(api_keys).values(row))
            self._record(connection, f"keys create {key_id} {name!r} for {owner}: {row['scopes']}", by)
        self._looked_s = -CACHED_S
        return self.key(key_id), secret

    def key(self, key_id: str) -> ApiKey:
        """The key.

        Raises:
            NotFound: there is none of this id.
        """
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(api_keys).where(api_keys.c.key_id == key_id)).one_or_none()
        if row is None:
            raise _unknown(key_id)
        return _key_of(row)

    def keys(self) -> list[ApiKey]:
        """All keys, oldest first, revoked ones too."""
        with self._engine.connect() as connection:
            query = sa.select(api_keys).order_by(api_keys.c.created_ms, api_keys.c.key_id)
            return list(map(_key_of, connection.execute(query)))

    def rotate(self, key_id: str, *, grace_s: float = 0.0, by: Caller = LOCAL) -> str:
        """A new secret for a key; the old one is taken for `grace_s` more.

        Raises:
            NotFound: there is none of this id, or it was revoked.
        """
        secret, digest = _new_secret(key_id)
        until_ms = self._clock() + round(grace_s * 1000)
        change = {"old_digest": api_keys.c.digest, "old_until_ms": until_ms, "digest": digest}
        self._change(key_id, change, f"keys rotate {key_id}", by)
        return secret

    def revoke(self, key_id: str, *, by: Caller = LOCAL) -> None:
        """Refuse a key from now on (in other processes, and for browsers that it logged in: a second later).

        Raises:
            NotFound: there is none of this id, or it was revoked.
        """
        self._change(key_id, {"revoked_ms": self._clock()}, f"keys revoke {key_id}", by)

    def _change(self, key_id: str, change: dict[str, Any], action: str, by: Caller) -> None:
        valid = sa.and_(api_keys.c.key_id == key_id, api_keys.c.revoked_ms.is_(None))
        with writing(self._engine) as connection:
            if not connection.execute(sa.update(api_keys).where(valid).values(change)).rowcount:
                raise _unknown(key_id)
            connection.execute(sa.delete(sessions).where(sessions.c.key_id == key_id))
            self._record(connection, action, by)
        self._cache.clear()

    def caller(self, secret: str) -> Caller:
        """Who shows this secret.

        Raises:
            Unauthenticated: it is none, or its key has expired or was revoked.
        """
        if not (match := _SECRET.fullmatch(secret)):
            raise Unauthenticated("that is no API key: send one as `Authorization: Bearer uh_...`")
        digest = _digest(secret)
        query = sa.select(api_keys).where(api_keys.c.key_id == match[1])
        row = self._looked_up(digest, query)
        if row is None or not self._shows(row, digest):
            raise Unauthenticated("the API key is not known here, or no longer: ask whoever gave it to you")
        return self._valid(row)

    def _shows(self, row: Any, digest: bytes) -> bool:
        """Whether it is the key's secret: both compared, in a time that does not depend on them."""
        is_current = hmac.compare_digest(digest, bytes(row.digest))
        is_old = hmac.compare_digest(digest, bytes(row.old_digest or row.digest))
        return is_current or (is_old and row.old_until_ms is not None and self._clock() < row.old_until_ms)

    def _valid(self, row: Any) -> Caller:
        now_ms = self._clock()
        if row.revoked_ms is not None:
            raise Unauthenticated("the API key was revoked: ask whoever gave it to you for another one")
        if row.expires_ms is not None and now_ms >= row.expires_ms:
            raise Unauthenticated("the API key has expired: ask whoever gave it to you for another one")
        if row.used_ms is None or now_ms - row.used_ms >= _USED_MS:
            stale = sa.or_(api_keys.c.used_ms.is_(None), api_keys.c.used_ms <= now_ms - _USED_MS)
            with writing(self._engine) as connection:
                mine = sa.and_(api_keys.c.key_id == row.key_id, stale)
                connection.execute(sa.update(api_keys).where(mine).values(used_ms=now_ms))
            self._cache.clear()
        key = _key_of(row)
        return Caller(owner=key.owner, scopes=frozenset(key.scopes), key_id=key.key_id, quotas=key.quotas)

    def _looked_up(self, digest: bytes, query: sa.Select[Any]) -> Any:
        """The row for what was shown, at most `CACHED_S` old. What is not known is looked for each time."""
        now_s = self._timer()
        looked_s, row = self._cache.get(digest, (-CACHED_S, None))
        if row is None or now_s - looked_s >= CACHED_S:
            with self._engine.connect() as connection:
                row = connection.execute(query).one_or_none()
            if len(self._cache) > _CHUNK:
                self._cache.clear()
            self._cache[digest] = (now_s, row)
        return row

    def open_session(self, caller: Caller) -> str:
        """What the cookie of a browser is to hold that has shown a key."""
        token, now_ms = secrets.token_urlsafe(32), self._clock()
        row = {"digest": _digest(token), "key_id": caller.key_id, "expires_ms": now_ms + SESSION_S * 1000}
        with writing(self._engine) as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.expires_ms < now_ms))
            connection.execute(sa.insert(sessions).values(row))
        return token

    def close_session(self, token: str) -> None:
        """Forget it; one that is not known is no error."""
        with writing(self._engine) as connection:
            connection.execute(sa.delete(sessions).where(sessions.c.digest == _digest(token)))
        self._cache.clear()

    def session_caller(self, token: str) -> Caller:
        """Who logged in.

        Raises:
            Unauthenticated: the session is over, or its key is.
        """
        digest = _digest(token)
        joined = sa.select(api_keys, sessions.c.expires_ms.label("session_ms")).join(sessions)
        row = self._looked_up(digest, joined.where(sessions.c.digest == digest))
        if row is None or self._clock() >= row.session_ms:
            raise Unauthenticated("you are no longer logged in: open /login")
        return self._valid(row)

    def metered(self, caller: Caller, urls: Iterable[T]) -> Iterator[T]:
        """The URLs of a new task as they come, counted against the caller's quotas.

        Raises:
            QuotaExceeded: while iterating: too many tasks are under way, or too many URLs today.
        """
        quotas = caller.quotas
        if quotas.running_tasks is not None:
            self._check_count(tasks, tasks.c.finished_ms.is_(None), caller, quotas.running_tasks, "tasks under way")
        if quotas.urls_per_day is None:
            yield from urls
            return
        following = iter(urls)
        while chunk := list(islice(following, _CHUNK)):
            self._charge(caller, len(chunk), quotas.urls_per_day)
            yield from chunk

    def metered_monitors(self, caller: Caller, specs: Iterable[T]) -> Iterator[T]:
        """New monitors as they come, counted against the caller's quota.

        Raises:
            QuotaExceeded: while iterating.
        """
        most = caller.quotas.monitors
        if most is None:
            yield from specs
            return
        left = most - self._count(monitors, sa.true(), caller)
        for spec in specs:
            if left <= 0:
                raise QuotaExceeded(f"the quota is {most} monitors: delete some, or ask for more", retry_after_s=3600)
            left -= 1
            yield spec

    def _charge(self, caller: Caller, urls: int, most: int) -> None:
        day, into_ms = divmod(self._clock(), _DAY_MS)
        with writing(self._engine) as connection:
            row = {"key_id": caller.key_id, "day": day, "urls": urls}
            more = {"urls": key_usage.c.urls + urls}
            counted = (
                insert(connection, key_usage)
                .values(row)
                .on_conflict_do_update(index_elements=["key_id", "day"], set_=more)
            )
            used = connection.scalar(counted.returning(key_usage.c.urls))
            if used is not None and used > most:
                raise QuotaExceeded(
                    f"the quota is {most} URLs a day (UTC), and {used - urls} were taken: wait for tomorrow",
                    retry_after_s=(_DAY_MS - into_ms) / 1000,
                )

    def _check_count(
        self, table: sa.Table, which: sa.ColumnElement[bool], caller: Caller, most: int, what: str
    ) -> None:
        if self._count(table, which, caller) >= most:
            raise QuotaExceeded(f"the quota is {most} {what}: wait for one to end", retry_after_s=10)

    def _count(self, table: sa.Table, which: sa.ColumnElement[bool], caller: Caller) -> int:
        query = sa.select(sa.func.count()).select_from(table).where(table.c.owner == caller.owner, which)
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def record(
        self, action: str, caller: Caller, *, status: int | None, request_id: str | None, address: str | None
    ) -> None:
        """Add a line to the audit log."""
        with writing(self._engine) as connection:
            self._record(connection, action, caller, status=status, request_id=request_id, address=address)

    def _record(self, connection: sa.Connection, action: str, caller: Caller, **more: Any) -> None:
        row = {"ts_ms": self._clock(), "owner": caller.owner, "key_id": caller.key_id, "action": action}
        connection.execute(sa.insert(audit_log).values(row | more))

    def audited(self, *, limit: int, cursor: str | None = None) -> Page[Audited]:
        """The audit log of all owners, newest first."""
        query = sa.select(audit_log).order_by(audit_log.c.number.desc()).limit(limit + 1)
        if cursor is not None:
            query = query.where(audit_log.c.number < cursor_number("audit", cursor))
        with self._engine.connect() as connection:
            return page(connection.execute(query).all(), limit, "audit", _audited_of)


_QUOTAS: Final = ("urls_per_day", "running_tasks", "monitors", "requests_per_s")


def scopes_of(names: Sequence[str]) -> list[Scope]:
    """Scopes by name.

    Raises:
        InvalidRequest: there is no such one.
    """
    try:
        return [Scope(name) for name in names]
    except ValueError as error:
        raise InvalidRequest(f"{error}: choose among {', '.join(Scope)}") from None


def _new_secret(key_id: str) -> tuple[str, bytes]:
    secret = f"uh_{key_id}_{secrets.token_urlsafe(32)}"
    return secret, _digest(secret)


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key_of(row: Any) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        name=row.name,
        owner=row.owner,
        scopes=tuple(map(Scope, row.scopes.split())),
        quotas=Quotas(**{quota: getattr(row, quota) for quota in _QUOTAS}),
        created_ms=row.created_ms,
        expires_ms=row.expires_ms,
        revoked_ms=row.revoked_ms,
        used_ms=row.used_ms,
    )


def _audited_of(row: Any) -> Audited:
    return Audited(
        ts_ms=row.ts_ms,
        owner=row.owner,
        key_id=row.key_id,
        action=row.action,
        status=row.status,
        request_id=row.request_id,
        address=row.address,
    )


def _unknown(key_id: str) -> NotFound:
    return NotFound(f"there is no API key {key_id[:80]!r}: it was revoked, or never made here")
