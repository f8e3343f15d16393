"""The model that serves: follows the alias `champion` in the MLflow registry, or bundled until there is one."""

import http.client
import logging
import sqlite3
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from urlhealth.errors import ModelMismatch, StoreUnavailable, UrlHealthError, one_line
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, MODEL_NAME

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from urlhealth.prediction.estimators import HealthForecaster

log = logging.getLogger(__name__)

#: Version of the model that ships with the package, and serves where none is registered.
BUNDLED: Final = "bundled"
BUNDLED_FILE: Final = Path(__file__).with_name("bundled") / "url-health.skops"

_SQLITE: Final = "sqlite:///"
#: Time that a tracking server has to answer whether it is there.
_ANSWER_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A loaded model, with the name and version that replies carry."""

    name: str
    version: str
    forecaster: "HealthForecaster"


class ChampionWatch:
    """Holds the present champion, and replaces it when the alias moves. Readers see the old or the new, never half."""

    def __init__(self, settings: Settings) -> None:
        self._uri = settings.resolved_tracking_uri
        #: Why versions do not fit this platform, and never will.
        self._refused: dict[str, str] = {}
        #: None until a model was loaded.
        self.current: Champion | None = None
        #: Whether the registry was looked at.
        self.looked = False
        #: Why the registered model does not serve, in words; None if it does, or if there is none.
        self.problem: str | None = None

    def check(self) -> None:
        """Make sure that the registry can be read, if there is one yet; without MLflow, whose import takes seconds.

        Raises:
            StoreUnavailable: saying which, why, and what to do.
        """
        if self._uri.startswith(_SQLITE):
            _peek(self._uri)
        elif self._uri.startswith(("http://", "https://")):
            try:
                urllib.request.urlopen(f"{self._uri.rstrip('/')}/health", timeout=_ANSWER_S).close()
            except urllib.error.HTTPError:
                pass  # It answers; whether it likes this caller is for MLflow to find out.
            except (OSError, ValueError, http.client.HTTPException) as error:
                raise unavailable(self._uri, getattr(error, "reason", error)) from error

    def refresh(self) -> bool:
        """Look at the registry once; True when another version serves now. Not for requests: it may import MLflow.

        What keeps the registered version from serving is kept as `problem`; the old one goes on serving. At the next
        look it is tried again, unless it is a model that does not fit.
        """
        try:
            changed, self.problem = self._follow(), None
        except (UrlHealthError, OSError) as error:
            changed, self.problem = False, one_line(error)
        self.looked = True
        return changed

    def _follow(self) -> bool:
        version = self._registered_version() or (self.current.version if self.current else BUNDLED)
        if self.current is not None and self.current.version == version:
            return False
        if version in self._refused:
            raise ModelMismatch(self._refused[version])
        try:
            forecaster = load_bundled() if version == BUNDLED else load_version(self._uri, version)
        except UrlHealthError as error:
            words = f"{MODEL_NAME} version {version} cannot serve: {error}"
            if isinstance(error, ModelMismatch):
                self._refused[version] = words
            raise type(error)(words) from error
        self.current = Champion(name=MODEL_NAME, version=version, forecaster=forecaster)
        log.info("model %s version %s serves", MODEL_NAME, version)
        return True

    def _registered_version(self) -> str | None:
        if self._uri.startswith(_SQLITE):
            return _peek(self._uri)
        registered = champion_version(self._uri)
        return None if registered is None else str(registered.version)


def load_bundled() -> "HealthForecaster":
    """The forecaster that ships with the package, trained on real histories of others; see docs/model-card.md.

    Raises:
        ModelMismatch: the file is not the one of this version.
    """
    from urlhealth.prediction.estimators import read_forecaster

    return read_forecaster(BUNDLED_FILE)


def load_version(tracking_uri: str, version: str) -> "HealthForecaster":
    """The forecaster of a registered version.

    Raises:
        ModelMismatch: it is none, or not for this version's features.
        StoreUnavailable: its files cannot be read.
    """
    import mlflow.artifacts
    from mlflow import MlflowClient

    from urlhealth.prediction.estimators import load_forecaster

    with TemporaryDirectory(prefix="urlhealth-model-") as folder:
        try:
            # Not `models:/name/version`: MLflow would resolve that in a registry in the working folder, and make it.
            source = MlflowClient(tracking_uri=tracking_uri).get_model_version_download_uri(MODEL_NAME, version)
            path = mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=tracking_uri)
            return load_forecaster(Path(path))
        except ModelMismatch:
            raise
        except Exception as error:  # MLflow lets through whatever its back ends raise.
            raise StoreUnavailable(f"its files cannot be read: {one_line(error)}") from error


def champion_version(tracking_uri: str) -> "ModelVersion | None":
    """The version that should serve; None if there is none yet.

    Raises:
        StoreUnavailable: the registry cannot say.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        try:
            return client.get_model_version_by_alias(MODEL_NAME, CHAMPION)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):  # no model, or no alias
                return None
            raise
    except Exception as error:  # MLflow lets through whatever its back ends raise.
        raise unavailable(tracking_uri, error) from error


def unavailable(uri: str, error: object) -> StoreUnavailable:
    """What to raise when MLflow's store fails."""
    return StoreUnavailable(
        f"the MLflow store {uri} cannot be used: {one_line(error)}; see MLFLOW_TRACKING_URI and URLHEALTH_HOME"
    )


def _peek(uri: str) -> str | None:
    """The champion's version in MLflow's SQLite file, read without MLflow.

    MLflow makes and migrates the file when it opens it: that takes seconds, and would get in the way of a first
    training that does the same at that moment.
    """
    registry = Path(uri.removeprefix(_SQLITE))
    try:
        if not registry.exists():
            return None
        with closing(sqlite3.connect(f"{registry.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(
                "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?", (MODEL_NAME, CHAMPION)
            ).fetchone()
    except (sqlite3.DatabaseError, OSError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_BUSY):  # No tables yet, or busy: the next look will tell.
            return None
        raise unavailable(uri, error) from error
    return None if row is None else str(row[0])
