"""Models of your own: binary classifiers of scikit-learn in the MLflow registry, on feature services of the Feast repo.

A registered model says with the tag `feature_service` which service it learnt from; then it is served by entity key
under its name, next to `url-health`: its features are read by the vector path, its trees compiled.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import numpy.typing as npt

from urlhealth.errors import ModelMismatch, NotFound, UrlHealthError, one_line
from urlhealth.prediction.batching import Gatherer
from urlhealth.prediction.champion import alias_version, has_registry, read_version
from urlhealth.prediction.versions import KEPT
from urlhealth.settings import Settings
from urlhealth.vocabulary import CHAMPION, NO_HORIZON, Forecasts, Freshness, Health

if TYPE_CHECKING:
    from feast import FeatureStore

    from urlhealth.feast_stores.arrays import ServiceReader, ViewArrays
    from urlhealth.prediction.compiled import Scorer

#: Tag of a registered model: the feature service that its features come from.
SERVICE_TAG: Final = "feature_service"
#: What such a model may be made of, beside what skops holds for harmless. Of these trees only the numbers are used:
#: scikit-learn's own code would follow them wherever they lead.
_TREES: Final = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",)

#: What is asked together at most.
_TOGETHER: Final = 256
#: Values by join key, and the instant of reading.
_Asked = tuple[Mapping[str, Sequence[Any]], int]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a model said of n entities."""

    #: Of the classifier's second class, float64 (n,); NaN where nothing is known.
    probability: npt.NDArray[np.float64]
    #: Words of :class:`Freshness`.
    status: list[str]


@dataclass(frozen=True, kw_only=True)
class ServiceModel:
    """A loaded version. Many threads may use one."""

    name: str
    version: str
    service: str
    #: Whose values say which entity is meant, and of which of Feast's types they are.
    join_keys: Mapping[str, str]
    _reader: "ServiceReader"
    _score: "Scorer"
    #: For each of the model's features, its column among those of the service; None if they are the same.
    _columns: npt.NDArray[np.intp] | None

    @cached_property
    def _gatherer(self) -> Gatherer[_Asked, Scores]:
        return Gatherer(partial(_together, self.score), fits=_fits)

    @property
    def is_near(self) -> bool:
        """Whether :meth:`score` waits for no other process."""
        return self._reader.is_embedded

    async def answer(self, entities: Mapping[str, Sequence[Any]], *, now_ms: int) -> Scores:
        """:meth:`score` in an event loop, for a few entities, together with what else is asked in this turn of it."""
        if len({*map(len, entities.values())}) != 1:
            return self.score(entities, now_ms=now_ms)  # says what is wrong; beside others it might come right
        return await self._gatherer.ask((entities, now_ms))

    def score(self, entities: Mapping[str, Sequence[Any]], *, now_ms: int) -> Scores:
        """Probabilities for entities, by what is stored of them.

        Args:
            entities: for each join key its n values.

        Raises:
            InvalidRequest: a join key is absent, has values of another type, or fewer than another.
            StoreUnavailable: the store cannot be read, or holds rows of another schema.
        """
        views = [*self._reader.read(entities, now_ms=now_ms).values()]
        missing, status = _status(views)
        matrices = [view.matrix() for view in views]
        X = matrices[0] if len(matrices) == 1 else np.hstack(matrices)
        probability = self._score(X if self._columns is None else X[:, self._columns])
        if missing.any():
            probability[missing] = np.nan
        return Scores(probability=probability, status=status)


def _fits(asked: Sequence[_Asked], other: _Asked) -> bool:
    count = sum(len(next(iter(entities.values()), ())) for entities, _ in (*asked, other))
    return other[0].keys() == asked[0][0].keys() and count <= _TOGETHER


def _together(score: Callable[..., Scores], asked: Sequence[_Asked]) -> list[Scores]:
    """The scores for each of several questions with the same join keys."""
    if len(asked) == 1:
        return [score(asked[0][0], now_ms=asked[0][1])]
    found = score(
        {key: [*chain.from_iterable(entities[key] for entities, _ in asked)] for key in asked[0][0]},
        now_ms=asked[-1][1],
    )
    ends = [*accumulate((len(next(iter(entities.values()))) for entities, _ in asked), initial=0)]
    return [
        Scores(probability=found.probability[start:end], status=found.status[start:end])
        for start, end in pairwise(ends)
    ]


def as_served(model: ServiceModel, entities: Mapping[str, Sequence[Any]], scores: Scores) -> Forecasts:
    """The scores as the served log has them: an entity is its values, a URL itself, so that it can be erased."""
    n = len(scores.status)
    texts = [*map(str, entities["url"])] if "url" in entities else _in_words(entities)
    return Forecasts(
        sent_urls=texts,
        targets=texts,
        horizons=(NO_HORIZON,),
        status=cast(list[Freshness], scores.status),
        health=[Health.UNKNOWN] * n,
        age_s=[None] * n,
        observed_ms=[None] * n,
        probabilities=scores.probability[:, None],
        model=model.name,
        model_version=model.version,
    )


def _in_words(entities: Mapping[str, Sequence[Any]]) -> list[str]:
    columns = [[f"{name}={value}" for value in values] for name, values in entities.items()]
    return columns[0] if len(columns) == 1 else [*map(",".join, zip(*columns, strict=True))]


class ServiceModels:
    """Loads such models when they are first asked for, and follows their alias `champion`."""

    def __init__(self, settings: Settings, *, feast: Callable[[], "FeatureStore"]) -> None:
        """`feast`: gives the repo, whose definitions are read when a model is loaded."""
        self._uri = settings.resolved_tracking_uri
        self._feast = feast
        #: By name and version; a version does not change.
        self._version = lru_cache(maxsize=KEPT)(self._load)
        self._lock = threading.Lock()
        self._champions: dict[str, ServiceModel] = {}
        #: Why a newer version of a model does not serve, by the model's name.
        self.problems: dict[str, str] = {}

    def loaded(self, name: str) -> ServiceModel | None:
        """The champion of this name, if it serves already."""
        return self._champions.get(name)

    def named(self, name: str, version: str | None = None) -> ServiceModel:
        """The champion of this name, or another version of it; loads it if need be.

        Raises:
            NotFound: there is none.
            ModelMismatch, StoreUnavailable: it cannot be loaded.
        """
        with self._lock:
            champion = self._champions.get(name)
            if version is None:
                if champion is None:
                    champion = self._champions[name] = self._version(name, self._champion_version(name))
                return champion
            return champion if champion is not None and champion.version == version else self._version(name, version)

    def refresh(self) -> None:
        """Replace the champions whose alias has moved. One that cannot be loaded leaves the old one serving."""
        for name, champion in list(self._champions.items()):
            try:
                version = self._champion_version(name)
                if version != champion.version:
                    self._champions[name] = self._version(name, version)
                    log.info("model %s version %s serves", name, version)
                self.problems.pop(name, None)
            except (UrlHealthError, OSError) as error:
                problem = one_line(error)
                if self.problems.get(name) != problem:
                    log.error("model %s: %s", name, problem)
                self.problems[name] = problem

    def _champion_version(self, name: str) -> str:
        version = alias_version(self._uri, CHAMPION, name) if has_registry(self._uri) else None
        if version is None:
            raise NotFound(
                f"there is no model {name[:80]!r} with a version that is called {CHAMPION} (an alias in MLflow)"
            )
        return version

    def _load(self, name: str, version: str) -> ServiceModel:
        service = self._service_of(name, version)
        classifier = read_version(self._uri, name, version, _read)
        if len(getattr(classifier, "classes_", ())) != 2 or not hasattr(classifier, "predict_proba"):
            raise ModelMismatch(
                f"model {name} version {version} is a {type(classifier).__name__}: a fitted classifier of two classes "
                "is wanted"
            )
        from feast.errors import FeastObjectNotFoundException

        from urlhealth.feast_stores.arrays import ServiceReader
        from urlhealth.prediction.compiled import scorer_of

        try:
            reader = ServiceReader(self._feast(), service)
        except FeastObjectNotFoundException as error:
            raise ModelMismatch(f"model {name}: {error}: run `feast apply`, or mend its tag {SERVICE_TAG}") from error
        try:
            columns = _columns(classifier, reader.features)
            vars(classifier).pop("feature_names_in_", None)  # It would warn at each matrix that has none.
            score = scorer_of(classifier)
        except UrlHealthError:
            raise
        except Exception as error:  # A model made elsewhere may fail in any way.
            raise ModelMismatch(f"model {name} version {version} cannot score: {one_line(error)}") from error
        return ServiceModel(
            name=name,
            version=version,
            service=service,
            join_keys=reader.join_keys,
            _reader=reader,
            _score=score,
            _columns=columns,
        )

    def _service_of(self, name: str, version: str) -> str:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        client = MlflowClient(tracking_uri=self._uri)
        try:
            tags = client.get_registered_model(name).tags | client.get_model_version(name, version).tags
        except MlflowException as error:
            raise NotFound(f"there is no version {version[:20]} of a model {name[:80]!r}") from error
        if SERVICE_TAG not in tags:
            raise ModelMismatch(
                f"model {name} does not say which features it takes: set its tag {SERVICE_TAG} to a feature service"
            )
        return str(tags[SERVICE_TAG])


def _status(views: "Sequence[ViewArrays]") -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Which entities no view knows; and of each its status, which is stale if any view's is not fresh."""
    fresh, missing = Freshness.FRESH.value, Freshness.MISSING.value
    unknown = np.logical_and.reduce([view.status == missing for view in views])
    if len(views) == 1:
        return unknown, views[0].status.tolist()
    all_fresh = np.logical_and.reduce([view.status == fresh for view in views])
    words = np.where(all_fresh, fresh, np.where(unknown, missing, Freshness.STALE.value))
    return unknown, words.tolist()


def _columns(classifier: Any, features: Sequence[tuple[str, str]]) -> npt.NDArray[np.intp] | None:
    """For each feature of a classifier its place among those of the service, (view, feature).

    Either of Feast's names will do: `feature` or `view__feature`.
    """
    wanted = getattr(classifier, "feature_names_in_", None)
    if wanted is None:
        if classifier.n_features_in_ != len(features):
            raise ModelMismatch(
                f"the model takes {classifier.n_features_in_} features, and the service has {len(features)}; fit it to "
                "a DataFrame with their names, if it is for some of them"
            )
        return None
    places: dict[str, int | None] = {}
    for place, (view, feature) in enumerate(features):
        places[feature] = None if feature in places else place  # None: two views have it
        places[f"{view}__{feature}"] = place
    found = [places.get(str(name)) for name in wanted]
    absent = [str(name) for name, place in zip(wanted, found, strict=True) if place is None]
    if absent:
        raise ModelMismatch(f"the service has no feature, or two of them, called {', '.join(absent[:5])}")
    columns = np.array(found, np.intp)
    return None if np.array_equal(columns, np.arange(len(features))) else columns


def _read(folder: Path) -> Any:
    """The classifier in a local MLflow model folder.

    Raises:
        ModelMismatch: it is none that may be loaded.
        OSError: it cannot be read (now).
    """
    import skops.io
    from sklearn.ensemble import HistGradientBoostingClassifier

    from urlhealth.prediction.model_files import read_skops, skops_file

    file = skops_file(folder)
    classifier = read_skops(file, trusted=_TREES)
    if not isinstance(classifier, HistGradientBoostingClassifier) and skops.io.get_untrusted_types(file=file):
        raise ModelMismatch(f"trees are taken from a HistGradientBoostingClassifier, not a {type(classifier).__name__}")
    return classifier
