"""Packed rows on a Redis server: a hash for each view, from Feast's entity key to row.

To its users the same as :class:`~urlhealth.feast_stores.lmdb_rows.LmdbRows`. What compares before it writes is a
script, which Redis runs whole: no writer comes between another one's look and its write.

    {NAME}:layouts       hash: table → fingerprint of its schema
    {NAME}:rows:TABLE    hash: entity key → packed row

The braces keep all keys of one store in the same slot of a Redis cluster, so that a rebuild can rename its tables.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit, urlunsplit

from urlhealth.errors import ConfigurationError, StoreUnavailable
from urlhealth.feast_stores.packed import Layout, other_schema
from urlhealth.feast_stores.rows import Row
from urlhealth.settings import redacted

if TYPE_CHECKING:
    from redis import Redis

_TIMEOUT_S: Final = 30.0
_KEYS_A_QUERY: Final = 1_000
#: Rows that one call of the script takes: bounds the time for which it holds the server up (about 1 ms).
_ROWS_A_SCRIPT: Final = 500
#: Calls that are on their way at once.
_SCRIPTS_A_PIPELINE: Final = 16
_DEFAULT_NAME: Final = "urlhealth"

# Lua's numbers are doubles: microseconds are exact until the year 2255.

#: KEYS: layouts, rows. ARGV: table, fingerprint, then key and row in turn. Whether it is the schema stored.
_WRITE: Final = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if not stored then
    redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
elseif stored ~= ARGV[2] then
    return 0
end
for i = 3, #ARGV, 2 do
    local old = redis.call('HGET', KEYS[2], ARGV[i])
    local newer = true
    if old then
        local old_event, old_created = struct.unpack('<i8i8', old)
        local event, created = struct.unpack('<i8i8', ARGV[i + 1])
        newer = event > old_event or (event == old_event and created >= old_created)
    end
    if newer then
        redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    end
end
return 1
"""

#: KEYS: layouts, rows. ARGV: table, fingerprint. Whether rows of another schema were deleted.
_DEFINE: Final = """
local stored = redis.call('HGET', KEYS[1], ARGV[1])
if stored == ARGV[2] then
    return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return redis.call('UNLINK', KEYS[2])
"""

#: KEYS: layouts, then rows of table and of successor in turn. ARGV: table and successor in turn.
_REPLACE: Final = """
for i = 1, #ARGV, 2 do
    redis.call('UNLINK', KEYS[i + 1])
    redis.call('HDEL', KEYS[1], ARGV[i])
    local schema = redis.call('HGET', KEYS[1], ARGV[i + 1])
    if schema then
        redis.call('HSET', KEYS[1], ARGV[i], schema)
        redis.call('HDEL', KEYS[1], ARGV[i + 1])
        if redis.call('EXISTS', KEYS[i + 2]) == 1 then
            redis.call('RENAME', KEYS[i + 2], KEYS[i + 1])
        end
    end
end
"""

#: KEYS: rows. ARGV: the instant up to which, then keys. How many rows were deleted.
_ERASE: Final = """
local count = 0
for i = 2, #ARGV do
    local old = redis.call('HGET', KEYS[1], ARGV[i])
    if old and struct.unpack('<i8', old) <= tonumber(ARGV[1]) then
        count = count + redis.call('HDEL', KEYS[1], ARGV[i])
    end
end
return count
"""


class RedisRows:
    """Packed rows on a Redis server. Safe to share between threads and across forks."""

    embedded: Final = False

    def __init__(self, url: str) -> None:
        """`url`: `redis://`, `rediss://` or `unix://`; `?prefix=NAME` keeps several stores in one database apart.

        Raises:
            ConfigurationError: it is none of these.
        """
        parts = urlsplit(url)
        if not _is_redis(parts):
            raise ConfigurationError(
                f"online store {_hidden(parts)}: write redis://HOST:PORT/DB, rediss://HOST:PORT/DB or unix://PATH"
            )
        query = parse_qs(parts.query)
        name = query.pop("prefix", [_DEFAULT_NAME])[-1]
        self._url = urlunsplit(parts._replace(query=urlencode(query, doseq=True)))
        #: Where the rows are, without a password, for messages.
        self.place = _hidden(parts)
        self._layouts = f"{{{name}}}:layouts"
        self._rows = f"{{{name}}}:rows:"

    def read(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed row of each key, in order; None where there is none.

        Raises:
            StoreUnavailable: the server cannot be read.
        """
        if not keys:
            return []
        name = self._rows + table
        with self._errors("read"), self._client.pipeline(transaction=False) as pipeline:
            for first in range(0, len(keys), _KEYS_A_QUERY):
                pipeline.hmget(name, list(keys[first : first + _KEYS_A_QUERY]))
            return [row for reply in pipeline.execute() for row in reply]

    def count(self, table: str) -> int:
        """How many rows a table has; 0 if it is not there.

        Raises:
            StoreUnavailable: the server cannot be read.
        """
        with self._errors("read"):
            return int(self._client.hlen(self._rows + table))

    def write(self, table: str, layout: Layout, rows: Iterable[Row]) -> None:
        """Insert or replace rows; older ones than are there are left out.

        Each row is written whole. A call that fails midway has written some of them: the same call again sets it right.

        Raises:
            StoreUnavailable: the server cannot be written, or holds rows of another schema of the view.
        """
        fingerprint = f"{layout.fingerprint:016x}"
        remaining = iter(rows)
        batches = iter(lambda: list(islice(remaining, _ROWS_A_SCRIPT)), [])
        some_at_least = chain([list(islice(remaining, _ROWS_A_SCRIPT))], batches)  # no rows at all: the schema counts
        with self._errors("written"), self._client.pipeline(transaction=False) as pipeline:
            for group in iter(lambda: list(islice(some_at_least, _SCRIPTS_A_PIPELINE)), []):
                for batch in group:
                    arguments: list[Any] = [table, fingerprint]
                    for row in batch:
                        arguments += row
                    self._write(keys=[self._layouts, self._rows + table], args=arguments, client=pipeline)
                if not all(pipeline.execute()):
                    raise StoreUnavailable(other_schema(layout.view))

    def erase(self, table: str, keys: Sequence[bytes], *, until_us: int) -> int:
        """Delete the rows of these keys that are not newer; returns how many there were.

        Raises:
            StoreUnavailable: the server cannot be written.
        """
        count = 0
        with self._errors("written"):
            for first in range(0, len(keys), _KEYS_A_QUERY):
                some = keys[first : first + _KEYS_A_QUERY]
                count += int(self._erase(keys=[self._rows + table], args=[until_us, *some]))
        return count

    def define(self, table: str, layout: Layout) -> bool:
        """Make the table of a view, or empty it if it holds another schema; whether rows were lost by that."""
        with self._errors("written"):
            arguments = [table, f"{layout.fingerprint:016x}"]
            return bool(self._define(keys=[self._layouts, self._rows + table], args=arguments))

    def drop(self, tables: Iterable[str]) -> None:
        """Delete the tables of views, where they exist."""
        names = list(tables)
        if names:
            with self._errors("written"), self._client.pipeline() as pipeline:
                pipeline.hdel(self._layouts, *names)
                pipeline.unlink(*(self._rows + name for name in names))
                pipeline.execute()

    def replace(self, successors: Mapping[str, str]) -> None:
        """At once, delete each table (key) and let its successor (value), if there is one, take its place.

        Raises:
            StoreUnavailable: the server cannot be written.
        """
        if successors:
            tables = [table for pair in successors.items() for table in pair]
            with self._errors("written"):
                self._replace(keys=[self._layouts, *(self._rows + table for table in tables)], args=tables)

    def tables(self) -> list[str]:
        """Names of the tables of views.

        Raises:
            StoreUnavailable: the server cannot be read.
        """
        with self._errors("read"):
            return [name.decode() for name in cast(list[bytes], self._client.hkeys(self._layouts))]

    @cached_property
    def _client(self) -> "Redis":
        from redis import Redis

        return Redis.from_url(self._url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)

    @cached_property
    def _write(self) -> Callable[..., Any]:
        return self._client.register_script(_WRITE)

    @cached_property
    def _define(self) -> Callable[..., Any]:
        return self._client.register_script(_DEFINE)

    @cached_property
    def _replace(self) -> Callable[..., Any]:
        return self._client.register_script(_REPLACE)

    @cached_property
    def _erase(self) -> Callable[..., Any]:
        return self._client.register_script(_ERASE)

    @contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            from redis import RedisError
        except ImportError as error:
            raise ConfigurationError(f"online store {self.place} needs the package redis: run `make setup`") from error
        try:
            yield
        except (RedisError, OSError) as error:
            raise StoreUnavailable(
                f"online store {self.place} cannot be {verb}: {error}. Check the server and URLHEALTH_ONLINE_STORE"
            ) from error


def _is_redis(url: SplitResult) -> bool:
    try:
        _ = url.port
    except ValueError:
        return False
    return url.scheme in ("redis", "rediss", "unix")


def _hidden(url: SplitResult) -> str:
    """The URL without user and password."""
    return redacted(urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])))
