"""One training run, written to MLflow: what went in, how good it is beside the baselines, and the model itself."""

import importlib.metadata
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from models import evaluation, registry
from models.dataset import Dataset
from urlhealth.prediction.champion import DIGEST
from urlhealth.prediction.estimators import HealthForecaster
from urlhealth.prediction.model_files import TRUSTED_TYPES, digest_of
from urlhealth.settings import ROOT
from urlhealth.vocabulary import MODEL_NAME, PROBABILITIES

#: Rows whose contributions are averaged for the importance plot.
_IMPORTANCE_ROWS = 5_000


def log_run(
    model: HealthForecaster,
    predictions: Mapping[str, evaluation.Floats],
    train: Dataset,
    test: Dataset,
    *,
    cluster: npt.NDArray[Any],
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    candidates: Mapping[str, float] = MappingProxyType({}),
) -> str:
    """Log and register a model inside `registry.tracking`; returns its version.

    Args:
        predictions: for the test rows, by the name of what made them; the first is the model's.
        train, test: what it was fitted to, and what it is judged on.
        cluster: shape (n,): test rows with the same label are drawn together in the bootstrap of the figures.
        candidates: mean log loss out of fold of those that were tried, by name.
        tags: of the run and of the registered version, beside those for data and code version.
    """
    import mlflow

    tags = {**tags, **code_version(), "data_fingerprint": train.fingerprint()}
    mlflow.set_experiment(registry.EXPERIMENT)
    with mlflow.start_run(tags=dict(tags)):
        mlflow.log_params(dict(params))
        evaluated = {name: evaluation.evaluate(P, test.Y, test.failing) for name, P in predictions.items()}
        for name, by_output in evaluated.items():
            for output, figures in by_output.items():
                prefix = output if name == "model" else f"{_slug(name)}/{output}"
                mlflow.log_metrics({f"{prefix}/{figure}": value for figure, value in figures.figures().items()})
        P = next(iter(predictions.values()))
        spread = evaluation.intervals(P, test.Y, test.failing, cluster, np.random.default_rng(0))
        for output, intervals in spread.items():
            for figure, (low, high) in intervals.items():
                mlflow.log_metrics({f"{output}/{figure}_low_5": low, f"{output}/{figure}_high_95": high})
        mlflow.log_metrics({f"candidates/{_slug(name)}/log_loss": loss for name, loss in candidates.items()})
        mlflow.log_text(card(evaluated, spread, {**params, **tags}), "model-card.md")
        for rows, context in ((train, "training"), (test, "testing")):
            mlflow.log_input(_described(rows, model), context=context)
        feature_names, importance = model.feature_names_in_.tolist(), _importance(model, test)
        mlflow.log_dict(dict(zip(feature_names, importance.tolist(), strict=True)), "importance.json")
        with tempfile.TemporaryDirectory() as folder:
            evaluation.plot(
                Path(folder),
                predictions,
                test.Y,
                test.failing,
                feature_names=feature_names,
                importance=importance,
            )
            mlflow.log_artifacts(folder, "plots")
        lock = ROOT / "requirements.lock"
        if lock.exists():
            mlflow.log_artifact(str(lock))
        return log_model(model, test.X[:3], tags)


def card(
    evaluated: Mapping[str, Mapping[str, evaluation.Metrics]],
    spread: Mapping[str, Mapping[str, tuple[float, float]]],
    facts: Mapping[str, Any],
) -> str:
    """The model's own card, Markdown: its figures beside the baselines', and what it was trained on.

    Args:
        evaluated: figures by what made the predictions (the model first), and by output.
        spread: of :func:`evaluation.intervals`, of the model.
        facts: parameters and tags of the run.
    """
    own, *others = evaluated.values()
    heads = ["forecast", "rows", "base rate", "average precision", "5 % to 95 %", "Brier score", "5 % to 95 %"]
    heads += ["calibration error", *(f"average precision: {name}" for name in list(evaluated)[1:])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for output, figures in own.items():
        span = {name: f"{low:.4f} to {high:.4f}" for name, (low, high) in spread.get(output, {}).items()}
        cells = [output, f"{figures.rows:,}", f"{figures.base_rate:.4f}", f"{figures.average_precision:.4f}"]
        cells += [span.get("average_precision", ""), f"{figures.brier:.6f}", span.get("brier", "")]
        cells += [f"{figures.ece:.5f}", *(f"{other[output].average_precision:.4f}" for other in others)]
        lines.append("| " + " | ".join(cells) + " |")
    about = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    return (
        f"# {MODEL_NAME}\n\nWhat it is, how it is made and what it is not for: docs/model-card.md of urlhealth.\n\n"
        "## On rows newer than all it learnt from\n\n" + "\n".join(lines) + f"\n\n## How it was trained\n\n{about}\n"
    )


def code_version() -> dict[str, str]:
    """Tags that say which code trained: the package's version, and the commit where this is a git checkout."""
    tags = {"code_version": importlib.metadata.version("urlhealth")}
    try:
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return tags
    return {**tags, "code_commit": commit.stdout.strip()}


def log_model(model: HealthForecaster, example: npt.NDArray[np.float32] | None, tags: Mapping[str, str]) -> str:
    """Log a model into the present run and register it; returns its version. `example`: some rows of features."""
    import mlflow
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    columns = model.feature_names_in_.tolist()
    info = mlflow.sklearn.log_model(
        model,
        name="model",
        serialization_format="skops",
        skops_trusted_types=list(TRUSTED_TYPES),
        pyfunc_predict_fn="predict_proba",
        registered_model_name=MODEL_NAME,
        signature=ModelSignature(
            inputs=Schema([ColSpec("float", name) for name in columns]),
            outputs=Schema([ColSpec("double", name) for name in PROBABILITIES]),
        ),
        input_example=None if example is None else pd.DataFrame(example, columns=columns),
        # Named here, for else MLflow starts a process to find them out.
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("numpy", "scikit-learn", "skops")],
        tags=dict(tags),
    )
    version = str(info.registered_model_version)
    client = mlflow.MlflowClient()
    with tempfile.TemporaryDirectory() as folder:
        logged = mlflow.artifacts.download_artifacts(info.model_uri, dst_path=folder)
        digest = digest_of(Path(logged))
    for key, value in {**tags, DIGEST: digest}.items():
        client.set_model_version_tag(MODEL_NAME, version, key, value)
    return version


def _described(rows: Dataset, model: HealthForecaster) -> Any:
    """The rows as MLflow notes a dataset: its shape, its fingerprint and where it came from."""
    import mlflow.data

    features = {name: rows.X[:, j] for j, name in enumerate(model.feature_names_in_.tolist())}
    targets = {name: rows.Y[:, j] for j, name in enumerate(PROBABILITIES)}
    return mlflow.data.from_numpy(features, targets=targets, name=MODEL_NAME, digest=rows.fingerprint())


def _importance(model: HealthForecaster, test: Dataset) -> evaluation.Floats:
    up = np.flatnonzero(test.failing == 0)
    some = up[:: max(1, len(up) // _IMPORTANCE_ROWS)]
    importance: evaluation.Floats = np.abs(model.contributions(test.X[some], "onset_24h")).mean(axis=0)
    return importance


def _slug(name: str) -> str:
    return name.replace(" ", "_")
