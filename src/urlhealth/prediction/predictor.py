"""URLs in, features and forecasts out: state from the online store, vectors at now, one call of the champion."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from urlhealth.crawl.store import CrawlStore
from urlhealth.errors import InvalidRequest
from urlhealth.feast_stores.stores import FeatureStores
from urlhealth.features import vector
from urlhealth.features.catalog import GROUP_STATE, HOST_STATE, URL_STATE, VECTOR, describe
from urlhealth.features.columns import States, names
from urlhealth.prediction.ages import Ages
from urlhealth.prediction.champion import Champion, ChampionWatch
from urlhealth.prediction.stages import Stages
from urlhealth.probing.urls import parse_targets
from urlhealth.vocabulary import (
    HORIZONS,
    LOCAL_OWNER,
    PROBABILITIES,
    Clock,
    FeatureVector,
    Freshness,
    Health,
    Prediction,
    Reason,
    Target,
)

#: Reasons that a prediction carries at most.
REASONS = 3

#: In place of a target that is none of the caller's: nothing is known of it.
_NOBODYS = Target(url="http://nobody.invalid/", host="nobody.invalid", group="nobody.invalid")

_HEALTH = {1: Health.DOWN, 0: Health.UP}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What the online store knows of n targets at one instant."""

    targets: Sequence[Target]
    now_ms: int
    url_states: States
    #: float32 (n, len(VECTOR))
    vectors: npt.NDArray[np.float32]
    freshness: list[Freshness]

    def observed(self) -> list[tuple[Freshness, Health, int | None, float | None]]:
        """Of each target: status, health, instant (ms since 1970 UTC) and age (s) of the newest probe."""
        rows = zip(
            self.freshness, self.url_states["failing"].tolist(), self.url_states["probed_ms"].tolist(), strict=True
        )
        return [
            (status, Health.UNKNOWN, None, None)
            if status is Freshness.MISSING
            else (
                status,
                _HEALTH.get(failing, Health.UNKNOWN) if status is Freshness.FRESH else Health.UNKNOWN,
                probed_ms,
                (self.now_ms - probed_ms) / 1000,
            )
            for status, failing, probed_ms in rows
        ]


class Predictor:
    """Answers for URLs as they were sent, in their order. Many threads may use one."""

    def __init__(
        self,
        *,
        crawl: CrawlStore,
        features: FeatureStores,
        champion: ChampionWatch,
        clock: Clock,
        known_for_s: float,
    ) -> None:
        self._crawl = crawl
        self._features = features
        self._champion = champion
        self._clock = clock
        self._known_for_s = known_for_s
        #: Requests take turns. Together they would take as long, and each would wait for the last.
        self._turn = threading.Lock()
        #: How long the stages of requests took.
        self.stages = Stages()
        #: How old the states were that requests read.
        self.ages = Ages()

    def features(self, urls: Sequence[str], *, owner: str = LOCAL_OWNER) -> list[FeatureVector]:
        """The feature vector of each URL, now; nothing is known of those that the owner has no target of.

        Raises:
            InvalidUrls: naming the positions.
        """
        targets, own = self._stored(parse_targets(urls), owner)
        known = self._known(targets, own, self.stages)
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
            for url, target, (status, _, observed_ms, age_s), values in zip(
                urls, known.targets, known.observed(), known.vectors.tolist(), strict=True
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
    ) -> list[Prediction]:
        """The forecast for each URL and horizon, URLs outermost, by the champion or another model; nothing is known of
        URLs that the owner has no target of.

        Raises:
            InvalidUrls: naming the positions.
            InvalidRequest: an unknown horizon.
            NoModel: see :meth:`champion`.
        """
        unknown = [horizon for horizon in horizons if horizon not in HORIZONS]
        if unknown:
            raise InvalidRequest(f"unknown horizon {unknown[0]!r}: choose among {', '.join(HORIZONS)}")
        model = model or self.champion()
        with self.stages.timed("parse"):
            parsed = parse_targets(urls)
        with self._turn:
            targets, own = self._stored(parsed, owner)
            return self._predict(urls, targets, horizons, model, explain=explain, own=own, stages=self.stages)

    def predict_targets(
        self, targets: Sequence[Target], *, horizons: Sequence[str], model: Champion, explain: bool = False
    ) -> list[Prediction]:
        """The same for targets as they are stored."""
        return self._predict([target.url for target in targets], targets, horizons, model, explain=explain, own=None)

    def champion(self) -> Champion:
        """The model that serves now; raises as :meth:`ChampionWatch.serving` does."""
        return self._champion.serving()

    def _predict(
        self,
        sent_urls: Sequence[str],
        targets: Sequence[Target],
        horizons: Sequence[str],
        model: Champion,
        *,
        explain: bool,
        own: Sequence[bool] | None,
        stages: Stages | None = None,
    ) -> list[Prediction]:
        if not targets:
            return []
        known = self._known(targets, own, stages)
        stages = stages or Stages()  # of what is no request, nobody asks
        with stages.timed("model"):
            probabilities = model.forecaster.predict_proba(known.vectors)
        by_horizon = []
        for horizon in horizons:
            onset, at_end = (PROBABILITIES.index(f"{kind}_{horizon}") for kind in ("onset", "failing"))
            by_horizon.append((horizon, probabilities[:, onset].tolist(), probabilities[:, at_end].tolist()))
        reasons = {horizon: self._reasons(model, known.vectors, horizon) for horizon in horizons} if explain else {}
        predictions = []
        for i, (sent_url, target, (status, health, observed_ms, age_s)) in enumerate(
            zip(sent_urls, targets, known.observed(), strict=True)
        ):
            missing, key = observed_ms is None, target.key
            for horizon, onset_values, at_end_values in by_horizon:
                predictions.append(
                    Prediction(
                        sent_url=sent_url,
                        target=key,
                        horizon=horizon,
                        probability=None if missing else onset_values[i],
                        probability_at_end=None if missing else at_end_values[i],
                        status=status,
                        health=health,
                        age_s=age_s,
                        observed_ms=observed_ms,
                        model=model.name,
                        model_version=model.version,
                        reasons=() if missing or not explain else reasons[horizon][i],
                    )
                )
        return predictions

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

    def _stored(self, targets: Sequence[Target], owner: str) -> tuple[list[Target], list[bool]]:
        """The targets with the groups that monitors or histories gave them (a parsed one only knows the domain), and
        which of them are the owner's.
        """
        stored = self._crawl.find_targets([target.key for target in targets], owner=owner)
        return [stored.get(t.key, t) for t in targets], [t.key in stored for t in targets]

    def _known(self, targets: Sequence[Target], own: Sequence[bool] | None, request: Stages | None) -> _Known:
        now_ms, stages = self._clock(), request or Stages()
        # Features are of the URL, whoever had it probed: those of others' targets are not looked at.
        shown = targets if own is None else [t if mine else _NOBODYS for t, mine in zip(targets, own, strict=True)]
        with stages.timed("state"):
            urls = self._features.read(URL_STATE, [t.key for t in shown])
            states: Mapping[str, States] = {
                URL_STATE.name: urls.states,
                HOST_STATE.name: self._features.read(HOST_STATE, [t.host for t in shown]).states,
                GROUP_STATE.name: self._features.read(GROUP_STATE, [t.group for t in shown]).states,
            }
        with stages.timed("vector"):
            vectors = vector.at(states, np.full(len(targets), now_ms, dtype=np.int64), known_for_s=self._known_for_s)
        age_s = (now_ms - urls.states["known_ms"]) / 1000
        freshness = [
            Freshness.MISSING if ts_ms == 0 else Freshness.STALE if age > self._known_for_s else Freshness.FRESH
            for ts_ms, age in zip(urls.ts_ms.tolist(), age_s.tolist(), strict=True)
        ]
        known = _Known(targets=targets, now_ms=now_ms, url_states=urls.states, vectors=vectors, freshness=freshness)
        if request is not None:
            self.ages.add(freshness, [age_s for _, _, _, age_s in known.observed() if age_s is not None])
        return known
