"""The model that serves: follows the alias `champion` in the MLflow registry."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from urlhealth.errors import UrlHealthError
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
        """Look at the registry once; True when another version serves now. Imports MLflow: never call it in a request.

        A version that cannot be loaded is logged once, and the old one goes on serving.
        """
        changed = self._registry_exists() and self._follow()
        self.looked = True
        return changed

    def _follow(self) -> bool:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self._settings.resolved_tracking_uri)
        try:
            version = str(client.get_model_version_by_alias(MODEL_NAME, CHAMPION).version)
        except MlflowException:
            return False
        if version == self._refused_version or (self.current is not None and self.current.version == version):
            return False
        try:
            forecaster = self._load(version)
        except (UrlHealthError, MlflowException, OSError, ValueError) as error:
            self._refused_version = version
            log.error("model %s version %s cannot serve: %s", MODEL_NAME, version, error)
            return False
        self.current = Champion(name=MODEL_NAME, version=version, forecaster=forecaster)
        log.info("model %s version %s serves", MODEL_NAME, version)
        return True

    def _registry_exists(self) -> bool:
        # Opening MLflow's SQLite file creates and migrates it, which takes seconds: not before somebody trained.
        uri = self._settings.resolved_tracking_uri
        return not uri.startswith("sqlite:///") or Path(uri.removeprefix("sqlite:///")).exists()

    def _load(self, version: str) -> "HealthForecaster":
        import mlflow.artifacts

        from urlhealth.prediction.estimators import load_forecaster

        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=f"models:/{MODEL_NAME}/{version}", tracking_uri=self._settings.resolved_tracking_uri
        )
        return load_forecaster(Path(folder))
