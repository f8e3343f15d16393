"""The MLflow registry as training uses it: where it is, who the champion is, and how another becomes it."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy.exc import SQLAlchemyError

from urlhealth.errors import StoreUnavailable
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

#: Alias of the newest model that did not become champion.
CHALLENGER: Final = "challenger"
EXPERIMENT: Final = "url-health"


@contextmanager
def tracking(settings: Settings) -> Iterator["MlflowClient"]:
    """MLflow's client, with its fluent calls going to the platform's tracking store, and without its chatter.

    Creates the store in the home folder on first use. MLflow keeps the address in the process and in its environment;
    both are afterwards as they were.

    Raises:
        StoreUnavailable: the store cannot be opened.
    """
    import mlflow

    before = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield _opened(settings)
        finally:
            mlflow.set_tracking_uri(before)


def _opened(settings: Settings) -> "MlflowClient":
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = settings.resolved_tracking_uri
    try:
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        if client.get_experiment_by_name(EXPERIMENT) is None:
            embedded = not settings.mlflow_tracking_uri
            client.create_experiment(EXPERIMENT, settings.mlflow_artifacts.as_uri() if embedded else None)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StoreUnavailable(
            f"the MLflow store {uri} cannot be used ({reason}): see MLFLOW_TRACKING_URI and URLHEALTH_HOME"
        ) from error
    return client


def champion(client: "MlflowClient") -> "ModelVersion | None":
    """The version that serves; None if there is none yet."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(MODEL_NAME, CHAMPION)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def promote(client: "MlflowClient", version: str) -> None:
    """Make a version the champion. It is no challenger any more."""
    client.set_registered_model_alias(MODEL_NAME, CHAMPION, version)
    aliases = client.get_registered_model(MODEL_NAME).aliases
    if aliases.get(CHALLENGER) == version:
        client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)


def downloaded(client: "MlflowClient", version: "ModelVersion") -> Path:
    """A local folder with the files of a version."""
    import mlflow.artifacts

    uri = client.get_model_version_download_uri(version.name, version.version)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, tracking_uri=client.tracking_uri))
