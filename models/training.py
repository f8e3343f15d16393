"""Train on the stored history: rows through Feast, a model and baselines, a run in MLflow, perhaps a new champion.

The newest part of the records is held out, with a gap before it so that no label reaches from one part into the
other. What is registered is the very model that was measured: it is not fitted anew to all rows. So its figures are its
own, and the next training can compare with it on rows that it never saw.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from models import dataset, registry, tables
from models.baselines import eight, logistic
from models.dataset import AHEAD_MS, STEP_MS, WARM_UP_MS, Dataset, History
from models.evaluation import Floats, Metrics, counted, evaluate, loss_difference, mean_log_loss
from models.labels import HOUR_MS
from models.recipe import LEARNT, STATE_FEATURE, fitted
from models.replay import replay
from models.runs import log_run
from models.search import BUDGET, search
from urlhealth.errors import ModelMismatch, NotEnoughHistory, StoreUnavailable
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.prediction.champion import champion_version, load_version
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.vocabulary import MODEL_NAME, PROBABILITIES

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from urlhealth.platform import Platform
    from urlhealth.settings import Settings

#: Features that each baseline learns from beside the state now; one logistic curve for targets up, one for failing.
BASELINES: Final = {
    "as it is now": (),
    "its past failure rate": ("failing_share_ever",),
    "its flips": ("log_flips_24h", "log_flips_7d"),
}
#: A new model must beat these. The others are for comparison: on few targets a smaller model may win.
GATE: Final = ("as it is now", "its past failure rate")
#: The logistic regression of `models.baselines`.
EIGHT_FEATURES: Final = "eight features"
BASELINE_RIDGE: Final = (1.0,) * len(PROBABILITIES)

#: Why a training is made that nobody gave a reason for.
ASKED: Final = "it was asked for"

#: Share of the time that is held out, and the least that it must be.
TEST_SHARE = 0.2
TEST_MS = 24 * HOUR_MS
#: Least time to learn from.
TRAIN_MS = 24 * HOUR_MS
#: Length of history without which there is no training.
NEEDED_MS = WARM_UP_MS + TRAIN_MS + AHEAD_MS + TEST_MS + AHEAD_MS
#: Rows that a comparison with the champion needs.
COMPARED_ROWS = 100
#: Groups from which on a bootstrap draws groups; with fewer, it draws days.
FEWEST_GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What came of a training."""

    #: Of the registered model.
    version: str
    promoted: bool
    #: Why it was promoted, or why not.
    reason: str
    #: Figures on the held-out rows by what made the predictions ("model", the baselines) and by output.
    metrics: Mapping[str, Mapping[str, Metrics]]


def train(
    platform: "Platform",
    *,
    seed: int = 0,
    promote: bool = True,
    budget: int = BUDGET,
    why: str = ASKED,
    max_rows: int = 200_000,
    report: Callable[[str], Any] = print,
) -> TrainingReport:
    """Train, log and register a model; make it the champion if there is none or if it is better.

    The features must be up to date (`platform.build_features()`).

    Args:
        seed: of the instants chosen and of the trees.
        promote: False leaves the champion as it is.
        budget: how many of `recipe.CANDIDATES` are tried, the first ones; 1 is no search.
        why: what made somebody train, for the note in MLflow.
        max_rows: rows to learn from and to test on together.
        report: called with a line of text for each step.

    Raises:
        NotEnoughHistory: nothing is stored, too little, or nothing that ever failed; says what is needed.
        StoreUnavailable: MLflow's store cannot be opened.
    """
    rng = np.random.default_rng(seed)
    known_for_s = platform.settings.known_for_s
    history = dataset.read_history(platform.crawl)
    _require_length(history)
    rows = dataset.build(platform.features.feast(), history, known_for_s=known_for_s, max_rows=max_rows, rng=rng)
    return _train(platform.settings, history, rows, seed=seed, promote=promote, budget=budget, why=why, report=report)


def train_from(
    settings: "Settings",
    file: Path,
    *,
    seed: int = 0,
    promote: bool = True,
    budget: int = BUDGET,
    why: str = ASKED,
    max_rows: int = 700_000,
    report: Callable[[str], Any] = print,
) -> TrainingReport:
    """As :func:`train`, from a history in a Parquet file (see `models.tables`) in place of the stored one.

    Raises:
        InvalidRequest: the file cannot be used.
    """
    rng = np.random.default_rng(seed)
    verdicts = tables.read_history(file)
    history = History.of(verdicts)
    _require_length(history)
    target, t_ms = dataset.instants(history, max_rows=max_rows, rng=rng)
    rows = dataset.labelled(
        history,
        target,
        t_ms,
        lambda entities, at_ms: replay(verdicts, entities[:, 0], at_ms, known_for_s=settings.known_for_s).X,
        known_for_s=settings.known_for_s,
    )
    return _train(settings, history, rows, seed=seed, promote=promote, budget=budget, why=why, report=report)


def _train(
    settings: "Settings",
    history: History,
    rows: Dataset,
    *,
    seed: int,
    promote: bool,
    budget: int,
    why: str,
    report: Callable[[str], Any],
) -> TrainingReport:
    report(f"history: {len(history.ts_ms):,} verdicts of {len(history.url):,} targets, {_days(_length_ms(history))}")
    learn, test, test_from_ms = split(rows)
    _require_classes(learn, test)
    report(f"rows: {len(learn):,} to learn from, {len(test):,} newer ones to test on, {rows.X.shape[1]} features each")

    found = search(learn, budget=budget, seed=seed, report=report)
    model = fitted(learn, seed=seed, name=found.name)
    baselines = {
        name: HealthForecaster(state_feature=STATE_FEATURE, use=use, ridge=BASELINE_RIDGE, boosted=False).fit(
            learn.X, learn.Y, feature_names=names(VECTOR)
        )
        for name, use in BASELINES.items()
    }
    predictions = {name: made.predict_proba(test.X) for name, made in {"model": model, **baselines}.items()}
    predictions[EIGHT_FEATURES] = _eight_features(history, learn, test, known_for_s=settings.known_for_s)
    metrics = {name: evaluate(P, test.Y, test.failing) for name, P in predictions.items()}
    for line in _table(metrics):
        report(line)

    params = {
        "seed": seed,
        "rows_train": len(learn),
        "rows_test": len(test),
        "targets": len(history.url),
        "groups": len(set(history.group)),
        "verdicts": len(history.ts_ms),
        "history_days": round(_length_ms(history) / HOUR_MS / 24, 2),
        "known_for_s": settings.known_for_s,
        "step_s": STEP_MS // 1000,
        "features": len(VECTOR),
        "learnt": len(LEARNT),
        "estimator": type(model).__name__,
        "budget": budget,
        "candidate": found.name,
        "boosted": model.boosted,
        "ridge": tuple(model.ridge),
    }
    with registry.tracking(settings) as client:
        version = log_run(
            model,
            predictions,
            learn,
            test,
            cluster=_clusters(test)[1],
            params=params,
            tags={"test_from_ms": str(test_from_ms), "why": why},
            candidates=found.losses,
        )
        better, reason = _judge(client, test, predictions, metrics)
        promoted = promote and better
        if promoted:
            registry.promote(client, version)
        else:
            client.set_registered_model_alias(MODEL_NAME, registry.CHALLENGER, version)
        if better and not promote:
            reason = f"would be promoted, but was not to be ({reason})"
        registered = client.update_model_version(MODEL_NAME, version, description=reason)
        client.set_tag(registered.run_id, "mlflow.note.content", f"Trained because: {why}.\n\nDecided: {reason}.")
    report(f"{MODEL_NAME} version {version} {'is the champion' if promoted else 'is a challenger'}: {reason}")
    return TrainingReport(version=version, promoted=promoted, reason=reason, metrics=metrics)


def compare(platform: "Platform", pair: tuple[str, str], *, seed: int = 0, max_rows: int = 200_000) -> Iterator[str]:
    """Two registered models on the newest part of the stored history: lines of text.

    The features must be up to date. A model that has learnt from that part is the better for it; each version's tag
    `test_from_ms` says where what it has not seen begins.
    """
    history = dataset.read_history(platform.crawl)
    _require_length(history)
    rows = dataset.build(
        platform.features.feast(),
        history,
        known_for_s=platform.settings.known_for_s,
        max_rows=max_rows,
        rng=np.random.default_rng(seed),
    )
    _, test, _ = split(rows)
    found = [registry.resolve(platform.settings, name) for name in pair]
    predictions = {label: forecaster.predict_proba(test.X) for forecaster, label in found}
    yield from _table({label: evaluate(P, test.Y, test.failing) for label, P in predictions.items()})
    if len(predictions) == 2:
        first, second = predictions
        yield f"{first} against {second}: {_gain(predictions[first], predictions[second], test)[1]}"


def split(rows: Dataset) -> tuple[Dataset, Dataset, int]:
    """Rows to learn from, newer rows to test on, and when the latter begin: no label of the first reaches so far."""
    if not len(rows):
        return rows, rows, 0
    first, last = int(rows.t_ms.min()), int(rows.t_ms.max())
    test_from_ms = last - max(TEST_MS, round(TEST_SHARE * (last - first)))
    learn = rows.take(rows.t_ms + AHEAD_MS <= test_from_ms)
    return learn, rows.take(rows.t_ms > test_from_ms), test_from_ms


def _judge(
    client: "MlflowClient",
    test: Dataset,
    predictions: Mapping[str, Floats],
    metrics: Mapping[str, Mapping[str, Metrics]],
) -> tuple[bool, str]:
    """Whether the model should become champion, and why: by mean log loss over the outputs, on the newest rows.

    It must be better than the baselines of the gate, and better than the champion beyond noise.
    """
    own = mean_log_loss(metrics["model"])
    losses = {name: mean_log_loss(metrics[name]) for name in GATE}
    best_baseline = min(losses, key=lambda name: losses[name])
    against = f'mean log loss {own:.6f}, baseline "{best_baseline}" {losses[best_baseline]:.6f}'
    champion = champion_version(client.tracking_uri)
    if champion is None:
        return True, f"there was no champion ({against})"
    if own >= losses[best_baseline]:
        return False, f"not better than a baseline ({against})"
    try:
        present = load_version(client.tracking_uri, str(champion.version))
    except (ModelMismatch, StoreUnavailable) as error:
        return True, f"version {champion.version} cannot be loaded any more ({error}); {against}"
    unseen = np.flatnonzero(test.t_ms > int(champion.tags.get("test_from_ms", 0)))
    if len(unseen) < COMPARED_ROWS:
        return (
            False,
            f"version {champion.version} has seen the rows to compare on: collect newer ones ({against})",
        )
    rows = test.take(unseen)
    better, words = _gain(predictions["model"][unseen], present.predict_proba(rows.X), rows)
    return better, f"against version {champion.version}: {words} ({against})"


def _gain(ours: Floats, theirs: Floats, rows: Dataset) -> tuple[bool, str]:
    """Whether ours are better than theirs beyond noise, and by how much, in words."""
    kind, cluster = _clusters(rows)
    gain, low, high = loss_difference(ours, theirs, rows.Y, rows.failing, cluster, np.random.default_rng(0))
    verdict = "better beyond noise" if low > 0 else "worse beyond noise" if high < 0 else "no difference beyond noise"
    return low > 0, f"{verdict}: mean log loss lower by {gain:.6f} (5 % to 95 % by {kind}: {low:.6f} to {high:.6f})"


def _clusters(rows: Dataset) -> tuple[str, npt.NDArray[Any]]:
    """What a bootstrap draws together: rows of a group or, where groups are few, of a day."""
    if len(set(rows.group)) >= FEWEST_GROUPS:
        return "group", rows.group
    return "day", rows.t_ms // (24 * HOUR_MS)


def _eight_features(history: History, learn: Dataset, test: Dataset, *, known_for_s: float) -> Floats:
    """Probabilities of the test rows by the logistic regression on eight features, shape (n, 6)."""
    number = {url: i for i, url in enumerate(history.url)}

    def features(rows: Dataset) -> Floats:
        target = np.array([number[url] for url in rows.target], dtype=np.int64)
        return eight(history, target, rows.t_ms, known_for_s=known_for_s)

    X, X_test = features(learn), features(test)
    P = np.zeros(test.Y.shape)
    for j, output in enumerate(PROBABILITIES):
        rows = counted(output, learn.Y, learn.failing)
        y = learn.Y[rows, j]
        if 0 < y.sum() < len(y):
            P[:, j] = logistic(X[rows], y).predict_proba(X_test)[:, 1]
        else:
            P[:, j] = y.mean() if len(y) else 0.0
    return P


def _require_length(history: History) -> None:
    length_ms = _length_ms(history)
    if length_ms < NEEDED_MS:
        raise NotEnoughHistory(
            f"the history is too short to learn from: it spans {_days(length_ms)}, and {_days(NEEDED_MS)} are needed "
            "(one to warm up, one to learn from, one to test on, and the day that each of the two looks ahead)"
        )


def _require_classes(learn: Dataset, test: Dataset) -> None:
    if not len(learn) or not len(test):
        raise NotEnoughHistory(
            "the history has too few instants with a known state in its "
            f"{'older part, to learn from' if not len(learn) else 'newest part, to test on'}: probe more regularly"
        )
    known = learn.Y[~np.isnan(learn.Y)]
    if not (known == 1).any():
        raise NotEnoughHistory("nothing ever failed in the history: there is nothing to learn from yet")
    if not (known == 0).any():
        raise NotEnoughHistory("nothing was ever up in the history: there is nothing to learn from yet")


def _table(metrics: Mapping[str, Mapping[str, Metrics]]) -> Iterator[str]:
    """Average precision and Brier score by output, the model beside the baselines, as lines of text."""
    yield f"{'on held-out rows':<14} {'base rate':>9}  " + "  ".join(f"{name:>22}" for name in metrics)
    for output in PROBABILITIES:
        cells = [
            f"AP {m.average_precision:.3f} Brier {m.brier:.4f}" for m in (rows[output] for rows in metrics.values())
        ]
        base_rate = next(iter(metrics.values()))[output].base_rate
        yield f"{output:<16} {base_rate:>9.4f}  " + "  ".join(f"{cell:>22}" for cell in cells)


def _length_ms(history: History) -> int:
    return history.until_ms - int(history.ts_ms.min())


def _days(ms: float) -> str:
    return f"{ms / HOUR_MS / 24:.1f} days"
