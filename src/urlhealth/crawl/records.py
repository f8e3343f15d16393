"""What the parts of the store share: ids, cursors, and rows to records and back."""

import base64
import binascii
import secrets
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import fields, replace
from operator import attrgetter, itemgetter
from typing import Any, Final, TypeVar

import orjson
import sqlalchemy as sa

from urlhealth.crawl.database import add_targets_alone, chunks, copy, run
from urlhealth.crawl.schema import probes, targets
from urlhealth.crawl.vault import Vault
from urlhealth.errors import InvalidCursor
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    Attempt,
    Clock,
    Outcome,
    Page,
    ProbeRequest,
    ProbeResult,
    ProbeSource,
    Target,
    system_clock,
)

Item = TypeVar("Item")

#: Values in one IN list.
LOOKUP_CHUNK: Final = 5_000

#: The columns that make a `Target`.
TARGET_COLUMNS: Final = (targets.c.key, targets.c.name, targets.c.host, targets.c.group)

#: The columns of `probes` that are a `ProbeResult` field of the same name. `attempts`, the last, is kept as JSON.
_RESULT_FIELDS: Final = tuple(f.name for f in fields(ProbeResult) if f.name != "target")
assert _RESULT_FIELDS[-1] == "attempts"
RESULT_COLUMNS: Final = tuple(probes.c[name] for name in _RESULT_FIELDS)
_OUTCOMES: Final = {outcome.value: outcome for outcome in Outcome}
# (`value` of an enumeration is a property, and takes a while.)
_result_values: Final = attrgetter(
    *("outcome._value_" if name == "outcome" else name for name in _RESULT_FIELDS if name != "attempts")
)

_PROBE_COLUMNS: Final = (
    "owner",
    "target_id",
    "source",
    "task_number",
    "monitor_number",
    "feeds_features",
    *_RESULT_FIELDS,
)

_INSERT_PROBES: Final = (
    f"INSERT INTO probes ({', '.join(_PROBE_COLUMNS)}) VALUES ({', '.join('?' * len(_PROBE_COLUMNS))}) "
    "ON CONFLICT DO NOTHING"
)

#: One row of `probes` to insert.
ProbeRow = tuple[Any, ...]


class Records:
    """Base of the store's parts: the database, the clock, and what encrypts secrets."""

    def __init__(self, engine: sa.Engine, *, clock: Clock = system_clock, vault: Vault | None = None) -> None:
        self._vault = vault or Vault()
        self._engine = engine
        self._clock = clock

    @property
    def database_url(self) -> str:
        """Where the database is, with its password: what another process opens it by."""
        return self._engine.url.render_as_string(hide_password=False)


def new_id(clock: Clock) -> str:
    """A new id of 32 hexadecimal digits, which sorts by the time it was made: 12 are that time, 20 random."""
    return f"{clock():012x}{secrets.token_hex(10)}"


def cursor_after(kind: str, number: int) -> str:
    """The cursor that continues the list `kind` after the row with this number."""
    return base64.urlsafe_b64encode(f"{kind}:{number}".encode()).decode()


def cursor_number(kind: str, cursor: str) -> int:
    """The inverse of :func:`cursor_after`.

    Raises:
        InvalidCursor: it is none, or another list's.
    """
    try:
        prefix, number = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).decode().split(":")
        if prefix == kind and number.isdecimal() and int(number) < 2**63:
            return int(number)
    except (ValueError, binascii.Error):
        pass
    raise InvalidCursor(f"cursor {cursor[:80]!r} is none of this list: pass the next_cursor of its last page, or none")


def page(rows: Sequence[Any], limit: int, kind: str, make: Callable[[Any], Item]) -> Page[Item]:
    """A page of at most `limit` items from up to `limit + 1` rows, whose first column is their number."""
    following = cursor_after(kind, rows[limit - 1][0]) if len(rows) > limit else None
    return Page(items=[make(row) for row in rows[:limit]], next_cursor=following)


def target_of(row: Any) -> Target:
    """The target in a row with `TARGET_COLUMNS`."""
    url = row.key if row.name is None else row.key.removesuffix(f"#{row.name}")
    return Target(url=url, host=row.host, group=row.group, name=row.name)


def result_of(row: Any) -> ProbeResult:
    """The result in a row that ends with the target's key and `RESULT_COLUMNS`."""
    key, *values = row[-len(_RESULT_FIELDS) - 1 :]
    named = dict(zip(_RESULT_FIELDS, values, strict=True))
    named["outcome"] = _OUTCOMES[named["outcome"]]
    named["attempts"] = tuple(map(_attempt_of, orjson.loads(named["attempts"]))) if named["attempts"] else ()
    return ProbeResult(target=key, **named)


def _attempt_of(stored: dict[str, Any]) -> Attempt:
    return Attempt(**stored | {"outcome": _OUTCOMES[stored["outcome"]]})


def probe_row(
    result: ProbeResult,
    target_id: int,
    *,
    owner: str,
    source: ProbeSource,
    feeds_features: bool,
    task_number: int | None = None,
    monitor_number: int | None = None,
) -> ProbeRow:
    """The row of a result, for :func:`insert_probes`."""
    if result.error or result.final_url:
        result = replace(result, error=_clean(result.error), final_url=_clean(result.final_url))
    attempts = None
    if result.attempts:
        attempts = orjson.dumps([replace(a, error=_clean(a.error)) for a in result.attempts]).decode()
    asked_by = (source.value, task_number, monitor_number, feeds_features)
    return (owner, target_id, *asked_by, *_result_values(result), attempts)


def _clean(text: str | None) -> str | None:
    """Text that a server had a hand in, without what a database refuses: lone surrogates, and (PostgreSQL) NUL."""
    return text and text.encode("utf-8", "replace").decode().replace("\0", "?")


def insert_probes(connection: sa.Connection, rows: Sequence[ProbeRow]) -> int:
    """Store probes, except those that are there already; returns how many were not.

    The same target, instant and task make the same probe. Call `order_probe_ids` first.
    """
    if connection.dialect.name == "postgresql":
        return copy(connection, "probes", _PROBE_COLUMNS, rows)
    return run(connection, _INSERT_PROBES, rows)


def feeds_features(request: ProbeRequest) -> bool:
    """Whether the verdict is one on the target as features know it: with default options, or named for its own."""
    return request.options is DEFAULT_OPTIONS or request.options == DEFAULT_OPTIONS or request.target.name is not None


def known_ids(connection: sa.Connection, owner: str, keys: Sequence[str]) -> dict[str, int]:
    """Ids of the targets that are known, by key."""
    found: dict[str, int] = {}
    for some in chunks(keys, LOOKUP_CHUNK):
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        # By hand: SQLAlchemy would take longer to write the list than the database to read it.
        query = f"SELECT key, id FROM targets WHERE owner = {mark} AND key IN ({', '.join([mark] * len(some))})"
        found.update(connection.exec_driver_sql(query, (owner, *some)).all())
    return found


def add_targets(connection: sa.Connection, owner: str, wanted: Iterable[Target], *, now_ms: int) -> None:
    """Add those of the targets that are not known yet."""
    add_targets_alone(connection)
    by_key = {target.key: target for target in wanted}
    known = known_ids(connection, owner, list(by_key))
    new = [(owner, key, t.name, t.host, t.group, now_ms) for key, t in by_key.items() if key not in known]
    # In the order of the index that finds them: it is written page by page then.
    new.sort(key=itemgetter(1))
    run(
        connection,
        'INSERT INTO targets (owner, key, name, host, "group", first_seen_ms) VALUES (?, ?, ?, ?, ?, ?)',
        new,
    )


def by_hand(connection: sa.Connection, statement: str, **values: Any) -> Any:
    """Execute a statement of ours, and return the driver's cursor: SQLAlchemy would make an object of each row.

    `{hint}` after `task_urls` tells SQLite, which does not know how many URLs a task has, to find them by target.
    """
    hint = "INDEXED BY ix_task_urls_task_number_target_id" if connection.dialect.name == "sqlite" else ""
    return connection.exec_driver_sql(statement.format(hint=hint, **values)).cursor


def remember(connection: sa.Connection, owner: str, wanted: Collection[Target], *, now_ms: int) -> dict[str, int]:
    """Ids of the targets by key; those not known yet are added."""
    add_targets(connection, owner, wanted, now_ms=now_ms)
    return known_ids(connection, owner, [target.key for target in wanted])
