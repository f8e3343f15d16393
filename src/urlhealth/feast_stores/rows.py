"""The online store's rows: what each place that keeps them can do, and Feast's entity keys.

A row is of one entity and view, packed as :class:`~urlhealth.feast_stores.packed.Layout` says, and kept by Feast's
entity key in a table for each view. It is replaced only by one whose event time, or at the same event time whose
created time, is not older.
"""

from collections.abc import Iterable, Mapping, Sequence
from struct import pack
from typing import Protocol

from urlhealth.feast_stores.packed import Layout

#: Entity key, packed row.
Row = tuple[bytes, bytes]

#: Feast's `ValueType.STRING`.
_STRING = 2


class OnlineRows(Protocol):
    """A place of packed rows, safe to share between threads.

    Each method raises :class:`~urlhealth.errors.StoreUnavailable` if the place cannot be used.
    """

    @property
    def place(self) -> str:
        """Where the rows are, for messages."""
        ...

    @property
    def embedded(self) -> bool:
        """Whether a read is one of memory, and waits for nobody."""
        ...

    def read(self, table: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The packed row of each key, in order; None where there is none."""
        ...

    def count(self, table: str) -> int:
        """How many rows a table has; 0 if it is not there."""
        ...

    def write(self, table: str, layout: Layout, rows: Iterable[Row]) -> None:
        """Insert or replace rows; older ones than are there are left out.

        Raises:
            StoreUnavailable: the table holds rows of another schema of the view.
        """
        ...

    def erase(self, table: str, keys: Sequence[bytes], *, until_us: int) -> int:
        """Delete the rows of these keys that are not newer; returns how many there were."""
        ...

    def define(self, table: str, layout: Layout) -> bool:
        """Make the table of a view, or empty it if it holds another schema; whether rows were lost by that."""
        ...

    def drop(self, tables: Iterable[str]) -> None:
        """Delete the tables of views, where they exist."""
        ...

    def replace(self, successors: Mapping[str, str]) -> None:
        """At once, delete each table (key) and let its successor (value), if there is one, take its place."""
        ...

    def tables(self) -> list[str]:
        """Names of the tables of views."""
        ...


def string_keys(join_key: str, values: Sequence[str]) -> list[bytes]:
    """Feast's entity keys (serialization version 3) of entities with one join key that is a string."""
    return entity_keys({join_key: (_STRING, [value.encode() for value in values])})


def entity_keys(columns: Mapping[str, tuple[int, Sequence[bytes]]]) -> list[bytes]:
    """Feast's entity keys (serialization version 3), from join key → number of Feast's `ValueType`, values as bytes."""
    names = sorted(columns)
    start = pack("<I", len(names))
    for name in names:
        encoded = name.encode()
        start += pack("<II", _STRING, len(encoded)) + encoded
    parts = []
    for name in names:
        kind, values = columns[name]
        before = {size: start + pack("<II", kind, size) for size in set(map(len, values))}
        parts.append([before[len(value)] + value for value in values])
        start = b""
    return parts[0] if len(parts) == 1 else [b"".join(key) for key in zip(*parts, strict=True)]


def table_name(project: str, view: str) -> str:
    """Name of a view's table: the one that Feast's own stores give it."""
    return f"{project}_{view}"
