"""The MLflow registry as training uses it: where it is, and how a version becomes the champion."""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from urlhealth.errors import InvalidRequest, ModelMismatch, NotFound, StoreUnavailable
from urlhealth.prediction.champion import ChampionWatch, load_bundled, load_version, unavailable
from urlhealth.prediction.promotion import CHALLENGER, promote, rollback, versions
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from urlhealth.prediction.estimators import HealthForecaster

log = logging.getLogger(__name__)

__all__ = ["CHALLENGER", "EXPERIMENT", "find", "promote", "resolve", "rollback", "tracking", "versions"]

EXPERIMENT: Final = "url-health"


@contextmanager
def tracking(settings: Settings) -> Iterator["MlflowClient"]:
    """MLflow's client, with its fluent calls going to the platform's tracking store, and without its chatter.

    Creates the store in the home folder on first use, with the bundled model as first champion. MLflow keeps the
    address in the process and in its environment; all is afterwards as it was.

    Raises:
        StoreUnavailable: the store cannot be opened.
    """
    import mlflow
    import mlflow.pyfunc  # here, for when MLflow imports it, it switches its messages on
    from mlflow.utils.logging_utils import MLFLOW_LOGGING_STREAM

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    chatter, MLFLOW_LOGGING_STREAM.enabled = MLFLOW_LOGGING_STREAM.enabled, False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            client = _opened(settings)
            _register_bundled(client)
            yield client
        finally:
            mlflow.set_tracking_uri(before)
            MLFLOW_LOGGING_STREAM.enabled = chatter


def _opened(settings: Settings) -> "MlflowClient":
    import mlflow

    uri = settings.resolved_tracking_uri
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        if client.get_experiment_by_name(EXPERIMENT) is None:
            embedded = not settings.mlflow_tracking_uri
            client.create_experiment(EXPERIMENT, settings.mlflow_artifacts.as_uri() if embedded else None)
    except Exception as error:  # MLflow lets through whatever its back ends raise.
        raise unavailable(uri, error) from error
    return client


def resolve(settings: Settings, name: str | None) -> tuple["HealthForecaster", str]:
    """The forecaster that a name means, and what to call it.

    Args:
        name: `url-health@ALIAS` or `url-health/VERSION`; None is the champion. The champion of an empty registry is
            the bundled model.

    Raises:
        InvalidRequest: the name is not spelt so.
        NotFound: there is no such model.
        ModelMismatch, StoreUnavailable: it cannot be loaded.
    """
    spelt = re.fullmatch(rf"{MODEL_NAME}(?:@(?P<alias>[\w.-]+)|/(?P<version>\d+))", name or f"{MODEL_NAME}@{CHAMPION}")
    if spelt is None:
        raise InvalidRequest(f"no model can be called {name!r}: write {MODEL_NAME}@ALIAS or {MODEL_NAME}/VERSION")
    alias, version = spelt["alias"], spelt["version"]
    if alias == CHAMPION:
        watch = ChampionWatch(settings)
        watch.refresh()
        if watch.current is None:
            raise StoreUnavailable(str(watch.problem))
        return watch.current.forecaster, f"{MODEL_NAME} version {watch.current.version}"
    with tracking(settings) as client:
        version = version or find(client, alias)
        return load_version(client.tracking_uri, version), f"{MODEL_NAME} version {version}"


def find(client: "MlflowClient", alias: str) -> str:
    """The version with an alias.

    Raises:
        NotFound: no version has it.
    """
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(MODEL_NAME, alias).version)
    except MlflowException as error:
        raise NotFound(f"no version of {MODEL_NAME} is called {alias}: see `urlhealth models list`") from error


def _register_bundled(client: "MlflowClient") -> None:
    """Make the bundled model the first version, and champion, of a registry that has none.

    Where the list of features was changed it cannot serve; then the first model that is trained has its place.
    """
    if client.search_registered_models(f"name='{MODEL_NAME}'"):
        return
    try:
        bundled = load_bundled()
    except ModelMismatch as error:
        log.warning("the bundled model is not registered: %s", error)
        return
    import mlflow

    from models.runs import log_model

    mlflow.set_experiment(EXPERIMENT)
    with mlflow.start_run(run_name="bundled"):
        version = log_model(bundled, None, {"origin": "bundled"})
    client.update_model_version(MODEL_NAME, version, description="ships with urlhealth; see docs/model-card.md")
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
