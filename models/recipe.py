"""How the forecaster is made: which features it learns from, and which rows. Measured by `benchmarks/model.py`."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from models.dataset import Dataset, Floats, thinned
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.estimators import RIDGE, HealthForecaster

STATE_FEATURE: Final = "failing_now"
#: Features that tell the owners of the training data apart rather than what fails next. See docs/model-card.md.
NOT_LEARNT: Final = (
    "failing_now",
    "log_probe_age_hours",
    "log_known_hours",
    "status_code",
    "log_total_ms",
    "log_first_byte_ms",
    "log_latency_ratio",
    "cert_days_left",
    "host_others_failing",
    "log_host_others_onsets",
    "group_others_failing",
    "log_group_others_onsets",
    "hour_sin",
    "hour_cos",
    "weekend",
)
LEARNT: Final = tuple(name for name in names(VECTOR) if name not in NOT_LEARNT)
#: Shares that the logistic regressions see as they are beside their logarithms.
CURVED: Final = tuple(feature.name for feature in VECTOR if feature.form == "log_share" and feature.name in LEARNT)
#: Features of which the onsets' logistic regressions see all products of two: age, rates from fast to slow, bursts, the
#: URL's own hazards, the clock.
MULTIPLIED: Final = (
    "log_state_minutes",
    "log_onset_rate_30m",
    "log_onset_rate_12h",
    "log_onset_rate_7d",
    "log_onset_rate_ever",
    "log_onset_rate_group",
    "log_onset_ago_3",
    "log_onset_ago_8",
    "log_up_ends_1h",
    "log_cycle_ends_6h",
    "log_clock_6h_4d",
    "log_clock_24h_14d",
)
#: Rows up to which all are fitted to.
ALL_ROWS: Final = 200_000


#: What live probes know and most imported histories do not: of use where all was probed by urlhealth.
PROBED: Final = (
    "log_first_byte_ms",
    "log_latency_ratio",
    "cert_days_left",
    "host_others_failing",
    "log_host_others_onsets",
)
#: What training may try, in this order: how each differs from the recipe, which is the first.
CANDIDATES: Final[Mapping[str, Mapping[str, Any]]] = {
    "recipe": {},
    "with what probes know": {"use": (*LEARNT, *PROBED)},
    "without products": {"multiplied": ()},
    "less regularised": {"ridge": tuple(10 * c for c in RIDGE)},
    "without trees": {"boosted": False},
    "more regularised": {"ridge": tuple(0.1 * c for c in RIDGE)},
}


def candidate(name: str = "recipe", *, seed: int = 0, ridge_times: float = 1.0) -> HealthForecaster:
    """One of :data:`CANDIDATES`, not fitted; `ridge_times` multiplies `C`, which counts rows."""
    options: dict[str, Any] = {"use": LEARNT, "curved": CURVED, "multiplied": MULTIPLIED, "ridge": RIDGE}
    options |= CANDIDATES[name]
    options["ridge"] = tuple(ridge_times * c for c in options["ridge"])
    return HealthForecaster(state_feature=STATE_FEATURE, seed=seed, **options)


def rows_to_fit(rows: Dataset, *, seed: int = 0) -> tuple[Dataset, Floats | None]:
    """The rows that are fitted to, and how many each stands for (None: one)."""
    return thinned(rows, np.random.default_rng(seed)) if len(rows) > ALL_ROWS else (rows, None)


def fitted(rows: Dataset, *, seed: int = 0, name: str = "recipe") -> HealthForecaster:
    """A forecaster that has learnt from the rows."""
    rows, weight = rows_to_fit(rows, seed=seed)
    return candidate(name, seed=seed).fit(rows.X, rows.Y, feature_names=names(VECTOR), weight=weight)
