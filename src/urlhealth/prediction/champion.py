"""The model that serves: follows the alias `champion` in the MLflow registry, or bundled until there is one."""

import http.client
import logging
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

import numpy as np

from urlhealth.errors import ModelMismatch, NoModel, NotFound, StoreUnavailable, UrlHealthError, one_line
from urlhealth.features.catalog import VECTOR
from urlhealth.features.columns import names
from urlhealth.settings import Settings, redacted
from urlhealth.vocabulary import CHAMPION, MODEL_NAME, PROBABILITIES

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from urlhealth.prediction.estimators import HealthForecaster

Read = TypeVar("Read")

log = logging.getLogger(__name__)

#: Version of the model that ships with the package, and serves where none is registered.
BUNDLED: Final = "bundled"
BUNDLED_FILE: Final = Path(__file__).with_name("bundled") / "url-health.skops"

#: Tag of a version: the digest of its file.
DIGEST: Final = "digest"

_SQLITE: Final = "sqlite:///"
#: In MLflow's tables: the version with an alias; when a version was made, and where it came from.
_ALIAS: Final = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
_CREATED: Final = (
    "SELECT creation_time, (SELECT value FROM model_version_tags AS tag WHERE tag.name = found.name "
    "AND tag.version = found.version AND key = 'origin') FROM model_versions AS found WHERE name = ? AND version = ?"
)
#: MLflow's codes for a model, version or alias that there is not.
_ABSENT: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
#: Time that a tracking server has to answer whether it is there.
_ANSWER_S: Final = 5.0


@dataclass(frozen=True, kw_only=True)
class Champion:
    """A loaded model, with the name and version that replies carry."""

    name: str
    version: str
    forecaster: "HealthForecaster"
    #: When its training registered it, ms since 1970 UTC; None of the bundled one, or if the registry cannot say.
    trained_ms: int | None = None


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
        #: How often a registered model could not be loaded.
        self.failures = 0

    def check(self) -> None:
        """Make sure that the registry can be read, if there is one yet; without MLflow, whose import takes seconds.

        Raises:
            StoreUnavailable: saying which, why, and what to do.
        """
        if self._uri.startswith(_SQLITE):
            _peek(self._uri, _ALIAS, (MODEL_NAME, CHAMPION))
        elif self._uri.startswith(("http://", "https://")):
            parts = urlsplit(self._uri)  # urllib takes user and password for a part of the name
            asked = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}/health"
            try:
                urllib.request.urlopen(asked, timeout=_ANSWER_S).close()
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
            self.failures += 1
        self.looked = True
        return changed

    def serving(self) -> Champion:
        """The model that serves now.

        Raises:
            NoModel: there is none yet, or none that can be loaded; says which.
        """
        current, problem = self.current, self.problem
        if current is None:
            raise NoModel(problem or f"no model is registered as {MODEL_NAME} yet: run `urlhealth train`")
        return current

    def _follow(self) -> bool:
        version = self._registered_version() or (self.current.version if self.current else BUNDLED)
        if self.current is not None and self.current.version == version:
            return False
        if version in self._refused:
            raise ModelMismatch(self._refused[version])
        try:
            loaded = load(self._uri, version)
        except UrlHealthError as error:
            words = f"{MODEL_NAME} version {version} cannot serve: {error}"
            if isinstance(error, ModelMismatch):
                self._refused[version] = words
            raise type(error)(words) from error
        self.current = loaded  # Requests under way keep the one that they began with.
        log.info("model %s version %s serves", MODEL_NAME, version)
        return True

    def _registered_version(self) -> str | None:
        return alias_version(self._uri, CHAMPION)


def load(tracking_uri: str, version: str) -> Champion:
    """A version, ready to serve: its files read, and rows scored with it.

    Raises:
        ModelMismatch: it is none, or not for this version's features, or does not give probabilities.
        NotFound: it is not registered.
        StoreUnavailable: its files cannot be read.
    """
    forecaster = load_bundled() if version == BUNDLED else load_version(tracking_uri, version)
    _warm_up(forecaster)
    trained_ms = None if version == BUNDLED else _trained_ms(tracking_uri, version)
    return Champion(name=MODEL_NAME, version=version, forecaster=forecaster, trained_ms=trained_ms)


def _trained_ms(tracking_uri: str, version: str) -> int | None:
    """When a version was trained; None for the bundled model, registered or not, and where nobody can say."""
    if tracking_uri.startswith(_SQLITE):
        row = _peek(tracking_uri, _CREATED, (MODEL_NAME, version))
        return None if row is None or row[1] == BUNDLED else int(row[0])
    from mlflow import MlflowClient

    try:
        found = MlflowClient(tracking_uri=tracking_uri).get_model_version(MODEL_NAME, version)
    except Exception as error:  # MLflow lets through whatever its back ends raise; it serves without this, too.
        log.warning("when version %s was trained cannot be read: %s", version, one_line(error))
        return None
    return None if found.tags.get("origin") == BUNDLED else int(found.creation_timestamp)


def _warm_up(forecaster: "HealthForecaster") -> None:
    """Score rows as requests do, with little known and of either state, so that no request is the first."""
    rows = np.full((3, len(VECTOR)), np.nan, np.float32)
    rows[1:] = 0.0
    rows[2, names(VECTOR).index("failing_now")] = 1.0
    try:
        probabilities = forecaster.predict_proba(rows)
    except Exception as error:  # A model made elsewhere may fail in any way.
        raise ModelMismatch(f"it cannot score rows of features: {one_line(error)}") from error
    if probabilities.shape != (len(rows), len(PROBABILITIES)):
        raise ModelMismatch(f"it gives {probabilities.shape[1:]} numbers a row, not {len(PROBABILITIES)} probabilities")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ModelMismatch("what it gives are no probabilities")


def load_bundled() -> "HealthForecaster":
    """The forecaster that ships with the package, trained on real histories of others; see docs/model-card.md.

    Raises:
        ModelMismatch: the file is not the one of this version.
    """
    from urlhealth.prediction.model_files import read_forecaster

    return read_forecaster(BUNDLED_FILE)


def load_version(tracking_uri: str, version: str) -> "HealthForecaster":
    """The forecaster of a registered version.

    Raises:
        ModelMismatch: it is none, or not what was registered, or not for this version's features.
        NotFound: it is not registered.
        StoreUnavailable: its files cannot be read.
    """
    from urlhealth.prediction.model_files import load_forecaster

    return read_version(tracking_uri, MODEL_NAME, version, load_forecaster)


def read_version(tracking_uri: str, name: str, version: str, read: Callable[[Path], Read]) -> Read:
    """What is read from the MLflow folder of a registered version.

    Raises:
        ModelMismatch: as `read` does; or its file is another than was registered.
        NotFound: it is not registered.
        StoreUnavailable: its files cannot be read.
    """
    import mlflow.artifacts
    from mlflow import MlflowClient

    from urlhealth.prediction.model_files import require_digest

    source = None
    with TemporaryDirectory(prefix="urlhealth-model-") as folder:
        try:
            # Not `models:/name/version`: MLflow would resolve that in a registry in the working folder, and make it.
            client = MlflowClient(tracking_uri=tracking_uri)
            source = client.get_model_version_download_uri(name, version)
            path = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=tracking_uri))
            require_digest(path, client.get_model_version(name, version).tags.get(DIGEST))
            return read(path)
        except ModelMismatch:
            raise
        except Exception as error:  # MLflow lets through whatever its back ends raise.
            if source is None and getattr(error, "error_code", None) in _ABSENT:
                raise NotFound(f"there is no version {version} of {name}") from error
            raise StoreUnavailable(redacted(f"its files cannot be read: {one_line(error)}")) from error


def champion_version(tracking_uri: str) -> "ModelVersion | None":
    """The version that should serve; None if there is none yet.

    Raises:
        StoreUnavailable: the registry cannot say.
    """
    return _aliased(tracking_uri, CHAMPION)


def alias_version(tracking_uri: str, alias: str, name: str = MODEL_NAME) -> str | None:
    """Number of the version with an alias; None if there is none. An SQLite registry is read without MLflow.

    Raises:
        StoreUnavailable: the registry cannot say.
    """
    if tracking_uri.startswith(_SQLITE):
        row = _peek(tracking_uri, _ALIAS, (name, alias))
        return None if row is None else str(row[0])
    registered = _aliased(tracking_uri, alias, name)
    return None if registered is None else str(registered.version)


def has_registry(tracking_uri: str) -> bool:
    """Whether there is one: MLflow would make an SQLite registry that it is only asked to read."""
    return not tracking_uri.startswith(_SQLITE) or Path(tracking_uri.removeprefix(_SQLITE)).exists()


def _aliased(tracking_uri: str, alias: str, name: str = MODEL_NAME) -> "ModelVersion | None":
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        client = MlflowClient(tracking_uri=tracking_uri)
        try:
            return client.get_model_version_by_alias(name, alias)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise
    except Exception as error:  # MLflow lets through whatever its back ends raise.
        raise unavailable(tracking_uri, error) from error


def unavailable(uri: str, error: object) -> StoreUnavailable:
    """What to raise when MLflow's store fails."""
    words = f"the MLflow store {uri} cannot be used: {one_line(error)}; see MLFLOW_TRACKING_URI and URLHEALTH_HOME"
    return StoreUnavailable(redacted(words))


def _peek(uri: str, query: str, values: tuple[str, ...]) -> tuple[Any, ...] | None:
    """The first row that MLflow's SQLite file has for a query, read without MLflow; None if there is none, or no file.

    MLflow makes and migrates the file when it opens it: that takes seconds, and would get in the way of a first
    training that does the same at that moment.
    """
    registry = Path(uri.removeprefix(_SQLITE))
    try:
        if not registry.exists():
            return None
        with closing(sqlite3.connect(f"{registry.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            row: tuple[Any, ...] | None = connection.execute(query, values).fetchone()
    except (sqlite3.DatabaseError, OSError) as error:
        code = getattr(error, "sqlite_errorcode", None)
        if code in (sqlite3.SQLITE_ERROR, sqlite3.SQLITE_BUSY):  # No tables yet, or busy: the next look will tell.
            return None
        raise unavailable(uri, error) from error
    return row
