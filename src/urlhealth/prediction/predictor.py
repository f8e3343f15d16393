"""URLs in, features and forecasts out: state from the online store, vectors at now, one call of the champion."""

from asyncio import wrap_future
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features import vector
from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, URL_STATE, VECTOR, describe
from urlhealth.features.columns import States, names
from urlhealth.prediction.ages import Ages
from urlhealth.prediction.batching import Batcher, Gatherer
from urlhealth.prediction.champion import Champion, ChampionWatch
from urlhealth.prediction.shown import ShownTargets
from urlhealth.prediction.stages import Stages
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import (
    HORIZONS,
    LOCAL_OWNER,
    Clock,
    FeatureVector,
    Forecasts,
    Freshness,
    Health,
    Reason,
    Target,
)

#: Reasons that a prediction carries at most.
REASONS = 3

#: URLs that are looked up together at most, if they come in several requests.
_TOGETHER: Final = 256
_STATUS: Final = (Freshness.FRESH, Freshness.STALE, Freshness.MISSING)
#: By what a state holds as `failing`.
_HEALTH: Final = {1: Health.DOWN, 0: Health.UP, -1: Health.UNKNOWN}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What the online store knows of n targets at one instant."""

    #: float32 (n, len(VECTOR))
    vectors: npt.NDArray[np.float32]
    #: bool (n,): those of which nothing is known.
    missing: npt.NDArray[np.bool_]
    status: list[Freshness]
    #: What the newest verdict said, and when its probe began (ms since 1970 UTC), and its age in seconds.
    health: list[Health]
    observed_ms: list[int | None]
    age_s: list[float | None]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Question:
    urls: Sequence[str]
    targets: Sequence[Target]
    horizons: Sequence[str]
    explain: bool
    model: Champion
    owner: str
    #: Whether the targets are as the owner may see them: looked up, and not just what the URLs say.
    shown: bool


class Predictor:
    """Answers for URLs as they were sent, in their order. Many threads may use one.

    One thread answers all requests: they would only wait for each other.
    """

    def __init__(
        self,
        *,
        crawl: CrawlStore,
        features: FeatureStores,
        champion: ChampionWatch,
        clock: Clock,
        known_for_s: float,
    ) -> None:
        self._features = features
        self._champion = champion
        self._clock = clock
        self._known_for_s = known_for_s
        self._shown = ShownTargets(crawl, clock)
        self._batcher: Batcher[_Question, Forecasts] = Batcher(self._answers, fits=_alike)
        self._gatherer: Gatherer[_Question, Forecasts] = Gatherer(self._answers, fits=_alike)
        #: How long the stages of requests took.
        self.stages = Stages()
        #: How old the states were that requests read.
        self.ages = Ages()

    def features(self, urls: Sequence[str], *, owner: str = LOCAL_OWNER) -> list[FeatureVector]:
        """The feature vector of each URL, now; nothing is known of those that the owner has no target of.

        Raises:
            InvalidUrls: naming the positions.
        """
        targets = parse_targets(urls)
        known = self._known(self._shown.look_up(urls, targets, owner), self.stages)
        self.ages.add(known.status, known.age_s)
        feature_names = names(VECTOR)
        return [
            FeatureVector(
                sent_url=url,
                target=target.key,
                status=status,
                age_s=age_s,
                observed_ms=observed_ms,
                values=None if observed_ms is None else dict(zip(feature_names, values, strict=True)),
            )
            for url, target, status, observed_ms, age_s, values in zip(
                urls, targets, known.status, known.observed_ms, known.age_s, known.vectors.tolist(), strict=True
            )
        ]

    def predict(
        self,
        urls: Sequence[str],
        *,
        horizons: Sequence[str],
        explain: bool = False,
        model: Champion | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Forecasts:
        """The forecast for each URL and horizon, by the champion or another model; nothing is known of URLs that the
        owner has no target of.

        Raises:
            InvalidUrls: naming the positions.
            InvalidRequest: an unknown horizon.
            NoModel: see :meth:`champion`.
        """
        return self._batcher.ask(self._question(urls, horizons, explain, model, owner)).result()

    async def answer(
        self,
        urls: Sequence[str],
        *,
        horizons: Sequence[str],
        explain: bool = False,
        model: Champion | None = None,
        owner: str = LOCAL_OWNER,
    ) -> Forecasts:
        """:meth:`predict` for an event loop. It waits for nothing itself, but computes what takes it a moment only."""
        question = self._question(urls, horizons, explain, model, owner)
        if question.shown and self._features.online_is_embedded and not explain and len(urls) <= _TOGETHER:
            return await self._gatherer.ask(question)
        return await wrap_future(self._batcher.ask(question))

    def predict_targets(
        self, targets: Sequence[Target], *, horizons: Sequence[str], model: Champion, explain: bool = False
    ) -> Forecasts:
        """The same for targets as they are stored."""
        stages = Stages()  # of what is no request, nobody asks
        known = self._known(targets, stages)
        probabilities = self._probabilities(known, model, stages)
        question = _Question(
            urls=[target.url for target in targets],
            targets=targets,
            horizons=horizons,
            explain=explain,
            model=model,
            owner="",
            shown=True,
        )
        return self._forecasts(question, known, probabilities, start=0)

    def forget_targets(self) -> None:
        """Look targets up again that were found before: some are no longer there."""
        self._shown.forget()

    def vectors(self, targets: Sequence[Target]) -> npt.NDArray[np.float32]:
        """The feature vector of each target, now, for no request: float32 (n, len(VECTOR)), NaN where not known."""
        return self._known(targets, Stages()).vectors

    def champion(self) -> Champion:
        """The model that serves now; raises as :meth:`ChampionWatch.serving` does."""
        return self._champion.serving()

    def _question(
        self, urls: Sequence[str], horizons: Sequence[str], explain: bool, model: Champion | None, owner: str
    ) -> _Question:
        unknown = [horizon for horizon in horizons if horizon not in HORIZONS]
        if unknown:
            raise InvalidRequest(f"unknown horizon {unknown[0]!r}: choose among {', '.join(HORIZONS)}")
        model = model or self.champion()
        with self.stages.timed("parse"):
            kept = self._shown.kept(urls, owner)
            targets = parse_targets(urls) if kept is None else kept
        return _Question(
            urls=urls,
            targets=targets,
            horizons=horizons,
            explain=explain,
            model=model,
            owner=owner,
            shown=kept is not None,
        )

    def _answers(self, questions: Sequence[_Question]) -> list[Forecasts]:
        """The forecasts for all of these, whose model and owner are the same: state, vectors and model once."""
        model, owner = questions[0].model, questions[0].owner
        targets = [target for question in questions for target in question.targets]
        if not all(question.shown for question in questions):
            urls = [url for question in questions for url in question.urls]
            targets = self._shown.look_up(urls, targets, owner)
        known = self._known(targets, self.stages)
        self.ages.add(known.status, known.age_s)
        probabilities = self._probabilities(known, model, self.stages)
        starts = accumulate((len(question.targets) for question in questions), initial=0)
        return [
            self._forecasts(question, known, probabilities, start=start)
            for question, start in zip(questions, starts, strict=False)
        ]

    @staticmethod
    def _probabilities(known: _Known, model: Champion, stages: Stages) -> npt.NDArray[np.float64]:
        with stages.timed("model"):
            probabilities = model.forecaster.predict_proba(known.vectors)
        probabilities[known.missing] = np.nan
        return probabilities

    def _forecasts(
        self, question: _Question, known: _Known, probabilities: npt.NDArray[np.float64], *, start: int
    ) -> Forecasts:
        """The forecasts for the question whose targets begin at `start`."""
        part = slice(start, start + len(question.targets))
        reasons = {}
        if question.explain:
            vectors, missing = known.vectors[part], known.missing[part].tolist()
            for horizon in question.horizons:
                found = self._reasons(question.model, vectors, horizon)
                reasons[horizon] = [() if nothing else of_it for nothing, of_it in zip(missing, found, strict=True)]
        return Forecasts(
            sent_urls=question.urls,
            targets=[target.key for target in question.targets],
            horizons=question.horizons,
            status=known.status[part],
            health=known.health[part],
            age_s=known.age_s[part],
            observed_ms=known.observed_ms[part],
            probabilities=probabilities[part],
            model=question.model.name,
            model_version=question.model.version,
            reasons=reasons,
        )

    @staticmethod
    def _reasons(model: Champion, vectors: npt.NDArray[np.float32], horizon: str) -> list[tuple[Reason, ...]]:
        contributions = model.forecaster.contributions(vectors, f"onset_{horizon}")
        top = np.argsort(-np.abs(contributions), axis=1)[:, :REASONS]
        return [
            tuple(
                Reason(
                    feature=VECTOR[j].name,
                    value=float(vectors[i, j]),
                    contribution=float(contributions[i, j]),
                    text=describe(int(j), float(vectors[i, j])),
                )
                for j in top[i]
                if contributions[i, j] != 0
            )
            for i in range(len(vectors))
        ]

    def _known(self, targets: Sequence[Target], stages: Stages) -> _Known:
        """What is known of targets, now."""
        now_ms = self._clock()
        with stages.timed("state"):
            urls = self._features.read(URL_STATE, [t.key for t in targets])
            states: Mapping[str, States] = {
                URL_STATE.name: urls.states,
                HOST_STATE.name: self._features.read(HOST_STATE, [t.host for t in targets]).states,
                GROUP_STATE.name: self._features.read(GROUP_STATE, [t.group for t in targets]).states,
            }
        with stages.timed("vector"):
            vectors = vector.at(states, np.full(len(targets), now_ms, dtype=np.int64), known_for_s=self._known_for_s)
        missing = urls.ts_ms == 0
        stale = now_ms - urls.states["known_ms"] > self._known_for_s * 1000
        # Health is that of the newest verdict; of one that is too old it is unknown.
        failing = np.where(missing | stale, -1, urls.states["failing"])
        observed_ms = urls.states["probed_ms"]
        age_s = ((now_ms - observed_ms) / 1000).tolist()
        nothing = missing.tolist()
        return _Known(
            vectors=vectors,
            missing=missing,
            status=[_STATUS[code] for code in np.where(missing, 2, stale).tolist()],
            health=[_HEALTH[code] for code in failing.tolist()],
            observed_ms=[None if no else ms for no, ms in zip(nothing, observed_ms.tolist(), strict=True)],
            age_s=[None if no else age for no, age in zip(nothing, age_s, strict=True)],
        )


def _alike(questions: Sequence[_Question], other: _Question) -> bool:
    """Whether a question can be answered together with these: for the same model and owner, and not too many URLs."""
    first = questions[0]
    count = sum(len(question.urls) for question in questions) + len(other.urls)
    return first.model is other.model and first.owner == other.owner and count <= _TOGETHER
