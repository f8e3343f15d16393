"""How the forecaster is made: which features it learns from, and which rows. Measured by `benchmarks/model.py`."""

from typing import Final

import numpy as np

from models.dataset import Dataset, thinned
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.estimators import HealthForecaster

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
#: Rows up to which all are fitted to.
ALL_ROWS: Final = 200_000


def fitted(rows: Dataset, *, seed: int = 0) -> HealthForecaster:
    """A forecaster that has learnt from the rows."""
    weight = None
    if len(rows) > ALL_ROWS:
        rows, weight = thinned(rows, np.random.default_rng(seed))
    forecaster = HealthForecaster(state_feature=STATE_FEATURE, use=LEARNT, curved=CURVED, seed=seed)
    return forecaster.fit(rows.X, rows.Y, feature_names=names(VECTOR), weight=weight)
