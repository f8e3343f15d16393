"""The model that serves: follows the alias `champion` in the MLflow registry."""

import logging
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from urlhealth.errors import StoreUnavailable, UrlHealthError
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

if TYPE_CHECKING:
    from urlhealth.prediction.estimators import HealthForecaster

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A loaded model, with the name and version that replies carry."""

    name: str
    version: str
    forecaster: "HealthForecaster"


class ChampionWatch:
    """Holds the present champion, and replaces it when the alias moves. Readers see the old or the new, never half."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._refused_version: str | None = None
        #: None until a model was registered and loaded.
        self.current: Champion | None = None
        #: Whether the registry was looked at.
        self.looked = False

    def refresh(self) -> bool:
        """Look at the registry once; True when another version serves now. Not for requests: it may import MLflow.

        A version that cannot be loaded is logged once, and the old one goes on serving.
        """
        changed = self._follow()
        self.looked = True
        return changed

    def _follow(self) -> bool:
        version = self._registered_version()
        if version is None or version == self._refused_version:
            return False
        if self.current is not None and self.current.version == version:
            return False
        try:
            forecaster = self._load(version)
        except (UrlHealthError, OSError, ValueError) as error:
            self._refused_version = version
            log.error("model %s version %s cannot serve: %s", MODEL_NAME, version, error)
            return False
        self.current = Champion(name=MODEL_NAME, version=version, forecaster=forecaster)
        log.info("model %s version %s serves", MODEL_NAME, version)
        return True

    def _registered_version(self) -> str | None:
        uri = self._settings.resolved_tracking_uri
        if uri.startswith("sqlite:///"):
            return _peek(Path(uri.removeprefix("sqlite:///")))
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return str(MlflowClient(tracking_uri=uri).get_model_version_by_alias(MODEL_NAME, CHAMPION).version)
        except MlflowException:
            return None

    def _load(self, version: str) -> "HealthForecaster":
        import mlflow.artifacts
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        from urlhealth.prediction.estimators import load_forecaster

        uri = self._settings.resolved_tracking_uri
        try:
            # Not `models:/name/version`: MLflow would resolve that in a registry in the working folder, and make it.
            source = MlflowClient(tracking_uri=uri).get_model_version_download_uri(MODEL_NAME, version)
            folder = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=uri)
        except MlflowException as error:
            raise StoreUnavailable(f"its files cannot be read: {error}") from error
        return load_forecaster(Path(folder))


def _peek(registry: Path) -> str | None:
    """The champion's version in MLflow's SQLite file, read without MLflow.

    MLflow makes and migrates the file when it opens it: that takes seconds, and would get in the way of a first
    training that does the same at that moment.
    """
    if not registry.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{registry}?mode=ro", uri=True)) as connection:
            row = connection.execute(
                "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", (MODEL_NAME, CHAMPION)
            ).fetchone()
    except sqlite3.OperationalError:  # Not made yet, or busy: the next look will tell.
        return None
    return None if row is None else str(row[0])
