"""Monitors: targets that are probed again and again. When each is due is in `crawl/schedule.py`."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from math import isfinite
from typing import Any, Final, TypedDict

import sqlalchemy as sa

from urlhealth.crawl.database import change_monitors_alone, chunks, insert, run, writing
from urlhealth.crawl.records import TARGET_COLUMNS, Records, cursor_number, new_id, page, remember, target_of
from urlhealth.crawl.schema import monitors, polling_pools, targets
from urlhealth.crawl.vault import Vault
from urlhealth.errors import ConfigurationError, Duplicate, InvalidRequest, NotFound
from urlhealth.polling.policy import check_budget
from urlhealth.probing.urls import parse_target
from urlhealth.vocabulary import (
    DEFAULT_OPTIONS,
    LOCAL_OWNER,
    AdaptiveSchedule,
    Maintenance,
    Monitor,
    MonitorSpec,
    Objective,
    Page,
    ProbeOptions,
    Target,
)

MIN_INTERVAL_S: Final = 10
MAX_INTERVAL_S: Final = 366 * 86_400
MAX_WEIGHT: Final = 1000.0

#: Monitors that are written in one transaction: other writers, the schedule among them, wait until it ends.
_CHUNK: Final = 2_000

#: Monitors with their targets, for :func:`monitor_of`; the number comes first.
MONITORS: Final = (
    sa.select(*(column for column in monitors.c if column is not monitors.c.learned), *TARGET_COLUMNS)
    .add_columns(polling_pools.c.schedule)
    .join(targets, targets.c.id == monitors.c.target_id)
    .outerjoin(polling_pools, polling_pools.c.number == monitors.c.pool_number)
)
_INSERT: Final = (
    "INSERT INTO monitors (monitor_id, owner, target_id, interval_s, pool_number, weight, options, tags, paused, "
    "maintenance, created_ms, next_due_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_UPDATE: Final = (
    "UPDATE monitors SET interval_s = ?, pool_number = ?, weight = ?, options = ?, tags = ?, paused = ?, "
    "maintenance = ?, next_due_ms = ? WHERE number = ?"
)
#: A monitor that has another schedule now. What was learned stays if it goes on being learned.
_TO_POOL: Final = "UPDATE monitors SET probes = 0 WHERE number = ?"
_TO_INTERVAL: Final = "UPDATE monitors SET probes = 0, learned = NULL WHERE number = ?"
_SET_GROUP: Final = 'UPDATE targets SET "group" = ? WHERE id = ? AND "group" <> ?'


def next_slot(key: str, interval_s: int, now_ms: int) -> int:
    """The first slot of a target after `now_ms`, ms since 1970 UTC.

    Slots are one interval apart, shifted by a hash of the target's key, so that the targets are spread evenly over the
    interval whenever they were added.
    """
    interval_ms = interval_s * 1000
    shift = int.from_bytes(blake2b(key.encode(), digest_size=8).digest()) % interval_ms
    return now_ms + 1 + (shift - now_ms - 1) % interval_ms


def first_interval_s(schedule: AdaptiveSchedule) -> int:
    """The interval at which a pool without any knowledge spends its budget."""
    interval_s = round(3600 / schedule.budget_per_url_hour)
    return max(schedule.min_interval_s, min(schedule.max_interval_s, interval_s))


class MonitorChange(TypedDict, total=False):
    """What is to become of a monitor: what is not named stays as it is. Its URL and name are what it is.

    An interval takes the place of an adaptive schedule, and the other way round: only one of them is given.
    """

    interval_s: int
    schedule: AdaptiveSchedule
    weight: float
    group: str
    options: ProbeOptions
    tags: tuple[str, ...]
    paused: bool
    maintenance: tuple[Maintenance, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Which monitors: those for which all holds that is given."""

    ids: tuple[str, ...] = ()
    url: str | None = None
    #: Of the monitor of `url`.
    name: str | None = None
    group: str | None = None
    tag: str | None = None


ALL: Final = Selection()


class MonitorStore(Records):
    """Creates, lists, changes and deletes monitors."""

    def create_monitor(
        self, url: str, *, interval_s: int | None = None, owner: str = LOCAL_OWNER, **more: Any
    ) -> Monitor:
        """Store a new monitor; it is first due within one interval. `more`: other fields of a `MonitorSpec`.

        Raises:
            Duplicate: the target has a monitor already.
            InvalidRequest: the URL is none, or the interval is out of range.
        """
        (answer,) = self.create_monitors([MonitorSpec(url=url, interval_s=interval_s, **more)], owner=owner)
        if isinstance(answer, InvalidRequest):
            raise answer
        return self.monitor(answer, owner=owner)

    def create_monitors(
        self, specs: Iterable[MonitorSpec | InvalidRequest], *, owner: str = LOCAL_OWNER
    ) -> Iterator[str | InvalidRequest]:
        """Store new monitors as they come, some thousand in a transaction.

        Yields:
            For each, in their order: its id, or why it was not stored (as :meth:`create_monitor` raises it). What is
            wrong already goes through.
        """
        following = iter(specs)
        while chunk := list(islice(following, _CHUNK)):
            yield from self._create(chunk, owner)

    def _create(self, specs: Sequence[MonitorSpec | InvalidRequest], owner: str) -> list[str | InvalidRequest]:
        now_ms = self._clock()
        wanted = [_target_or_fault(spec) for spec in specs]
        parsed = [target for target in wanted if isinstance(target, Target)]
        answers: list[str | InvalidRequest] = []
        rows, groups = [], []
        with writing(self._engine) as connection:
            target_ids = remember(connection, owner, parsed, now_ms=now_ms)
            schedules = (spec.schedule for spec in specs if isinstance(spec, MonitorSpec) and spec.schedule)
            pools = _pool_numbers(connection, owner, schedules)
            known = self._monitors_of(connection, owner, list(target_ids.values()))
            for spec, target in zip(specs, wanted, strict=True):
                if isinstance(spec, InvalidRequest) or isinstance(target, InvalidRequest):
                    answers.append(target)  # type: ignore[arg-type]
                    continue
                target_id = target_ids[target.key]
                if target_id in known:
                    answers.append(Duplicate(target.key, known[target_id]))
                    continue
                monitor_id = known[target_id] = new_id(self._clock)
                answers.append(monitor_id)
                written = _written(spec, pools, self._vault)
                rows.append((monitor_id, owner, target_id, *written, now_ms, next_slot(target.key, written[0], now_ms)))
                if spec.group is not None:
                    groups.append((spec.group, target_id, spec.group))
            run(connection, _SET_GROUP, groups)
            run(connection, _INSERT, rows)
        return answers

    @staticmethod
    def _monitors_of(connection: sa.Connection, owner: str, target_ids: Sequence[int]) -> dict[int, str]:
        """The monitors' ids, of those targets that have one."""
        found: dict[int, str] = {}
        for some in chunks(target_ids, _CHUNK):
            own = sa.and_(monitors.c.owner == owner, monitors.c.target_id.in_(some))
            query = sa.select(monitors.c.target_id, monitors.c.monitor_id).where(own)
            found.update((target_id, monitor_id) for target_id, monitor_id in connection.execute(query))
        return found

    def monitors(
        self, selection: Selection = ALL, *, limit: int, cursor: str | None = None, owner: str = LOCAL_OWNER
    ) -> Page[Monitor]:
        """Monitors, oldest first.

        Raises:
            InvalidRequest: the selection's URL is none.
        """
        after = 0 if cursor is None else cursor_number("monitors", cursor)
        query = MONITORS.where(*_where(selection, owner), monitors.c.number > after)
        with self._engine.connect() as connection:
            rows = connection.execute(query.order_by(monitors.c.number).limit(limit + 1)).all()
        return page(rows, limit, "monitors", lambda row: monitor_of(row, self._vault))

    def iter_monitors(self, *, owner: str = LOCAL_OWNER) -> Iterator[Monitor]:
        """All monitors, oldest first, read page by page."""
        cursor = None
        while True:
            part = self.monitors(limit=_CHUNK, cursor=cursor, owner=owner)
            yield from part.items
            cursor = part.next_cursor
            if cursor is None:
                return

    def monitor(self, monitor_id: str, *, owner: str = LOCAL_OWNER) -> Monitor:
        """The monitor.

        Raises:
            NotFound: the owner has none of this id.
        """
        found = self.monitors(Selection(ids=(monitor_id,)), limit=1, owner=owner).items
        if not found:
            raise _unknown(monitor_id)
        return found[0]

    def change_monitor(self, monitor_id: str, change: MonitorChange, *, owner: str = LOCAL_OWNER) -> Monitor:
        """Change one monitor; returns what it is now.

        Raises:
            NotFound: the owner has none of this id.
            InvalidRequest: the interval is out of range.
        """
        if not self.change_each({monitor_id: change}, owner=owner):
            raise _unknown(monitor_id)
        return self.monitor(monitor_id, owner=owner)

    def change_monitors(self, selection: Selection, change: MonitorChange, *, owner: str = LOCAL_OWNER) -> int:
        """Change the selected monitors alike, some thousand in a transaction; returns how many there were.

        Raises:
            InvalidRequest: the interval is out of range, or the selection's URL is none.
        """
        return self.change_each(dict.fromkeys(self._ids(selection, owner), change), owner=owner)

    def change_each(self, changes: Mapping[str, MonitorChange], *, owner: str = LOCAL_OWNER) -> int:
        """Change monitors by id, each in its way, some thousand in a transaction; returns how many were there.

        Raises:
            InvalidRequest: an interval is out of range; nothing was changed.
        """
        distinct = {id(change): change for change in changes.values()}.values()
        for change in distinct:
            _check_change(change)
        schedules = [change["schedule"] for change in distinct if "schedule" in change]
        changed = 0
        for some in chunks(list(changes), _CHUNK):
            query = MONITORS.where(monitors.c.owner == owner, monitors.c.monitor_id.in_(some))
            with writing(self._engine) as connection:
                change_monitors_alone(connection)
                pools = _pool_numbers(connection, owner, schedules)
                rows, groups = [], []
                to_pool: list[tuple[int]] = []
                to_interval: list[tuple[int]] = []
                for row in connection.execute(query).all():
                    change = changes[row.monitor_id]
                    rows.append(self._changed(row, change, pools))
                    if "group" in change:
                        groups.append((change["group"], row.target_id, change["group"]))
                    if (pool_number := rows[-1][1]) != row.pool_number:
                        (to_interval if pool_number is None else to_pool).append((row.number,))
                run(connection, _SET_GROUP, groups)
                run(connection, _UPDATE, rows)
                run(connection, _TO_POOL, to_pool)
                run(connection, _TO_INTERVAL, to_interval)
            changed += len(rows)
        return changed

    def _changed(self, row: Any, change: MonitorChange, pools: Mapping[AdaptiveSchedule, int]) -> tuple[Any, ...]:
        """The values for `_UPDATE`."""
        old = monitor_of(row, self._vault)
        schedule = None if "interval_s" in change else change.get("schedule", old.schedule)
        new = MonitorSpec(
            url=old.target.url,
            interval_s=change.get("interval_s", old.interval_s),
            schedule=schedule,
            weight=change.get("weight", old.weight),
            options=change.get("options", old.options),
            tags=change.get("tags", old.tags),
            paused=change.get("paused", old.paused),
            maintenance=change.get("maintenance", old.maintenance),
        )
        if schedule is not None and schedule == old.schedule:
            written = _written(new, {schedule: row.pool_number}, self._vault)
            written = (old.interval_s, *written[1:])  # the plan stays
        else:
            written = _written(new, pools, self._vault)
        due_ms = old.next_due_ms
        interval_s, pool_number, *_ = written
        if (interval_s, pool_number) != (old.interval_s, row.pool_number) or (old.paused and not new.paused):
            due_ms = next_slot(old.target.key, interval_s, self._clock())
        return (*written, due_ms, row.number)

    def delete_monitor(self, monitor_id: str, *, owner: str = LOCAL_OWNER) -> None:
        """Delete the monitor; its probes stay.

        Raises:
            NotFound: the owner has none of this id.
        """
        if not self.delete_each([monitor_id], owner=owner):
            raise _unknown(monitor_id)

    def delete_monitors(self, selection: Selection, *, owner: str = LOCAL_OWNER) -> int:
        """Delete the selected monitors, some thousand in a transaction; returns how many. Their probes stay.

        Raises:
            InvalidRequest: the selection's URL is none.
        """
        return self.delete_each(self._ids(selection, owner), owner=owner)

    def delete_each(self, ids: Sequence[str], *, owner: str = LOCAL_OWNER) -> int:
        """Delete monitors by id, some thousand in a transaction; returns how many were there. Their probes stay."""
        deleted = 0
        for some in chunks(ids, _CHUNK):
            mine = sa.and_(monitors.c.owner == owner, monitors.c.monitor_id.in_(some))
            with writing(self._engine) as connection:
                change_monitors_alone(connection)
                deleted += connection.execute(sa.delete(monitors).where(mine)).rowcount
        return deleted

    def _ids(self, selection: Selection, owner: str) -> Sequence[str]:
        query = sa.select(monitors.c.monitor_id).join(targets, targets.c.id == monitors.c.target_id)
        with self._engine.connect() as connection:
            return connection.scalars(query.where(*_where(selection, owner)).order_by(monitors.c.number)).all()


def monitor_of(row: Any, vault: Vault) -> Monitor:
    """The monitor in a row of `monitors` with `TARGET_COLUMNS`."""
    return Monitor(
        monitor_id=row.monitor_id,
        owner=row.owner,
        target=target_of(row),
        interval_s=row.interval_s,
        schedule=None if row.schedule is None else schedule_of(row.schedule),
        weight=row.weight,
        options=_options_of(row.options, vault),
        tags=tuple(row.tags.split("\n")[1:-1]),
        paused=row.paused,
        maintenance=maintenance_of(row.maintenance),
        created_ms=row.created_ms,
        next_due_ms=row.next_due_ms,
        skipped=row.skipped,
        probes=row.probes,
    )


def _written(
    spec: MonitorSpec, pools: Mapping[AdaptiveSchedule, int], vault: Vault
) -> tuple[int, int | None, float, str, str, bool, str]:
    """What it is, as stored: interval, pool, weight, options, tags, whether paused, windows."""
    interval_s = spec.interval_s if spec.schedule is None else first_interval_s(spec.schedule)
    assert interval_s is not None
    return (
        interval_s,
        None if spec.schedule is None else pools[spec.schedule],
        spec.weight,
        _options_text(spec.options, vault),
        _tags_text(spec.tags),
        spec.paused,
        _windows_text(spec.maintenance),
    )


def _pool_numbers(
    connection: sa.Connection, owner: str, schedules: Iterable[AdaptiveSchedule]
) -> dict[AdaptiveSchedule, int]:
    """The pools that these schedules mean; new ones are added."""
    texts = {
        schedule: json.dumps(asdict(schedule) | {"budget_per_url_hour": float(schedule.budget_per_url_hour)})
        for schedule in set(schedules)
    }
    if not texts:
        return {}
    # One after the other in the same order, so that two transactions that add the same ones do not block each other.
    for text in sorted(texts.values()):
        add = insert(connection, polling_pools).values(owner=owner, schedule=text)
        connection.execute(add.on_conflict_do_nothing(index_elements=["owner", "schedule"]))
    query = sa.select(polling_pools.c.schedule, polling_pools.c.number).where(polling_pools.c.owner == owner)
    found: dict[str, int] = {}
    for some in chunks(list(texts.values()), _CHUNK):
        found.update(connection.execute(query.where(polling_pools.c.schedule.in_(some))).all())
    return {schedule: found[text] for schedule, text in texts.items()}


@lru_cache(maxsize=1024)
def schedule_of(text: str) -> AdaptiveSchedule:
    """The schedule of a row of `polling_pools`."""
    stored = json.loads(text)
    return AdaptiveSchedule(**stored | {"objective": Objective(stored["objective"])})


def _options_text(options: ProbeOptions, vault: Vault) -> str:
    if options == DEFAULT_OPTIONS:
        return "{}"
    stored = vault.stored(options)
    default = asdict(DEFAULT_OPTIONS)
    return json.dumps({name: value for name, value in stored.items() if name not in default or value != default[name]})


@lru_cache(maxsize=1024)
def _options_of(text: str, vault: Vault) -> ProbeOptions:
    return DEFAULT_OPTIONS if text == "{}" else vault.options(json.loads(text))


def _tags_text(tags: Sequence[str]) -> str:
    return "".join(("\n", *(f"{tag}\n" for tag in tags))) if tags else ""


def _windows_text(windows: Sequence[Maintenance]) -> str:
    return json.dumps([asdict(window) for window in windows]) if windows else "[]"


@lru_cache(maxsize=1024)
def maintenance_of(text: str) -> tuple[Maintenance, ...]:
    """The windows, of the column of that name."""
    return tuple(Maintenance(**window) for window in json.loads(text))


def _target_or_fault(spec: MonitorSpec | InvalidRequest) -> Target | InvalidRequest:
    if isinstance(spec, InvalidRequest):
        return spec
    try:
        if (spec.interval_s is None) == (spec.schedule is None):
            raise InvalidRequest("give interval_s or schedule, and not both")
        if spec.interval_s is not None:
            _check_interval(spec.interval_s)
        if spec.schedule is not None:
            _check_schedule(spec.schedule)
        _check_weight(spec.weight)
        return parse_target(spec.url, group=spec.group, name=spec.name)
    except InvalidRequest as fault:
        return fault


def _check_interval(interval_s: int) -> None:
    if not MIN_INTERVAL_S <= interval_s <= MAX_INTERVAL_S:
        raise InvalidRequest(f"interval_s is {interval_s}; give {MIN_INTERVAL_S} to {MAX_INTERVAL_S} seconds")


def _check_schedule(schedule: AdaptiveSchedule) -> None:
    if schedule.min_interval_s < MIN_INTERVAL_S or schedule.max_interval_s > MAX_INTERVAL_S:
        raise InvalidRequest(
            f"schedule: min_interval_s is {schedule.min_interval_s}, max_interval_s {schedule.max_interval_s}; "
            f"give {MIN_INTERVAL_S} to {MAX_INTERVAL_S} seconds"
        )
    try:
        check_budget(schedule.budget_per_url_hour, schedule.min_interval_s, schedule.max_interval_s)
    except ConfigurationError as error:
        raise InvalidRequest(f"schedule: {error}") from None


def _check_weight(weight: float) -> None:
    if not (isfinite(weight) and 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT):
        raise InvalidRequest(f"weight is {weight}; give {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}")


def _check_change(change: MonitorChange) -> None:
    if "interval_s" in change and "schedule" in change:
        raise InvalidRequest("give interval_s or schedule, and not both")
    if "interval_s" in change:
        _check_interval(change["interval_s"])
    if "schedule" in change:
        _check_schedule(change["schedule"])
    if "weight" in change:
        _check_weight(change["weight"])


def _where(selection: Selection, owner: str) -> list[sa.ColumnElement[bool]]:
    """The conditions that a selection means."""
    found = [monitors.c.owner == owner]
    if selection.ids:
        found.append(monitors.c.monitor_id.in_(selection.ids))
    if selection.url is not None:
        found.append(targets.c.owner == owner)  # so that the index over both is used
        found.append(targets.c.key == parse_target(selection.url, name=selection.name).key)
    if selection.group is not None:
        found.append(targets.c.group == selection.group)
    if selection.tag is not None:
        # SQLite's LIKE would not tell capitals from small letters.
        found.append(sa.func.replace(monitors.c.tags, f"\n{selection.tag}\n", "") != monitors.c.tags)
    return found


def _unknown(monitor_id: str) -> NotFound:
    return NotFound(f"there is no monitor {monitor_id[:80]!r}: it was deleted, or never created here")
