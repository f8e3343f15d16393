"""`urlhealth replay`: a history in, the probes of a policy and what they found out."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import polars as pl

from urlhealth.errors import InvalidRequest
from urlhealth.polling.policy import AdaptivePolicy
from urlhealth.polling.replay import (
    Found,
    Outages,
    Policies,
    Probes,
    Series,
    VerdictRows,
    judge,
    judge_oracle,
    judge_uniform,
    outages_of,
    replay_adaptive,
    replay_uniform,
    series_of,
)
from urlhealth.polling.report import summary, write_report
from urlhealth.vocabulary import Objective

HALF: Final = "half"
Choice = TypeVar("Choice", Policies, Objective)


@dataclass(frozen=True, kw_only=True, eq=False)
class Replayed:
    """A replay: its probes, and what they and their rivals found."""

    policy: Policies
    budget_per_url_hour: float
    series: list[Series]
    outages: Outages
    probes: Probes
    found: Found
    uniform: Found
    oracle: Found

    def write_probes(self, path: Path) -> None:
        """Write `url, ts, observed`, a row a probe in order of time.

        Raises:
            InvalidRequest: the file cannot be written.
        """
        urls = np.array([one.url for one in self.series], dtype=object)
        frame = pl.DataFrame(
            {
                "url": pl.Series(urls[self.probes.series].tolist(), dtype=pl.String),
                "ts": pl.Series(self.probes.ts_ms, dtype=pl.Int64).cast(pl.Datetime("ms", "UTC")),
                "observed": pl.Series(np.where(self.probes.failing, "down", "up").tolist(), dtype=pl.String),
            }
        )
        try:
            frame.write_parquet(path)
        except OSError as error:
            raise InvalidRequest(f"cannot write {path}: {error}") from error

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """The table: name, mean delay in minutes, caught share, probes; rivals below."""
        rivals = (
            (self.policy.value, self.found),
            ("uniform, mean of 20 phases", self.uniform),
            ("oracle", self.oracle),
        )
        for name, found in rivals:
            probes = len(self.probes) if found is self.found else 0
            one = summary(name, found, probes)
            yield name, f"{one.delay_min:.2f}", f"{one.caught:.1%}", f"{probes:,}" if probes else ""

    def write_report(self, folder: Path) -> Path:
        """Write the HTML report; its page. Raises `InvalidRequest` where the folder cannot be written."""
        return write_report(
            folder,
            policy=self.policy,
            budget_per_url_hour=self.budget_per_url_hour,
            series=self.series,
            outages=self.outages,
            probes=self.probes,
            found=self.found,
            uniform=self.uniform,
            oracle=self.oracle,
        )


def run(rows: VerdictRows, *, policy: str, budget_per_url_hour: float, start: str, objective: str = "both") -> Replayed:
    """Replay a policy on a history.

    Raises:
        InvalidRequest: there is no such policy or objective, or the start is no instant.
        ConfigurationError: no intervals between 5 minutes and 12 hours spend the budget.
        NotEnoughHistory: no series goes on after the start.
    """
    name, aim = _one_of(Policies, policy, "--policy"), _one_of(Objective, objective, "--objective")
    adaptive = AdaptivePolicy(budget_per_url_hour=budget_per_url_hour, objective=aim)
    series = series_of(rows, start_ms=None if start == HALF else _instant_ms(start))
    outages = outages_of(series)
    if name is Policies.ADAPTIVE:
        probes = replay_adaptive(series, adaptive)
    else:
        probes = replay_uniform(series, budget_per_url_hour)
    return Replayed(
        policy=name,
        budget_per_url_hour=budget_per_url_hour,
        series=series,
        outages=outages,
        probes=probes,
        found=judge(outages, probes),
        uniform=judge_uniform(series, outages, budget_per_url_hour),
        oracle=judge_oracle(outages, min_interval_s=adaptive.min_h * 3600),
    )


def _one_of(kind: type[Choice], value: str, option: str) -> Choice:
    try:
        return kind(value)
    except ValueError:
        raise InvalidRequest(f"{option} {value} is none of {', '.join(kind)}") from None


def _instant_ms(text: str) -> int:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(f"--start {text} is neither half nor an instant such as 2026-03-01T00:00:00Z") from None
    return round((instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp() * 1000)
