"""A model judged on anybody's history, without a server: forecasts of past instants, made as serving makes them."""

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from models import evaluation, tables
from models.bundled import rows_of
from models.dataset import Dataset
from models.replay import replay
from urlhealth.errors import InvalidRequest
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.vocabulary import HORIZONS_H, PROBABILITIES, Freshness

#: Rows scored at once: bounds the memory.
_ROWS: Final = 100_000
#: Rows whose contributions are averaged for the importance plot.
_IMPORTANCE_ROWS: Final = 5_000
#: Rules that anybody can write, by the feature that ranks.
RULES: Final[Mapping[str, str]] = {
    "flips in 24 h": "log_flips_24h",
    "flips in 7 days": "log_flips_7d",
    "onset rate of the last hours": "log_onset_rate_2h",
}
_PLOTS: Final[Mapping[str, str]] = {
    "reliability": "What was forecast, and what came",
    "precision_recall": "Precision and recall",
    "roc": "ROC",
    "importance": "What moves its forecasts",
}
_STYLE: Final = (
    "body{font:15px system-ui;margin:2rem;max-width:75rem}img{max-width:100%}"
    "td,th{padding:.3rem .7rem;text-align:right;border-bottom:1px solid #ccc}td:first-child{text-align:left}"
)


def forecast(forecaster: HealthForecaster, history: Path, at: Path, out: Path, *, known_for_s: float) -> int:
    """Forecast the instants of one file from the history in another, using nothing later; returns how many.

    `out` gets, for each row of `at` and each horizon, in that order: `url, ts, horizon_h, p_onset, p_failing, status`.
    Probabilities are null where the URL was not seen up to then (`status` missing).

    Raises:
        InvalidRequest: a file cannot be used.
    """
    verdicts, instants = tables.read_history(history), tables.read_instants(at)
    known = replay(verdicts, instants.url, instants.t_ms, known_for_s=known_for_s)
    P = predict(forecaster, known.X)
    P[known.freshness == Freshness.MISSING] = np.nan
    horizons = len(HORIZONS_H)
    given = pl.read_parquet(at, columns=["url", "ts"])
    rows = np.repeat(np.arange(len(instants.url)), horizons)
    table = given[rows].with_columns(
        horizon_h=pl.Series(np.tile(np.array(HORIZONS_H, np.int32), len(given))),
        p_onset=pl.Series(P[:, :horizons].ravel(), nan_to_null=True),
        p_failing=pl.Series(P[:, horizons:].ravel(), nan_to_null=True),
        status=pl.Series(known.freshness[rows].tolist(), dtype=pl.String),
    )
    table.write_parquet(out)
    return len(given)


def predict(forecaster: HealthForecaster, X: npt.NDArray[np.float32]) -> evaluation.Floats:
    """Probabilities, float64 (n, 6) in the order of `PROBABILITIES`, some rows at a time."""
    parts = [forecaster.predict_proba(X[start : start + _ROWS]) for start in range(0, len(X), _ROWS)]
    return np.concatenate(parts) if parts else np.zeros((0, len(PROBABILITIES)))


def report(forecaster: HealthForecaster, name: str, history: Path, folder: Path, *, known_for_s: float) -> Path:
    """Write an HTML page on how good the model is on a history, beside plain rules; returns its path.

    Every full hour of the history is forecast. Figures that labels of one class leave undefined are shown as "-".

    Raises:
        InvalidRequest: the history cannot be used, or has no instant of which is known what followed.
    """
    rows = rows_of(history, known_for_s=known_for_s)
    if not len(rows) or np.isnan(rows.Y).all():
        raise InvalidRequest(f"{history}: nothing is known of what followed any full hour: a longer history is needed")
    P = predict(forecaster, rows.X)
    folder.mkdir(parents=True, exist_ok=True)
    up = np.flatnonzero(rows.failing == 0)
    some = up[:: max(1, len(up) // _IMPORTANCE_ROWS)]
    evaluation.plot(
        folder,
        {name: P},
        rows.Y,
        rows.failing,
        feature_names=forecaster.feature_names_in_.tolist(),
        importance=np.abs(forecaster.contributions(rows.X[some], "onset_24h")).sum(axis=0) / max(1, len(some)),
    )
    page = folder / "report.html"
    page.write_text(_page(name, rows, P), encoding="utf-8")
    return page


def _page(name: str, rows: Dataset, P: evaluation.Floats) -> str:
    rules = {rule: rows.X[:, names(VECTOR).index(feature)] for rule, feature in RULES.items()}
    lines = []
    for j, (output, figures) in enumerate(evaluation.evaluate(P, rows.Y, rows.failing).items()):
        counts = evaluation.counted(output, rows.Y, rows.failing)
        # A rule only ranks, so of its figures the average precision alone says something.
        ranks = [
            evaluation.binary_metrics(score[counts].astype(np.float64), rows.Y[counts, j]) for score in rules.values()
        ]
        shown = [figures.base_rate, figures.average_precision, *(rank.average_precision for rank in ranks)]
        shown += [figures.brier, figures.ece, figures.roc_auc]
        cells = [output, f"{figures.rows:,}", *("-" if np.isnan(value) else f"{value:.4f}" for value in shown)]
        lines.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    heads = ["forecast", "instants", "base rate", f"average precision: {name}", *(f"{rule} alone" for rule in RULES)]
    heads += ["Brier score", "calibration error", "ROC AUC"]
    span = " to ".join(
        str(np.datetime64(int(t), "ms").astype("datetime64[D]")) for t in (rows.t_ms[0], rows.t_ms.max())
    )
    about = (
        f"{len(rows):,} full hours of {len(set(rows.target)):,} URLs of {len(set(rows.group)):,} groups, {span} (UTC)."
    )
    plots = "".join(f'<h2>{title}</h2><img src="{file}.png" alt="{title}">' for file, title in _PLOTS.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(name)}: backtest</title><style>{_STYLE}</style><h1>{escape(name)}: backtest</h1><p>{about} "
        "Each forecast was made from what was known at its hour. Onsets are judged where the URL was up.</p><table><tr>"
        + "".join(f"<th>{escape(head)}</th>" for head in heads)
        + f"</tr>{''.join(lines)}</table>{plots}</html>\n"
    )
