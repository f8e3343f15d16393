"""Targets and their history of probes: imported, listed, and read as verdicts by the feature pipeline."""

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import sqlalchemy as sa

from urlhealth.crawl.database import chunks, order_probe_ids, select, snapshot, stream, writing
from urlhealth.crawl.records import (
    LOOKUP_CHUNK,
    TARGET_COLUMNS,
    Records,
    cursor_number,
    insert_probes,
    page,
    probe_row,
    remember,
    target_of,
)
from urlhealth.crawl.schema import monitors, probes, targets, tasks
from urlhealth.vocabulary import LOCAL_OWNER, Outcome, Page, ProbeResult, ProbeSource, Target, TaskStatus

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from urlhealth.features.verdicts import Verdicts

#: Imported probes in one transaction.
IMPORT_CHUNK: Final = 20_000
#: Pause after each, in which others can write: the lease is renewed and results are filed during a long import.
_PAUSE_S: Final = 0.01
#: Rows that are tuples at a time, before they are columns: of more, the processor's caches hold less and less.
_FETCHED: Final = 2_000

_CODES: Final = {outcome.value: outcome.code for outcome in Outcome}

#: The columns of `Verdicts` that are stored as they are, but for `http_version`. Null is 0 in whole numbers, else NaN.
_NUMBERS: Final = {
    "ts_ms": "int64",
    "status_code": "int32",
    "dns_ms": "float32",
    "connect_ms": "float32",
    "tls_ms": "float32",
    "first_byte_ms": "float32",
    "total_ms": "float32",
    "size_bytes": "int64",
    "http_version": "int32",
    "redirects": "int32",
    "cert_expires_ms": "int64",
}


class PartTarget(NamedTuple):
    """A target, as a part of a history names it."""

    id: int
    key: str
    host: str
    group: str


def _after(probe_id: int) -> tuple[sa.ColumnElement[bool], ...]:
    return probes.c.id > probe_id, probes.c.feeds_features


class History(Records):
    """Reads and extends what is known of targets."""

    def import_probes(
        self,
        results: Iterable[tuple[Target, ProbeResult]],
        *,
        source: ProbeSource = ProbeSource.IMPORT,
        owner: str = LOCAL_OWNER,
    ) -> int:
        """Append a history of probes; returns how many were new. Importing the same again adds nothing.

        Each target gets the group that the history gives it. Any process may import. What was stored before a failure
        stays, so that the same import can simply be repeated.
        """
        stored = 0
        known: dict[str, int] = {}
        remaining = iter(results)
        while batch := list(islice(remaining, IMPORT_CHUNK)):
            unknown = {target.key: target for target, _ in batch if target.key not in known}
            with writing(self._engine) as connection:
                order_probe_ids(connection)
                if unknown:
                    known |= remember(connection, owner, unknown.values(), now_ms=self._clock())
                    _mark(connection, {known[key]: target for key, target in unknown.items()}, source)
                rows = [
                    probe_row(result, known[target.key], owner=owner, source=source, feeds_features=True)
                    for target, result in batch
                ]
                stored += insert_probes(connection, rows)
            time.sleep(_PAUSE_S)
        return stored

    def verdicts_after(self, probe_id: int, *, limit: int) -> "Verdicts":
        """The next `limit` verdicts of all owners that feed features, in the order in which they were stored."""
        query = (
            sa.select(
                targets.c.key,
                targets.c.host,
                targets.c.group,
                probes.c.id,
                probes.c.outcome,
                *(sa.literal_column(_not_null(name)) for name in _NUMBERS),
            )
            .join(targets, targets.c.id == probes.c.target_id)
            .where(*_after(probe_id))
            .order_by(probes.c.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        columns = zip(*rows, strict=True) if rows else [()] * (5 + len(_NUMBERS))
        keys, hosts, groups, ids, outcomes, *numbers = columns
        return _verdicts_of(ids, outcomes, numbers, target=_strings(keys), host=_strings(hosts), group=_strings(groups))

    def parts(self, *, targets_a_part: int) -> Iterator[list[PartTarget]]:
        """All targets, as they are when the first part is asked for, in parts.

        Targets that share a host or a group are in the same part, so that what is pooled by these is whole in it.

        Args:
            targets_a_part: how many targets it takes to fill a part; one whose targets all belong together has more.
        """
        query = sa.select(targets.c.id, targets.c.key, targets.c.host, targets.c.group).order_by(targets.c.id)
        with snapshot(self._engine) as connection:
            for groups in _parts(connection, targets_a_part):
                some = query.where(targets.c.group.in_(groups)) if groups else query
                part = [PartTarget(*row) for row in connection.execute(some)]
                if part:
                    yield part

    def last_verdict(self) -> int:
        """Id of the newest probe; 0 for none."""
        with self._engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0

    def verdicts_of(self, part: Sequence[PartTarget], *, until: int, limit: int) -> Iterator["Verdicts"]:
        """All verdicts of these targets that feed features, up to the probe with the id `until`.

        In batches by time, each later than the one before; not sorted within. So nothing has to sort a whole history.

        Args:
            part: sorted by id.
            limit: verdicts at once; more only if that many are of one millisecond.
        """
        import numpy as np

        from urlhealth.features.verdicts import Verdicts

        ids = np.array([target.id for target in part], np.int64)
        keys, hosts, groups = (_strings(names) for names in list(zip(*part, strict=True))[1:])
        with self._engine.connect() as connection:
            # The ids as one parameter: there may be more than a list takes.
            embedded = connection.dialect.name == "sqlite"
            mine = (
                f"FROM probes WHERE target_id {'IN (SELECT value FROM json_each(:ids))' if embedded else '= ANY(:ids)'}"
            )
            values: dict[str, Any] = {"ids": json.dumps(ids.tolist()) if embedded else ids.tolist(), "until": until}
            query = (
                f"SELECT id, target_id, outcome, {', '.join(map(_not_null, _NUMBERS))} {mine} "
                "AND ts_ms >= :since_ms AND ts_ms < :until_ms AND feeds_features AND id <= :until"
            )
            for since_ms, until_ms in _spans(connection, mine, values, limit):
                some = []
                span = {**values, "since_ms": since_ms, "until_ms": until_ms}
                for rows in stream(connection, query, span, _FETCHED):
                    probe_ids, target_ids, outcomes, *numbers = zip(*rows, strict=True)
                    at = np.searchsorted(ids, np.array(target_ids, np.int64))
                    names = {"target": keys[at], "host": hosts[at], "group": groups[at]}
                    some.append(_verdicts_of(probe_ids, outcomes, numbers, **names))
                if some:
                    yield Verdicts.concatenate(some)

    def count_verdicts_after(self, probe_id: int) -> int:
        """How many verdicts :meth:`verdicts_after` would give in all."""
        query = sa.select(sa.func.count()).select_from(probes).where(*_after(probe_id))
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def targets(self, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER) -> Page[Target]:
        """Targets, the longest known first."""
        after = 0 if cursor is None else cursor_number("targets", cursor)
        query = sa.select(targets.c.id, *TARGET_COLUMNS).where(targets.c.owner == owner, targets.c.id > after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(targets.c.id).limit(limit + 1)).all()
        return page(rows, limit, "targets", target_of)

    def count_targets(self, *, owner: str = LOCAL_OWNER) -> int:
        """How many targets an owner has."""
        query = sa.select(sa.func.count()).select_from(targets).where(targets.c.owner == owner)
        with self._engine.connect() as connection:
            return connection.scalar(query) or 0

    def find_targets(self, keys: Sequence[str], *, owner: str = LOCAL_OWNER) -> dict[str, Target]:
        """Those of the targets that are known, by key."""
        return {row.key: target_of(row) for row in self._rows_of(keys, owner)}

    def groups_of(self, urls: Sequence[str], *, owner: str = LOCAL_OWNER) -> dict[str, str]:
        """The groups of those normalised URLs that the owner has a target of (with its default options)."""
        found: dict[str, str] = {}
        with self._engine.connect() as connection:
            for some in chunks(urls, LOOKUP_CHUNK):
                # By hand: every prediction comes here, and to put such a list into a statement takes SQLAlchemy longer
                # than the database needs to answer.
                marks = ",".join(["?"] * len(some))
                found.update(map(tuple, select(connection, f"{_GROUPS_BY_KEY} IN ({marks})", (owner, *some))))
        return found

    def simulated_targets(self, keys: Sequence[str], *, owner: str = LOCAL_OWNER) -> set[str]:
        """Keys of those targets of whose history a part was simulated."""
        return {row.key for row in self._rows_of(keys, owner) if row.simulated}

    def counts(self) -> dict[str, int]:
        """`targets`, `probes`, `monitors`, and `tasks_queued`, `tasks_running`, ... of all owners.

        Targets and probes are numbered as they are stored, and the last number is taken for the count: to count
        millions of rows takes seconds. So those that were deleted since are still in it.
        """
        with self._engine.connect() as connection:
            by_status = sa.select(tasks.c.status, sa.func.count().label("number")).group_by(tasks.c.status)
            tasks_by_status = {row.status: row.number for row in connection.execute(by_status)}
            return {
                "targets": connection.scalar(sa.select(sa.func.max(targets.c.id))) or 0,
                "probes": connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0,
                "monitors": connection.scalar(sa.select(sa.func.count()).select_from(monitors)) or 0,
                **{f"tasks_{status.value}": tasks_by_status.get(status.value, 0) for status in TaskStatus},
            }

    def _rows_of(self, keys: Sequence[str], owner: str) -> list[Any]:
        rows: list[Any] = []
        with self._engine.connect() as connection:
            for some in chunks(keys, LOOKUP_CHUNK):
                marks = ", ".join(["?"] * len(some))
                rows += select(connection, f"{_TARGETS_BY_KEY} IN ({marks})", (owner, *some))
        return rows


_GROUPS_BY_KEY: Final = f"{sa.select(targets.c.key, targets.c.group)} WHERE owner = ? AND key"
_TARGETS_BY_KEY: Final = f"{sa.select(*TARGET_COLUMNS, targets.c.simulated)} WHERE owner = ? AND key"


def _mark(connection: sa.Connection, imported: dict[int, Target], source: ProbeSource) -> None:
    """Take over the groups that a history gives, by target id, and whether it is simulated."""
    simulated = source is ProbeSource.SIMULATED
    update = sa.update(targets).where(targets.c.id == sa.bindparam("target_id"))
    update = update.values(
        group=sa.bindparam("new_group"), simulated=sa.or_(targets.c.simulated, sa.literal(simulated))
    )
    connection.execute(update, [{"target_id": i, "new_group": t.group} for i, t in imported.items()])


def _not_null(name: str) -> str:
    if name == "http_version":  # text, and of an imported history any
        return "CASE http_version WHEN '1.0' THEN 10 WHEN '1.1' THEN 11 WHEN '2' THEN 20 WHEN '3' THEN 30 ELSE 0 END"
    return name if _NUMBERS[name].startswith("float") else f"COALESCE({name}, 0)"


def _parts(connection: sa.Connection, targets_a_part: int) -> Iterator[list[str]]:
    """Groups in parts that share no host; an empty list for a single part of all groups."""
    count = sa.func.count().label("count")
    query = sa.select(targets.c.host, targets.c.group, count).group_by(targets.c.host, targets.c.group)
    above: dict[str, str] = {}  # a forest over groups: those with one root belong together

    def root(group: str) -> str:
        while (parent := above.setdefault(group, group)) != group:
            above[group] = above[parent]
            group = parent
        return group

    first_of_host: dict[str, str] = {}
    sizes: Counter[str] = Counter()
    for host, group, number in connection.execute(query):
        above[root(group)] = root(first_of_host.setdefault(host, group))
        sizes[group] += number
    together: dict[str, list[str]] = {}
    for group in sizes:
        together.setdefault(root(group), []).append(group)
    parts: list[list[str]] = [[]]
    size = 0
    for groups in together.values():
        if size >= targets_a_part or len(parts[-1]) >= LOOKUP_CHUNK:
            parts.append([])
            size = 0
        parts[-1] += groups
        size += sum(sizes[group] for group in groups)
    yield from parts if len(parts) > 1 else [[]]


def _spans(
    connection: sa.Connection, mine: str, values: Mapping[str, Any], probes_a_span: int
) -> Iterator[tuple[int, int]]:
    """Spans of time that follow each other, from the first to the last of some probes: [since_ms, until_ms).

    None has more than so many of them, unless it is a millisecond long. Counted in an index.

    Args:
        mine: from `FROM` on, which probes, with `values`.
    """
    first_ms, last_ms, count = connection.execute(
        sa.text(f"SELECT min(ts_ms), max(ts_ms), count(*) {mine}"), values
    ).one()
    if not count:
        return
    counted = sa.text(f"SELECT count(*) {mine} AND ts_ms >= :since_ms AND ts_ms < :until_ms")
    since_ms, span_ms = first_ms, (last_ms - first_ms) * probes_a_span * 3 // (count * 4) + 1
    while since_ms <= last_ms:
        span = {"since_ms": since_ms, "until_ms": since_ms + span_ms}
        count = connection.scalar(counted, {**values, **span})
        if count > probes_a_span and span_ms > 1:
            span_ms //= 2
            continue
        yield since_ms, since_ms + span_ms
        since_ms += span_ms
        if count <= probes_a_span // 2:
            span_ms *= 2


def _verdicts_of(
    ids: Sequence[int], outcomes: Sequence[str], numbers: Iterable[Sequence[float]], **names: Any
) -> "Verdicts":
    # Imported here, because a crawl reads no verdicts: numpy alone takes a tenth of a second.
    import numpy as np

    from urlhealth.features.verdicts import HEALTH_CODES, Verdicts

    codes = np.array([*map(_CODES.__getitem__, outcomes)], np.int32)
    columns: dict[str, Any] = {
        name: np.array(values, dtype) for (name, dtype), values in zip(_NUMBERS.items(), numbers, strict=True)
    }
    return Verdicts(
        probe_id=np.array(ids, np.int64),
        health=np.array([HEALTH_CODES[outcome.health] for outcome in Outcome], np.int8)[codes],
        outcome=codes,
        **columns,
        **names,
    )


def _strings(values: Sequence[str]) -> "npt.NDArray[np.object_]":
    import numpy as np

    array = np.empty(len(values), object)
    array[:] = values
    return array
