"""Rules judged on a history: how many alerts, how many right, how early."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from models import alerting
from urlhealth.alerts.rules import CertificateRule, RiskRule, Rule, StateRule, rule_of
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.vocabulary import PROBABILITIES

START = datetime(2026, 1, 1, tzinfo=UTC)
URL = "https://shop.example/"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    """Two days, a verdict every ten minutes: a blip, an outage of an hour, and a slow half hour before that."""
    bad = {30, *range(150, 156)}
    rows = [
        {
            "url": URL,
            "ts": START + timedelta(minutes=10 * i),
            "status": "down" if i in bad else "up",
            "code": 500 if i in bad else 200,
            "response_ms": 2_000 if 146 <= i < 150 else 100,
        }
        for i in range(288)
    ]
    file = tmp_path / "history.parquet"
    pl.DataFrame(rows).write_parquet(file)
    return file


class Hourly:
    """Stands for a model: says 0.9 at the hours given, counted from the start, and 0.1 else."""

    feature_names_in_ = np.array(names(VECTOR))

    def __init__(self, *hours: int) -> None:
        self.hours = set(hours)

    def predict_proba(self, X: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        P = np.full((len(X), len(PROBABILITIES)), 0.1)
        P[[i for i in range(len(X)) if i in self.hours]] = 0.9
        return P


def judged(history: Path, model: Hourly, *rules: Rule) -> list[alerting.Judged]:
    def forecaster() -> HealthForecaster:
        return model  # type: ignore[return-value]

    return alerting.judge(rules, history, forecaster, known_for_s=172_800)


def state(name: str, probes: int, of: int) -> StateRule:
    return StateRule(name=name, kind="state", channels=("c",), probes=probes, of=of)


def test_a_rule_on_the_state_is_wrong_about_blips(history: Path) -> None:
    one, two = judged(history, Hourly(), state("one", 1, 1), state("two", 2, 3))
    assert (one.alerts, one.right, one.wrong, one.outages, one.told) == (2, 1, 1, 2, 2)
    assert one.early_min == 0
    assert (two.alerts, two.right, two.wrong, two.told, two.early_min) == (1, 1, 0, 1, -10)
    assert two.row() == ("two", "1", "1", "0", "0", "100%", "-10", "2", "1")


def test_a_rule_on_latency(history: Path) -> None:
    rule = rule_of({"name": "slow", "kind": "latency", "channels": ["c"], "above_ms": 1000, "probes": 2, "of": 3})
    (slow,) = judged(history, Hourly(), rule)
    assert (slow.alerts, slow.right, slow.early_min, slow.told) == (1, 1, -10, 0)


def test_a_rule_on_risk_is_right_if_an_outage_comes_within_its_horizon(history: Path) -> None:
    hours = alerting.rows_of(history, known_for_s=172_800)
    start_ms = int(START.timestamp() * 1000)
    number = {int(t - start_ms) // 3_600_000: i for i, t in enumerate(hours.t_ms.tolist())}
    # The outage begins at 25:00. At 10:00 none comes in six hours; from 22:00 on one does, told once.
    model = Hourly(*(number[hour] for hour in (10, 22, 23, 24)))
    risk = RiskRule(name="risk", kind="risk", channels=("c",), above=0.5, horizon="6h")
    tls = CertificateRule(name="tls", kind="certificate", channels=("c",))
    (found, other) = judged(history, model, risk, tls)
    assert (found.alerts, found.right, found.wrong, found.early_min, found.told) == (2, 1, 1, 180, 1)
    assert (other.alerts, "not judged" in other.note) == (0, True)
