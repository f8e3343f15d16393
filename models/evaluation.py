"""How good probabilities are: figures by output, and plots. Imported only by training, for it imports scikit-learn."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from urlhealth.vocabulary import HORIZONS_H, PROBABILITIES

Floats = npt.NDArray[np.float64]

#: Probabilities are kept this far from 0 and 1 for the log loss.
_TINY = 1e-6
#: Decimals of a gain that count: models that say the same differ by rounding errors.
_DIGITS = 12
BINS = 10
#: Bootstrap draws of a comparison, and of the intervals of single figures.
RESAMPLES = 1_000
INTERVAL_RESAMPLES = 100


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Figures of one output on the rows that count for it. NaN where labels of one class only leave them undefined."""

    rows: int
    base_rate: float
    average_precision: float
    roc_auc: float
    brier: float
    log_loss: float
    #: Expected calibration error over quantile bins.
    ece: float

    def figures(self) -> dict[str, float]:
        """All that are defined, by name."""
        return {name: float(value) for name, value in asdict(self).items() if np.isfinite(value)}


def counted(output: str, Y: Floats, failing: Floats) -> npt.NDArray[np.bool_]:
    """Rows that count for an output: its label is known and, for onsets, the target is up (else it is no forecast)."""
    known: npt.NDArray[np.bool_] = ~np.isnan(Y[:, PROBABILITIES.index(output)])
    return known & (failing == 0) if output.startswith("onset") else known


def evaluate(P: Floats, Y: Floats, failing: Floats) -> dict[str, Metrics]:
    """Figures by output.

    Args:
        P, Y: probabilities and labels (NaN unknown) in the order of `PROBABILITIES`, shape (n, 6).
        failing: state at each instant, shape (n,): 1 failing, 0 up.
    """
    return {
        output: binary_metrics(P[rows, j], Y[rows, j])
        for j, output in enumerate(PROBABILITIES)
        for rows in [counted(output, Y, failing)]
    }


def binary_metrics(p: Floats, y: Floats) -> Metrics:
    """Figures of probabilities p of labels y, both shape (n,)."""
    if not len(y):
        return Metrics(rows=0, **dict.fromkeys(list(Metrics.__annotations__)[1:], float("nan")))
    both = 0 < y.mean() < 1
    predicted, observed, share = reliability(p, y)
    return Metrics(
        rows=len(y),
        base_rate=float(y.mean()),
        average_precision=float(metrics.average_precision_score(y, p)) if both else float("nan"),
        roc_auc=float(metrics.roc_auc_score(y, p)) if both else float("nan"),
        brier=float(np.mean((p - y) ** 2)),
        log_loss=float(np.mean(log_loss(p, y))),
        ece=float(np.sum(share * np.abs(predicted - observed))),
    )


def log_loss(p: Floats, y: Floats) -> Floats:
    """Of each row, shape (n,)."""
    p = np.clip(p, _TINY, 1 - _TINY)
    losses: Floats = -(y * np.log(p) + (1 - y) * np.log1p(-p))
    return losses


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranked:
    """Labels in the order of falling scores; rows with equal scores end together."""

    order: npt.NDArray[np.int64]
    y: Floats
    ends: npt.NDArray[np.int64]


def ranked(p: Floats, y: Floats) -> Ranked:
    """Rows by falling score, ready to be weighted again and again."""
    order = np.argsort(-p, kind="stable")
    return Ranked(order=order, y=y[order], ends=np.append(np.flatnonzero(np.diff(p[order])), len(p) - 1))


def average_precision(ranks: Ranked, weights: Floats | None = None) -> float:
    """Average precision of weighted rows, as scikit-learn computes it, without sorting again."""
    w = np.ones(len(ranks.y)) if weights is None else weights[ranks.order]
    hits, seen = np.cumsum(w * ranks.y)[ranks.ends], np.cumsum(w)[ranks.ends]
    return float(np.sum(np.diff(hits, prepend=0) * hits / np.maximum(seen, 1e-300)) / hits[-1]) if hits[-1] else 0.0


def intervals(
    P: Floats, Y: Floats, failing: Floats, cluster: npt.NDArray[Any], rng: np.random.Generator
) -> dict[str, dict[str, tuple[float, float]]]:
    """5 % and 95 % points of a bootstrap by cluster, by output, of the average precision and the Brier score.

    Args: as of :func:`loss_difference`. Outputs without rows are left out.
    """
    names, number = np.unique(cluster.astype(str), return_inverse=True)
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=INTERVAL_RESAMPLES)
    found = {}
    for j, output in enumerate(PROBABILITIES):
        rows = counted(output, Y, failing)
        if not rows.any():
            continue
        p, y, own = P[rows, j], Y[rows, j], number[rows]
        errors = np.bincount(own, (p - y) ** 2, len(names))
        counts = np.bincount(own, minlength=len(names))
        ranks = ranked(p, y)
        drawn = {
            "average_precision": [average_precision(ranks, draw[own].astype(np.float64)) for draw in draws],
            "brier": (draws @ errors) / np.maximum(draws @ counts, 1),
        }
        found[output] = {name: (*np.quantile(values, (0.05, 0.95)).tolist(),) for name, values in drawn.items()}
    return found


def reliability(p: Floats, y: Floats, bins: int = BINS) -> tuple[Floats, Floats, Floats]:
    """Mean prediction, observed frequency and share of rows of each quantile bin; equal predictions share a bin."""
    edges = np.unique(np.quantile(p, np.linspace(0, 1, bins + 1)))
    bin_of = np.clip(np.searchsorted(edges, p, side="right") - 1, 0, max(len(edges) - 2, 0))
    count = np.bincount(bin_of)
    filled = count > 0
    predicted = np.bincount(bin_of, p)[filled] / count[filled]
    observed = np.bincount(bin_of, y)[filled] / count[filled]
    return predicted, observed, count[filled] / len(p)


def mean_log_loss(figures: Mapping[str, Metrics]) -> float:
    """Mean log loss over the outputs that have rows: one figure by which models are compared."""
    return float(np.mean([m.log_loss for m in figures.values() if m.rows]))


def loss_difference(
    ours: Floats,
    theirs: Floats,
    Y: Floats,
    failing: Floats,
    cluster: npt.NDArray[Any],
    rng: np.random.Generator,
    *,
    weight: Floats | None = None,
) -> tuple[float, float, float]:
    """By how much our mean log loss is below theirs, and the 5 % and 95 % points of a bootstrap by cluster.

    Args:
        ours, theirs: probabilities of the same rows, shape (n, 6).
        cluster: strings, shape (n,): rows of one cluster are alike and are drawn together.
        weight: shape (n,), how many rows each stands for; None is one.
    """
    names, number = np.unique(cluster.astype(str), return_inverse=True)
    sums, counts = np.zeros((2, len(names), len(PROBABILITIES)))
    for j, output in enumerate(PROBABILITIES):
        rows = counted(output, Y, failing)
        y = Y[rows, j]
        ours_p, theirs_p = (np.clip(P[rows, j], _TINY, 1 - _TINY) for P in (ours, theirs))
        gain = y * np.log(ours_p / theirs_p) + (1 - y) * np.log((1 - ours_p) / (1 - theirs_p))
        w = np.ones(len(y)) if weight is None else weight[rows]
        sums[:, j] = np.bincount(number[rows], w * gain, len(names))
        counts[:, j] = np.bincount(number[rows], w, len(names))
    present = counts.sum(axis=0) > 0
    draws = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)

    def mean_gain(drawn: npt.NDArray[Any]) -> npt.NDArray[Any]:
        gains: Floats = (drawn @ sums[:, present] / np.maximum(drawn @ counts[:, present], _TINY)).mean(axis=-1)
        return gains.round(_DIGITS)

    low, high = np.quantile(mean_gain(draws), (0.05, 0.95))
    return float(mean_gain(np.ones(len(names)))), float(low), float(high)


def plot(
    folder: Path,
    predictions: Mapping[str, Floats],
    Y: Floats,
    failing: Floats,
    *,
    feature_names: Sequence[str],
    importance: Floats,
) -> None:
    """Write precision-recall, ROC, reliability and importance plots as PNG files.

    Args:
        predictions: probabilities (n, 6) by the name of what made them; the first is the model.
        importance: of each feature, in log-odds.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def figure(width: float, height: float) -> Figure:
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(made)  # Without pyplot, so without global state.
        return made

    for kind in ("precision_recall", "roc", "reliability"):
        drawn = figure(5 * len(HORIZONS_H), 9)
        axes = drawn.subplots(2, len(HORIZONS_H)).ravel()
        for j, (output, axis) in enumerate(zip(PROBABILITIES, axes, strict=True)):
            rows = counted(output, Y, failing)
            y = Y[rows, j]
            axis.set_title(f"{output} ({len(y):,} rows, {y.mean() if len(y) else 0:.2%} positive)")
            if 0 < y.sum() < len(y):
                for name, P in predictions.items():
                    _curve(axis, kind, name, P[rows, j], y)
                axis.legend()
        drawn.savefig(folder / f"{kind}.png", dpi=90)

    order = np.argsort(importance)
    drawn = figure(8, 1 + 0.25 * len(order))
    axis = drawn.subplots()
    axis.barh([feature_names[i] for i in order], importance[order])
    axis.set_xlabel("mean absolute contribution to the log-odds of an onset within 24 h")
    drawn.savefig(folder / "importance.png", dpi=90)


def _curve(axis: object, kind: str, name: str, p: Floats, y: Floats) -> None:
    if kind == "precision_recall":
        precision, recall, _ = metrics.precision_recall_curve(y, p)
        _line(axis, recall, precision, name, "recall", "precision")
    elif kind == "roc":
        false_positive, true_positive, _ = metrics.roc_curve(y, p)
        _line(axis, false_positive, true_positive, name, "false positive rate", "true positive rate")
    else:
        predicted, observed, _ = reliability(p, y)
        _line(axis, predicted, observed, name, "predicted", "observed", marker="o")


def _line(axis: object, x: Floats, y: Floats, name: str, x_label: str, y_label: str, marker: str = "") -> None:
    axis.plot(x, y, label=name, marker=marker)  # type: ignore[attr-defined]
    axis.set(xlabel=x_label, ylabel=y_label)  # type: ignore[attr-defined]
