"""Which alerts begin and end: asked of what was probed since, of the riskiest forecasts, and of the platform's lag.

No turn looks at all targets. Of those that were probed since the last turn, only those matter whose verdict is bad or
that have an open alert; their last verdicts are read by index. Forecasts above a threshold are a range of the index by
risk. What is computed depends on the newest verdicts alone, not on how they came in turns; so a turn that is repeated
after a crash finds the same.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson
import sqlalchemy as sa

from urlhealth.alerts.messages import PLATFORM
from urlhealth.alerts.rules import CertificateRule, LagRule, LatencyRule, RiskRule, Rule, StateRule
from urlhealth.alerts.store import AlertStore, Closing, Opening, StoredRule
from urlhealth.crawl.database import chunks
from urlhealth.crawl.lease import Lease
from urlhealth.crawl.monitors import maintenance_of
from urlhealth.crawl.records import Records
from urlhealth.crawl.rollups import feeds_features
from urlhealth.crawl.schema import alerts, current_predictions, monitors, probes, targets
from urlhealth.features.catalog import VECTOR, describe
from urlhealth.features.wording import duration
from urlhealth.vocabulary import Clock, Freshness, Health, Outcome

#: New verdicts that one step takes at most.
BATCH: Final = 5_000
#: Alerts on risk that one step begins at most.
_RISKY: Final = 1_000
_LOOKUP: Final = 500
#: The position is saved with what was found; where nothing is, after so many verdicts or so long.
_SAVE_AFTER: Final = 50_000
_SAVE_EVERY_MS: Final = 60_000
#: Time between two looks at forecasts and at the platform's lag.
_SLOW_MS: Final = 5_000
_DAY_MS: Final = 86_400_000
_UP: Final = Outcome.OK.value
_KNOWN: Final = tuple(outcome.value for outcome in Outcome if outcome.health is not Health.UNKNOWN)
_COLUMN: Final = {feature.name: column for column, feature in enumerate(VECTOR)}

#: For keys of targets, the least time that is slow for each (ms; infinite where too little is known).
SlowFrom = Callable[[Sequence[str]], Sequence[float]]


class _Verdict(NamedTuple):
    target_id: int
    ts_ms: int
    outcome: str
    status_code: int | None
    total_ms: float | None
    cert_expires_ms: int | None
    error: str | None


class Evaluator(Records):
    """Begins and ends alerts. Only the process that holds the lease may step."""

    def __init__(
        self,
        engine: sa.Engine,
        store: AlertStore,
        *,
        lease: Lease,
        clock: Clock,
        known_for_s: float,
        slow_from: SlowFrom,
        lag_s: Callable[[], float],
    ) -> None:
        super().__init__(engine, clock=clock)
        self._store = store
        self._lease = lease
        self._known_for_ms = round(known_for_s * 1000)
        self._slow_from = slow_from
        self._lag_s = lag_s
        #: The position that this process has come to, and the one that is saved.
        self._seen: int | None = None
        self._saved: int | None = None
        self._saved_at_ms = 0
        self._slow_at_ms = 0

    def step(self) -> int:
        """Look at what is new; returns how many verdicts that was.

        Raises:
            LeaseLost: another process is the writer; nothing was written, and what was seen is looked at again.
        """
        rules = self._store.rules(owner=None)
        try:
            looked = self._probed(rules)
            if not 0 <= self._clock() - self._slow_at_ms < _SLOW_MS:
                self._slow_at_ms = self._clock()
                for stored in rules:
                    if isinstance(stored.rule, RiskRule):
                        self._risk(stored, stored.rule)
                    elif isinstance(stored.rule, LagRule):
                        self._lag(stored, stored.rule)
        except BaseException:
            self._seen = None
            raise
        return looked

    # What was probed

    def _probed(self, rules: Sequence[StoredRule]) -> int:
        if self._seen is None:
            self._saved = self._store.position()
            self._seen = self._saved
        with self._engine.connect() as connection:
            if self._seen is None:
                # Before the first look: what was probed long ago is no news.
                self._seen = connection.scalar(sa.select(sa.func.max(probes.c.id))) or 0
            new = connection.exec_driver_sql(
                "SELECT id, target_id, ts_ms, outcome, total_ms, cert_expires_ms FROM probes "
                f"WHERE id > {self._seen:d} AND {feeds_features(connection)} ORDER BY id LIMIT {BATCH}"
            ).all()
        judged = [stored for stored in rules if not isinstance(stored.rule, RiskRule | LagRule)]
        openings: list[Opening] = []
        closings: list[Closing] = []
        if new and judged:
            openings, closings = self._judge(judged, new)
        seen = new[-1].id if new else self._seen
        now_ms = self._clock()
        behind = seen - (self._saved or 0) >= _SAVE_AFTER or (
            seen != self._saved and now_ms - self._saved_at_ms >= _SAVE_EVERY_MS
        )
        if openings or closings or self._saved is None or behind:
            self._store.save(openings, closings, lease=self._lease, seen=seen, before=self._saved)
            self._saved, self._saved_at_ms = seen, now_ms
        self._seen = seen
        return len(new)

    def _judge(self, rules: Sequence[StoredRule], new: Sequence[Any]) -> tuple[list[Opening], list[Closing]]:
        now_ms = self._clock()
        probed = {row.target_id for row in new}
        opened = self._store.open_of_targets(probed)
        wanted = {target_id for _, target_id in opened} | set(_conspicuous(rules, new, now_ms))
        if not wanted:
            return [], []
        verdicts = self._last_verdicts(wanted, _most_verdicts(rules))
        openings: list[Opening] = []
        closings: list[Closing] = []
        rows = {row.id: row for row in self._targets(verdicts)}
        slow_from_ms: dict[int, float] = {}
        if any(isinstance(stored.rule, LatencyRule) and stored.rule.above_ms is None for stored in rules):
            slow_from_ms = dict(zip(rows, self._slow_from([row.key for row in rows.values()]), strict=True))
        for target_id, row in rows.items():
            found = verdicts[target_id]
            for stored in rules:
                rule, known = stored.rule, opened.get((stored.number, target_id))
                if not _selects(stored, row):
                    continue
                text = _holds(rule, found, slow_from_ms.get(target_id, 0.0), now_ms=now_ms, now=known is not None)
                if text is not None and known is None and not _rests(rule, row, now_ms):
                    openings.append(_opening(stored, row, text, now_ms))
                elif text is None and known is not None:
                    closings.append(_closing(rule, known.number, _recovered(rule, found[-1]), now_ms))
        return openings, closings

    def _last_verdicts(self, target_ids: Iterable[int], most: int) -> dict[int, list[_Verdict]]:
        """The last verdicts of each target that say up or down, oldest first, as long as they are held for known."""
        since_ms = self._clock() - self._known_for_ms
        found: dict[int, list[_Verdict]] = defaultdict(list)
        known = ", ".join(f"'{name}'" for name in _KNOWN)
        with self._engine.connect() as connection:
            counts = f"{feeds_features(connection)} AND outcome IN ({known})"
            for some in chunks(sorted(target_ids), _LOOKUP):
                values = ", ".join(f"({target_id:d})" for target_id in some)
                # The list first: PostgreSQL and SQLite then find each target's by the index over its history.
                rows = connection.exec_driver_sql(
                    "SELECT p.target_id, p.ts_ms, p.outcome, p.status_code, p.total_ms, p.cert_expires_ms, p.error "
                    f"FROM (VALUES {values}) AS w CROSS JOIN probes AS p "
                    f"WHERE p.target_id = w.column1 AND p.{counts} AND p.ts_ms >= coalesce((SELECT q.ts_ms "
                    f"FROM probes AS q WHERE q.target_id = w.column1 AND q.ts_ms >= {since_ms:d} AND q.{counts} "
                    f"ORDER BY q.ts_ms DESC LIMIT 1 OFFSET {most - 1:d}), {since_ms:d}) ORDER BY p.target_id, p.ts_ms"
                )
                for row in rows:
                    found[row.target_id].append(_Verdict(*row))
        return found

    def _targets(self, target_ids: Iterable[int]) -> Iterator[Any]:
        with self._engine.connect() as connection:
            for some in chunks(sorted(target_ids), _LOOKUP):
                yield from connection.execute(_TARGETS.where(targets.c.id.in_(some)))

    # What is forecast

    def _risk(self, stored: StoredRule, rule: RiskRule) -> None:
        now_ms = self._clock()
        table = current_predictions
        mine = sa.and_(
            alerts.c.rule_number == stored.number, alerts.c.target_id == table.c.target_id, alerts.c.closed_ms.is_(None)
        )
        rising = _TARGETS.add_columns(table.c.probability, table.c.reasons)
        rising = rising.join(table, table.c.target_id == targets.c.id).where(
            table.c.owner == stored.owner,
            table.c.horizon == rule.horizon,
            table.c.probability >= rule.above,
            table.c.health == Health.UP.value,
            table.c.status == Freshness.FRESH.value,
            ~sa.exists().where(mine),
        )
        if rule.group is not None:
            rising = rising.where(table.c.group == rule.group)
        if rule.tag is not None:
            rising = rising.where(sa.func.replace(monitors.c.tags, f"\n{rule.tag}\n", "") != monitors.c.tags)
        here = sa.and_(table.c.target_id == alerts.c.target_id, table.c.horizon == rule.horizon)
        falling = (
            sa.select(alerts.c.number, table.c.probability, table.c.health)
            .outerjoin(table, here)
            .where(
                alerts.c.rule_number == stored.number,
                alerts.c.closed_ms.is_(None),
                sa.or_(
                    table.c.probability.is_(None),
                    table.c.probability < rule.ends_below,
                    table.c.health != Health.UP.value,
                ),
            )
        )
        with self._engine.connect() as connection:
            risky = connection.execute(rising.order_by(table.c.probability.desc()).limit(_RISKY)).all()
            over = connection.execute(falling).all()
        openings = [
            _opening(stored, row, _risk_text(rule, row.probability, row.reasons), now_ms)
            for row in risky
            if not _rests(rule, row, now_ms)
        ]
        closings = [_closing(rule, row.number, _over_text(row), now_ms) for row in over]
        if openings or closings:
            self._store.save(openings, closings, lease=self._lease)

    # The platform itself

    def _lag(self, stored: StoredRule, rule: LagRule) -> None:
        now_ms, lag_s = self._clock(), self._lag_s()
        opened = self._store.open_of_rule(stored.number)
        if opened:
            if lag_s < rule.above_s / 2:
                text = f"the platform is {lag_s:.0f} s behind"
                self._store.save([], [_closing(rule, row.number, text, now_ms) for row in opened], lease=self._lease)
        elif lag_s >= rule.above_s and not rule.rests(now_ms):
            opening = Opening(
                owner=stored.owner,
                rule_number=stored.number,
                target_id=None,
                host=PLATFORM,
                text=f"the platform is {lag_s:.0f} s behind with probes, or with what follows on them",
                due_ms=rule.due_ms(now_ms),
            )
            self._store.save([opening], [], lease=self._lease)


class Lag(Records):
    """How late the platform is: by index, whatever is stored."""

    def seconds(self, position: int) -> float:
        """The greater of: for how long the longest due monitor has been due; the age of the oldest verdict after a
        position. (A monitor is due a moment before it is probed.)
        """
        now_ms = self._clock()
        with self._engine.connect() as connection:
            due_ms = connection.scalar(_FIRST_DUE)
            filed_ms = connection.exec_driver_sql(
                f"SELECT ts_ms FROM probes WHERE id > {max(position, 0):d} AND {feeds_features(connection)} "
                "ORDER BY id LIMIT 1"
            ).scalar()
        return max(0, *(now_ms - ms for ms in (due_ms, filed_ms) if ms is not None)) / 1000 if due_ms or filed_ms else 0


_FIRST_DUE: Final = sa.select(sa.func.min(monitors.c.next_due_ms)).where(sa.not_(monitors.c.paused))
_TARGETS: Final = sa.select(
    targets.c.id,
    targets.c.owner,
    targets.c.key,
    targets.c.host,
    targets.c.group,
    monitors.c.tags,
    monitors.c.maintenance,
).outerjoin(monitors, sa.and_(monitors.c.owner == targets.c.owner, monitors.c.target_id == targets.c.id))


def _conspicuous(rules: Sequence[StoredRule], new: Sequence[Any], now_ms: int) -> Iterator[int]:
    """Targets of new verdicts by which a rule might begin to hold."""
    kinds = [stored.rule for stored in rules]
    slow = [rule.above_ms or 0.0 for rule in kinds if isinstance(rule, LatencyRule)]
    slow_ms = min(slow, default=float("inf"))
    days = [rule.days for rule in kinds if isinstance(rule, CertificateRule)]
    expires_ms = now_ms + max(days) * _DAY_MS if days else 0
    for row in new:
        failed = row.outcome != _UP and row.outcome in _KNOWN
        if failed or (row.total_ms or 0) >= slow_ms or (row.cert_expires_ms or expires_ms) < expires_ms:
            yield row.target_id


def _most_verdicts(rules: Sequence[StoredRule]) -> int:
    return max((rule.of for stored in rules if isinstance(rule := stored.rule, StateRule | LatencyRule)), default=1)


def _selects(stored: StoredRule, row: Any) -> bool:
    rule = stored.rule
    return (
        row.owner == stored.owner
        and rule.group in (None, row.group)
        and (rule.tag is None or f"\n{rule.tag}\n" in (row.tags or ""))
    )


def _rests(rule: Rule, row: Any, now_ms: int) -> bool:
    windows = maintenance_of(row.maintenance) if row.maintenance else ()
    return rule.rests(now_ms) or any(window.covers(now_ms) for window in windows)


def _holds(rule: Rule, found: Sequence[_Verdict], slow_from_ms: float, *, now_ms: int, now: bool) -> str | None:
    """What is so, in words, if the rule holds of these verdicts, oldest first; `now`: whether it did before."""
    newest = found[-1]
    match rule:
        case StateRule():
            if rule.holds([verdict.outcome != _UP for verdict in found], now=now):
                last = found[-rule.of :]
                failed = [verdict for verdict in last if verdict.outcome != _UP]
                return f"{len(failed)} of the last {len(last)} probes failed, the newest with {_why(failed[-1])}"
        case LatencyRule():
            least_ms = rule.above_ms or slow_from_ms
            slow = [verdict.outcome == _UP and (verdict.total_ms or 0) >= least_ms for verdict in found]
            if newest.outcome == _UP and rule.holds(slow, now=now):
                last_slow = slow[-rule.of :]
                times = f"{newest.total_ms or 0:.0f} ms, {least_ms:.0f} ms or more is slow"
                return f"{sum(last_slow)} of the last {len(last_slow)} probes were slow, the newest took {times}"
        case CertificateRule():
            expires_ms = next((v.cert_expires_ms for v in reversed(found) if v.cert_expires_ms is not None), None)
            if expires_ms is not None and expires_ms - now_ms < rule.days * _DAY_MS:
                hours = (expires_ms - now_ms) / 3_600_000
                return f"its certificate expires in {duration(hours)}" if hours > 0 else "its certificate has expired"
    return None


def _why(verdict: _Verdict) -> str:
    code = "" if verdict.status_code is None else f" {verdict.status_code}"
    return f"{verdict.outcome}{code}" + (f" ({verdict.error[:200]})" if verdict.error else "")


def _recovered(rule: Rule, newest: _Verdict) -> str:
    if isinstance(rule, CertificateRule):
        return "its certificate is valid for longer now"
    if newest.outcome != _UP:
        return f"it answers no longer: {_why(newest)}"
    return f"the newest probe was answered in {newest.total_ms or 0:.0f} ms"


def _risk_text(rule: RiskRule, probability: float, stored_reasons: str) -> str:
    reasons = [
        describe(_COLUMN[feature], float("nan") if value is None else value)
        for feature, value, contribution in orjson.loads(stored_reasons)
        if feature in _COLUMN and contribution > 0
    ]
    because = f", because: {'; '.join(reasons)}" if reasons else ""
    return f"likely to fail in the next {rule.hours} h ({probability:.0%}){because}"


def _over_text(row: Any) -> str:
    if row.probability is None:
        return "nothing is forecast any more"
    return "it has failed" if row.health == Health.DOWN.value else f"its risk is {row.probability:.0%}"


def _opening(stored: StoredRule, row: Any, text: str, now_ms: int) -> Opening:
    return Opening(
        owner=stored.owner,
        rule_number=stored.number,
        target_id=row.id,
        host=row.host,
        text=text,
        due_ms=stored.rule.due_ms(now_ms),
    )


def _closing(rule: Rule, number: int, text: str, now_ms: int) -> Closing:
    return Closing(number=number, text=text, due_ms=rule.due_ms(now_ms) if rule.recovers else None)
