"""Rules for alerts, judged on a history: how many alerts they would have made, how many right, and how early.

Rules are asked of each URL's verdicts in their order, as the platform asks them; those on risk at every full hour, with
the forecast that would have been made then. An alert on risk is right if the URL was seen failing within the rule's
horizon, and it is early by the time until then. An alert on the state, or on latency, is right if the next verdict
still says the same: it was no blip; it is early by less than nothing, because it comes after what it tells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from models import tables
from models.backtest import predict
from models.bundled import rows_of
from urlhealth.alerts.rules import LatencyRule, RiskRule, Rule, StateRule
from urlhealth.features.verdicts import HEALTH_CODES, Verdicts
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.vocabulary import PROBABILITIES, Health

Ints = npt.NDArray[np.int64]

HEADS: Final = ("rule", "alerts", "right", "wrong", "not known", "precision", "early by, min", "outages", "told of")
_MINUTE_MS: Final = 60_000


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a rule would have done."""

    rule: str
    alerts: int = 0
    #: Of those of which it is known.
    right: int = 0
    wrong: int = 0
    #: Median of the right ones; None without any.
    early_min: float | None = None
    #: Outages in the history, and those that an alert told of: before they began, or while they lasted.
    outages: int = 0
    told: int = 0
    #: Why it was not judged.
    note: str = ""

    def row(self) -> tuple[str, ...]:
        """As `HEADS`."""
        known = self.right + self.wrong
        precision = f"{self.right / known:.0%}" if known else "-"
        early = "-" if self.early_min is None else f"{self.early_min:.0f}"
        counts = (self.alerts, self.right, self.wrong, self.alerts - known)
        return (self.rule, *(f"{n:,}" for n in counts), precision, early, f"{self.outages:,}", f"{self.told:,}")


@dataclass(frozen=True, kw_only=True, eq=False)
class _Series:
    """One URL's verdicts that say up or down, by time; its outages from the first failing verdict to the next good."""

    t_ms: Ints
    up: npt.NDArray[np.bool_]
    total_ms: npt.NDArray[np.float64]
    start_ms: Ints
    end_ms: Ints


@dataclass(frozen=True, kw_only=True)
class _Alert:
    right: bool | None
    early_ms: int
    #: Which of the URL's outages it told of; None for none.
    outage: int | None


def judge(
    rules: Sequence[Rule], history: Path, forecaster: Callable[[], HealthForecaster], *, known_for_s: float
) -> list[Judged]:
    """Each rule's figures on a history, in their order. `forecaster` is asked for only if a rule is on risk.

    Raises:
        InvalidRequest: the history cannot be used.
    """
    verdicts = tables.read_history(history)
    series = _series(verdicts, known_for_ms=round(known_for_s * 1000))
    outages = sum(len(one.start_ms) for one in series.values())
    risk = [rule for rule in rules if isinstance(rule, RiskRule)]
    forecasts = _Forecasts.made(forecaster(), history, known_for_s=known_for_s) if risk else None
    judged = []
    for rule in rules:
        match rule:
            case RiskRule():
                assert forecasts is not None
                found = {url: forecasts.alerts(rule, url, one) for url, one in series.items()}
            case StateRule():
                found = {url: _confirmed(rule, one, ~one.up) for url, one in series.items()}
            case LatencyRule(above_ms=float(above_ms)):
                found = {url: _confirmed(rule, one, one.up & (one.total_ms >= above_ms)) for url, one in series.items()}
            case _:
                note = "a history has not what it asks for: it is not judged"
                judged.append(Judged(rule=rule.name, outages=outages, note=note))
                continue
        judged.append(_judged(rule.name, found, outages))
    return judged


def _judged(name: str, found: dict[str, list[_Alert]], outages: int) -> Judged:
    all_found = [alert for of_url in found.values() for alert in of_url]
    early = [alert.early_ms for alert in all_found if alert.right]
    told = {(url, alert.outage) for url, of_url in found.items() for alert in of_url if alert.outage is not None}
    return Judged(
        rule=name,
        alerts=len(all_found),
        right=len(early),
        wrong=sum(alert.right is False for alert in all_found),
        early_min=float(np.median(early)) / _MINUTE_MS if early else None,
        outages=outages,
        told=len(told),
    )


def _series(verdicts: Verdicts, *, known_for_ms: int) -> dict[str, _Series]:
    frame = pl.DataFrame(
        {
            "url": verdicts.target.astype(str),
            "t_ms": verdicts.ts_ms,
            "up": verdicts.health == HEALTH_CODES[Health.UP],
            "total_ms": verdicts.total_ms.astype(np.float64),
            "known": verdicts.health != HEALTH_CODES[Health.UNKNOWN],
        }
    )
    found = {}
    for (url,), part in frame.filter(pl.col("known")).sort("url", "t_ms").group_by("url", maintain_order=True):
        t_ms, up = part["t_ms"].to_numpy(), part["up"].to_numpy()
        gap = np.diff(t_ms, prepend=t_ms[0]) > known_for_ms
        begins = np.flatnonzero(~up & (np.append(True, up[:-1]) | gap))
        following = [next((i for i in range(b + 1, len(up)) if up[i] or gap[i]), len(up)) for b in begins]
        ends = np.array([t_ms[i] if i < len(up) else t_ms[-1] + 1 for i in following], np.int64)
        found[str(url)] = _Series(
            t_ms=t_ms, up=up, total_ms=part["total_ms"].to_numpy(), start_ms=t_ms[begins], end_ms=ends
        )
    return found


def _confirmed(rule: StateRule | LatencyRule, series: _Series, bad: npt.NDArray[np.bool_]) -> list[_Alert]:
    found, now, since = [], False, 0
    said = bad.tolist()
    for i, one in enumerate(said):
        since = (i if i and not said[i - 1] else since) if one else since
        window = said[max(0, i - rule.of + 1) : i + 1]
        before, now = now, rule.holds(window, now=now)
        if now and not before:
            t_ms = int(series.t_ms[i])
            right = said[i + 1] if i + 1 < len(said) else None
            inside = np.flatnonzero((series.start_ms <= t_ms) & (t_ms < series.end_ms))
            outage = int(inside[0]) if len(inside) else None
            found.append(_Alert(right=right, early_ms=int(series.t_ms[since]) - t_ms, outage=outage))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Forecasts:
    """Forecasts of full hours, ordered by URL and time."""

    #: Where each URL's begin and end.
    parts: dict[str, slice]
    t_ms: Ints
    failing: npt.NDArray[np.bool_]
    #: float64 (n, 6): probabilities, and what came (NaN where that is not known).
    P: npt.NDArray[np.float64]
    Y: npt.NDArray[np.float64]

    @classmethod
    def made(cls, forecaster: HealthForecaster, history: Path, *, known_for_s: float) -> "_Forecasts":
        rows = rows_of(history, known_for_s=known_for_s)
        order = np.lexsort((rows.t_ms, rows.target.astype(str)))
        target = rows.target.astype(str)[order]
        names, first = np.unique(target, return_index=True)
        ends = [*first[1:].tolist(), len(target)]
        return cls(
            parts={str(n): slice(a, b) for n, a, b in zip(names, first.tolist(), ends, strict=True)},
            t_ms=rows.t_ms[order],
            failing=rows.failing[order] == 1,
            P=predict(forecaster, rows.X)[order],
            Y=rows.Y[order].astype(np.float64),
        )

    def alerts(self, rule: RiskRule, url: str, series: _Series) -> list[_Alert]:
        part = self.parts.get(url, slice(0, 0))
        column = PROBABILITIES.index(f"onset_{rule.horizon}")
        found, now = [], False
        rows = zip(
            self.t_ms[part].tolist(),
            self.failing[part].tolist(),
            self.P[part, column],
            self.Y[part, column],
            strict=True,
        )
        for t_ms, failing, probability, came in rows:
            before, now = now, not failing and rule.holds(probability, now=now)
            if now and not before:
                following = int(np.searchsorted(series.start_ms, t_ms, side="right"))
                right = None if np.isnan(came) else bool(came)
                next_ms = int(series.start_ms[following]) if following < len(series.start_ms) else t_ms
                found.append(_Alert(right=right, early_ms=next_ms - t_ms, outage=following if right else None))
        return found
